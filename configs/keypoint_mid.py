"""Keypoints with the multi-instance decoder, what KTN starts from: `keypoint_mid:r50`.

Variants: r50, x101, hrnet_w32, hrnet_w48, ktm_only (on the plain pyramid, without the decoder), and
of rendered people tiny, demo and demo_gpu. They have the parameters of the same variants of
`configs/ktn.py`:

    ktn train --config keypoint_mid:r50 --workdir K --weights R-50.pkl
    ktn train --config ktn:r50 --workdir W --weights K

trains keypoints from ImageNet weights, then surfaces from the result. All people with keypoints are
trained on, not only those with surface points; the surface outputs and the knowledge transfer keep
their initial values.
"""

from ml_collections import ConfigDict

from ktn_jax.configs import ktn

RENDERED = ("tiny", "demo", "demo_gpu")
VARIANTS = ("r50", "x101", "hrnet_w32", "hrnet_w48", "ktm_only", *RENDERED)


def get_config(variant: str = "r50") -> ConfigDict:
    """Returns one of the variants.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: one of {list(VARIANTS)}")
    config = ktn.get_config(variant)
    config.name = f"keypoint_mid_{variant}"
    config.loss.densepose_people_only = False
    config.loss.point_weight = 0.0
    config.loss.fine_segm_weight = 0.0
    config.loss.coarse_segm_weight = 0.0
    config.loss.body_mask_weight = 0.0
    config.loss.keypoint_weight = 1.0  # the only loss of its branch, as in Keypoint R-CNN
    # Without a loss they would only shrink under weight decay.
    config.optimizer.frozen += ("predictor/transfer/", "predictor/(u|v|mask|coarse)_")
    if variant not in RENDERED:
        config.data.annotations = ("data/coco/annotations/person_keypoints_train2017.json",)
        config.data.images = ("data/coco/train2017",)
        config.data.symmetry = ""
        config.data.on_bad = "skip"
    return config
