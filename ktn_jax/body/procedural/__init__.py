"""The procedural body: skeleton, skin, charts, shapes and poses, computed without data."""
