"""Every key of a configuration, with what it means; variants change values, never add keys.

Those of `config.model` are in `base_model.py`.
"""

from ml_collections import ConfigDict

from ktn_jax.configs import base_model


def get_config() -> ConfigDict:
    """Returns the configuration that the others start from: detectron2's DensePose R50-FPN."""
    config = ConfigDict()
    config.name = "base"
    config.total_steps = 130_000
    config.batch_size = 16  # images per step, on all devices together
    config.checkpoint_every = 5_000  # steps
    config.seed = 0  # of initial weights, sampling and the order of the images
    config.model = base_model.get_model()
    config.loss = _loss()
    config.optimizer = _optimizer()
    config.training = _training()
    config.data = _data()
    config.test = _test()
    return config


def use_hrnet(config: ConfigDict, width: int) -> None:
    """Sets HRNet of a width, the channels of its finest branch, as backbone, and its solver."""
    backbone = config.model.backbone
    backbone.name, backbone.norm, backbone.freeze_at = "hrnet", "BN", 0
    channels = tuple(width * 2**branch for branch in range(4))
    backbone.hrnet_channels = tuple(channels[:branches] for branches in (2, 3, 4))
    config.optimizer.learning_rate = 0.03
    config.optimizer.clip = "norm"


def _loss() -> ConfigDict:
    loss = ConfigDict()
    loss.rpn_weight = 1.0  # of both losses, objectness and deltas
    loss.rpn_delta_weight = 1.0  # of the deltas, times rpn_weight
    loss.rpn_smooth_l1_beta = 0.0  # 0 is L1
    loss.box_delta_weight = 1.0
    loss.box_smooth_l1_beta = 0.0
    # U and V are summed over points, not averaged. The weight was tuned for the sum over the 4
    # images of a device: the sum is scaled by images_per_device / (images of the global batch), so
    # that the gradient depends neither on the batch size nor on the number of devices.
    loss.point_weight = 0.01
    loss.point_smooth_l1_beta = 1.0  # as PyTorch's; U and V are within [0, 1]
    loss.images_per_device = 4
    loss.fine_segm_weight = 1.0  # surface patches, mean over points
    # Of what a model set instead of an annotator. Points weigh this times their confidence; parts
    # and masks of people without an annotator's points weigh as their surest point.
    loss.dense_weight = 1.0
    loss.coarse_segm_weight = 5.0  # the chart predictor's coarse map or KTN's 15 parts, mean
    loss.body_mask_weight = 5.0  # KTN's body mask, mean over cells
    loss.keypoint_weight = 0.1  # of KTN's heatmaps
    loss.keypoint_head_weight = 1.0  # of the keypoint head's
    loss.mask_weight = 1.0  # of the mask head, mean over cells
    loss.normalise_keypoints_by_visible = True  # else by ROIs that could have been sampled
    loss.min_uv_variance = 0.01  # of the confidence models
    # Train person against background with instance masks instead of dp_masks, and with people who
    # have no DensePose (detectron2's COARSE_SEGM_TRAINED_BY_MASKS). For models with 2 coarse
    # channels.
    loss.coarse_segm_from_masks = False
    loss.embedding = _embedding_loss()
    loss.pixel_cycle = _pixel_cycle_loss()
    loss.shape_cycle = _shape_cycle_loss()
    # ROIs that train the DensePose branch: foreground whose IoU with its person is above this.
    loss.densepose_iou_threshold = 0.7
    # Their number in each image. Where more qualify, a weighted random subset represents all.
    loss.densepose_rois_per_image = 32
    # The same for the keypoint head (foreground with a visible keypoint) and the mask head (all of
    # the foreground whose people have a mask).
    loss.keypoint_rois_per_image = 32
    loss.mask_rois_per_image = 32
    # With model.cascade.num_stages above 1 the branches share their ROIs: those that any of them
    # may train on, the largest of these three numbers an image.
    loss.stage_weights = ()  # of the stages' losses, one for each; () for 1 each
    # True, as in the original: only people with DensePose train keypoints. False: all people with
    # keypoints do.
    loss.densepose_people_only = True
    # The original convolves the padding of a batch as if it were image. True computes every image
    # as if it were padded on its own, as inference does.
    loss.ignore_padding = False
    return loss


def _embedding_loss() -> ConfigDict:
    """Of predictor.name "embedding": cross-entropy of the vertex at annotated points."""
    loss = ConfigDict()
    loss.weight = 0.6
    loss.sigma = 0.01  # logits are the negative squared distances of embeddings over this
    # Targets: the annotated vertex alone, or all with the softmax of their negative geodesic
    # distances from it over geodesic_sigma.
    loss.has_soft_targets = False
    loss.geodesic_sigma = 0.01
    loss.matmul_dtype = "float32"  # of pixels x vertices; bfloat16 rounds the factors
    return loss


def _pixel_cycle_loss() -> ConfigDict:
    """From pixels to vertices and back: far pixels must not be mistaken for each other."""
    loss = ConfigDict()
    loss.weight = 0.0  # 0 is off; detectron2's is 1e-4. Needs person masks
    loss.norm = 2
    loss.has_all_meshes = False  # also those that nobody in the batch has
    loss.num_pixels = 100  # that are sampled in each ROI
    loss.vertex_temperature = 0.05  # from pixels to vertices
    loss.pixel_temperature = 0.05  # and back
    return loss


def _shape_cycle_loss() -> ConfigDict:
    """From the vertices of one mesh to those of another and back, a random pair in each step."""
    loss = ConfigDict()
    loss.weight = 0.0  # 0 is off; detectron2's is 0.025. Needs geodesic distances
    loss.norm = 2
    loss.temperature = 0.05
    loss.max_vertices = 4936  # of a mesh; of larger ones that many are sampled
    return loss


def _optimizer() -> ConfigDict:
    """SGD with momentum. Rates and steps are for batches of 16 images."""
    optimizer = ConfigDict()
    optimizer.name = "sgd"  # or adam, with decoupled weight decay, for short runs from scratch
    optimizer.second_momentum = 0.999  # of adam: beta2, for the squares of gradients
    # Of adam: kernels with more inputs than this have a proportionally lower rate; 0 turns it off.
    optimizer.full_rate_inputs = 0
    optimizer.learning_rate = 0.01
    # Batch size that the rate is for: of other batches it is proportional to their size. 0 leaves
    # it as it is. Warm-up and decay steps do not follow.
    optimizer.reference_batch = 0
    optimizer.momentum = 0.9
    optimizer.nesterov = False
    optimizer.weight_decay = 1e-4
    # Of all biases, those of norms too; below 0 they take weight_decay, those of norms
    # weight_decay_norm.
    optimizer.weight_decay_bias = -1.0
    optimizer.weight_decay_norm = 0.0  # scale and bias of norms
    optimizer.schedule = "multi_step"  # or cosine, to 0 at total_steps
    optimizer.decay_steps = (100_000, 120_000)  # of multi_step; they do not follow total_steps
    optimizer.decay_factor = 0.1
    optimizer.warmup_steps = 1_000  # of a linear warm-up to the schedule's value at its end
    optimizer.warmup_factor = 0.1  # share of the learning rate at step 0
    # Of gradients: none, value (of each number), norm (of each parameter, as detectron2), or
    # global_norm (of all parameters together).
    optimizer.clip = "none"
    optimizer.clip_value = 1.0
    # Parameters that do not train: regular expressions that match the start of a path, such as
    # "box_head/". Frozen norms and backbone.freeze_at need none.
    optimizer.frozen = ()
    # Factors of the learning rate of some parameters: pairs of such an expression and a number.
    # The first that matches counts.
    optimizer.rate_factors = ()
    optimizer.ema_decay = 0.0  # of an average of the parameters, which is exported; 0 keeps none
    return optimizer


def _training() -> ConfigDict:
    training = ConfigDict()
    training.weights = ""  # file, folder or address to start from; --weights is the same
    # Parameters that are drawn anew, not taken from there: regular expressions as those of
    # optimizer.frozen. "predictor/transfer/edges_" takes the graph that is named here.
    training.redraw = ()
    # Initial body graph of knowledge transfer: a .npz file, "default" for the structure of the
    # body and constants that come with the package, "centred" for the same without what all
    # patches have in common, or "noise".
    training.graph = "default"
    # What the vertices of each of model.meshes.names start from, where the weights do not have
    # them: "" for random numbers, "laplacian" for features that are smooth on the mesh, or a file
    # or https address (.pkl as detectron2's INIT_FILE, or .npz) with features and embeddings.
    # () for random numbers everywhere.
    training.vertex_init = ()
    training.log_every = 20  # steps
    training.keep_last = 3  # checkpoints; the best one stays too
    # Steps between two evaluations on data.evaluation while training; 0 for none. A checkpoint is
    # saved with each, and that of the highest best_metric (box, GPS or GPSm, all average precision)
    # is the best one; without scores that of the lowest training loss.
    training.evaluate_every = 0
    training.best_metric = "GPSm"
    training.num_devices = 0  # 0 for all
    # Split over the devices: none of the parameters; transfer, the knowledge transfer network; or
    # all, and what the optimizer keeps of them.
    training.shard = "none"
    # Run the images of each device in as many parts, one after the other: less memory, the same
    # losses and gradients. Batch norms take their moments over a part (of all devices).
    training.accumulate = 1
    # Steps to write a trace of, FIRST:LAST counted from 0, such as 10:15 for five; empty for none.
    training.profile_steps = ""
    training.remat = False  # compute maps inside of blocks again for gradients: less memory
    training.winograd = True  # as test.winograd; gradients too
    return training


def _data() -> ConfigDict:
    data = ConfigDict()
    data.source = "densepose_coco"  # annotation files as they are; or tfds, or synthetic
    data.annotations = (  # DensePose-COCO or COCO keypoint files, one after the other
        "data/coco/annotations/densepose_train2014.json",
        "data/coco/annotations/densepose_valminusminival2014.json",
    )
    data.images = ("data/coco/train2014", "data/coco/val2014")  # the folder of each
    # How often an epoch has the images of each file (or split of tfds); () for once. 0.25 takes a
    # quarter of them, another one in every epoch, 3 takes each three times.
    data.weights = ()
    # UV_symmetry_transforms.mat: U and V of mirrored points. Needed to flip real annotations;
    # synthetic people need no file.
    data.symmetry = "data/densepose/UV_symmetry_transforms.mat"
    # Names of the annotation files' categories, in the order of model.box_head.num_classes.
    data.categories = ("person",)
    data.on_bad = "raise"  # at bad annotations and images that cannot be read; or skip them
    data.max_skipped_fraction = 0.01  # with skip: largest share of bad records, and of images
    # Stop where losses of the surface are on and nobody in the annotations has a surface point.
    data.needs_surface = True
    # So many people, chosen by `seed`, keep their surface points and part masks; 0 for all.
    data.labelled_people = 0
    # Share of the images of an epoch that show such people; 0 for as many as there are.
    data.labelled_share = 0.0
    # Rasterise segmentations, for losses that need them; with masks in model.tasks always.
    data.with_person_masks = False
    data.tfds = ConfigDict()  # a dataset that `ktn data build` made
    data.tfds.config = "densepose_coco_2014"
    data.tfds.dir = "data/tfds"  # or an address, gs://bucket/tfds
    data.tfds.splits = ("train", "valminusminival")
    data.max_people = 20  # per image; of more, those with DensePose and the largest are kept
    data.max_points = 200  # per person: all that an annotator set, and others as space is left
    data.loader = "threads"  # tf_data, threads or processes
    data.workers = 8
    data.batches_ahead = 2
    data.short_sides = (640, 672, 704, 736, 768, 800)
    data.max_long_side = 1333
    data.flip_probability = 0.5
    data.max_rotation_degrees = 0.0
    data.zoom_range = (1.0, 1.0)
    data.colour_jitter = 0.0  # largest change of brightness, contrast and saturation, of 1
    # Train on crops of the people with surface points, one a row, and not on whole images.
    data.person_crops = ConfigDict()
    data.person_crops.size_hw = ()  # of every crop, in pixels; () for whole images
    data.person_crops.margin = 1.25  # sides of the crop over those of the person's box, at least
    # Of people whose labels were filled in (`dp_iuv`): points that are drawn from the picture anew
    # for every step, in place of those in the file; 0 for those in the file.
    data.dense_points = 0
    data.aspect_limits = (1.0, 1.35)  # long / short side, borders of the bins that share canvases
    data.canvas_levels = 2  # canvas sizes for each bin
    # For training.evaluate_every: annotation file, image folder and evaluation template. Training
    # on rendered people needs none: other people are rendered.
    data.evaluation = ConfigDict()
    data.evaluation.annotations = ""
    data.evaluation.images = ""
    data.evaluation.template = ""
    data.evaluation.num_images = 0  # only the first; 0 for all, or for 100 rendered ones
    data.synthetic = ConfigDict()
    data.synthetic.num_images = 1_000
    data.synthetic.seed = 0
    data.synthetic.preset = "default"  # default, frontal, busy, large, everyday, easy or hard
    data.synthetic.image_size_hw = (480, 640)
    data.synthetic.people_range = (1, 4)
    data.synthetic.keep = False  # keep rendered images in memory: for small sets
    return data


def _test() -> ConfigDict:
    test = ConfigDict()
    test.short_side = 800  # pixels to which the short side of an image is resized
    test.max_side = 1333  # largest long side, which wins over short_side
    # Network inputs are padded to one of these (height, width), the smallest that fits, so that a
    # folder of photos compiles a few times. Larger images get a bucket of their own. An input whose
    # sides are the image's, rounded up to 32, needs no masking and is faster.
    sides = ((800, 800), (800, 1088), (800, 1216), (800, 1344), (736, 1344), (672, 1344))
    portrait = tuple((width, height) for height, width in sides[1:])
    test.size_buckets = (*sides, (608, 1344), (512, 1344), *portrait)
    test.batch_size = 1  # photos in a batch, on all devices together
    test.num_devices = 1  # of this process, over which batches are split; 0 for all
    # Of a teacher: sizes (height, width) of the views of every crop, whose charts are averaged;
    # mirrored too with test.augmentation.flip.
    test.crop_sizes_hw = ()
    # On CPUs, 3x3 convolutions through Winograd's transform: the same sums in fewer products.
    test.winograd = True
    # Type to which factors of matrix products are rounded; "bfloat16" is faster on CPUs with it.
    test.matmul_dtype = "float32"
    # Test-time augmentation (`ktn eval --tta`): every image is resized to each of these short
    # sides, plain and mirrored, as with detectron2's TEST.AUG. Mirrored charts need data.symmetry.
    test.augmentation = ConfigDict()
    test.augmentation.short_sides = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    test.augmentation.max_side = 4000
    test.augmentation.flip = True
    # And once at test.short_side, rotated counterclockwise by each of these angles, for its charts.
    test.augmentation.rotation_degrees = ()
    return test
