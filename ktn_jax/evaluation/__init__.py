"""DensePose-COCO scores: GPS, GPSm and mask IoU, boxes, masks, keypoints and error per patch.

NumPy, SciPy, Pillow and pycocotools only, so that results can be scored where there is no JAX.
Start at `evaluator.evaluate_files`.
"""
