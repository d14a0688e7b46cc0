"""Compiles the training step for machines that are not here, and prints what it would need there.

    python experiments/bench/aot.py --topology v5e:2x2 --config ktn:tiny --size 128x128
    python experiments/bench/aot.py --topology v5e:2x2 v5e:16x16 --config densepose_rcnn:r50 \\
        --size 800x1344 --per-device 4 --dtype bfloat16 --output figures.json
    python experiments/bench/aot.py --topology h100x8 --config ktn:r50 --per-device 2

A TPU topology needs `libtpu` (of the version that jax's extra "tpu" names), and h100xN needs
`jax-cuda12-plugin` and `jax-cuda12-pjrt` of jax's version, installed without their dependencies; no
TPU and no GPU. Memory, operations, bytes and collectives are read from the optimised program; XLA
counts no operations and no bytes of CUDA programs. What is in a loop counts once.

Optimising takes long: minutes for a small model, half an hour and 12 GB for a large one on a TPU.
--quick asks XLA for its level O1, which takes a third of both; it keeps what a chip holds and
exchanges, and its programs are slower.
"""

import argparse
import collections
import json
import os
import pathlib
import resource
import sys
import time

# Nothing is to look for a TPU that is not there.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import hlo
import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from ktn_jax.data_pipelines.loading.configured import training_batch_spec
from ktn_jax.training import profiling
from ktn_jax.training.abstract_step import abstract_step

# An H100 SXM5 of 80 GB as XLA describes it, from NVIDIA's data sheet and architecture paper.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 85899345920
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def make_mesh(topology: str) -> Mesh:
    """The devices of a machine such as "v5e:2x2" or "h100x8", on the mesh of a run.

    Raises:
        SystemExit: what compiles for it is not installed, or there is no such machine.
    """
    try:
        if topology.startswith("h100x"):
            number = topology.removeprefix("h100x")
            found = topologies.get_topology_desc(
                platform="cuda", topology_name="", topology=f"1x1x{number}", target_config=_H100
            )
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        # Plugins raise what they like: a missing library, an unknown name, a shape that is none.
        raise SystemExit(f"{topology}: {error}\n\n{__doc__}") from error
    return Mesh(np.array(found.devices), ("data",), axis_types=(AxisType.Auto,))


def compile_step(
    config: ConfigDict, topology: str, size_hw: tuple[int, int], quick: bool, keep: str = ""
) -> dict[str, object]:
    """Compiles a step.

    Args:
        config: a whole configuration; its batch is that of all devices.
        topology: the machine.
        size_hw: of the images.
        quick: see above.
        keep: file to write the optimised program to.

    Returns:
        The figures, per device and step.
    """
    mesh = make_mesh(topology)
    start, processor = time.perf_counter(), time.process_time()
    step = abstract_step(config, mesh, training_batch_spec(config, size_hw))
    lowered = step.take.lower(*step.arguments)
    lowered_at = time.perf_counter()
    if quick:
        jax.config.update("jax_optimization_level", "O1")
    compiled = lowered.compile()
    compiled_at = time.perf_counter()
    cost = compiled.cost_analysis() or {}
    text = compiled.as_text()
    if keep:
        pathlib.Path(keep).write_text(text)
    counts: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"number": 0, "bytes": 0})
    types: dict[str, int] = collections.Counter()
    for collective in hlo.collectives(text):
        counts[collective.kind]["number"] += 1
        counts[collective.kind]["bytes"] += collective.num_bytes
        for kind, size in collective.arrays:
            types[kind] += size
    return {
        "topology": topology,
        "devices": mesh.size,
        "config": config.name,
        "dtype": config.model.dtype,
        "batch": config.batch_size,
        "size": f"{size_hw[0]}x{size_hw[1]}",
        "memory_bytes": profiling.memory_of(compiled).peak,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "trained_bytes": step.trained_bytes,
        "collectives": dict(counts),
        "collective_bytes_by_type": dict(types),
        "irregular": hlo.irregular(text),
        "estimated_cycles": hlo.estimated_cycles(text),
        "lower_s": lowered_at - start,
        "compile_s": compiled_at - lowered_at,
        "processor_s": time.process_time() - processor,  # lowering included
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "level": "O1" if quick else "default",
    }


def as_markdown(figures: list[dict[str, object]]) -> str:
    """The figures as a table, one row for each program."""
    lines = [
        "| step | machine | memory a device | TFLOP | GB moved | collectives | irregular "
        "| compiling |",
        "|" + 8 * "---|",
    ]
    for row in figures:
        exchanged = ", ".join(
            f"{value['number']} {kind} ({value['bytes'] / 1e6:.1f} MB)"
            for kind, value in row["collectives"].items()
        )
        per_device = row["batch"] // row["devices"]
        cells = [
            f"`{row['config']}`, {row['dtype']}, {row['size']}, {per_device} images a device",
            f"{row['topology']}",
            f"{row['memory_bytes'] / 1e9:.2f} GB",
            _scaled(row["flops"], 1e12, 3),
            _scaled(row["bytes_accessed"], 1e9, 1),
            exchanged or "none",
            ", ".join(f"{number:,} {kind}" for kind, number in row["irregular"].items()),
            f"{row['compile_s']:.0f} s, {row['processor_s']:.0f} s of processor, {row['level']}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return "-" if value is None or value <= 0 else f"{value / unit:.{digits}f}"


def main() -> None:
    """Compiles what the arguments say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", nargs="+", default=["v5e:2x2"])
    parser.add_argument("--config", default="ktn:tiny")
    parser.add_argument("--size", default="128x128", help="HEIGHTxWIDTH of the images")
    parser.add_argument("--per-device", type=int, default=1, help="images")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--quick", action="store_true", help="XLA's optimisation level O1")
    parser.add_argument("--keep", default="", help="file for the program of the last topology")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file")
    arguments = parser.parse_args()

    from ktn_jax.runtime.configuration import load_config

    height, width = (int(side) for side in arguments.size.split("x"))
    figures = []
    for topology in arguments.topology:
        batch = arguments.per_device * make_mesh(topology).size
        changes = [f"batch_size={batch}", f"model.dtype={arguments.dtype}", *arguments.set]
        config = load_config(arguments.config, changes)
        figures.append(
            compile_step(config, topology, (height, width), arguments.quick, arguments.keep)
        )
    sys.stdout.write(as_markdown(figures) + "\n")
    if arguments.output:
        content = {"command": " ".join(sys.argv), "jax": jax.__version__, "programs": figures}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
