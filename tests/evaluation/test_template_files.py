"""Converting and opening evaluation templates."""

import hashlib
import pickle
import resource
import shutil

import numpy as np
import pytest
import scipy.io

from ktn_jax.evaluation import template_files
from ktn_jax.evaluation.errors import EvaluationError


def _write_official(folder, vertices=48, rows=40, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "U_subdiv": rng.random((vertices, 1)),
        "V_subdiv": rng.random((vertices, 1)),
        "Part_ID_subdiv": (np.arange(vertices) % 24 + 1).astype(np.uint8)[:, None],
        "index": (np.arange(vertices) % rows + 1).astype(np.uint16)[:, None],
        "Pdist_matrix": rng.random((rows * (rows - 1) // 2, 1)).astype(np.float32),
    } | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    folder.mkdir(exist_ok=True)
    index = {name: kept.pop(name) for name in ["index"] if name in kept}
    table = {name: kept.pop(name) for name in ["Pdist_matrix"] if name in kept}
    scipy.io.savemat(folder / template_files.UV_FILE, kept)
    scipy.io.savemat(folder / template_files.INDEX_FILE, index)
    (folder / template_files.DISTANCE_FILE).write_bytes(pickle.dumps(table, protocol=2))
    return arrays


def test_official_files_are_converted_once(tmp_path):
    arrays = _write_official(tmp_path / "given")
    template = template_files.load_evaluation_template(tmp_path / "given")
    np.testing.assert_array_equal(template.u, arrays["U_subdiv"].ravel())
    np.testing.assert_array_equal(template.v, arrays["V_subdiv"].ravel())
    np.testing.assert_array_equal(template.part, arrays["Part_ID_subdiv"].ravel())
    np.testing.assert_array_equal(template.row, arrays["index"].ravel().astype(int) - 1)
    assert isinstance(template.geodesics, np.memmap)
    np.testing.assert_array_equal(template.geodesics, arrays["Pdist_matrix"].ravel())
    # Entry i (i - 1) / 2 + j of the original belongs to (i, j).
    pair = np.array([7]), np.array([3])
    assert template.distance(*pair)[0] == arrays["Pdist_matrix"][7 * 6 // 2 + 3, 0]
    data = (tmp_path / "given" / template_files.DISTANCE_FILE).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert template.source_sha256[template_files.DISTANCE_FILE] == digest
    assert not template.is_official  # 40 rows are not the 27,554 of the published one
    del template
    (tmp_path / "given" / template_files.DISTANCE_FILE).write_bytes(b"changed")
    assert len(template_files.load_evaluation_template(tmp_path / "given").u) == 48
    # The original is needed to be there, not to be read again; without it the conversion serves.
    folder = tmp_path / "given" / template_files.CONVERTED_FOLDER
    assert len(template_files.load_evaluation_template(folder).u) == 48


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    _write_official(tmp_path / "given")

    def read():
        template = template_files.load_evaluation_template(tmp_path / "given")
        fields = (template.u, template.v, template.part, template.row, template.geodesics)
        texts = (template.origin, template.is_official, dict(template.source_sha256))
        return [np.asarray(field).tobytes() for field in fields], texts

    whole = read()
    folder, refused = tmp_path / "given" / template_files.CONVERTED_FOLDER, []
    for name in (template_files.SURFACE_FILE, template_files.GEODESICS_FILE):
        content = (folder / name).read_bytes()
        for place in range(0, len(content), 61):
            changed = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
            (folder / name).write_bytes(changed)
            try:
                assert read() == whole
            except EvaluationError as error:
                assert "make the template again" in str(error)
                refused.append(name)
        (folder / name).write_bytes(content)
    assert refused.count(template_files.GEODESICS_FILE) == -(-len(content) // 61)
    assert refused.count(template_files.SURFACE_FILE) > 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"U_subdiv": None}, "SMPL_subdiv.mat: no field U_subdiv"),
        ({"index": None}, "SMPL_SUBDIV_TRANSFORM.mat: no field index"),
        ({"Pdist_matrix": None}, "Pdist_matrix.pkl: wanted"),
        ({"Pdist_matrix": np.zeros((5, 1), np.float32)}, "needs 780 distances"),
        ({"Pdist_matrix": np.zeros((780, 1), np.int64)}, "distances of type int64"),
        ({"Pdist_matrix": np.full((780, 1), -1.0)}, "negative or not finite"),
        ({"Pdist_matrix": np.full((780, 1), np.nan)}, "negative or not finite"),
        ({"U_subdiv": np.zeros((47, 1))}, "equally long"),
        ({"index": np.zeros((48, 1))}, "index names rows -1"),
        ({"Part_ID_subdiv": np.ones((48, 1), np.uint8)}, "no vertex in patches"),
    ],
)
def test_wrong_official_files_leave_nothing_behind(tmp_path, changes, message):
    _write_official(tmp_path / "given", **changes)
    with pytest.raises(EvaluationError, match=message):
        template_files.load_evaluation_template(tmp_path / "given")
    target = tmp_path / "given" / template_files.CONVERTED_FOLDER
    assert not target.exists() or not list(target.iterdir())


def test_a_pickle_that_calls_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    _write_official(tmp_path / "given")
    (tmp_path / "given" / template_files.DISTANCE_FILE).write_bytes(
        pickle.dumps({"Pdist_matrix": Evil()})
    )
    with pytest.raises(EvaluationError, match="Pdist_matrix.pkl"):
        template_files.load_evaluation_template(tmp_path / "given")
    assert not (tmp_path / "opened").exists()


def test_hashes_are_checked_when_given(tmp_path):
    _write_official(tmp_path / "given")
    with pytest.raises(EvaluationError, match="sha256 .*, expected 00; get it again"):
        template_files.convert_official_files(
            tmp_path / "given", tmp_path / "out", {template_files.UV_FILE: "00"}
        )


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(EvaluationError, match="neither template.npz .* nor the official files"):
        template_files.load_evaluation_template(tmp_path)
    _write_official(tmp_path / "given")
    (tmp_path / "given" / template_files.UV_FILE).write_bytes(b"not matlab")
    with pytest.raises(EvaluationError, match="SMPL_subdiv.mat: not a readable MATLAB 5 file"):
        template_files.load_evaluation_template(tmp_path / "given")


def test_a_damaged_conversion_is_told(flat_world, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(flat_world.template_dir, folder)
    with open(folder / template_files.GEODESICS_FILE, "r+b") as handle:
        handle.truncate(1000)
    with pytest.raises(EvaluationError, match="make the template again"):
        template_files.load_evaluation_template(folder)


def test_too_few_or_too_many_distances(tmp_path):
    fields = {"u": np.zeros(24), "v": np.zeros(24), "part": np.arange(1, 25), "row": np.arange(24)}
    for blocks, message in (([np.ones(275)], "275 distances came"), ([np.ones(277)], "more than")):
        with pytest.raises(EvaluationError, match=message):
            template_files.write_template(
                tmp_path, **fields, geodesics=blocks, num_distances=276, origin="test"
            )
    assert not list(tmp_path.iterdir())


def _write_small(folder, blocks, count):
    fields = {"u": np.zeros(24), "v": np.zeros(24), "part": np.arange(1, 25), "row": np.arange(24)}
    template_files.write_template(
        folder, **fields, geodesics=blocks, num_distances=count, origin="test"
    )


def test_a_table_that_the_disk_cannot_hold_is_refused_before_it_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 8, 1000))
    asked = []
    with pytest.raises(EvaluationError, match=r"takes 1,600\.0 MB of disk, .* 0\.0 MB are free"):
        _write_small(tmp_path, (asked.append(i) for i in range(3)), 400_000_000)
    assert not asked and not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_while_writing_is_an_error(tmp_path):
    """The limit on a file's size fails writing as a full disk does; a mapped file would crash."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(EvaluationError, match=r"cannot be written \(File too large\).*8\.0 MB"):
            _write_small(tmp_path, (np.ones(100_000) for _ in range(20)), 2_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
