"""Multi-person DensePose in JAX: from a photo to the body-surface point of every person-pixel."""

__version__ = "0.1.0"
