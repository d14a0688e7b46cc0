"""Flax modules of the detector."""
