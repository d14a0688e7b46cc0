"""Inference, from photos to people: the jitted stages of a model and the host code around them."""
