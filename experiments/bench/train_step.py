"""Times a training step: images a second, the share of each part, memory, and PyTorch beside it.

    python experiments/bench/train_step.py                             # small model, seconds
    python experiments/bench/train_step.py --compare                   # both R50 models, minutes
    python experiments/bench/train_step.py --config configs/ktn.py:r50 --size 800x1344 \\
        --batch 2 4 8 16 --dtype float32 bfloat16 --output figures.json

A batch is random pixels with people of random annotations, the same for every step, on the device
before the clock starts. Parts are timed by growing the loss: the pyramid alone, then with the RPN,
the box head and the DensePose branch, each with its gradient, and last the whole step with the
optimizer; a part's share is what it adds. What a loss does not need is not computed.

With --compare the other side is the same model in plain PyTorch layers, float32, SGD: two images of
512 x 512, 16 DensePose ROIs in each. Each side has a process of its own and takes two steps when
asked, of which the second is timed. Both start from the same weights; the losses of the first step,
on the same anchors and ROIs, are compared. Learning rates are too small to change a weight, so that
all steps do the same work.
"""

import argparse
import contextlib
import functools
import tempfile
import time

import common
import numpy as np

RPN_LOSSES = ("rpn_objectness", "rpn_deltas")
BOX_LOSSES = ("box_class", "box_deltas")
COMPARED = ("configs/ktn.py:r50", "configs/densepose_rcnn.py:r50")
ROIS_PER_IMAGE = 16


def make_batch(config, size_hw, people=3, points=100):
    """A batch of random images, as many people in each with DensePose and keypoints."""
    from ktn_jax.data_pipelines.loading.configured import training_batch_spec

    rng = np.random.default_rng(0)
    batch_size, (height, width) = config.batch_size, size_hw
    people, points = min(people, config.data.max_people), min(points, config.data.max_points)
    spec = training_batch_spec(config, size_hw)
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
    if "person_mask" in batch:
        batch["person_mask"] = np.minimum(batch["part_mask"], 1)
        batch["has_person_mask"] = batch["is_valid"]
    if "point_vertex" in batch:  # of the first mesh
        batch["point_vertex"][dots] = rng.integers(0, config.model.meshes.num_vertices[0], shape)
    return batch


class Ours:
    """The step that `ktn train` takes, on one batch."""

    def __init__(self, config, variables, size_hw, people=3):
        from ktn_jax.checkpoints import weights
        from ktn_jax.training import configured, distributed, initialisation, profiling
        from ktn_jax.training.trainer import Trainer

        self.config = config
        mesh = distributed.make_mesh(config.training.num_devices)
        self.model = initialisation.build_trained_model(config, distributed.platform_of(mesh))
        self.loss_fn = configured.make_loss_fn(self.model, config, mesh)
        self.tables = configured.load_tables(config)
        self.folder = tempfile.TemporaryDirectory()  # nothing is saved there
        self.trainer = Trainer(
            config,
            self.folder.name,
            self.loss_fn,
            weights.abstract_variables(self.model),
            lambda: variables or weights.draw_variables(self.model, config.seed),
            tables=self.tables,
        )
        batch = make_batch(config, size_hw, people)
        self.batch = distributed.to_devices(batch, distributed.over_batch(mesh))
        start = time.perf_counter()
        program = self.trainer.compiled(self.batch).take
        self.compile_seconds = time.perf_counter() - start
        self.program_bytes = profiling.memory_of(program).peak
        self.devices = f"{mesh.size} {mesh.devices.flat[0].device_kind}"

    def run(self):
        """Takes a step."""
        import jax

        jax.block_until_ready(self.trainer.step(self.batch))

    def parts(self):
        """Calls that compute the gradient of each growing loss, by name."""
        import jax
        import jax.numpy as jnp

        def pyramid_loss(params, stats, batch, key, tables):
            def run(detector):
                inputs = detector.normalise(batch["image"], batch["image_size_hw"])
                return detector.extract(inputs, None, train=True).maps

            variables = {"params": params, "batch_stats": stats}
            maps, _ = self.model.apply(variables, method=run, mutable=["batch_stats"])
            return sum(jnp.square(level.astype(jnp.float32)).mean() for level in maps.values())

        def partial_loss(names, params, stats, batch, key, tables):
            losses = self.loss_fn(params, stats, batch, key, *tables)[1][0]
            return sum(loss for name, loss in losses.items() if names is None or name in names)

        losses = {
            "pyramid": pyramid_loss,
            "RPN": functools.partial(partial_loss, RPN_LOSSES),
            "box head": functools.partial(partial_loss, RPN_LOSSES + BOX_LOSSES),
            "DensePose": functools.partial(partial_loss, None),
        }
        rest = (self.batch, jax.random.key(0), jax.device_put(self.tables))

        def gradient(compiled):
            state = self.trainer.state  # each step makes a new one
            jax.block_until_ready(compiled(state.params, state.batch_stats, *rest))

        return {
            name: functools.partial(gradient, jax.jit(jax.grad(loss)))
            for name, loss in losses.items()
        }

    def sample(self, path):
        """Draws what a step trains on, writes it for the other side, and returns our losses."""
        import jax

        from ktn_jax.ops.chart_reads import resample_chart_nearest
        from ktn_jax.ops.keypoints import keypoints_to_heatmap_index
        from ktn_jax.runtime import host_memory
        from ktn_jax.training import forward, targets

        config, batch = self.config, self.batch
        size = 4 * config.model.densepose_head.pooled_size

        @jax.jit
        def draw(params, stats):
            outputs, _ = forward.apply(
                self.model,
                config.loss,
                params=params,
                batch_stats=stats,
                batch=batch,
                key=jax.random.key(0),
            )
            losses = forward.compute_losses(config.model, config.loss, outputs, batch)
            people = targets.densepose_targets(outputs.samples.people["densepose"], batch)
            parts = resample_chart_nearest(
                people.part_mask, people.gt_boxes, people.boxes, (size, size)
            )
            cells, is_valid = keypoints_to_heatmap_index(people.keypoints, people.boxes, size)
            return outputs.samples, outputs.anchors, people, parts, cells, is_valid, losses

        drawn = jax.device_get(draw(self.trainer.state.params, self.trainer.state.batch_stats))
        host_memory.return_freed()  # of compiling what no training compiles
        samples, anchors, people, parts, cells, is_valid, losses = drawn
        is_roi, is_person = samples.rois.is_valid.reshape(-1), people.weight > 0
        points = {
            name: getattr(people, name)[is_person]
            for name in ("point_is_valid", *(f"point_{axis}" for axis in "xyuvi"))
        }
        np.savez(
            path,
            anchor_labels=samples.anchors.labels,
            anchor_boxes=samples.anchors.boxes,
            anchors=anchors,
            gt_boxes=jax.device_get(batch["boxes"]),
            rois=with_image(samples.rois.boxes)[is_roi],
            roi_is_person=samples.rois.is_foreground.reshape(-1)[is_roi],
            roi_gt_boxes=samples.rois.gt_boxes.reshape(-1, 4)[is_roi],
            people=with_image(samples.people["densepose"].boxes)[is_person],
            weight=people.weight[is_person],
            people_gt_boxes=people.gt_boxes[is_person],
            parts=parts[is_person],
            keypoint_cells=cells[is_person],
            keypoint_is_valid=is_valid[is_person],
            **points,
        )
        counts = {"ROIs": int(is_roi.sum()), "DensePose ROIs": int(is_person.sum())}
        return counts | {name: float(value) for name, value in losses.items()}


def with_image(boxes):
    """Boxes [B, N, 4] as [B * N, 5] with the index of the image in front."""
    index = np.arange(len(boxes), dtype=np.float32)[:, None, None]
    rows = np.concatenate([np.broadcast_to(index, (*boxes.shape[:2], 1)), boxes], axis=2)
    return rows.reshape(-1, 5)


def measure(name, changes, size_hw, has_parts, repeats, report):
    """Our step of one configuration."""
    from ktn_jax.runtime.configuration import load_config

    config = load_config(name, changes)
    ours = Ours(config, None, size_hw)
    calls = {"step": ours.run} | (ours.parts() if has_parts else {})
    seconds = common.take_turns(calls, repeats, warm_up=2)
    values = {"devices": ours.devices, "compile_seconds": ours.compile_seconds}
    if ours.program_bytes:
        values["program_gib"] = ours.program_bytes / 2**30
    whole = common.Row(
        "step", seconds.pop("step"), config.batch_size, peak_bytes=common.peak_memory()
    )
    rows, before = [whole], [0.0] * repeats
    for part, totals in (seconds | {"optimizer": whole.seconds} if has_parts else {}).items():
        added = [max(total - start, 0.0) for total, start in zip(totals, before, strict=True)]
        rows.append(common.Row(part, added, whole=whole.median))
        before = [max(pair) for pair in zip(totals, before, strict=True)]
    title = f"{config.name} {config.model.dtype}, batch {config.batch_size} of {size_hw}"
    report.section(title, rows, **values)


def compared_changes(arguments):
    """Changes to a configuration under which both sides do the same work in every step."""
    return [
        "batch_size=2",
        f"loss.densepose_rois_per_image={ROIS_PER_IMAGE}",
        f"data.max_people={ROIS_PER_IMAGE}",
        "optimizer.learning_rate=1e-30",
        "optimizer.warmup_steps=0",
        "model.backbone.norm=FrozenBN",  # as the R50 models; the other side has no other
        "model.backbone.freeze_at=2",
        *arguments.changes,
    ]


def compare(name, folder, arguments, report):
    """Both sides of one configuration; `folder` is for files that go between processes."""
    import torch_ops
    from inference import spread_weights

    from ktn_jax.checkpoints import weights
    from ktn_jax.runtime import configuration

    config = configuration.load_config(name, compared_changes(arguments))
    path = f"{folder}/{config.name}.safetensors"
    weights.write_variables(path, spread_weights(weights.initialise(config, seed=0)))
    sides = ("ours", *arguments.peers)
    with contextlib.ExitStack() as stack:
        servers, losses = {}, {}
        for side in sides:  # ours first: it writes what both train on
            own = ["--serve", side, "--weights", path, "--config", name, "--size", arguments.size]
            own += [f"--threads={arguments.threads}"]
            own += [part for change in arguments.changes for part in ("--set", change)]
            servers[side] = stack.enter_context(common.Server(own))
            losses[side] = servers[side].ask("losses")
        calls = {side: functools.partial(servers[side].ask, "run") for side in sides}
        answers = common.take_turns(calls, arguments.repeats, warm_up=2)
    rows, values = [], {"peer": torch_ops.describe()}
    for side in sides:
        seconds = [answer["seconds"] for answer in answers[side]]
        peak = answers[side][-1]["peak_bytes"]
        rows.append(common.Row(side, seconds, config.batch_size, peak_bytes=peak))
        processor = [answer["processor"] for answer in answers[side]]
        rows.append(common.Row(f"{side}: processor time", processor))
        if side != "ours":
            values |= common.ratios(side, rows[0], rows[-2]) | common.ratios(
                f"{side}_in_processor_time", rows[1], rows[-1]
            )
    differences = {
        loss: abs(losses["ours"][loss] - expected) / max(abs(expected), 1e-6)
        for loss, expected in losses[sides[1]].items()
    }
    values |= {
        "sampled": f"{losses['ours']['ROIs']} ROIs, {losses['ours']['DensePose ROIs']} DensePose",
        "relative_differences_of_losses": ", ".join(
            f"{loss} {value:.1g}" for loss, value in sorted(differences.items())
        ),
        "largest_relative_difference_of_losses": max(differences.values()),
    }
    size = f"2 images of {arguments.size}, {2 * ROIS_PER_IMAGE} DensePose ROIs"
    report.section(f"{config.name}, {size}", rows, **values)


def serve(arguments):
    """Takes steps of one side as often as it is asked to."""
    from ktn_jax.checkpoints import files, weights
    from ktn_jax.runtime import configuration

    config = configuration.load_config(arguments.config[0], compared_changes(arguments))
    size_hw = parse_size(arguments.size)
    samples = f"{arguments.weights}.samples.npz"
    if arguments.serve == "ours":
        variables = weights.load(config, arguments.weights)
        ours = Ours(config, variables, size_hw, people=ROIS_PER_IMAGE)
        del variables
        calls = {"losses": lambda: ours.sample(samples), "run": ours.run}
    else:
        import torch
        from torch_training import Trainer, sampled_from

        torch.set_num_threads(arguments.threads)
        state = files.read_state_dict(arguments.weights)
        images = make_batch(config, size_hw)["image"]
        trainer = Trainer(config, state, images)
        del state
        with np.load(samples) as arrays:
            sampled = sampled_from(arrays)

        def step():
            return {name: float(value) for name, value in trainer.step(sampled).items()}

        calls = {"losses": step, "run": step}

    def answer(question):
        return calls[question]() if question == "losses" else common.time_warm(calls[question])

    common.answer_questions(answer)


def parse_size(text):
    """(height, width) of "HxW"."""
    height, width = text.split("x")
    return int(height), int(width)


def main():
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, repeats=5)
    parser.add_argument("--config", nargs="+", help="default: tiny; with --compare both R50 models")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--size", help="height x width; default 128x128, 512x512 with --compare")
    parser.add_argument("--batch", type=int, nargs="+", default=[2])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--no-parts", action="store_true", help="the whole step only")
    parser.add_argument("--compare", action="store_true", help="with PyTorch")
    common.add_peer_arguments(parser)
    arguments = parser.parse_args()
    arguments.size = arguments.size or ("512x512" if arguments.compare else "128x128")
    common.prepare_side(arguments)
    if arguments.serve:
        serve(arguments)
        return
    report = common.Report("train_step", arguments.output)
    if arguments.compare:
        with tempfile.TemporaryDirectory() as folder:
            for name in arguments.config or COMPARED:
                compare(name, folder, arguments, report)
    else:
        for name in arguments.config or ["configs/ktn.py:tiny"]:
            for dtype in arguments.dtype:
                for batch_size in arguments.batch:
                    changes = [f"model.dtype={dtype}", f"batch_size={batch_size}"]
                    changes += arguments.changes
                    size_hw = parse_size(arguments.size)
                    has_parts = not arguments.no_parts
                    measure(name, changes, size_hw, has_parts, arguments.repeats, report)
    report.close()


if __name__ == "__main__":
    main()
