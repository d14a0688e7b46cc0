"""DensePose-COCO annotations, synthetic people and tf.data pipelines."""
