"""DensePose-COCO annotations: the reader, its checks, run lengths, and pictures of them."""
