"""Times inference against plain PyTorch: same weights, same photo, in turn in one process.

    python experiments/bench/inference.py                         # small model, seconds
    python experiments/bench/inference.py --full                  # both R50 models, minutes
    python experiments/bench/inference.py --full --set model.matmul_dtype=bfloat16

The photo is 717 x 1333, padded as either side does it (theirs to a multiple of 32, ours to one of
`test.size_buckets`). The second stage runs on the same eight boxes on both sides, whatever the
first one finds with untrained weights. Ours is timed as `ktn predict` runs it, up to the chart maps
on the host; our stages are timed apart, each compiled for itself, and need not add up to the whole.
The PyTorch side's whole is the sum of its stages. Memory is the peak of a process that only loads a
checkpoint and runs one side.
"""

import argparse
import json
import tempfile
import time

import common
import numpy as np

PHOTO_HW = (717, 1333)
PEOPLE = 8
STAGES = ("rest", "backbone + FPN", "RPN", "box pool + FC", "decoder", "pool + head", "predictor")
FULL = ("configs/ktn.py:r50", "configs/densepose_rcnn.py:r50")


def make_photo(size_hw):
    """Smooth shapes with noise, RGB uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 256, (size_hw[0] // 48 + 2, size_hw[1] // 48 + 2, 3))
    smooth = np.kron(coarse, np.ones((48, 48, 1)))[: size_hw[0], : size_hw[1]]
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def make_boxes(size_hw, number):
    """People of several sizes, [N, 4] xyxy."""
    rng = np.random.default_rng(1)
    height = rng.uniform(0.25, 0.9, number) * size_hw[0]
    width = height * rng.uniform(0.35, 0.7, number)
    x, y = rng.uniform(0, size_hw[1] - width), rng.uniform(0, size_hw[0] - height)
    return np.float32(np.stack([x, y, x + width, y + height], axis=1))


class Ours:
    """The predictor of this project on one photo."""

    def __init__(self, config, variables, photos, boxes):
        from ktn_jax.inference import Predictor, choose_bucket

        self.predictor = Predictor(config, variables)
        size_hw = photos[0].shape[:2]
        self.bucket = choose_bucket(size_hw, config.test.size_buckets)
        self.inputs = np.zeros((len(photos), *self.bucket, 3), np.uint8)
        for row, photo in zip(self.inputs, photos, strict=True):
            row[: size_hw[0], : size_hw[1]] = photo
        self.sizes = np.int32([size_hw] * len(photos))
        self.boxes = np.tile(boxes, (len(photos), 1))
        self.index = np.repeat(np.arange(len(photos), dtype=np.int32), len(boxes))

    def run(self):
        """The whole, as `Predictor` does it with the boxes given: chart maps on the host."""
        import jax

        predictor = self.predictor
        decoded, found = predictor._detect(predictor.variables, self.inputs, self.sizes)
        jax.device_get(found)
        self.outputs = predictor._charts(decoded, self.boxes, self.index)

    def stages(self):
        """Seconds of each stage."""
        import jax
        import jax.numpy as jnp

        from ktn_jax.modeling.computing import computing
        from ktn_jax.modeling.detector import Detector, size_multiple
        from ktn_jax.structures import Proposals

        model, variables = self.predictor.model, self.predictor.variables
        if not hasattr(self, "_jitted"):
            self._jitted = {}
        seconds = dict.fromkeys(STAGES, 0.0)

        def timed(stage, name, method, *values):
            if name not in self._jitted:

                def call(variables, *values):
                    with computing(self.predictor.forms):
                        return model.apply(variables, *values, method=method)

                self._jitted[name] = jax.jit(call).lower(variables, *values).compile()
            start = time.perf_counter()
            result = jax.block_until_ready(self._jitted[name](variables, *values))
            seconds[stage] += time.perf_counter() - start
            return result

        def classify(detector, pyramid, boxes, index):
            return detector.classify(detector.pool_boxes(pyramid, boxes, index))

        def head(detector, decoded, boxes, index):
            return detector.run_head(detector.pool_people(decoded, boxes, index))

        inputs = timed("rest", "normalise", Detector.normalise, self.inputs, self.sizes)
        multiple = size_multiple(model.config)
        is_full = (-(-self.sizes // multiple) * multiple == self.bucket).all()
        sizes = () if is_full else (self.sizes,)
        pyramid = timed("backbone + FPN", "extract", Detector.extract, inputs, *sizes)
        proposals = timed("RPN", "propose", Detector.propose, pyramid, self.sizes)
        batch, rows = proposals.logits.shape
        index = jnp.repeat(jnp.arange(batch), rows)
        boxes = proposals.boxes.reshape(-1, 4)
        _, logits, deltas = timed("box pool + FC", "classify", classify, pyramid, boxes, index)
        logits, deltas = logits.reshape(batch, rows, -1), deltas.reshape(batch, rows, -1)
        proposals = Proposals(proposals.boxes, proposals.logits, proposals.is_valid)
        detect = Detector.detections_from
        timed("rest", "detections", detect, logits, deltas, proposals, self.sizes)
        decoded = timed("decoder", "decode", Detector.decode, pyramid)
        features = timed("pool + head", "head", head, decoded, self.boxes, self.index)
        kernel = self.predictor._surface_kernel
        timed("predictor", "predict", Detector.predict_charts, features, kernel)
        return {f"ours: {stage}": value for stage, value in seconds.items()}


class Theirs:
    """The same model in plain PyTorch on one photo after the other."""

    def __init__(self, config, state, photos, boxes):
        import torch
        from torch_peer import Peer

        self.torch, self.peer = torch, Peer(config.model, state)
        self.photos, self.boxes = photos, torch.from_numpy(boxes)
        self.image_hw = photos[0].shape[:2]
        self.size_hw = tuple(-(-side // 32) * 32 for side in self.image_hw)

    def stages(self):
        """Seconds of each stage, and of the whole."""
        seconds = dict.fromkeys(STAGES, 0.0)
        for photo in self.photos:
            with self.torch.no_grad():
                self._run(photo, seconds)
        return {"PyTorch": sum(seconds.values())} | {
            f"PyTorch: {stage}": value for stage, value in seconds.items()
        }

    def _run(self, photo, seconds):
        from torch_peer import with_image

        peer = self.peer

        def timed(stage, call, *values):
            start = time.perf_counter()
            result = call(*values)
            seconds[stage] += time.perf_counter() - start
            return result

        x = timed("rest", peer.normalise, photo, self.size_hw)
        levels = timed("backbone + FPN", peer.pyramid, x)
        proposals, _ = timed("RPN", peer.propose, levels, self.image_hw)
        logits, deltas = timed("box pool + FC", peer.classify, levels, with_image(proposals))
        timed("rest", peer.detections, logits, deltas, proposals, self.image_hw)
        decoded = timed("decoder", peer.decode_pyramid, levels)
        features = timed("pool + head", peer.pool_and_head, decoded, with_image(self.boxes))
        self.outputs = timed("predictor", peer.predict, features)


def spread_weights(variables, seed=0):
    """Gives norms and biases random values, so that comparing the outputs means something."""
    import flax.traverse_util

    rng = np.random.default_rng(seed)
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    for path, value in flat.items():
        value = np.asarray(value)
        name = path.rpartition("/")[-1]
        if name in ("mean", "bias"):
            value = rng.normal(0, 0.05, value.shape)
        elif name == "var" or (name == "scale" and "norm" in path):
            value = value * rng.uniform(0.8, 1.2, value.shape)
        flat[path] = np.asarray(value, np.asarray(flat[path]).dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def agreement(ours, theirs, count):
    """Differences of the chart maps over the standard deviation of theirs: largest, and RMS."""
    largest, typical = [], []
    for name, expected in theirs.items():
        expected = expected.numpy().transpose(0, 2, 3, 1)
        actual = np.asarray(getattr(ours, name))[:count]
        difference = (actual - expected) / expected.std()
        largest.append(float(np.abs(difference).max()))
        typical.append(float(np.sqrt(np.square(difference).mean())))
    return max(largest), max(typical)


def compare(config_name, arguments, report):
    """Both sides of one configuration."""
    from ktn_jax import configuration, torch_weights, weights

    config = configuration.load_config(config_name, arguments.changes)
    photos, boxes = make_inputs(arguments)
    variables = spread_weights(weights.initialise(config, seed=0))
    ours = Ours(config, variables, photos, boxes)
    if not arguments.ours_only:
        constants = {"constants": weights.constants(config.model)}
        state = torch_weights.to_torch({**variables, **constants})
        theirs = Theirs(config, state, photos[:1], boxes)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.safetensors"
        if not arguments.no_memory:
            weights.write_variables(path, variables)
        memory = {}
        for side in () if arguments.no_memory else ("ours", "theirs"):
            if side == "ours" or not arguments.ours_only:
                memory[side] = memory_of(side, config_name, path, arguments)
    calls = {"ours": ours.run, "our stages": ours.stages}
    if not arguments.ours_only:
        calls["PyTorch"] = theirs.stages
    seconds = common.take_turns(calls, arguments.repeats)
    rows = []
    for side, name in (("ours", "ours"), ("PyTorch", "theirs")):
        if side not in seconds:
            continue
        whole = common.Row(side, seconds[side], len(photos) if side == "ours" else 1)
        whole.peak_bytes = memory.get(name)
        parts = [(key, value) for key, value in seconds.items() if key.startswith(side + ": ")]
        rows += [whole, *(common.Row(key, value, whole=whole.median) for key, value in parts)]
    values = {"network_input": ours.bucket, "batch": len(photos)}
    if not arguments.ours_only:
        values["peer"] = __import__("torch_ops").describe()
        scaled = [value * len(photos) for value in seconds["PyTorch"]]
        values["time_ratio"] = common.median_ratio(seconds["ours"], scaled)
        if memory:
            values["memory_ratio"] = memory["ours"] / memory["theirs"]
        processor = [seconds[common.PROCESSOR + side] for side in ("ours", "PyTorch")]
        processor[1] = [value * len(photos) for value in processor[1]]
        values["processor_time_ratio"] = common.median_ratio(*processor)
        largest, typical = agreement(ours.outputs, theirs.outputs, len(boxes))
        values |= {"largest_difference_over_std": largest, "rms_difference_over_std": typical}
    report.section(
        f"{config.name}, photo {PHOTO_HW if arguments.full else photos[0].shape[:2]}, "
        f"{len(boxes)} people",
        rows,
        **values,
    )


def make_inputs(arguments):
    """Photos and boxes of the size asked for."""
    size_hw = arguments.photo or (PHOTO_HW if arguments.full else (240, 360))
    return [make_photo(size_hw)] * arguments.batch, make_boxes(size_hw, arguments.people)


def memory_of(side, config_name, path, arguments):
    """Peak memory of a process that loads a checkpoint and runs one side three times."""
    own = ["--measure-memory", side, "--weights", path, "--config", config_name]
    own += [f"--people={arguments.people}", f"--batch={arguments.batch}"]
    own += ["--full"] if arguments.full else []
    own += ["--photo", *map(str, arguments.photo)] if arguments.photo else []
    own += [part for change in arguments.changes for part in ("--set", change)]
    return common.run_alone(own)["peak_bytes"]


def measure_memory(arguments):
    """The child of `memory_of`."""
    from ktn_jax import checkpoint_files, configuration, weights

    config = configuration.load_config(arguments.config[0], arguments.changes)
    photos, boxes = make_inputs(arguments)
    if arguments.measure_memory == "ours":
        side = Ours(config, weights.load(config, arguments.weights), photos, boxes)
        call = side.run
    else:
        state = checkpoint_files.read_state_dict(arguments.weights)
        side = Theirs(config, state, photos[:1], boxes)
        call = side.stages
    for _ in range(3):
        call()
    print(json.dumps({"peak_bytes": common.peak_memory()}))  # noqa: T201


def main():
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, repeats=5)
    parser.add_argument("--config", nargs="+", help="default: tiny; with --full both R50 models")
    parser.add_argument("--full", action="store_true", help="the photo and models of the tables")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--photo", type=int, nargs=2, help="height and width")
    parser.add_argument("--people", type=int, default=PEOPLE)
    parser.add_argument(
        "--batch", type=int, default=1, help="photos a call, ours; theirs takes one"
    )
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; JAX takes every core")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--measure-memory", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    common.prepare(tunes_memory=arguments.measure_memory != "theirs")
    if arguments.measure_memory != "ours" and not arguments.ours_only:
        import torch

        torch.set_num_threads(arguments.threads)
    if arguments.measure_memory:
        measure_memory(arguments)
        return
    report = common.Report("inference", arguments.output)
    for name in arguments.config or (FULL if arguments.full else ["configs/ktn.py:tiny"]):
        compare(name, arguments, report)
    report.close()


if __name__ == "__main__":
    main()
