"""Rendered people scored on the own body of the project: their dense truth, and spoilt ones."""

import json

import numpy as np
import pytest

from ktn_jax.body.parts import PATCH_NAMES
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource, dataset_header
from ktn_jax.evaluation import evaluator, template_files
from ktn_jax.results.iuv_pictures import encode_iuv

NUM_IMAGES = 10


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder with template and annotations, and the true IUV picture of every person."""
    source = SyntheticSource(NUM_IMAGES, seed=5)
    folder = tmp_path_factory.mktemp("rendered")
    template_files.write_body_template(folder, source.body.template, "own body", subdivided=False)
    examples, people = [], []
    for index in range(NUM_IMAGES):
        picture = source.picture(index)
        examples.append(source.example(index, picture))
        truth = picture.truth
        for person, record in zip(
            np.flatnonzero(~picture.is_crowd), examples[-1].annotations, strict=False
        ):
            x, y, width, height = (int(number) for number in record["bbox"])
            window = np.s_[y : y + height, x : x + width]
            colours = np.rint(np.stack([truth.u[window], truth.v[window]]) * 255)
            iuv = np.concatenate([truth.patch[window][None], colours]).astype(np.uint8)
            people.append((record, iuv * (truth.instance[window] == person + 1)))
    dataset = dataset_header(source.scene, len(source), source.seed) | {
        "images": [example.image_record for example in examples],
        "annotations": [record for example in examples for record in example.annotations],
    }
    (folder / "truth.json").write_text(json.dumps(dataset))
    return folder, people


def _score(rendered, change=lambda iuv: iuv, offset=(0, 0)):
    folder, people = rendered
    entries = []
    for record, iuv in people:
        x, y, width, height = record["bbox"]
        entries.append(
            {
                "image_id": record["image_id"],
                "category_id": 1,
                "score": 0.9,
                "bbox": [x + offset[0] * width, y + offset[1] * height, width, height],
                "uv_shape": list(iuv.shape),
                "uv_data": encode_iuv(np.ascontiguousarray(change(iuv))),
                "keypoints": record["keypoints"],
            }
        )
    (folder / "results.json").write_text(json.dumps(entries))
    return evaluator.evaluate_files(folder / "results.json", folder / "truth.json", folder)


def test_rendered_truth_scores_100(rendered):
    metrics = _score(rendered)
    for name in ("GPS", "GPSm", "IOU", "bbox", "keypoints"):
        assert metrics.summaries[name]["AP"] == pytest.approx(100), name
    # U and V have 8 bits and vertices are centimetres apart: hardly any point moves by one.
    assert metrics.patches.rows(PATCH_NAMES)["all"]["mean_cm"] < 0.5


def test_wrong_patches_keep_the_mask(rendered):
    # Every pixel is told to be on the head: about a tenth of the points are, the rest is far off.
    head = np.array([23, 128, 128], np.uint8)[:, None, None]
    metrics = _score(rendered, lambda iuv: head * (iuv[:1] > 0))
    assert metrics.summaries["IOU"]["AP"] == pytest.approx(100)
    assert metrics.summaries["GPS"]["AP"] == 0
    assert metrics.patches.rows(PATCH_NAMES)["all"]["mean_cm"] > 30


def test_mirrored_people_fall(rendered):
    metrics = _score(rendered, lambda iuv: iuv[:, :, ::-1])
    assert metrics.summaries["GPS"]["AP"] < 20
    assert metrics.summaries["bbox"]["AP"] == pytest.approx(100)


def test_the_further_a_person_is_moved_the_lower_the_score(rendered):
    scores = [_score(rendered, offset=(s, 0)).summaries["GPS"]["AP"] for s in (0, 0.03, 0.08, 0.2)]
    assert scores[0] == pytest.approx(100)
    assert scores[0] - 5 > scores[1] and scores[1] - 15 > scores[2] > scores[3]
    assert scores[3] < 20
