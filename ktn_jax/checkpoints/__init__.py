"""Weights on disk: PyTorch's, detectron2's and our own files, and the table of their names."""
