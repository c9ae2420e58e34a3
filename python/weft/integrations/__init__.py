"""Adapters: one module for each library whose objects weft takes as its own."""
