"""The teacher that fills in what was not annotated: `--config teacher:r50`.

Variants: r50, r101, hrnet_w32; tiny (small enough for tests) and demo (learns rendered people on a
CPU in minutes). It learns from the points and part masks of annotated people, and then labels all
of their pixels:

    ktn train --config teacher:r50 --workdir T --weights R-50.pkl
    ktn data inpaint --config teacher:r50 --weights T --annotations a.json --images photos \
        --output b.json

`loss.fine_segm_weight` is that of the patch, `loss.point_weight` that of U and V at the points,
`loss.coarse_segm_weight` that of the 15 coarse parts: all as in the detector, whose ROI is the crop
here. `model.sees_parts` shows the part masks to the network as well: they are annotations of the
very people that it labels.
"""

from ml_collections import ConfigDict

from ktn_jax.configs import base, ktn

VARIANTS = ("r50", "r101", "hrnet_w32", "tiny", "demo")


def get_config(variant: str = "r50") -> ConfigDict:
    """Returns one of the variants.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: one of {list(VARIANTS)}")
    config = ktn.get_config(variant) if variant in ("tiny", "demo") else base.get_config()
    config.name = f"teacher_{variant}"
    model, data, test = config.model, config.data, config.test
    model.kind = "teacher"
    model.decoder.name = "panoptic"
    model.densepose_head.name = "conv_stack"
    model.predictor.name = "chart"
    model.predictor.num_coarse_channels = 15
    model.predictor.mask_threshold = 0.5
    model.predictor.up_scale = 1  # two pixels of the crop to a cell
    # One crop is one ROI: U and V of a batch are as many points as of a detector's few people.
    config.loss.point_weight = 0.05
    config.loss.coarse_segm_weight = 1.0
    config.loss.body_mask_weight = base.get_config().loss.body_mask_weight
    data.max_people = 1
    data.flip_probability = 0.5
    data.max_rotation_degrees = 20.0
    data.zoom_range = (0.8, 1.2)
    data.colour_jitter = 0.3
    if variant in ("tiny", "demo"):
        _fit_rendered_people(config, variant)
        return config
    model.densepose_head.num_convs = 4
    model.densepose_head.channels = 256
    model.decoder.norm = model.densepose_head.norm = "GN"
    data.person_crops.size_hw = (320, 256)
    test.crop_sizes_hw = ((256, 192), (320, 256), (416, 320))
    test.batch_size = 16
    config.batch_size = 32
    config.total_steps, config.optimizer.decay_steps = 60_000, (40_000, 55_000)
    if variant == "r101":
        model.backbone.depth = 101
    if variant == "hrnet_w32":
        base.use_hrnet(config, width=32)
    return config


def _fit_rendered_people(config: ConfigDict, variant: str) -> None:
    """Crops, views and steps for `ktn:tiny` and `ktn:demo`, whose widths and solver stay."""
    model, data, test = config.model, config.data, config.test
    model.sees_parts = True
    model.densepose_head.norm = ""
    data.source = "synthetic"
    if variant == "tiny":
        data.person_crops.size_hw = (64, 64)
        test.crop_sizes_hw = ((64, 64), (96, 64))
        test.batch_size = 4
        return
    data.person_crops.size_hw = (160, 128)
    test.crop_sizes_hw = ((160, 128), (192, 160))
    test.batch_size = 16
    config.batch_size = 8
    # With the parts in sight the patch is soon right, and where on it takes longest.
    config.loss.fine_segm_weight, config.loss.point_weight = 1.0, 0.06
    # As good as L1: the slope of a square fades where the error is still two pixels of a chart.
    config.loss.point_smooth_l1_beta = 0.02
