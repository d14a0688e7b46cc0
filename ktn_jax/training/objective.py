"""What a training step differentiates: from parameters and a batch to its losses, on all devices.

Each device runs its own images and no map leaves it: what devices exchange are the terms of the
losses, the moments of batch norms, and gradients, added in float32 whatever the model computes in.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import traverse_util
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from ktn_jax.losses.terms import is_on, values_of
from ktn_jax.modeling.compute import REMEMBERED, Compute
from ktn_jax.modeling.detector import Detector
from ktn_jax.training.branch_losses import Terms
from ktn_jax.training.distributed import AXIS, Batch
from ktn_jax.training.forward import (
    DRAWN,
    Losses,
    SurfaceKernels,
    Variables,
    apply,
    loss_terms,
    stage_weights,
)
from ktn_jax.training.loss_numbers import Numbers, with_numbers
from ktn_jax.training.step import LossFn

Array = jax.Array
Geodesics = Mapping[str, Array] | None  # distances along each mesh, where losses need them
# run(params, batch_stats, shared, batch, key) -> (terms, new batch_stats), where `shared` is the
# same on all devices, such as surface kernels.
RunImages = Callable[[Variables, Variables, Any, Batch, Array], tuple[Terms, Variables]]


def make_loss_fn(model: Detector, loss: ConfigDict, mesh: Mesh, training: ConfigDict) -> LossFn:
    """Makes the function that a training step differentiates.

    Args:
        model: from `build_model`.
        loss: the `loss` part of a configuration.
        mesh: the devices that share a batch.
        training: the `training` part of a configuration, of which `accumulate` and `remat` are read
            here.

    Returns:
        loss_fn(params, batch_stats, batch, key, numbers=None, geodesics=None) -> (total, (losses by
        name, new batch_stats)): pure, static in shape, the same on any number of devices and for
        any order of the images. `batch` is described by the data pipeline, `numbers` by
        `loss_numbers` (None for those of `loss`), `geodesics` by `loss_terms`. Images without
        people train the detector only.

    Raises:
        ValueError: `loss.stage_weights` are not one for each stage, or gradients are accumulated of
            a loss that must see the whole batch.
    """
    stage_weights(model.config, loss)  # an error before anything is compiled
    cycle = loss.pixel_cycle
    if training.accumulate > 1 and is_on(cycle.weight) and not cycle.has_all_meshes:
        raise ValueError(
            "loss.pixel_cycle compares with the meshes of the whole batch: set "
            "training.accumulate=1 or loss.pixel_cycle.has_all_meshes=True"
        )
    on_mesh = model.clone(compute=of_part(model.compute))

    def part_of_images(
        params: Variables,
        batch_stats: Variables,
        shared: tuple[SurfaceKernels, Numbers | None, Geodesics],
        batch: Batch,
        key: Array,
    ) -> tuple[Terms, Variables]:
        kernels, numbers, geodesics = shared
        weighted = with_numbers(loss, numbers)
        outputs, stats = apply(
            on_mesh,
            weighted,
            params=params,
            batch_stats=batch_stats,
            batch=batch,
            key=key,
            surface_kernels=kernels,
        )
        terms = loss_terms(
            model.config, weighted, outputs, batch, geodesics=geodesics, batch_axis=AXIS
        )
        return terms, stats

    on_all_devices = over_devices(part_of_images, mesh, training)

    def loss_fn(
        params: Variables,
        batch_stats: Variables,
        batch: Batch,
        key: Array,
        numbers: Numbers | None = None,
        geodesics: Geodesics = None,
    ) -> tuple[Array, tuple[Losses, Variables]]:
        # Once, and not on each device: gradients are added up before they meet the transfer,
        # whose parameters are most of the model and which may be split over the devices.
        kernels: Any = model.apply({"params": params}, method=Detector.surface_kernels)
        rest = _without_transfer(params)
        terms, stats = on_all_devices(rest, batch_stats, (kernels, numbers, geodesics), batch, key)
        losses = values_of(terms)
        return functools.reduce(operator.add, losses.values()), (losses, stats)

    return loss_fn


def of_part(compute: Compute) -> Compute:
    """The same, for a model whose batch is a part: batch norms take their moments over devices."""
    return dataclasses.replace(compute, batch_axis=AXIS)


def over_devices(run: RunImages, mesh: Mesh, training: ConfigDict) -> RunImages:
    """Runs a function of images on each device, on its own images, and adds up the terms.

    Args:
        run: of a part of a batch; its statistics must be the same on all devices.
        mesh: the devices that share a batch.
        training: see `make_loss_fn`.

    Returns:
        The function of a whole batch.
    """
    # Samples are kept: rounding might draw others when the forward pass is run again.
    if training.remat:
        run = _keeping(run, REMEMBERED, DRAWN)
    if training.accumulate > 1:
        run = _in_parts(_keeping(run, DRAWN), training.accumulate)

    def own_images(
        params: Variables, batch_stats: Variables, shared: Any, batch: Batch, key: Array
    ) -> tuple[Terms, Variables]:
        terms, stats = run(params, batch_stats, shared, batch, key)
        return lax.psum(terms, AXIS), stats

    same, own = PartitionSpec(), PartitionSpec(AXIS)
    on_all_devices: RunImages = jax.shard_map(
        own_images,
        mesh=mesh,
        in_specs=(same, same, same, own, same),
        out_specs=same,
        check_vma=False,  # carries of loops begin as constants, which would each need a cast
    )
    return on_all_devices


def _keeping(run: RunImages, *names: str) -> RunImages:
    """The same function, whose backward pass computes again all but the values of some names."""
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    kept: RunImages = jax.checkpoint(run, policy=policy)
    return kept


def _in_parts(run: RunImages, number: int) -> RunImages:
    """The same function of a batch, run on `number` equal parts of it, one after the other.

    Terms add up, so that losses are divided by what the whole batch holds. A part's maps must not
    wait for the backward pass: `run` is to compute them again.
    """

    def run_parts(
        params: Variables, batch_stats: Variables, shared: Any, batch: Batch, key: Array
    ) -> tuple[Terms, Variables]:
        parts = {name: x.reshape(number, -1, *x.shape[1:]) for name, x in batch.items()}

        def add_part(stats: Variables, part: Batch) -> tuple[Variables, Terms]:
            terms, stats = run(params, stats, shared, part, key)
            return stats, terms

        stats, terms = lax.scan(add_part, batch_stats, parts)
        return jax.tree.map(lambda field: field.sum(0), terms), stats

    return run_parts


def _without_transfer(params: Variables) -> Variables:
    """Parameters without those that only the surface kernels depend on."""
    flat = traverse_util.flatten_dict(dict(params))
    rest = {path: x for path, x in flat.items() if "transfer" not in path}
    nested: Variables = traverse_util.unflatten_dict(rest)
    return nested
