"""Rendered people with exact dense truth: scenes, the renderer, labels and files."""
