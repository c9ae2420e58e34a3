"""Adapters: one module for each library whose objects treadle takes as its own."""
