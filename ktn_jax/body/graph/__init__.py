"""The commonsense graph between surface parts, keypoints and coarse parts."""
