"""COCO's categories: what the classes of a detector stand for in results."""

PERSON_CATEGORY = 1  # COCO's id

_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
    *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella"),
    *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote"),
    *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
    *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
# Ids 1 to 90 that have no boxes in the dataset.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_IDS = tuple(number for number in range(1, 91) if number not in _UNUSED_IDS)

CATEGORY_NAMES = dict(zip(_IDS, _NAMES, strict=True))
"""Names of COCO's 80 categories by id."""


def category_ids(num_classes: int) -> tuple[int, ...]:
    """The category id of each class of a detector.

    Args:
        num_classes: without the background.

    Returns:
        COCO's ids for 80 classes, in detectron2's order; else 1 (person), 2, 3, ...
    """
    return _IDS if num_classes == len(_IDS) else tuple(range(1, num_classes + 1))
