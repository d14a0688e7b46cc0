"""Measures exported predictors: their files, what reading a program costs, and what comes out.

    python experiments/bench/export.py                                 # small model, a minute
    python experiments/bench/export.py --config densepose_rcnn:r50 --canvas 800x1344

Weights are untrained. Beside the program that `ktn export` writes for CPUs, whose weights are an
argument, stands the same program with its weights as constants.
"""

import argparse
import math
import pathlib
import tempfile

import common

from ktn_jax.commands import size_hw


def read(path):
    """The program of a file."""
    from jax import export

    return export.deserialize(bytearray(path.read_bytes()))


def reading(path):
    """A call that reads a program and returns nothing, to be timed."""

    def call():
        read(path)

    return call


def freeze(exported, weights):
    """The program of an export with its weights as constants, serialised."""
    import jax
    from jax import export

    (_, images, sizes), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    program = jax.jit(lambda images, sizes: exported.call(weights, images, sizes))
    return export.export(program, platforms=exported.platforms)(images, sizes).serialize()


def output_bytes(exported):
    """Bytes of what the program of an export returns for each image."""
    return sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in exported.out_avals)


def measure(arguments, folder, report):
    """All figures of a configuration."""
    from safetensors.numpy import load_file

    from ktn_jax.checkpoints import weights
    from ktn_jax.inference import exported_files
    from ktn_jax.inference.stages import Stages
    from ktn_jax.runtime.configuration import load_config

    config = load_config(arguments.config, [])
    stages = Stages(config, weights.initialise(config, seed=0))
    settings = exported_files.make_settings(
        config, [arguments.canvas], ["cpu"], arguments.max_people
    )
    names = exported_files.write_stablehlo(stages, folder / "exported", settings)
    (name,) = (name for name in names if name.endswith(".jax_export"))
    plain, frozen = folder / "exported" / name, folder / "frozen.jax_export"
    exported = read(plain)
    values = load_file(folder / "exported" / exported_files.WEIGHTS_FILE)
    frozen.write_bytes(freeze(exported, values))
    seconds = common.take_turns(
        {"program": reading(plain), "weights as constants": reading(frozen)},
        arguments.repeats,
    )
    sizes = {"program": plain.stat().st_size, "weights as constants": frozen.stat().st_size}
    rows = [
        common.Row(f"read: {label}", seconds[label], note=f"a file of {size / 1e6:.1f} MB")
        for label, size in sizes.items()
    ]
    report.section(
        f"{config.name}, canvas {arguments.canvas}",
        rows,
        weights_mb=(folder / "exported" / exported_files.WEIGHTS_FILE).stat().st_size / 1e6,
        people=settings.max_people,
        output_mb_an_image=output_bytes(exported) / 1e6,
    )


def main():
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, repeats=3)
    parser.add_argument("--config", default="ktn:tiny")
    parser.add_argument("--canvas", type=size_hw, default=(256, 256))
    parser.add_argument("--max-people", type=int, default=20)
    arguments = parser.parse_args()
    report = common.Report("export", arguments.output)
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, pathlib.Path(folder), report)
    report.close()


if __name__ == "__main__":
    main()
