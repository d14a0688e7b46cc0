"""Inference: photos in, people out; jitted stages and what the host does around them."""
