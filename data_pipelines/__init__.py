"""DensePose-COCO annotations, synthetic people, and the batches that training reads."""
