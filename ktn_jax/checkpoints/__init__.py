"""Weights on disk: files of other systems and our own, and how their names and layouts differ."""
