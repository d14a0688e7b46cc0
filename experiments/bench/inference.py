"""Times inference against PyTorch, plain or compiled: same weights, same photo, in turn.

    python experiments/bench/inference.py                         # small model, seconds
    python experiments/bench/inference.py --full                  # both R50 models, minutes
    python experiments/bench/inference.py --full --peer tuned openvino
    python experiments/bench/inference.py --full --peer tuned --set test.matmul_dtype=bfloat16

The photo is 717 x 1333, padded as either side does it (theirs to a multiple of 32, ours to one of
`test.size_buckets`). The second stage runs on the same eight boxes on both sides, whatever the
first one finds with untrained weights. Ours is timed as `ktn predict` runs it, up to the chart maps
on the host; our stages are timed apart, each compiled for itself, and need not add up to the whole.
A peer's whole is the sum of its stages. "eager" is plain PyTorch in float32 (`torch_peer`), "tuned"
and "openvino" are compiled by stage (`compiled_peer`), in bfloat16 where ours is. Each side has a
process of its own, with the memory allocation it runs with elsewhere, the compiled peers with that
of the `ktn` command; asked for a repetition, it does two and times the second.
Its memory is the peak of that process, from the checkpoint on, before stages are timed apart.
"""

import argparse
import contextlib
import dataclasses
import functools
import tempfile
import time

import common
import numpy as np

PHOTO_HW = (717, 1333)
PEOPLE = 8
STAGES = ("rest", "backbone + FPN", "RPN", "box pool + FC", "decoder", "pool + head", "predictor")
PEERS = ("eager", "tuned", "openvino")
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
    """The stages of this project on one photo."""

    def __init__(self, config, variables, photos, boxes):
        from ktn_jax.inference import batching
        from ktn_jax.inference.stages import Stages

        self.programs = Stages(config, variables)
        bucket = batching.choose_bucket(photos[0].shape[:2], config.test.size_buckets)
        self.inputs, self.sizes = batching.pad(photos, bucket, len(photos))
        self.boxes = np.tile(boxes, (len(photos), 1))
        self.index = np.repeat(np.arange(len(photos), dtype=np.int32), len(boxes))

    def run(self):
        """The whole, as `Predictor` does it with the boxes given: chart maps on the host."""
        import jax

        pyramid, found = self.programs.detect(self.inputs, self.sizes)
        jax.device_get(found)
        self.outputs = self.programs.describe(pyramid, self.boxes, self.index).charts

    def stages(self):
        """Seconds of each stage."""
        import jax
        import jax.numpy as jnp

        from ktn_jax.modeling.detector import Detector
        from ktn_jax.structures import Proposals

        model, variables = self.programs.model, self.programs.variables
        if not hasattr(self, "_jitted"):
            self._jitted = {}
        seconds = dict.fromkeys(STAGES, 0.0)

        def timed(stage, name, method, *values):
            if name not in self._jitted:

                def call(variables, *values):
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
        sizes = () if self.programs.is_full(self.inputs, self.sizes) else (self.sizes,)
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
        kernel = self.programs.surface_kernels[0]
        timed("predictor", "predict", Detector.predict_charts, features, kernel)
        return seconds

    def maps(self):
        """Chart maps [N, S, S, channels] of the last run, by name."""
        return {k: v for k, v in dataclasses.asdict(self.outputs).items() if v is not None}


class Theirs:
    """The same model in PyTorch's layers on one photo."""

    def __init__(self, name, config, state, photo, boxes):
        import torch

        if name == "eager":
            from torch_peer import Peer

            self.peer = Peer(config.model, state)
        else:
            from compiled_peer import CompiledPeer

            dtype = getattr(torch, config.test.matmul_dtype)
            self.peer = CompiledPeer(config.model, state, name, dtype)
        self.torch, self.photo, self.boxes = torch, photo, torch.from_numpy(boxes)
        self.image_hw = photo.shape[:2]
        self.size_hw = tuple(-(-side // 32) * 32 for side in self.image_hw)

    def stages(self):
        """Seconds of each stage."""
        seconds = dict.fromkeys(STAGES, 0.0)
        with self.torch.no_grad():
            self._run(self.photo, seconds)
        return seconds

    def maps(self):
        """Chart maps [N, S, S, channels] of the last run, by name."""
        return {k: v.numpy().transpose(0, 2, 3, 1) for k, v in self.outputs.items()}

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
        proposals = timed("RPN", peer.propose, levels, self.image_hw)
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


def agreement(ours, theirs):
    """Differences of the chart maps over the standard deviation of theirs: largest, and RMS.

    Of the first photo of a batch, for the peers take one.
    """
    largest, typical = [], []
    for name, expected in theirs.items():
        difference = (ours[name][: len(expected)] - expected[: len(ours[name])]) / expected.std()
        largest.append(float(np.abs(difference).max()))
        typical.append(float(np.sqrt(np.square(difference).mean())))
    return max(largest), max(typical)


def compare(config_name, folder, arguments, report):
    """All sides of one configuration; `folder` is for files that go between processes."""
    from ktn_jax.checkpoints import weights
    from ktn_jax.runtime import configuration

    config = configuration.load_config(config_name, arguments.changes)
    path = f"{folder}/{config.name}.safetensors"
    weights.write_variables(path, spread_weights(weights.initialise(config, seed=0)))
    sides = ("ours", *(() if arguments.ours_only else arguments.peers))
    with contextlib.ExitStack() as stack:
        servers, memory = {}, {}
        for side in sides:  # one after the other, for compiling takes memory and time
            own = serve_arguments(side, config_name, path, arguments)
            servers[side] = stack.enter_context(common.Server(own))
            memory[side] = servers[side].ask("run")["peak_bytes"]
        calls = {side: functools.partial(servers[side].ask, "run") for side in sides}
        calls["our stages"] = functools.partial(servers["ours"].ask, "stages")
        answers = common.take_turns(calls, arguments.repeats)
        maps = {}
        for side in sides:
            servers[side].ask(f"save {folder}/{side}.npz")
            maps[side] = dict(np.load(f"{folder}/{side}.npz"))
    values = {"batch": arguments.batch, "second_stage_people": arguments.people}
    rows, ours = [], None
    for side in sides:
        seconds = [sum(answer["seconds"].values()) for answer in answers[side]]
        images = arguments.batch if side == "ours" else 1
        whole = common.Row(side, seconds, images, peak_bytes=memory[side])
        parts = [a["seconds"] for a in answers["our stages" if side == "ours" else side]]
        stages = [
            common.Row(f"{side}: {stage}", [part[stage] for part in parts], whole=whole.median)
            for stage in STAGES
        ]
        processor = [answer["processor"] for answer in answers[side]]
        busy = common.Row(f"{side}: processor time", processor)
        rows += [whole, *stages, busy]
        ours = ours or (whole, busy)
        if side != "ours":
            values |= compare_with(side, ours, (whole, busy), maps, 1 / arguments.batch)
    if len(sides) > 1:
        import torch_ops

        values["peers_are"] = torch_ops.describe()
    size_hw = make_inputs(arguments)[0][0].shape[:2]
    report.section(f"{config.name}, photo {size_hw}, {arguments.people} people", rows, **values)


def compare_with(side, ours, theirs, maps, scale):
    """Ratios to one peer, and how far its maps are from ours and from the first peer's."""
    values = common.ratios(side, ours[0], theirs[0], scale)
    values |= common.ratios(f"{side}_in_processor_time", ours[1], theirs[1], scale)
    for other in maps:
        if other == side:
            break
        largest, typical = agreement(maps[other], maps[side])
        values[f"{other}_and_{side}_differ_by"] = f"{largest:.1e}, root mean square {typical:.1e}"
    return values


def make_inputs(arguments):
    """Photos and boxes of the size asked for."""
    size_hw = arguments.photo or (PHOTO_HW if arguments.full else (240, 360))
    return [make_photo(size_hw)] * arguments.batch, make_boxes(size_hw, arguments.people)


def serve_arguments(side, config_name, path, arguments):
    """Arguments of the process that runs one side."""
    own = ["--serve", side, "--weights", path, "--config", config_name]
    own += [f"--people={arguments.people}", f"--batch={arguments.batch}"]
    own += [f"--threads={arguments.threads}", *(["--full"] if arguments.full else [])]
    own += ["--photo", *map(str, arguments.photo)] if arguments.photo else []
    return own + [part for change in arguments.changes for part in ("--set", change)]


def serve(arguments):
    """Loads a checkpoint and runs one side as often as it is asked to."""
    from ktn_jax.checkpoints import files, weights
    from ktn_jax.runtime import configuration

    config = configuration.load_config(arguments.config[0], arguments.changes)
    photos, boxes = make_inputs(arguments)
    if arguments.serve == "ours":
        side = Ours(config, weights.load(config, arguments.weights), photos, boxes)
        calls = {"run": side.run, "stages": side.stages}
    else:
        import torch

        torch.set_num_threads(arguments.threads)
        state = files.read_state_dict(arguments.weights)
        side = Theirs(arguments.serve, config, state, photos[0], boxes)
        calls = {"run": side.stages}
    calls["run"]()

    def answer(question):
        name, _, path = question.partition(" ")
        if name == "save":
            np.savez(path, **side.maps())
            return {}
        timed = common.time_warm(calls[name])
        return timed | {"seconds": timed["result"] or {"whole": timed["seconds"]}}

    common.answer_questions(answer)


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
    common.add_peer_arguments(
        parser, PEERS, ", channels-last and compiled by torch.compile or OpenVINO"
    )
    parser.add_argument("--ours-only", action="store_true")
    arguments = parser.parse_args()
    common.prepare_side(arguments)
    if arguments.serve:
        serve(arguments)
        return
    report = common.Report("inference", arguments.output)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.config or (FULL if arguments.full else ["configs/ktn.py:tiny"]):
            compare(name, folder, arguments, report)
    report.close()


if __name__ == "__main__":
    main()
