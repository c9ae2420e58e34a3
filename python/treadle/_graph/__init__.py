"""Functions of whole graphs, and the States that their leaves make."""
