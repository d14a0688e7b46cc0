"""The process that reads damaged files: every reader of the project, with a valid file for each.

It answers lines of JSON on stdin: ["make", reader, folder] writes valid files and gives their
paths, ["read", reader, folder] reads them and says how that ended. It may die: `test_fuzz` notices.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import pickle
import struct
import sys
import traceback
import zipfile
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import safetensors.numpy
import scipy.io
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from ktn_jax.body import loading
from ktn_jax.body.graph import body_graph, co_occurrence, word_similarity
from ktn_jax.checkpoints.files import read_state_dict
from ktn_jax.data_pipelines.coco import annotations, checks, image_checks
from ktn_jax.evaluation import evaluator, ground_truth, template_files
from ktn_jax.evaluation.options import ScoringOptions
from ktn_jax.inference import video, video_recording
from ktn_jax.results import iuv_pictures, records, shards
from ktn_jax.results.frame_lines import FrameLine, read_frame_lines
from ktn_jax.results.people_over_time import PeopleOverTime
from ktn_jax.results.records import PersonResult, people_to_records
from ktn_jax.runtime import configuration, images, json_stream, mat_files, pickles, rle
from ktn_jax.runtime.video_sources import read_video

SIZE = (48, 64)  # of the only picture, height and width
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((1, 4), np.uint8)}
OPTIONS = ScoringOptions(workers=1, on_bad="skip")
RUN = {"weights": "0"}


@dataclasses.dataclass(frozen=True)
class Reader:
    """Writes valid files into a folder and returns those to damage; reads the folder."""

    make: Callable[[pathlib.Path], list[pathlib.Path]]
    read: Callable[[pathlib.Path], object]


def _json_of(path):
    """The list in a file that is not for any reader as it is."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return []
    return content if isinstance(content, list) else []


@contextlib.contextmanager
def _as_of(name):
    """Names the file of what is read from memory, as the callers of such functions do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _rle(mask):
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


def _annotations():
    grid = np.zeros((256, 256), bool)
    grid[60:200, 60:200] = True
    points = np.linspace(90, 160, 12)
    people = []
    for number, left in enumerate((4, 34)):
        box = [left, 8, 24, 32]
        outline = [left, 8, left + 24, 8, left + 24, 40, left, 40]
        mask = np.zeros(SIZE, bool)
        mask[8:40, left : left + 24] = True
        people.append(
            {
                "id": number + 1,
                "image_id": 7,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": box,
                "area": 700.0,
                "segmentation": [outline] if number else _rle(mask),
                "keypoints": [left + 10, 20, 2] * 17,
                "num_keypoints": 17,
                "dp_x": points.tolist(),
                "dp_y": points.tolist(),
                "dp_I": [1 + number] * 12,
                "dp_U": [0.2] * 12,
                "dp_V": [0.7] * 12,
                "dp_masks": [[], _rle(grid), *[[]] * 12],
            }
        )
    image = {"id": 7, "file_name": "7.png", "height": SIZE[0], "width": SIZE[1]}
    region = {"ignore_regions_x": [[0, 3, 3]], "ignore_regions_y": [[0, 0, 3]]}
    return {
        "images": [image, {**image, **region, "id": 8, "file_name": "8.png"}],
        "annotations": people,
        "categories": [{"id": 1, "name": "person"}],
    }


def _results():
    found = []
    for number, left in enumerate((4, 34)):
        iuv = np.zeros((3, 32, 24), np.uint8)
        iuv[:, 8:25, 6:19] = np.array([1 + number, 50, 180])[:, None, None]
        found.append(
            {
                "image_id": 7,
                "category_id": 1,
                "score": 0.9,
                "bbox": [left, 8, 24, 32],
                "uv_shape": [3, 32, 24],
                "uv_data": iuv_pictures.encode_iuv(iuv),
                "keypoints": [left + 10, 20, 0.5] * 17,
                "segmentation": _rle(np.ones(SIZE, bool)),
                "file_name": "7.png",
            }
        )
    return found


def _write_template(folder):
    rows = np.arange(24 * 4)
    folder.mkdir(exist_ok=True)
    template_files.write_template(
        folder,
        u=rows % 2 * 0.5,
        v=rows // 2 % 2 * 0.5,
        part=rows // 4 + 1,
        row=rows,
        geodesics=(np.full(i, 0.1) for i in range(1, len(rows))),
        num_distances=len(rows) * (len(rows) - 1) // 2,
        origin="fuzz",
        vertices=np.stack([rows, rows % 7, rows % 5], axis=1) / 10,
    )
    return [folder / template_files.SURFACE_FILE, folder / template_files.GEODESICS_FILE]


def _make_evaluation(damaged):
    def make(folder):
        (folder / "a.json").write_text(json.dumps(_annotations()))
        (folder / "r.json").write_text(json.dumps(_results()))
        paths = _write_template(folder / "template")
        return paths if damaged == "template" else [folder / damaged]

    return make


def _evaluate(folder):
    evaluator.evaluate_files(folder / "r.json", folder / "a.json", folder / "template", OPTIONS)


def _read_annotations(folder):
    path = folder / "a.json"
    checks.check_file(path).format(20)
    for image in annotations.parse_dataset(path, "skip", 1.0).images:
        list(image.people)
    annotations.parse_dataset(path, "skip", 1.0).images.facts()
    ground_truth.read_ground_truth(path, "skip")


def _read_results(folder):
    found = records.read_results(folder / "r.json")
    with _as_of("r.json"):
        records.records_to_people(found)


def _read_masks(folder):
    """What passes the check must be safe for pycocotools, and the same there as here."""
    for mask in _json_of(folder / "masks.json"):
        try:
            ours = rle.decode_rle(mask)
        except rle.RleError:
            continue
        packed = mask
        if isinstance(mask["counts"], list):
            packed = coco_mask.frPyObjects(dict(mask), *mask["size"])
        if not np.array_equal(coco_mask.decode([packed])[..., 0], ours):
            raise RuntimeError(f"pycocotools decodes {mask} otherwise")


def _make_masks(folder):
    half = np.indices((5, 7)).sum(axis=0) % 3 > 0
    runs = [{"size": [2, 3], "counts": [1, 2, 3]}, _rle(half), _rle(np.ones((9, 9), bool))]
    (folder / "masks.json").write_text(json.dumps(runs))
    return [folder / "masks.json"]


_PICTURES = {
    "jpg": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    "png": {},
    "gif": {"save_all": True},
    "webp": {},
    "avif": {},
    "tiff": {"compression": "tiff_lzw"},
    "bmp": {},
    "ppm": {},
}


def _make_pictures(folder):
    pixels = np.indices((12, 16)).sum(axis=0)[..., None] * np.array([3, 5, 7])
    picture = Image.fromarray(pixels.astype(np.uint8))
    for suffix, options in _PICTURES.items():
        picture.save(folder / f"p.{suffix}", **options)
    return [folder / f"p.{suffix}" for suffix in _PICTURES]


def _read_pictures(folder):
    # All but one are whole: of the broken one all three readers say the same, or read it.
    for path in sorted(folder.glob("p.*")):
        images.count_frames(path)
        images.peek_size_hw(path)
        image_checks.check_image_file(path, 12, 16)
    for path in sorted(folder.glob("p.*")):
        images.read_image(path)


def _state_file(name, write):
    def make(folder):
        write(folder / name)
        return [folder / name]

    return Reader(make, lambda folder: read_state_dict(folder / name))


def _make_pickle(folder):
    (folder / "a.pkl").write_bytes(pickle.dumps({"model": ARRAYS | {"c": np.float64(2)}}, 2))
    return [folder / "a.pkl"]


def _make_mat(folder):
    cells = np.empty((1, 2), object)
    cells[0, 0] = cells[0, 1] = np.ones((2, 2))
    chart = {
        "All_Faces": np.arange(1, 73).reshape(24, 3),
        "All_FaceIndices": np.arange(1, 25)[:, None],
        "All_vertices": np.arange(72)[None] % 3 + 1,
        "All_U_norm": np.arange(72)[:, None] % 3 * 0.5,
        "All_V_norm": np.arange(72)[:, None] % 3 * 0.2 % 0.4,
    }
    scipy.io.savemat(folder / "m.mat", ARRAYS | {"cells": cells} | chart)
    np.save(folder / "v.npy", np.array([[0.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    return [folder / "m.mat", folder / "v.npy"]


def _read_mat(folder):
    path = folder / "m.mat"
    mat_files.read_arrays(path, ("a",))
    mat_files.read_cells(path, ("cells",))
    loading.load_template(path, folder / "v.npy", symmetry_tolerance=None)


def _make_graph(folder):
    body_graph.save_graph(folder / "g.npz", body_graph.build_graph(None, None, True))
    return [folder / "g.npz"]


def _make_relations(folder):
    ends = {"subject": {"name": "head"}, "object": {"names": ["left hand"]}}
    (folder / "v.json").write_text(json.dumps([{"relationships": [ends, ends]}] * 2))
    return [folder / "v.json"]


def _read_relations(folder):
    words = {"head": ("face",)}
    co_occurrence.count_pairs(folder / "v.json", {"keypoint": words}, {"left hand": ("palm",)})


def _make_vectors(folder):
    words = {*word_similarity.NOUNS, *word_similarity.SIDES, *word_similarity.LEVELS}
    numbers = " ".join(["0.5"] * word_similarity.NUM_DIMENSIONS)
    (folder / "glove.txt").write_text("".join(f"{word} {numbers}\n" for word in sorted(words)))
    return [folder / "glove.txt"]


def _make_config(folder):
    config = configuration.load_config("ktn:tiny")
    (folder / "own.py").write_text(configuration.write_config(config, only_changes=True))
    return [folder / "own.py"]


def _make_changes(folder):
    values = ["seed=1", "model.box_head.max_detections=20", "test.size_buckets=((96,128),)"]
    values += ["optimizer.learning_rate=0.1", "data.annotations=a.json,b.json", "name=x"]
    (folder / "changes.json").write_text(json.dumps(values))
    return [folder / "changes.json"]


def _read_changes(folder):
    for change in _json_of(folder / "changes.json"):
        if isinstance(change, str):
            try:
                configuration.load_config("ktn:tiny", [change])
            except configuration.ConfigurationError:
                continue


def _make_shards(folder):
    with shards.ResultsWriter(folder / "shards", RUN) as writer:
        for image_id in (3, 7):
            writer.add(image_id, [{"image_id": image_id, "score": 0.5}])
    return sorted((folder / "shards").iterdir())


def _read_shards(folder):
    with shards.ResultsWriter(folder / "shards", RUN) as writer:
        writer.add(9, [{"image_id": 9}])
    shards.merge_results(folder / "shards", folder / "merged.json")
    list(json_stream.iterate_objects(folder / "merged.json"))


def _make_metrics(folder):
    lines = [json.dumps({"step": step, "loss": 1.5, "loss/u": "nan"}) for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return [folder / "metrics.jsonl"]


def _read_metrics(folder):
    from ktn_jax.training import tracking

    tracking.MetricsWriter(folder, first_step=1).close()


def _make_checkpoint(folder):
    from ktn_jax.checkpoints import runs

    state = {"params": {"k": np.arange(12.0)}, "batch_stats": {"m": np.ones(3)}, "ema_params": {}}
    with runs.Checkpoints(folder) as checkpoints:
        record = runs.RunRecord(config={"model": {"name": "x"}}, data_position=5)
        checkpoints.save(state, 5, record, {"loss": 1.0})
        checkpoints.wait()
    return sorted(path for path in folder.rglob("*") if path.is_file())


_TENSOR = (  # what PyTorch pickles: a storage of four numbers, offset, shape, strides
    b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n("
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    b"K\x00K\x02K\x02\x86K\x02K\x01\x86\x89ccollections\nOrderedDict\n)RtRs."
)


def _write_torch(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", _TENSOR)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", bytes(16))


def _write_torchscript(path):
    body = _TENSOR[_TENSOR.index(b"ctorch._utils") : -2]
    with zipfile.ZipFile(path, "w") as archive:
        module = b"\x80\x02c__torch__.place\nModule\n)\x81}X\x01\x00\x00\x00a" + body + b"sb."
        archive.writestr("a/data.pkl", module)
        archive.writestr("a/constants.pkl", b"\x80\x02).")
        archive.writestr("a/data/0", bytes(16))


def _write_older_torch(path):
    begin = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    pickled = b"".join(pickle.dumps(value, 2) for value in begin)
    path.write_bytes(pickled + _TENSOR + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16))


def _read_checkpoint(folder):
    from ktn_jax.checkpoints import run_folders, runs

    path = run_folders.find_checkpoint(folder)
    if path is not None:
        runs.read_checkpoint(path)


def _make_tree(folder):
    tree = {
        "INPUT": {"FORMAT": "BGR"},
        "MODEL": {
            "PIXEL_MEAN": [1.0],
            "PIXEL_STD": [1.0],
            "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
            "RESNETS": {"NUM_GROUPS": 1, "DEPTH": 50},
            "ROI_DENSEPOSE_HEAD": {"NAME": "DensePoseV1ConvXHead", "UV_CONFIDENCE": {}},
        },
    }
    (folder / "tree.json").write_text(json.dumps([tree]))
    return [folder / "tree.json"]


def _read_tree(folder):
    from ktn_jax.checkpoints.detectron2_config import from_detectron2

    for tree in _json_of(folder / "tree.json"):
        with contextlib.suppress(ValueError):  # which the caller gives the file's name
            from_detectron2(tree)


def _make_yaml(folder):
    from ktn_jax.checkpoints import detectron2_tree, zoo

    settings = dict(zoo.find("densepose_rcnn_R_50_FPN_s1x").settings)
    (folder / "base.yaml").write_text(yaml.safe_dump(detectron2_tree.nest(settings)))
    (folder / "x.yaml").write_text(
        "_BASE_: base.yaml\nMODEL: {RESNETS: {DEPTH: 101}}\nSOLVER: {STEPS: '(100, 200)'}\n"
    )
    return [folder / "base.yaml", folder / "x.yaml"]


def _read_yaml(folder):
    from ktn_jax.checkpoints import named

    named.load_config(str(folder / "x.yaml"), [])


def _make_videos(folder):
    rng = np.random.default_rng(0)
    for name, codec in (("v.mp4", "libx264"), ("v.avi", "mpeg4"), ("v.mkv", "libx264")):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=25, options={"g": "3"})
            stream.height, stream.width = SIZE
            for _ in range(6):
                image = rng.integers(0, 255, (*SIZE, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    return [folder / name for name in ("v.mp4", "v.avi", "v.mkv")]


def _read_videos(folder):
    """As a run does: what a file has, and why it ends."""
    for name in ("v.mp4", "v.avi", "v.mkv"):
        times = [frame.time for frame in read_video(folder / name)]
        if sorted(set(times)) != times:
            raise RuntimeError(f"times of {name} do not ascend: {times}")


def _make_lines(folder):
    lines = [FrameLine(n, n / 25, _results()).encode() for n in range(2)]
    (folder / "lines.jsonl").write_bytes(b"".join(lines))
    return [folder / "lines.jsonl"]


def _read_lines(folder):
    for line in read_frame_lines(folder / "lines.jsonl"):
        with _as_of("lines.jsonl"):
            line.people()


def _make_video_run(folder):
    """What a stopped run over a video leaves: segments, lines, people, and a finished one."""
    iuv = np.ones((3, 9, 5), np.uint8)
    person = PersonResult(np.float32([1, 2, 6, 11]), 0.9, iuv)
    people = PeopleOverTime(smooth_s=0.2)
    lines = []
    for frame in range(3):
        found = people.update([person], frame / 25)
        lines.append(FrameLine(frame, frame / 25, people_to_records(frame, found)).encode())
    people.write(folder / "people.npz")
    (folder / "lines.jsonl").write_bytes(b"".join(lines))
    (folder / "000000_overlay.mp4").write_bytes(b"")
    segment = video_recording.Segment(0, Fraction(0), 3, 3, 2, Fraction(2, 25))
    (folder / "segments.jsonl").write_bytes(segment.encode())
    done = dataclasses.asdict(video.VideoSummary("clip.mp4", 3, 3))
    (folder / "done.json").write_text(json.dumps(done))
    return [folder / name for name in ("people.npz", "segments.jsonl", "lines.jsonl", "done.json")]


def _read_video_run(folder):
    recording = video_recording.Recording(folder, folder / "lines.jsonl", ["overlay"], None)
    recording.close()
    if not 0 <= recording.num_frames <= 3:
        raise RuntimeError(f"{recording.num_frames} frames of 3")
    people = PeopleOverTime(smooth_s=0.2)
    people.read(folder / "people.npz")
    with _as_of("people.npz"):
        people.update([PersonResult(np.float32([1, 2, 6, 11]), 0.9)], 1e6)
    video._read_summary(folder / "done.json")


READERS = {
    "annotations": Reader(_make_evaluation("a.json"), _read_annotations),
    "evaluation": Reader(_make_evaluation("a.json"), _evaluate),
    "evaluated_results": Reader(_make_evaluation("r.json"), _evaluate),
    "results": Reader(_make_evaluation("r.json"), _read_results),
    "template": Reader(_make_evaluation("template"), _evaluate),
    "masks": Reader(_make_masks, _read_masks),
    "pictures": Reader(_make_pictures, _read_pictures),
    "pickle": Reader(_make_pickle, lambda folder: pickles.load_arrays(folder / "a.pkl")),
    "pickled_state": Reader(_make_pickle, lambda folder: read_state_dict(folder / "a.pkl")),
    "safetensors": _state_file(
        "a.safetensors", lambda path: safetensors.numpy.save_file(ARRAYS, path)
    ),
    "torchscript": _state_file("a.torchscript", _write_torchscript),
    "torch": _state_file("a.pth", _write_torch),
    "older_torch": _state_file("a.pth", _write_older_torch),
    "npz": _state_file("a.npz", lambda path: np.savez(path, **ARRAYS)),
    "mat": Reader(_make_mat, _read_mat),
    "graph": Reader(_make_graph, lambda folder: body_graph.load_graph(folder / "g.npz")),
    "relations": Reader(_make_relations, _read_relations),
    "vectors": Reader(
        _make_vectors, lambda folder: word_similarity.load_similarity(folder / "glove.txt")
    ),
    "configuration": Reader(
        _make_config, lambda folder: configuration.load_config(str(folder / "own.py"))
    ),
    "changes": Reader(_make_changes, _read_changes),
    "shards": Reader(_make_shards, _read_shards),
    "metrics": Reader(_make_metrics, _read_metrics),
    "checkpoint": Reader(_make_checkpoint, _read_checkpoint),
    "detectron2": Reader(_make_tree, _read_tree),
    "yaml": Reader(_make_yaml, _read_yaml),
    "videos": Reader(_make_videos, _read_videos),
    "frame_lines": Reader(_make_lines, _read_lines),
    "video_run": Reader(_make_video_run, _read_video_run),
}


def _read(reader, folder):
    """How reading ended: None, ["refused", text], or ["bug", traceback]."""
    try:
        READERS[reader].read(pathlib.Path(folder))
    except (ValueError, FileNotFoundError) as error:
        name = pathlib.Path(folder).name
        files = [path.name for path in pathlib.Path(folder).rglob("*")] + [name]
        if not any(file in str(error) for file in files):
            return ["bug", f"no file is named: {traceback.format_exc()}"]
        return ["refused", str(error)]
    except BaseException:
        return ["bug", traceback.format_exc()]
    return None


def main():
    """Answers until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints does not come between
    for line in sys.stdin:
        action, reader, folder = json.loads(line)
        if action == "make":
            answer = [str(path) for path in READERS[reader].make(pathlib.Path(folder))]
        else:
            answer = _read(reader, folder)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
