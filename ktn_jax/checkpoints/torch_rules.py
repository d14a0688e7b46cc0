"""The table of parameters: their names in PyTorch's state dicts and in Flax.

Each rule pairs a torch name with a Flax path. `{n}`, `{m}`, ... stand for numbers, `{p}` for a
pyramid level, `{c}` for a convolution of a bottleneck, `{t}` and `{r}` for tasks, `{mesh}` for a
mesh.
`checkpoints.torch_names` runs it both ways.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

PREDICTORS = ("", "auxiliary", "first", "embedding")  # whose names differ; "" for any other

_PLACEHOLDERS = {
    "{n}": r"(?P<n>\d+)",
    "{m}": r"(?P<m>\d+)",
    "{k}": r"(?P<k>\d+)",
    "{j}": r"(?P<j>\d+)",
    "{i}": r"(?P<i>\d+)",
    "{p}": r"(?P<p>p\d+)",
    "{c}": r"(?P<c>conv\d|shortcut)",
    "{t}": r"(?P<t>densepose|keypoints|masks)",
    "{r}": r"(?P<r>densepose|keypoints|masks)",
    "{s}": r"(?P<s>\d+)",
    "{mesh}": r"(?P<mesh>[^./]+)",
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table."""

    torch: str
    flax: str
    layout: str = "same"  # same, conv, deconv, dense or flatten

    @functools.cached_property
    def torch_regex(self) -> re.Pattern[str]:
        """Matches the torch names of this row."""
        return _compile(self.torch)

    @functools.cached_property
    def flax_regex(self) -> re.Pattern[str]:
        """Matches the Flax paths of this row."""
        return _compile(self.flax)


def _compile(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for placeholder, regex in _PLACEHOLDERS.items():
        pattern = pattern.replace(re.escape(placeholder), regex)
    return re.compile(pattern)


def _layer(torch: str, flax: str, layout: str) -> list[Rule]:
    return [
        Rule(f"{torch}.weight", f"params/{flax}/kernel", layout),
        Rule(f"{torch}.bias", f"params/{flax}/bias"),
    ]


def _norm(torch: str, flax: str) -> list[Rule]:
    return [
        Rule(f"{torch}.weight", f"params/{flax}/scale"),
        Rule(f"{torch}.bias", f"params/{flax}/bias"),
        Rule(f"{torch}.running_mean", f"batch_stats/{flax}/mean"),
        Rule(f"{torch}.running_var", f"batch_stats/{flax}/var"),
        Rule(f"{torch}.num_batches_tracked", f"batch_stats/{flax}/count"),
    ]


def _conv_norm(torch_conv: str, torch_norm: str, flax: str) -> list[Rule]:
    return _layer(torch_conv, f"{flax}/conv", "conv") + _norm(torch_norm, f"{flax}/norm")


def _output(torch: str, flax: str, layout: str) -> list[Rule]:
    """A layer whose kernel and bias are parameters of a larger module."""
    return [
        Rule(f"{torch}.weight", f"params/{flax}_kernel", layout),
        Rule(f"{torch}.bias", f"params/{flax}_bias"),
    ]


def _resnet_rules() -> Iterator[Rule]:
    body = "backbone.bottom_up"
    yield from _conv_norm(f"{body}.stem.conv1", f"{body}.stem.conv1.norm", "backbone/stem_conv1")
    block = f"{body}.res{{n}}.{{m}}.{{c}}"
    yield from _conv_norm(block, f"{block}.norm", "backbone/res{n}_{m}/{c}")
    for side in ("lateral", "output"):
        name = f"backbone.fpn_{side}{{n}}"
        yield from _conv_norm(name, f"{name}.norm", f"neck/{side}{{n}}")


def _hrnet_rules() -> Iterator[Rule]:
    body = "backbone.bottom_up"
    for i in (1, 2):
        yield from _conv_norm(f"{body}.conv{i}", f"{body}.bn{i}", f"backbone/hr_stem_conv{i}")
    for i in (1, 2, 3):
        names = (f"{body}.layer1.{{m}}.conv{i}", f"{body}.layer1.{{m}}.bn{i}")
        yield from _conv_norm(*names, f"backbone/layer1_{{m}}/conv{i}")
    shortcut = f"{body}.layer1.{{m}}.downsample"
    yield from _conv_norm(f"{shortcut}.0", f"{shortcut}.1", "backbone/layer1_{m}/shortcut")
    stage = f"{body}.stage{{n}}.{{m}}"
    for i in (1, 2):
        block = f"{stage}.branches.{{k}}.{{j}}"
        flax = f"backbone/stage{{n}}_{{m}}_branch{{k}}_{{j}}/conv{i}"
        yield from _conv_norm(f"{block}.conv{i}", f"{block}.bn{i}", flax)
    fuse = f"{stage}.fuse_layers.{{k}}.{{j}}"
    flax = "backbone/stage{n}_{m}_fuse/"
    yield from _conv_norm(f"{fuse}.0", f"{fuse}.1", flax + "up{k}_{j}")
    yield from _conv_norm(f"{fuse}.{{i}}.0", f"{fuse}.{{i}}.1", flax + "down{k}_{j}_{i}")
    for number in (1, 2, 3):
        for branch in range(number + 1):
            # A new branch's transition is a chain of (here always one) strided convolutions.
            name = f"{body}.transition{number}.{branch}" + (".0" if branch == number else "")
            flax = f"backbone/transition{number}_{branch}"
            yield from _conv_norm(f"{name}.0", f"{name}.1", flax)
    yield Rule("backbone.interp_conv.{n}.0.weight", "params/neck/interp{n}_kernel", "deconv")
    yield from _norm("backbone.interp_conv.{n}.1", "neck/interp{n}_norm")
    yield from _layer("backbone.reduction_pooling_conv.{n}.0", "neck/reduction{n}_conv", "conv")
    yield from _norm("backbone.reduction_pooling_conv.{n}.1", "neck/reduction{n}_norm")
    yield from _layer("backbone.fpn_conv.{n}", "neck/fpn{n}_conv", "conv")


def _box_rules() -> Iterator[Rule]:
    rpn = "proposal_generator.rpn_head"
    yield from _layer(f"{rpn}.conv", "rpn_head/conv", "conv")
    yield from _layer(f"{rpn}.objectness_logits", "rpn_head/logits", "conv")
    yield from _layer(f"{rpn}.anchor_deltas", "rpn_head/deltas", "conv")
    yield from _layer("roi_heads.box_head.fc1", "box_head/fc1", "flatten")
    yield from _layer("roi_heads.box_head.fc{n}", "box_head/fc{n}", "dense")
    yield from _output("roi_heads.box_predictor.cls_score", "box_head/class", "dense")
    yield from _output("roi_heads.box_predictor.bbox_pred", "box_head/delta", "dense")


def _decoder_rules() -> Iterator[Rule]:
    # Indices count the modules of a Sequential, upsampling included.
    for step in range(5):
        name = f"roi_heads.decoder.{{p}}.{2 * step}"
        yield from _conv_norm(name, f"{name}.norm", f"decoder/{{p}}_{step}")
        refined = "roi_heads.mid_decoder.{p}"
        yield from _layer(f"{refined}.{3 * step}", f"decoder/{{p}}_{step}_conv", "conv")
        yield from _layer(f"{refined}.{3 * step + 1}", f"decoder/{{p}}_{step}_expand", "conv")
    yield from _layer("roi_heads.mid_decoder.bottom_up_{p}.adt_conv", "decoder/adapt_{p}", "conv")
    trident = "roi_heads.mid_decoder.trident_convs.{n}"
    yield from _layer(f"{trident}.0", "decoder/trident{n}_conv", "conv")
    yield from _norm(f"{trident}.1", "decoder/trident{n}_norm")


def _conv_stack_rules() -> Iterator[Rule]:
    name = "roi_heads.densepose_head.body_conv_fcn{n}"
    yield from _conv_norm(name, f"{name}.norm", "densepose_head/body_conv{n}")


def _head_rules() -> Iterator[Rule]:
    head = "roi_heads.densepose_head"
    yield from _conv_stack_rules()
    yield Rule(f"{head}.ScaleConvs.weight", "params/densepose_head/scale_convs/kernel", "conv")
    yield from _norm(f"{head}.ScaleConvs.norms.{{n}}", "densepose_head/scale_convs/norm{n}")
    pointwise = f"{head}.ScaleConvs.conv1"
    flax = "densepose_head/scale_convs/pointwise"
    yield from _conv_norm(f"{pointwise}.0", f"{pointwise}.1", flax)
    flax = "densepose_head/scale_convs/project"
    yield from _layer(f"{head}.ScaleConvs.project.0", flax, "conv")
    for i in range(5):
        first = 1 if i == 4 else 0  # the pooling branch starts with the pooling
        name = f"{head}.ASPP.convs.{i}"
        flax = f"densepose_head/aspp/branch{i}"
        yield from _conv_norm(f"{name}.{first}", f"{name}.{first + 1}", flax)
    yield from _layer(f"{head}.ASPP.project.0", "densepose_head/aspp/project", "conv")
    for theirs, ours in (("g.0", "g"), ("phi.0", "phi"), ("theta", "theta")):
        yield from _layer(f"{head}.NLBlock.{theirs}", f"densepose_head/non_local/{ours}", "conv")
    block = f"{head}.NLBlock.W"
    yield from _conv_norm(f"{block}.0", f"{block}.1", "densepose_head/non_local/out")


def _person_head_rules() -> Iterator[Rule]:
    """Mask and keypoint heads of detectron2."""
    mask, keypoint = "roi_heads.mask_head", "roi_heads.keypoint_head"
    name = f"{mask}.mask_fcn{{n}}"
    yield from _conv_norm(name, f"{name}.norm", "mask_head/conv{n}")
    yield from _output(f"{mask}.deconv", "mask_head/deconv", "deconv")
    yield from _layer(f"{mask}.predictor", "mask_head/logits", "conv")
    yield from _layer(f"{keypoint}.conv_fcn{{n}}", "keypoint_head/conv{n}", "conv")
    yield from _output(f"{keypoint}.score_lowres", "keypoint_head/scores", "deconv")


_SHARED_OUTPUTS = {
    "u_lowres": "u",
    "v_lowres": "v",
    "m_lowres": "mask",
    "ann_index_lowres": "coarse",
    "sigma_2_lowres": "sigma",
    "kappa_u_lowres": "kappa_u",
    "kappa_v_lowres": "kappa_v",
    "fine_segm_confidence_lowres": "fine_confidence",
    "coarse_segm_confidence_lowres": "coarse_confidence",
    "index_uv_lowres": "fine",
    "i_lowres": "auxiliary",
}


def _embedding_rules() -> Iterator[Rule]:
    """Of models with embeddings in place of charts."""
    for theirs, ours in (
        ("coarse_segm_lowres", "coarse"),
        ("embed_lowres", "embedding"),
        ("coarse_segm_confidence_lowres", "coarse_confidence"),
    ):
        torch, flax = f"roi_heads.densepose_predictor.{theirs}", f"embedding_predictor/{ours}"
        yield from _output(torch, flax, "deconv")
    for name in ("embeddings", "features"):
        torch = f"roi_heads.embedder.embedder_{{mesh}}.{name}"
        yield Rule(torch, f"params/embedder/{{mesh}}/{name}")


def _predictor_rules(kind: str) -> Iterator[Rule]:
    """Names of the predictor of one of `PREDICTORS`."""
    if kind == "embedding":
        yield from _embedding_rules()
        return
    predictor = "roi_heads.densepose_predictor"
    for theirs, ours in _SHARED_OUTPUTS.items():
        yield from _output(f"{predictor}.{theirs}", f"predictor/{ours}", "deconv")
    transformer = "kpt_surface_transformer" if kind == "first" else "parameter_transformer"
    for theirs, ours in (("0", "fc1"), ("2", "fc2")):
        yield from _layer(
            f"{predictor}.{transformer}.{theirs}", f"predictor/transfer/{ours}", "dense"
        )
    matrix = "surface_transfer_matrix" if kind else "crgk_matrix"  # sic
    for theirs, ours in (("kpt", "keypoint"), ("bbox", "box"), ("part", "part")):
        yield Rule(f"{predictor}.{theirs}_{matrix}", f"params/predictor/transfer/edges_{ours}")
    flax = "params/predictor/keypoint"
    if kind:
        yield Rule(f"{predictor}.body_kpt_weight", f"{flax}_kernel", "deconv")
        yield Rule(f"{predictor}.body_kpt_bias", f"{flax}_bias")
    else:
        yield from _output(f"{predictor}.k_lowres", "predictor/keypoint", "deconv")


def _cascade_rules(kind: str) -> Iterator[Rule]:
    """Later stages, which no original has: the names of the first stage, under their own."""
    theirs, ours = "roi_heads.cascade_stage{s}", "cascade_stage{s}"
    for rule in (*_conv_stack_rules(), *_person_head_rules(), *_predictor_rules(kind)):
        torch = rule.torch.removeprefix("roi_heads.")
        collection, _, path = rule.flax.partition("/")
        yield Rule(f"{theirs}.{torch}", f"{collection}/{ours}/{path}", rule.layout)
    yield from _layer(f"{theirs}.{{t}}_reads_{{r}}", f"{ours}/{{t}}_reads_{{r}}", "conv")


def _constant_rules() -> Iterator[Rule]:
    """Constants that checkpoints hold although the configuration defines them."""
    for name in ("pixel_mean", "pixel_std"):
        yield Rule(name, f"constants/{name}")
    anchors = "proposal_generator.anchor_generator.cell_anchors.{n}"
    yield Rule(anchors, "constants/cell_anchors{n}")


@functools.cache
def rules(predictor: str, is_multi_instance: bool) -> tuple[Rule, ...]:
    """The whole table.

    Args:
        predictor: one of `PREDICTORS`, whose names differ.
        is_multi_instance: for a model with the multi-instance decoder, whose names differ.
    """
    decoder = "roi_heads.mid_decoder" if is_multi_instance else "roi_heads.decoder"
    return (
        *_resnet_rules(),
        *_hrnet_rules(),
        *_box_rules(),
        *_decoder_rules(),
        *_layer(f"{decoder}.predictor", "decoder/predictor", "conv"),
        *_head_rules(),
        *_person_head_rules(),
        *_predictor_rules(predictor),
        *_cascade_rules(predictor),
        *_constant_rules(),
    )
