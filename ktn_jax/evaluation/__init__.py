"""DensePose evaluation: GPS, GPSm and COCO-style average precision."""
