"""The body as data: parts, charts, surface and the procedural body. NumPy only."""
