"""What the inputs and outputs of an exported predictor mean, for a program that reads JSON."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from ktn_jax.body.parts import KEYPOINT_NAMES, PATCH_NAMES
from ktn_jax.results.categories import CATEGORY_NAMES, category_ids

_INPUTS = {
    "weights": "the arrays of the weights file by name; of a SavedModel they are its variables",
    "images": "RGB, 0 to 255, each in the top left corner of the canvas, zero beyond it",
    "image_size_hw": "height and width of each image in pixels of the canvas",
}
_OUTPUTS = {
    "boxes": "x0, y0, x1, y1 in pixels of the canvas, best person first, clipped to the image",
    "scores": "probability of the class",
    "classes": "number of the class, see categories",
    "is_valid": "whether the row holds somebody; all other arrays are zero in the other rows",
    "coarse_segm": "logits of background and person, or of background and 14 body parts",
    "fine_segm": "logits of background and 24 surface patches",
    "u": "U in the channel of the patch, 0 to 1 and a little beyond",
    "v": "V in the channel of the patch, 0 to 1 and a little beyond",
    "iuv": "patch (0 is background), 255 U and 255 V at the cells of the maps",
    "heatmaps": "logits of 17 keypoints",
    "mask": "probability that a cell is the person's",
    "embedding": "embedding of the surface point, to compare with those of the vertices",
    "sigma": "variance of U and V before the softplus",
    "kappa_u": "anisotropy of the residuals of U",
    "kappa_v": "anisotropy of the residuals of V",
    "fine_segm_confidence": "weight of the patches",
    "coarse_segm_confidence": "weight of person against background",
}
_MAPS = (
    "Maps cover their boxes: cell (row, column) of S x S is at ((column + .5) / S, (row + .5) / S) "
    "of the box. To read a pixel, interpolate bilinearly: first the logits, then choose the class, "
    "then read U and V in its channel."
)


def describe(
    config: ConfigDict, outputs: Mapping[str, jax.ShapeDtypeStruct], max_people: int
) -> dict[str, Any]:
    """Describes a program.

    Args:
        config: a whole configuration.
        outputs: shapes and types of what the program returns, by name.
        max_people: that it returns of an image.

    Returns:
        What JSON can hold.
    """
    from ktn_jax import __version__

    predictor, classes = config.model.predictor, int(config.model.box_head.num_classes)
    return {
        "model": config.name,
        "made_by": f"ktn_jax {__version__}, jax {jax.__version__}",
        "max_people": max_people,
        "inputs": {
            "weights": {"meaning": _INPUTS["weights"]},
            "images": _array("uint8", ("batch", "height", "width", 3), _INPUTS["images"]),
            "image_size_hw": _array("int32", ("batch", 2), _INPUTS["image_size_hw"]),
        },
        "outputs": {
            name: _array(str(x.dtype), ("batch", *x.shape[1:]), _OUTPUTS[name])
            for name, x in outputs.items()
        },
        "maps": _MAPS,
        "mask_threshold": predictor.mask_threshold,
        "person": "where the argmax of coarse_segm is not 0; with another mask_threshold than 0.5, "
        "where the softmax of coarse_segm is above it in channel 1",
        "preprocessing": {
            "colours": "RGB as the eye sees the photo: EXIF orientation applied, alpha dropped",
            "short_side": config.test.short_side,
            "max_side": config.test.max_side,
            "resize": "so that the short side is short_side, but the long one at most max_side; "
            "half pixels round up; Pillow's bilinear filter, which averages when it shrinks",
            "canvas": "the smallest (pixels) that holds the image; to photo pixels, multiply x by "
            "photo width / resized width and y by photo height / resized height",
        },
        "categories": [
            {"id": number, "name": CATEGORY_NAMES[number] if classes in (1, 80) else str(number)}
            for number in category_ids(classes)
        ],
        "patches": PATCH_NAMES,
        "keypoints": KEYPOINT_NAMES,
    }


def _array(dtype: str, shape: tuple[Any, ...], meaning: str) -> dict[str, Any]:
    sizes = [size if isinstance(size, str) else int(size) for size in shape]
    return {"dtype": dtype, "shape": sizes, "meaning": meaning}
