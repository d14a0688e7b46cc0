"""Every key of `config.model`, with what it means; `base.py` has the others."""

from ml_collections import ConfigDict


def get_model() -> ConfigDict:
    """Returns `config.model` of detectron2's DensePose R50-FPN."""
    model = ConfigDict()
    model.kind = "detector"  # or teacher, which labels crops of annotated people
    model.sees_parts = False  # a teacher's input includes the annotated part masks
    model.pixel_mean_bgr = (103.53, 116.28, 123.675)
    model.pixel_std_bgr = (1.0, 1.0, 1.0)
    model.dtype = "float32"  # of computation, or bfloat16; parameters stay float32
    # Branches of the people found: any of densepose, keypoints and masks.
    model.tasks = ("densepose",)
    model.backbone = _backbone()
    model.neck = ConfigDict()
    model.neck.channels = 256
    model.neck.norm = ""
    model.rpn = _rpn()
    model.box_head = _box_head()
    model.decoder = _decoder()
    model.densepose_head = _densepose_head()
    model.predictor = _predictor()
    model.meshes = _meshes()
    model.mask_head = _mask_head()
    model.keypoint_head = _keypoint_head()
    model.cascade = _cascade()
    return model


def _backbone() -> ConfigDict:
    backbone = ConfigDict()
    backbone.name = "resnet"  # resnet (with FPN) or hrnet (with HRFPN)
    backbone.depth = 50  # ResNet: 50, 101 or 152
    backbone.num_blocks = ()  # of each stage; () for those of the depth
    backbone.stem_channels = 64
    backbone.width = 64  # of res2's 3x3 convolutions; doubles with every stage
    backbone.groups = 1  # of the channels of 3x3 convolutions; more than 1 is a ResNeXt
    backbone.res2_channels = 256
    backbone.norm = "FrozenBN"  # FrozenBN, BN or GN
    backbone.stride_in_1x1 = True  # MSRA's weights; False for torchvision's and ResNeXt's
    backbone.res5_dilation = 1
    backbone.freeze_at = 2  # stages that do not train: 1 the stem, 2 also res2, ...
    backbone.hrnet_channels = ((32, 64), (32, 64, 128), (32, 64, 128, 256))
    backbone.hrnet_num_blocks = ((4, 4), (4, 4, 4), (4, 4, 4, 4))
    backbone.hrnet_num_modules = (1, 4, 3)
    return backbone


def _rpn() -> ConfigDict:
    rpn = ConfigDict()
    rpn.anchor_sizes = ((32,), (64,), (128,), (256,), (512,))  # pixels, per level
    rpn.aspect_ratios = (0.5, 1.0, 2.0)  # height / width
    rpn.anchor_offset = 0.0  # of anchor centres in their cell, in strides
    rpn.delta_weights = (1.0, 1.0, 1.0, 1.0)
    rpn.pre_nms_top_k_train = 2000  # of each level
    rpn.pre_nms_top_k_test = 1000
    rpn.post_nms_top_k_train = 1000  # of all levels together
    rpn.post_nms_top_k_test = 1000
    rpn.nms_threshold = 0.7
    rpn.batch_size_per_image = 256  # anchors that are sampled for training
    rpn.positive_fraction = 0.5
    rpn.iou_thresholds = (0.3, 0.7)  # background below the first, person from the second
    return rpn


def _box_head() -> ConfigDict:
    head = ConfigDict()
    head.num_classes = 1  # person; 80 for all of COCO's, of which person is the first
    head.is_class_agnostic = False  # one box for all classes, instead of one for each
    head.pooled_size = 7
    head.sampling_ratio = 2  # reads per bin and axis; 0 as many as the bin has cells
    head.aligned = False  # detectron2's ROIAlign; True for ROIAlignV2
    # Side in pixels of a box that is pooled from the level of stride 16; half of it, from stride 8.
    head.canonical_box_size = 224
    head.hidden_features = 1024
    head.num_layers = 2
    head.delta_weights = (10.0, 10.0, 5.0, 5.0)
    head.score_threshold = 0.05
    head.nms_threshold = 0.5
    head.max_detections = 100
    head.batch_size_per_image = 512  # proposals that are sampled for training
    head.positive_fraction = 0.25
    head.iou_threshold = 0.5
    return head


def _decoder() -> ConfigDict:
    decoder = ConfigDict()
    decoder.name = "panoptic"  # none, panoptic or multi_instance (KTN's MID)
    decoder.channels = 256
    decoder.out_channels = 256
    decoder.norm = ""  # of the panoptic decoder
    decoder.is_multi_scale = True  # of the multi-instance decoder
    return decoder


def _densepose_head() -> ConfigDict:
    head = ConfigDict()
    head.name = "conv_stack"  # conv_stack, deeplab or ktn
    head.pooled_size = 28
    head.sampling_ratio = 2
    head.aligned = False
    head.canonical_box_size = 224
    head.channels = 512
    head.num_convs = 8
    head.kernel_size = 3
    head.norm = ""  # of deeplab and ktn: "GN"
    head.use_non_local = False  # of deeplab
    return head


def _predictor() -> ConfigDict:
    predictor = ConfigDict()
    # chart, ktn, ktn_keypoints, ktn_auxiliary or ktn_first; or embedding: in place of charts an
    # embedding of every pixel, which is compared with those of the vertices of model.meshes.
    predictor.name = "chart"
    predictor.embedding_channels = 16
    predictor.num_coarse_channels = 2  # of chart and ktn_first: 2, or 15 for coarse parts
    predictor.num_patches = 24
    predictor.kernel_size = 4
    predictor.up_scale = 2
    predictor.uv_confidence = ""  # "", iid_iso or indep_aniso
    predictor.has_segm_confidence = False
    predictor.segm_confidence_epsilon = 0.01
    # Softmax probability of "person" above which a pixel belongs to one; 0.5 means the plain
    # argmax of the coarse logits. KTN uses 0.3.
    predictor.mask_threshold = 0.5
    return predictor


def _meshes() -> ConfigDict:
    """Surfaces that an embedding model knows; of_classes apart, one value for each of them."""
    meshes = ConfigDict()
    meshes.names = ()  # such as "smpl_27554"
    meshes.num_vertices = ()
    # Features of a vertex, numbers that a matrix maps to its embedding; 0 for vertices whose
    # embeddings are parameters themselves.
    meshes.num_features = ()
    meshes.trains_features = ()  # whether the features are trained with the matrix
    meshes.trains = ()  # False keeps the embeddings as they are
    meshes.of_classes = ()  # the name of the mesh of each class of box_head.num_classes
    # Files NAME.npz of meshes of your own, with vertices, faces and, where there are any, uv and
    # mirror. Others are "body", that of the project, and those released with detectron2.
    meshes.files = ()
    return meshes


def _mask_head() -> ConfigDict:
    head = ConfigDict()
    head.pooled_size = 14
    head.sampling_ratio = 0
    head.aligned = True
    head.canonical_box_size = 224
    head.channels = 256
    head.num_convs = 4
    head.norm = ""  # of the convolutions: "" or "GN"
    head.is_class_agnostic = False  # one mask for all classes, instead of one for each
    return head


def _keypoint_head() -> ConfigDict:
    head = ConfigDict()
    head.pooled_size = 14
    head.sampling_ratio = 0
    head.aligned = True
    head.canonical_box_size = 224
    head.channels = (512,) * 8  # of each convolution
    return head


def _cascade() -> ConfigDict:
    """Later stages of the branches of model.tasks, which see what all of them predicted before."""
    cascade = ConfigDict()
    cascade.num_stages = 1  # 1 is no cascade: the branches alone
    # What of the predictions is embedded: their logits, or probabilities, and U and V times those
    # of their patches.
    cascade.inputs = "probabilities"
    cascade.embedded_channels = 64  # of the predictions of each branch
    cascade.channels = 256  # of the convolutions of each branch
    cascade.num_convs = 4
    # False: the losses of a stage also train the predictions that it reads.
    cascade.stop_gradient = False
    # True: a stage predicts what is added to the maps of the stage before.
    cascade.adds_to_previous = False
    return cascade
