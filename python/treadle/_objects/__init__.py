"""Variables, and how objects of each type take part in a graph."""
