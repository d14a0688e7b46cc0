"""Our model against the dumps of the original, and that a mistake does not pass."""

import json

import numpy as np
import pytest

from ktn_jax.verification import dump as dumps
from ktn_jax.verification import intermediates, people
from ktn_jax.verification.dump import Dump

pytestmark = pytest.mark.parity


@pytest.mark.slow
def test_inference_equals_the_original(dump):
    rows = [*intermediates.compare_stages(dump), *people.results(dump), *people.end_to_end(dump)]
    failed = [row for row in rows if not row.is_ok]
    assert not failed, dumps.format_rows(failed)
    compared = {row.key.split(" ")[0] for row in rows}
    stored = {key for key in dump.keys if key.startswith("infer/")}
    stored -= {"infer/check_json", "infer/densepose/hr_count"}  # bookkeeping
    assert stored <= compared


def _edited(golden_dir, tmp_path, **changes):
    with np.load(golden_dir / "densepose_r50_legacy_tiny.npz") as file:
        arrays = {key: file[key] for key in file.files if not key.startswith(("grad", "train"))}
    for key, change in changes.items():
        name = key.replace("__", "/")
        arrays[name] = change(arrays[name])
        if arrays[name] is None:
            del arrays[name]
    np.savez(tmp_path / "dump.npz", **arrays)
    return tmp_path / "dump.npz"


@pytest.mark.extended
def test_a_mistake_shows_in_its_stage(golden_dir, tmp_path):
    def flip(kernel):
        return np.ascontiguousarray(kernel[:, :, ::-1])

    name = "state/roi_heads.densepose_head.body_conv_fcn2.weight"
    dump = Dump(_edited(golden_dir, tmp_path, **{name.replace("/", "__"): flip}))
    failed = {row.key for row in intermediates.compare_stages(dump) if not row.is_ok}
    assert failed == {"infer/densepose/head"}


def test_charts_are_compared_with_those_of_the_same_person(golden_dir, tmp_path):
    """A person outside the image is in no photo; those after it keep their charts."""

    def put_outside(boxes):
        return np.concatenate([[[-20.0, -20.0, -10.0, -10.0]], boxes]).astype(boxes.dtype)

    def repeat_first(rows):
        return np.concatenate([rows[:1], rows])

    whole = Dump(golden_dir / "densepose_r50_legacy_tiny.npz")
    prefix = "infer/densepose/lowres"
    per_person = [
        "infer/det/scores",
        "infer/det/classes",
        *(f"{prefix}/{name}" for name in whole.under(prefix)),
    ]
    changes = {name.replace("/", "__"): repeat_first for name in per_person}
    changes["infer__det__boxes"] = put_outside
    rows = list(people.results(Dump(_edited(golden_dir, tmp_path, **changes))))
    assert len([row for row in rows if "/uv" in row.key]) == len(whole["infer/det/boxes"])
    failed = [row for row in rows if not row.is_ok]
    assert not failed, dumps.format_rows(failed)


def test_files_that_are_no_dump_are_refused(golden_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz"):
        Dump(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(ValueError, match="text.npz: damaged, or not an .npz file"):
        Dump(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", config=np.array([{}], object))
    with pytest.raises(ValueError, match=r"objects.npz: .*config: an array of Python objects"):
        Dump(tmp_path / "objects.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match="no 'config'"):
        Dump(tmp_path / "other.npz")

    def unsupported(config):
        tree = json.loads(str(config))
        tree["MODEL"]["ROI_DENSEPOSE_HEAD"]["NAME"] = "SomethingElse"
        return np.array(json.dumps(tree))

    with pytest.raises(ValueError, match=r"ROI_DENSEPOSE_HEAD\.NAME 'SomethingElse'"):
        Dump(_edited(golden_dir, tmp_path, config=unsupported))
    bias = "state__backbone.fpn_output2.bias"
    with pytest.raises(ValueError, match=r"missing: backbone\.fpn_output2\.bias"):
        Dump(_edited(golden_dir, tmp_path, **{bias: lambda _: None}))


def test_nan_never_passes():
    assert not dumps.Row("key", (1,), float("nan"), 0.0, 1.0).is_ok
