"""Comparison with dumps of the PyTorch original."""
