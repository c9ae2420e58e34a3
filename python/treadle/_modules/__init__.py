"""Objects that people derive from or put together: modules, containers, random streams."""
