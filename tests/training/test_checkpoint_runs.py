"""Checkpoints: which are kept, on which devices they are restored, and what is refused."""

import math
import shutil

import jax
import numpy as np
import pytest

from ktn_jax.checkpoints import run_folders, runs
from ktn_jax.training import distributed, optimizer
from ktn_jax.training.state import create_state


@pytest.fixture
def make(stand_in):
    """Makes a state on some devices, its shapes and its shardings."""

    def make_state(num_devices=1, shard="none", features=None):
        config = stand_in.make_config()
        variables = stand_in.initialise()
        if features:
            kernel = np.zeros((12, features), np.float32)
            variables["params"]["backbone"]["conv"]["kernel"] = kernel
        transformation = optimizer.make_optimizer(
            config, variables["params"], variables["batch_stats"]
        )

        def create():
            return create_state(variables, transformation, 3, has_ema=False)

        shapes = jax.eval_shape(create)
        mesh = distributed.make_mesh(num_devices)
        shardings = distributed.state_shardings(shapes, mesh, shard)
        return jax.jit(create, out_shardings=shardings)(), shapes, shardings

    return make_state


RECORD = runs.RunRecord(config={"model": {"name": "x"}}, data_position=5)


def test_the_last_and_the_best_are_kept(make, tmp_path):
    state, _, _ = make()
    with runs.Checkpoints(tmp_path, keep_last=2) as checkpoints:
        for step, loss in [(1, 5.0), (2, 0.5), (3, 4.0), (4, math.nan), (5, 3.0)]:
            checkpoints.save(state, step, RECORD, {"loss": loss})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.best_step() == 2
    # A later run knows the losses of the earlier one.
    with runs.Checkpoints(tmp_path, keep_last=2) as checkpoints:
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 5)
        checkpoints.save(state, 6, RECORD, {"loss": 2.0})
        checkpoints.save(state, 7, RECORD, {"loss": 0.25})
        checkpoints.wait()
        assert checkpoints.steps() == [6, 7]


def test_the_best_is_that_of_the_highest_score_whatever_the_loss(make, tmp_path):
    state, _, _ = make()
    with runs.Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(state, 1, RECORD, {"loss": 0.1})
        checkpoints.save(state, 2, RECORD, {"loss": 5.0, "GPSm": 0.0, "box": 9.0})
        checkpoints.wait()
        assert checkpoints.steps() == [2]  # a score counts more than any loss
        checkpoints.save(state, 3, RECORD, {"loss": 4.0, "GPSm": 12.5})
        checkpoints.save(state, 4, RECORD, {"loss": 3.0, "GPSm": 11.0, "box": 99.0})
        checkpoints.save(state, 5, RECORD, {"loss": 1.0})
        checkpoints.save(state, 6, RECORD, {"loss": 1.0, "GPSm": math.nan})
        checkpoints.wait()
        assert checkpoints.steps() == [3, 6] and checkpoints.best_step() == 3
    with runs.Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(state, 7, RECORD, {"GPSm": 12.6})
        checkpoints.wait()
        assert checkpoints.steps() == [7]
    # By another metric, of those that are left.
    with runs.Checkpoints(tmp_path / "box", keep_last=1, score="box") as checkpoints:
        checkpoints.save(state, 1, RECORD, {"GPSm": 1.0, "box": 2.0})
        checkpoints.save(state, 2, RECORD, {"GPSm": 2.0, "box": 1.0})
        checkpoints.wait()
        assert checkpoints.best_step() == 1


@pytest.mark.parametrize(
    ("before", "after"), [((4, "transfer"), (1, "none")), ((1, "none"), (2, "transfer"))]
)
def test_a_state_is_restored_on_other_devices_bit_for_bit(make, tmp_path, before, after):
    state, _, _ = make(*before)
    with runs.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 5, RECORD, {"loss": 1.0})
        checkpoints.wait()
        _, shapes, shardings = make(*after)
        restored = checkpoints.restore(5, shapes, shardings)
        assert checkpoints.read_run(5) == RECORD
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kernel = restored.params["predictor"]["transfer"]["fc2"]["kernel"]
    assert len(kernel.sharding.device_set) == after[0]


def test_saving_takes_a_copy(make, tmp_path):
    """The step reuses the memory of the state while the checkpoint is still being written."""
    state, shapes, shardings = make()
    expected = jax.device_get(state)
    spoil = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    with runs.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 1, RECORD, {"loss": 1.0})
        for _ in range(5):
            state = spoil(state)
        checkpoints.wait()
        restored = checkpoints.restore(1, shapes, shardings)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_another_model_is_refused(make, tmp_path):
    state, _, _ = make()
    with runs.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 5, RECORD, {"loss": 1.0})
        checkpoints.wait()
        _, shapes, shardings = make(features=9)
        with pytest.raises(run_folders.CheckpointError, match="does not fit") as caught:
            checkpoints.restore(5, shapes, shardings)
    assert "--weights" in str(caught.value)


def test_half_written_checkpoints_are_not_seen(make, tmp_path):
    state, _, _ = make()
    with runs.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 5, RECORD, {"loss": 1.0})
    folder = tmp_path / run_folders.FOLDER
    half = folder / "7.orbax-checkpoint-tmp"
    shutil.copytree(folder / "5", half)
    (half / "commit_success.txt").unlink()
    shutil.rmtree(half / "state" / "d")
    assert run_folders.find_checkpoint(tmp_path) == folder / "5"
    with runs.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [5]
        checkpoints.save(state, 6, RECORD, {"loss": 1.0})
        checkpoints.wait()
    assert sorted(path.name for path in folder.iterdir()) == ["5", "6"]


def test_the_model_in_a_checkpoint_is_read_from_any_of_its_folders(make, tmp_path):
    state, _, _ = make(4, "transfer")
    with runs.Checkpoints(tmp_path) as checkpoints:
        for step in (5, 10):
            checkpoints.save(state.replace(step=state.step + step), step, RECORD, {"loss": 1.0})
    newest = tmp_path / run_folders.FOLDER / "10"
    for path in (tmp_path, tmp_path / run_folders.FOLDER, newest):
        assert run_folders.find_checkpoint(path) == newest
    assert run_folders.find_checkpoint(tmp_path / "elsewhere") is None
    variables, config = runs.read_checkpoint(newest)
    assert config == {"model": {"name": "x"}}
    for name in ("params", "batch_stats"):
        expected = jax.tree.leaves(jax.device_get(getattr(state, name)))
        for ours, theirs in zip(jax.tree.leaves(variables[name]), expected, strict=True):
            assert isinstance(ours, np.ndarray)
            np.testing.assert_array_equal(ours, theirs)


def damages(path):
    """Contents of a damaged file; None for a file that is not there."""
    content = path.read_bytes()
    yield from (None, b"", content[: len(content) // 2], b"{}")
    for place, bit in ((0, 1), (len(content) // 3, 32), (len(content) - 1, 4)):
        yield content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def leaves_of(reading):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(reading)]


@pytest.fixture(scope="module")
def written(stand_in, tmp_path_factory):
    """Two checkpoints."""
    folder = tmp_path_factory.mktemp("written")
    config = stand_in.make_config(total_steps=4, checkpoint_every=2)
    stand_in.train(config, folder)
    return folder


@pytest.mark.extended
def test_every_damage_is_one_error_or_changes_nothing(make, written, tmp_path):
    """Of every file of a checkpoint, in seven ways each; the one before is offered."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / run_folders.FOLDER / "4"
    _, shapes, shardings = make()

    def restore():
        with runs.Checkpoints(tmp_path) as checkpoints:
            return checkpoints.restore(4, shapes, shardings)

    def read():
        return runs.read_checkpoint(newest)

    whole = {reading: leaves_of(reading()) for reading in (restore, read)}
    refused = 0
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for damaged in damages(path):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            for reading in whole:
                try:
                    found = leaves_of(reading())
                except run_folders.CheckpointError as error:
                    said = str(error)
                    assert "checkpoints/4" in said and "step 2 is whole" in said, said
                    assert len(said.splitlines()) <= 2
                    refused += 1
                else:
                    assert found == whole[reading], path
            path.write_bytes(content)
    assert refused > 150
    for reading, leaves in whole.items():
        assert leaves_of(reading()) == leaves
