"""Training runs with a work folder in a store: this process's memory, which renames nothing."""

import json

import fsspec
import jax
import numpy as np
import pytest

from ktn_jax.checkpoints import run_folders, runs, store_runs
from ktn_jax.checkpoints.run_folders import CheckpointError
from ktn_jax.runtime import checksums, stores
from ktn_jax.runtime.stores import Store


@pytest.fixture
def store(monkeypatch):
    """An empty folder of a store that cannot rename."""
    system = fsspec.filesystem("memory")
    system.store.clear()

    def refuse(*arguments, **options):
        raise NotImplementedError("no renaming here")

    for name in ("mv", "rename", "move"):
        monkeypatch.setattr(type(system), name, refuse)
    yield Store("memory://bucket/run")
    system.store.clear()


def checkpoints_in(store):
    return store_runs.checkpoint_steps(store / run_folders.FOLDER)


def lines_in(store):
    return [json.loads(line) for line in store.read("metrics.jsonl").splitlines()]


def test_a_run_in_a_store_ends_as_one_in_a_folder(stand_in, store, tmp_path, monkeypatch):
    """It is stopped by a failing store between two files of its second checkpoint, and resumes."""
    monkeypatch.chdir(tmp_path)
    config = stand_in.make_config(total_steps=12, **{"training.keep_last": 2})
    stand_in.train(config, tmp_path / "local")
    send = Store.send

    def break_off(self, path, name):
        if name == "6/state/manifest.ocdbt":
            raise stores.StoreError(f"{self}/{name}: the network is gone")
        send(self, path, name)

    with monkeypatch.context() as broken:
        broken.setattr(Store, "send", break_off)
        with pytest.raises(CheckpointError, match="step 6 cannot be saved: memory://.*is gone"):
            stand_in.train(config, store.address)
    half = [name for name in store.files() if name.startswith("checkpoints/6/")]
    assert half and checkpoints_in(store) == [3]
    outcome = stand_in.train(config, store.address)
    assert outcome.is_complete and outcome.step == 12
    # What a local folder keeps is kept, of the other nothing is left, and the lock is given back.
    with runs.Checkpoints(tmp_path / "local") as local:
        assert checkpoints_in(store) == local.steps()
    kept = {name.split("/")[1] for name in store.files() if name.startswith("checkpoints/")}
    assert kept == set(map(str, checkpoints_in(store)))
    assert not any(name.endswith(".ktn.lock") for name in store.files())
    assert [line["step"] for line in lines_in(store)] == [2, 4, 6, 8, 10, 12]
    assert any(name.startswith("tensorboard/events") for name in store.files())
    # The weights are those of the run in the folder, which no one stopped.
    ours, config_in_store = runs.read_checkpoint(store_runs.fetch_weights(store.address))
    theirs, config_in_folder = runs.read_checkpoint(run_folders.find_checkpoint(tmp_path / "local"))
    assert config_in_store == config_in_folder
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["local"]  # and no folder "memory:"


def test_the_best_and_the_last_are_kept(stand_in, store):
    state = jax.device_put({"a": np.arange(6.0)})
    record = runs.RunRecord(config={"model": {"name": "x"}}, data_position=5)
    losses = [(1, 5.0), (2, 0.5), (3, 4.0), (4, float("nan")), (5, 3.0)]
    with store_runs.StoreCheckpoints(store, keep_last=2) as checkpoints:
        for step, loss in losses:
            checkpoints.save(state, step, record, {"loss": loss})
        checkpoints.wait()
        assert checkpoints_in(store) == checkpoints.steps() == [2, 4, 5]
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 5)
    with store_runs.StoreCheckpoints(store, keep_last=1) as checkpoints:
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 5)
        checkpoints.save(state, 6, record, {"GPSm": 1.0})
        checkpoints.save(state, 6, record, {"GPSm": 2.0})  # is there already
        checkpoints.wait()
        assert checkpoints_in(store) == [6]
        assert checkpoints.read_run(6) == record
    # A checkpoint without its checksums, which are written last, is none.
    store.remove([f"checkpoints/6/{checksums.CHECKSUM_FILE}"])
    with store_runs.StoreCheckpoints(store) as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.best_step() is None


def test_a_damaged_one_is_named_and_an_earlier_one_resumed(stand_in, store):
    config = stand_in.make_config(total_steps=6)
    stand_in.train(config, store.address)
    name = "checkpoints/6/state/manifest.ocdbt"
    content = store.read(name)
    store.write(name, content[:-1] + bytes([content[-1] ^ 4]))
    with pytest.raises(CheckpointError) as error:
        stand_in.train(config, store.address)
    assert "memory://bucket/run/checkpoints/6/state/manifest.ocdbt: damaged" in str(error.value)
    assert "--from-step 3 resumes" in str(error.value)
    with pytest.raises(CheckpointError, match="no checkpoint of step 4, it has 3, 6"):
        stand_in.train(config, store.address, from_step=4)
    store.copy("checkpoints/3/state/manifest.ocdbt", "kept")
    store.write("checkpoints/3/state/manifest.ocdbt", b"")
    with pytest.raises(CheckpointError, match="run/checkpoints/3/.*damaged.*there is no whole"):
        stand_in.train(config, store.address, from_step=3)
    assert checkpoints_in(store) == [3, 6]  # nothing was moved
    store.copy("kept", "checkpoints/3/state/manifest.ocdbt")
    end = stand_in.train(config, store.address, from_step=3)
    assert end.step == 6 and checkpoints_in(store) == [3, 6]
    assert f"set_aside/6/{checksums.CHECKSUM_FILE}" in store.files()
    store.write("checkpoints/6/metrics/metrics", b"{")
    with pytest.raises(CheckpointError, match="checkpoints/6/metrics/metrics: damaged"):
        store_runs.StoreCheckpoints(store)


def test_a_folder_that_was_taken_over_is_not_written(stand_in, store):
    def taken():
        raise OSError("taken")

    with store_runs.StoreCheckpoints(store, check_lock=taken) as checkpoints:
        with pytest.raises(OSError, match="taken"):
            checkpoints.save({}, 1, runs.RunRecord({}, 1), {})
    assert not store.files()
