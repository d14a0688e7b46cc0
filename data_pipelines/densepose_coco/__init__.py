"""The TFDS dataset `densepose_coco`; importing the builder registers it."""
