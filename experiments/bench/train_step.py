"""Times a training step: images a second, the share of each part, and memory.

    python experiments/bench/train_step.py --config configs/ktn.py:tiny --size 128x128 --batch 2 4
    python experiments/bench/train_step.py --config configs/ktn.py:r50 --size 800x1344 \\
        --batch 2 4 8 16 --dtype float32 bfloat16 --output figures.json

A batch is random pixels with people of random annotations, the same for every step, on the device
before the clock starts. Parts are timed by growing the loss: the pyramid alone, then with the RPN,
the box head and the DensePose branch, each with its gradient, and last the whole step with the
optimizer; a part's share is what it adds. What a loss does not need is not computed.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
import time

RPN_LOSSES = ("rpn_objectness", "rpn_deltas")
BOX_LOSSES = ("box_class", "box_deltas")


def make_batch(config, batch_size, size_hw, people=3, points=100):
    """A batch of random images, as many people in each with DensePose and keypoints."""
    import numpy as np

    from data_pipelines.pipeline import batch_spec

    rng = np.random.default_rng(0)
    height, width = size_hw
    spec = batch_spec(batch_size, size_hw, config.data.max_people, config.data.max_points)
    batch = {name: np.zeros(array.shape, array.dtype) for name, array in spec.items()}
    batch["image"] = rng.integers(0, 256, spec["image"].shape, np.uint8)
    batch["image_size_hw"][:] = size_hw
    slots = (slice(None), slice(0, people))
    batch["is_valid"][slots] = batch["has_densepose"][slots] = True
    corner = rng.uniform(0, 0.4, (batch_size, people, 2)) * (width, height)
    extent = rng.uniform(0.3, 0.55, (batch_size, people, 2)) * (width, height)
    batch["boxes"][slots] = np.concatenate([corner, corner + extent], axis=-1)
    place = corner[:, :, None] + rng.random((batch_size, people, 17, 2)) * extent[:, :, None]
    batch["keypoints"][slots] = np.concatenate([place, np.full((*place.shape[:3], 1), 2)], -1)
    dots = (*slots, slice(0, points))
    shape = (batch_size, people, points)
    batch["point_is_valid"][dots] = True
    for name in ("point_x", "point_y"):
        batch[name][dots] = rng.uniform(0, 256, shape)
    for name in ("point_u", "point_v"):
        batch[name][dots] = rng.random(shape)
    batch["point_i"][dots] = rng.integers(1, 25, shape)
    batch["part_mask"][slots] = rng.integers(0, 15, (batch_size, people, 256, 256))
    return batch


def time_calls(call, repeats):
    """Median seconds of a call that has run once before."""
    import jax

    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def time_parts(config, model, state, batch, repeats):
    """Seconds of the gradient of each growing loss."""
    import jax
    import jax.numpy as jnp

    from ktn_jax.training import forward

    loss_fn = forward.make_loss_fn(model, config.loss)

    def pyramid_loss(params, stats, batch, key):
        variables = {"params": params, "batch_stats": stats}

        def run(detector):
            size_hw = batch["image_size_hw"]
            inputs = detector.normalise(batch["image"], size_hw)
            return detector.extract(inputs, None, train=True).maps

        maps, _ = model.apply(variables, method=run, mutable=["batch_stats"])
        return sum(jnp.square(level.astype(jnp.float32)).mean() for level in maps.values())

    def partial_loss(names, params, stats, batch, key):
        losses = loss_fn(params, stats, batch, key)[1][0]
        return sum(loss for name, loss in losses.items() if names is None or name in names)

    losses = {
        "pyramid": pyramid_loss,
        "rpn": functools.partial(partial_loss, RPN_LOSSES),
        "box head": functools.partial(partial_loss, RPN_LOSSES + BOX_LOSSES),
        "densepose": functools.partial(partial_loss, None),
    }
    key = jax.random.key(0)
    seconds = {}
    for name, loss in losses.items():
        gradient = jax.jit(jax.grad(loss))
        call = functools.partial(gradient, state.params, state.batch_stats, batch, key)
        seconds[name] = time_calls(call, repeats)
    return seconds


def measure(config, size_hw, batch_size, repeats, has_parts):
    """Figures of one configuration, batch size and type."""
    import jax

    from ktn_jax import weights
    from ktn_jax.training import distributed, forward, initialisation, optimizer, state, step

    model = initialisation.build_trained_model(config)
    mesh = distributed.make_mesh(config.training.num_devices)
    shapes = weights.abstract_variables(model)
    parts = (shapes["params"], shapes.get("batch_stats", {}))
    rule = optimizer.make_optimizer(config, *parts)

    def create(variables):
        return state.create_state(variables, rule, config.seed, has_ema=False)

    shardings = distributed.state_shardings(
        jax.eval_shape(create, shapes), mesh, config.training.shard_transfer
    )
    variables = initialisation.draw_variables(model, config.seed)
    current = jax.jit(create, out_shardings=shardings)(variables)
    labels = optimizer.label_parameters(*parts, optimizer.frozen_patterns(config))
    schedule = optimizer.make_schedule(config.optimizer, config.total_steps)
    loss_fn = forward.make_loss_fn(model, config.loss)
    train_step = step.make_train_step(loss_fn, rule, schedule, labels, mesh, shardings)
    sharding = distributed.over_batch(mesh)
    batch = make_batch(config, batch_size, size_hw)
    batch = distributed.to_devices(batch, sharding)
    stop = distributed.to_devices({"stop": [False] * mesh.size}, sharding)["stop"]
    figures = {
        "config": config.name,
        "dtype": config.model.dtype,
        "batch_size": batch_size,
        "size_hw": size_hw,
        "device": jax.devices()[0].device_kind,
        "num_devices": mesh.size,
    }
    if has_parts:
        totals = time_parts(config, model, current, batch, repeats)
        figures["seconds_up_to"] = totals
    start = time.perf_counter()
    compiled = train_step.lower(current, batch, stop).compile()
    figures["compile_seconds"] = time.perf_counter() - start
    memory = compiled.memory_analysis()
    if memory is not None:
        own = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        own += memory.output_size_in_bytes - memory.alias_size_in_bytes
        figures["program_gib"] = own / 2**30
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        current, metrics = compiled(current, batch, stop)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    figures["step_seconds"] = statistics.median(seconds[2:])
    figures["images_per_second"] = batch_size / figures["step_seconds"]
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:  # of the process so far: run one size at a time to compare
        figures["device_peak_gib"] = stats["peak_bytes_in_use"] / 2**30
    return figures


def shares(figures):
    """What each part adds, as a share of the step."""
    totals = figures["seconds_up_to"] | {"optimizer": figures["step_seconds"]}
    added, before = {}, 0.0
    for name, seconds in totals.items():
        added[name] = max(seconds - before, 0.0) / figures["step_seconds"]
        before = max(before, seconds)
    return added


def report(figures):
    """One line, and the shares below."""
    line = (
        f"{figures['config']} {figures['dtype']} batch {figures['batch_size']} at "
        f"{figures['size_hw'][0]} x {figures['size_hw'][1]} on {figures['num_devices']} "
        f"{figures['device']}: {figures['images_per_second']:.2f} images/s, "
        f"{figures['step_seconds'] * 1e3:.0f} ms a step"
    )
    for key, text in (("program_gib", "program"), ("device_peak_gib", "device peak")):
        if key in figures:
            line += f", {text} {figures[key]:.2f} GiB"
    lines = [line]
    if "seconds_up_to" in figures:
        lines.append("  " + ", ".join(f"{k} {v:.0%}" for k, v in shares(figures).items()))
    return "\n".join(lines)


def main():
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/ktn.py:tiny")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--size", default="128x128", help="height x width")
    parser.add_argument("--batch", type=int, nargs="+", default=[2])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-parts", action="store_true", help="the whole step only")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file")
    arguments = parser.parse_args()
    sys.path.insert(0, os.fspath(pathlib.Path(__file__).resolve().parents[2]))
    from ktn_jax import cli
    from ktn_jax.configuration import load_config

    cli.prepare_jax()  # as `ktn train` runs
    size_hw = tuple(int(side) for side in arguments.size.split("x"))
    results = []
    for dtype in arguments.dtype:
        for batch_size in arguments.batch:
            changes = [f"model.dtype={dtype}", f"batch_size={batch_size}", *arguments.changes]
            config = load_config(arguments.config, changes)
            has_parts = not arguments.no_parts
            figures = measure(config, size_hw, batch_size, arguments.repeats, has_parts)
            print(report(figures), flush=True)  # noqa: T201
            results.append(figures)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
