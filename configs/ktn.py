"""Knowledge Transfer Networks: `--config ktn:r50`.

Variants: r50, x101, hrnet_w32 and hrnet_w48 (KTNv2 with MID and KTM), v1_r50, v1_x101,
v1_hrnet_w32 and v1_hrnet_w48 (KTN's first version), mid_only (MID, a surface classifier of its
own), ktm_only (KTM on the plain pyramid), cascade (r50 with a keypoint branch beside it, in two
stages that read each other's predictions), tiny (small enough for tests), demo (learns rendered
people in minutes on a CPU), demo_gpu (the same people, a larger model) and small (several people of
any size and pose, hours on a CPU).

KTN starts from a model trained on COCO's keypoints with the same decoder, which starts from
ImageNet:

    ktn train --config keypoint_mid:r50 --workdir K --weights R-50.pkl
    ktn train --config ktn:r50 --workdir W --weights K

The surface classifier's knowledge transfer, which pre-training does not train, starts at its
initial value, and the body graph from `training.graph`.
"""

from ml_collections import ConfigDict

from ktn_jax.configs import base

VARIANTS = (
    *("r50", "x101", "hrnet_w32", "hrnet_w48"),
    *("v1_r50", "v1_x101", "v1_hrnet_w32", "v1_hrnet_w48"),
    *("mid_only", "ktm_only", "cascade", "tiny", "demo", "demo_gpu", "small"),
)


def get_config(variant: str = "r50") -> ConfigDict:
    """Returns one of the variants.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: one of {list(VARIANTS)}")
    config = base.get_config()
    config.name = f"ktn_{variant}"
    config.model.predictor.mask_threshold = 0.3
    config.loss.densepose_iou_threshold = 0.65
    if variant.startswith("v1_"):
        _use_first_version(config)
    else:
        _use_second_version(config, variant)
    if "hrnet" in variant:
        base.use_hrnet(config, width=int(variant[-2:]))
    if variant.endswith("x101"):
        _use_resnext(config.model)
    if variant == "tiny":
        shrink(config)
    if variant in ("demo", "demo_gpu", "small"):
        fit_rendered_people(config)
    if variant == "small":
        _fit_many_people(config)
    if variant == "demo_gpu":
        _enlarge(config)
    return config


def _use_first_version(config: ConfigDict) -> None:
    config.model.predictor.name = "ktn_first"
    config.loss.keypoint_weight = 0.05
    # Nothing reads the learnt classifier: the synthesised one takes its place.
    config.optimizer.frozen = ("predictor/fine_",)


def _use_second_version(config: ConfigDict, variant: str) -> None:
    model = config.model
    model.decoder.name = "none" if variant == "ktm_only" else "multi_instance"
    model.densepose_head.name = "ktn"
    model.densepose_head.norm = "GN"
    model.predictor.name = "chart" if variant == "mid_only" else "ktn"
    config.loss.coarse_segm_weight = 2.0
    if variant == "cascade":
        model.tasks = ("densepose", "keypoints")
        model.cascade.num_stages = 2
    if variant in ("x101", "hrnet_w32", "hrnet_w48"):
        model.predictor.name = "ktn_auxiliary"
        # Nothing reads the auxiliary classifier: the original leaves it without a gradient.
        config.optimizer.frozen = ("predictor/auxiliary_",)


def _use_resnext(model: ConfigDict) -> None:
    """ResNeXt-101 32x8d with the normalisation of its ImageNet weights."""
    model.backbone.depth = 101
    model.backbone.groups, model.backbone.width = 32, 32 * 8
    model.backbone.stride_in_1x1 = False
    model.pixel_std_bgr = (57.375, 57.12, 58.395)


def shrink(config: ConfigDict) -> None:
    """Cuts widths, depths and image sizes; the structure stays. Trains from scratch."""
    model = config.model
    model.backbone.norm = "BN"
    model.backbone.freeze_at = 0
    model.backbone.num_blocks = (1, 1, 1, 1)
    model.backbone.stem_channels = 16
    model.backbone.width = 16
    model.backbone.res2_channels = 64
    model.neck.channels = model.decoder.channels = model.decoder.out_channels = 64
    model.box_head.hidden_features = 128
    model.box_head.max_detections = 20
    model.rpn.pre_nms_top_k_test = model.rpn.post_nms_top_k_test = 200
    model.densepose_head.channels = 64
    model.densepose_head.num_convs = 2
    model.densepose_head.pooled_size = 14
    # As many cells of a level for 14 bins as the full model has for 28.
    model.densepose_head.canonical_box_size = 112
    model.rpn.pre_nms_top_k_train = model.rpn.post_nms_top_k_train = 200
    model.rpn.batch_size_per_image = model.box_head.batch_size_per_image = 64
    config.loss.densepose_rois_per_image = 8
    config.test.short_side, config.test.max_side = 256, 384
    config.test.size_buckets = ((256, 256), (256, 384), (384, 256))
    config.test.augmentation.short_sides, config.test.augmentation.max_side = (192, 256, 320), 480
    config.total_steps, config.batch_size, config.checkpoint_every = 200, 4, 50
    config.optimizer.decay_steps = (150, 180)
    config.optimizer.warmup_steps = 20
    config.optimizer.clip = "global_norm"  # from scratch the first gradients are large
    config.optimizer.clip_value = 5.0
    config.training.log_every = 10
    config.data.source = "synthetic"
    config.data.max_people, config.data.workers = 4, 2
    config.data.short_sides, config.data.max_long_side = (128,), 192
    config.data.aspect_limits, config.data.canvas_levels = (1.0,), 1
    config.data.flip_probability = 0.0
    config.data.synthetic.num_images, config.data.synthetic.keep = 64, True
    config.data.synthetic.image_size_hw = (128, 128)
    config.data.synthetic.people_range = (1, 2)


def fit_rendered_people(config: ConfigDict) -> None:
    """For one or two large people at 128 x 128 pixels, learnt from scratch on two CPU cores."""
    side = 128  # of the network input; pictures are rendered larger
    model = config.model
    model.pixel_std_bgr = (57.375, 57.12, 58.395)
    model.backbone.norm = "BN"
    model.backbone.freeze_at = 0
    model.backbone.stride_in_1x1 = False
    model.backbone.num_blocks = (1, 1, 2, 1)
    model.backbone.stem_channels, model.backbone.width = 16, 32
    model.backbone.res2_channels = 64
    model.neck.channels = model.decoder.out_channels = 64
    model.decoder.channels = 32
    # People are 70 to 120 pixels high, most of them a third to a half as wide.
    model.rpn.anchor_sizes = ((20,), (32,), (52,), (76,), (104,))
    model.rpn.aspect_ratios = (1.0, 1.8, 3.0)
    model.rpn.batch_size_per_image = 64
    model.rpn.pre_nms_top_k_train = model.rpn.pre_nms_top_k_test = 100
    model.rpn.post_nms_top_k_train = model.rpn.post_nms_top_k_test = 64
    model.box_head.hidden_features = 128
    model.box_head.batch_size_per_image = 32
    model.box_head.max_detections = 10
    model.box_head.aligned = model.densepose_head.aligned = True
    model.densepose_head.channels = 64
    model.densepose_head.num_convs = 2
    model.densepose_head.pooled_size = 14
    model.densepose_head.canonical_box_size = 112
    # Maps of 28 x 28: four pixels of the largest people. Twice the side costs half a step.
    model.predictor.up_scale = 1
    config.loss.densepose_rois_per_image = 2
    # Which patch a point is on is what takes longest to learn; masks come early.
    config.loss.fine_segm_weight, config.loss.body_mask_weight = 3.0, 2.5
    config.loss.point_weight = 0.03  # U and V would hardly be learnt in the time otherwise
    config.optimizer.name, config.optimizer.full_rate_inputs = "adam", 256
    config.optimizer.learning_rate = 3e-3
    # The first gradients are many times the later ones: forget them soon.
    config.optimizer.second_momentum = 0.99
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip, config.optimizer.clip_value = "global_norm", 5.0
    config.total_steps, config.batch_size, config.checkpoint_every = 1200, 6, 200
    config.training.log_every, config.training.keep_last = 10, 1
    config.test.short_side = config.test.max_side = side
    config.test.size_buckets = ((side, side),)
    config.test.batch_size = 8
    data = config.data
    data.source, data.workers = "synthetic", 2
    data.max_people = 2
    data.short_sides, data.max_long_side = (side,), side
    data.aspect_limits, data.canvas_levels = (1.0,), 1
    data.flip_probability = 0.0  # no picture is seen often enough to need it
    data.synthetic.preset, data.synthetic.keep = "frontal", True
    data.synthetic.num_images, data.synthetic.people_range = 2000, (1, 2)
    data.synthetic.image_size_hw = (160, 160)


def _fit_many_people(config: ConfigDict) -> None:
    """For up to four people of any size and pose at 256 x 256 pixels, after `ktn:demo`."""
    side = 256
    model = config.model
    model.backbone.num_blocks = (1, 2, 2, 1)
    model.rpn.anchor_sizes = ((24,), (48,), (84,), (132,), (200,))
    model.rpn.aspect_ratios = (0.6, 1.2, 2.4)  # lying, sitting, standing
    model.rpn.batch_size_per_image = 128
    model.rpn.pre_nms_top_k_train = model.rpn.pre_nms_top_k_test = 200
    model.rpn.post_nms_top_k_train = model.rpn.post_nms_top_k_test = 128
    model.box_head.batch_size_per_image = 48
    model.box_head.max_detections = 20
    config.loss.densepose_rois_per_image = 4
    config.loss.densepose_people_only = False
    config.optimizer.warmup_steps = 200
    config.optimizer.learning_rate = 2e-3
    config.optimizer.ema_decay = 0.999
    config.total_steps, config.batch_size, config.checkpoint_every = 12_000, 4, 500
    config.test.short_side = config.test.max_side = side
    config.test.size_buckets = ((side, side),)
    data = config.data
    data.max_people = 5  # four, and a far crowd
    data.short_sides, data.max_long_side = (side,), side
    data.flip_probability, data.zoom_range = 0.5, (0.8, 1.25)
    # Rendered while training, by a process of its own: no picture is seen twice for hours.
    data.loader, data.workers = "processes", 1
    data.synthetic.preset, data.synthetic.keep = "everyday", False
    data.synthetic.num_images, data.synthetic.people_range = 50_000, (1, 4)
    data.synthetic.image_size_hw = (side, side)


def _enlarge(config: ConfigDict) -> None:
    """Sets widths, picture sizes and steps for a GPU."""
    model = config.model
    model.backbone.num_blocks = (3, 4, 6, 3)
    model.backbone.stem_channels, model.backbone.width = 32, 64
    model.backbone.res2_channels = 256
    model.neck.channels = model.decoder.channels = model.decoder.out_channels = 128
    model.box_head.hidden_features = 256
    model.densepose_head.channels, model.densepose_head.num_convs = 128, 4
    model.predictor.up_scale = 2
    config.total_steps, config.batch_size, config.checkpoint_every = 4000, 16, 1000
    config.optimizer.warmup_steps = 200
    config.data.workers = 8
    config.data.synthetic.num_images = 6000
