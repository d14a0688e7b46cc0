"""Devices and processes: the mesh, how arrays are placed on it, and how batches reach it.

One axis, `data`: batches are split over it and parameters are replicated, or split over the same
axis with their optimizer state. KTN's transfer network, three quarters of the model, is split by
columns of its kernels, so that each device computes some of its outputs and nothing of its weights
travels; other parameters are gathered for a step, and their gradients added up where they are kept.
"""

import collections
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ktn_jax.runtime.processes import Processes

HostBatch = Mapping[str, np.ndarray]  # this process's rows, as the data pipeline makes them
Batch = Mapping[str, jax.Array]  # of all processes, on the mesh

# Without a sign of life for so long a process counts as dead. A host that swaps or starts slowly
# must not; a run that waits for nothing costs a whole pod.
HEARTBEAT_SECONDS = 30
# JAX's names of the clusters that it knows; it recognises all but mpi4py.
CLUSTERS = ("slurm", "ompi", "mpi4py", "gcetpu", "gketpu")

AXIS = "data"
_MAX_TEXT_BYTES = 2000

SHARDINGS = ("none", "transfer", "all")  # values of `training.shard`
# Kernels [in, out] of the transfer's two dense layers, anywhere in a state.
_TRANSFER = re.compile(r".*predictor/transfer/fc\d/kernel")
_SMALLEST_SPLIT = 2**14  # numbers; of less, gathering costs more than it saves


def join_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    cluster: str | None = None,
) -> None:
    """Joins the processes of a run; call it before anything else touches JAX.

    If one of them dies or does not answer for `HEARTBEAT_SECONDS`, JAX ends the others; so it does
    where one has ended and the others have not within as long.

    Args:
        coordinator: HOST:PORT of process 0; None asks the cluster's environment for everything.
        num_processes: how many there are; with `coordinator` only.
        process_id: which one this is, from 0; with `coordinator` only.
        cluster: one of `CLUSTERS`; None recognises it.

    Raises:
        ValueError: some of the three are missing, no cluster is found, or the processes cannot be
            joined.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise ValueError(
            "give the coordinator, the number of processes and the process id together"
        )
    # JAX would take SIGTERM for itself until training begins, and nobody would ask it for that:
    # the processes agree to stop by `stopping.StopVote`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=cluster,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    # What is missing in an environment: a variable, a number, the whole, the metadata's server.
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        if coordinator is not None:
            raise
        raise ValueError(_no_cluster(cluster, error)) from error
    except RuntimeError as error:
        raise ValueError(f"the processes cannot be joined: {error}") from error


def _no_cluster(cluster: str | None, error: Exception) -> str:
    advice = "or give --coordinator HOST:PORT, --num-processes and --process-id"
    if cluster is not None:
        return f"--cluster {cluster}: this process lacks what that needs ({error!r}); {advice}"
    hint = ""
    if "SLURM_JOB_ID" in os.environ:
        hint = "; in a job of SLURM, start it with srun"
    elif "OMPI_COMM_WORLD_SIZE" in os.environ:
        hint = "; Open MPI 5 needs --cluster mpi4py, and that package"
    elif "KUBERNETES_SERVICE_HOST" in os.environ:
        hint = "; in Kubernetes it needs the package kubernetes, and an indexed Job"
    return (
        "no cluster was found: --cluster knows SLURM, Open MPI, TPU VMs, GKE and Kubernetes"
        f"{hint}; {advice} ({error})"
    )


def wait_for_all(name: str) -> None:
    """Returns when every process of the run has called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def share_text(text: str) -> str:
    """The first process's text, in every process of the run; each calls this.

    Args:
        text: its first 2,000 bytes are shared.
    """
    if jax.process_count() == 1:
        return text
    content = text.encode()[:_MAX_TEXT_BYTES].ljust(_MAX_TEXT_BYTES, b"\0")
    shared = multihost_utils.broadcast_one_to_all(np.frombuffer(content, np.uint8))
    return np.asarray(shared, np.uint8).tobytes().rstrip(b"\0").decode(errors="ignore")


def this_process() -> Processes:
    """This process among those of the run."""
    return Processes(jax.process_index(), jax.process_count(), wait_for_all, share_text)


def make_mesh(num_devices: int = 0) -> Mesh:
    """Makes the mesh of a run.

    Args:
        num_devices: how many to use, 0 for all of all processes.

    Raises:
        ValueError: there are fewer, or a run of several processes asks for a part of them.
    """
    devices = jax.devices()
    number = num_devices or len(devices)
    if number > len(devices) or number < 1:
        raise ValueError(f"training.num_devices is {num_devices}, but there are {len(devices)}")
    if number < len(devices) and jax.process_count() > 1:
        raise ValueError("training.num_devices must be 0 (all) in a run of several processes")
    return jax.make_mesh((number,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:number])


def platform_of(mesh: Mesh) -> str:
    """What programs for the mesh are compiled for: "cpu", "gpu" or "tpu"."""
    platform: str = mesh.devices.flat[0].platform
    return platform


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Checks that a global batch can be split evenly.

    Args:
        batch_size: images of a step.
        mesh: the devices.
        accumulate: `training.accumulate`.

    Raises:
        ValueError: it cannot; the message says which sizes can.
    """
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(
            f"batch_size {batch_size} cannot be split evenly over {mesh.size} devices: make it a "
            f"multiple of {mesh.size}, or use fewer with training.num_devices"
        )
    if accumulate < 1 or batch_size // mesh.size % accumulate:
        raise ValueError(
            f"training.accumulate {accumulate} must divide the {batch_size // mesh.size} images of "
            f"each device, batch_size {batch_size} over {mesh.size}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Split along the first axis."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def state_shardings(abstract_state: Any, mesh: Mesh, shard: str) -> Any:
    """Decides how each array of a state is placed on the mesh.

    Args:
        abstract_state: shapes of a state, any tree.
        mesh: the devices.
        shard: "none"; "transfer" to split the transfer network's kernels, and what the optimizer
            keeps of them, by columns; "all" to split the other arrays that are not small too, each
            along its longest axis that divides.

    Returns:
        A tree of shardings.

    Raises:
        ValueError: none of these; or "transfer" and no kernel to split, or one whose columns do not
            divide.
    """
    if shard not in SHARDINGS:
        raise ValueError(f"training.shard {shard!r}: one of {list(SHARDINGS)}")
    found = 0

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        nonlocal found
        name = "/".join(str(_key(entry)) for entry in path)
        if shard != "none" and _TRANSFER.fullmatch(name) and len(leaf.shape) == 2:
            found += 1
            if leaf.shape[1] % mesh.size == 0:
                return NamedSharding(mesh, PartitionSpec(None, AXIS))
            if shard == "transfer":
                raise ValueError(
                    f"training.shard: the {leaf.shape[1]} columns of {name} do not divide into "
                    f"{mesh.size} devices"
                )
        if shard == "all" and leaf.size >= _SMALLEST_SPLIT:
            return _along_longest_axis(leaf.shape, mesh)
        return replicated(mesh)

    shardings = jax.tree_util.tree_map_with_path(sharding, abstract_state)
    if shard == "transfer" and not found:
        raise ValueError("training.shard: this model has no transfer network to split")
    return shardings


def _along_longest_axis(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Splits the longest axis that the devices divide; replicates an array without any."""
    axes = [axis for axis, side in enumerate(shape) if side % mesh.size == 0]
    if not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, AXIS))


def _key(entry: Any) -> Any:
    """The name in an entry of a tree path, whatever kind of container it is of."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def to_mesh(tree: Any, shardings: Any) -> Any:
    """Places arrays that every process holds in full on the mesh."""

    def put(value: Any, sharding: NamedSharding) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree, shardings)


def to_devices(batch: HostBatch | Batch, sharding: NamedSharding) -> Batch:
    """Puts this process's rows of a batch onto its devices, as part of the global batch."""
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }


def prefetch(
    batches: Iterator[HostBatch], sharding: NamedSharding, ahead: int = 2
) -> Iterator[Batch]:
    """Starts copying batches to the devices ahead of use.

    Copies run beside the computation, so no thread is needed: `batches` has its own.

    Args:
        batches: this process's rows.
        sharding: from `over_batch`.
        ahead: number of batches that wait on the devices.

    Yields:
        Batches in their order.
    """
    waiting: collections.deque[Batch] = collections.deque()
    try:
        for batch in batches:
            waiting.append(to_devices(batch, sharding))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
