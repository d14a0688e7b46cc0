"""The trainer of a small stand-in: resuming, stopping, guarding, on one device and on four."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from ktn_jax.checkpoints import run_folders, runs
from ktn_jax.runtime import locks
from ktn_jax.training import distributed
from ktn_jax.training.trainer import NonFiniteError


def assert_states_equal(actual, expected, **tolerances):
    actual, expected = (
        jax.tree_util.tree_leaves_with_path(jax.device_get(state)) for state in (actual, expected)
    )
    assert [path for path, _ in actual] == [path for path, _ in expected]
    for (path, ours), (_, theirs) in zip(actual, expected, strict=True):
        if tolerances:
            np.testing.assert_allclose(ours, theirs, err_msg=str(path), **tolerances)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=str(path))


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(stand_in, tmp_path_factory):
    """Eight steps without a break, on one device."""
    workdir = tmp_path_factory.mktemp("straight")
    return stand_in.train(stand_in.make_config(), workdir), workdir


def test_a_run_trains_all_but_what_is_frozen(stand_in, straight):
    outcome, workdir = straight
    assert outcome.is_complete and outcome.step == 8
    before = stand_in.initialise()
    after = jax.device_get(outcome.state)
    np.testing.assert_array_equal(
        after.params["backbone"]["frozen"]["scale"], before["params"]["backbone"]["frozen"]["scale"]
    )
    kernel = before["params"]["backbone"]["conv"]["kernel"]
    assert np.abs(after.params["backbone"]["conv"]["kernel"] - kernel).max() > 1e-3
    assert after.batch_stats["backbone"]["norm"]["count"] == 8
    # Every third step and the last, of which three stay (all of them, here).
    with runs.Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps() == [3, 6, 8]
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss/fit"] + lines[0]["loss/noise"])
    # Means over steps 0 and 1 of the warm-up: 0.05 (0.1, then 0.1 + 0.9 / 4).
    assert lines[0]["learning_rate"] == pytest.approx(0.05 * (0.1 + 0.325) / 2)


def test_metrics_are_those_of_single_steps(stand_in, tmp_path):
    """The loss of step 1, computed by hand from the initial weights."""
    config = stand_in.make_config(**{"total_steps": 1, "training.log_every": 1})
    stand_in.train(config, tmp_path)
    variables = stand_in.initialise()
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    total, (losses, _) = stand_in.loss_fn(
        variables["params"], variables["batch_stats"], stand_in.make_batch(0), key
    )
    (line,) = read_metrics(tmp_path)
    assert line["loss"] == pytest.approx(float(total), rel=1e-5)
    assert line["loss/noise"] == pytest.approx(float(losses["noise"]), rel=1e-4)


@pytest.mark.parametrize("shard", distributed.SHARDINGS)
def test_four_devices_are_one(stand_in, straight, tmp_path, monkeypatch, shard):
    """The sums run in another order: 1e-5 is rounding, a loss per device would be off by 1e-1."""
    monkeypatch.setattr(distributed, "_SMALLEST_SPLIT", 1)
    changes = {"training.num_devices": 4, "training.shard": shard}
    outcome = stand_in.train(stand_in.make_config(**changes), tmp_path)
    assert_states_equal(outcome.state, straight[0].state, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(read_metrics(tmp_path), read_metrics(straight[1]), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    params = outcome.state.params
    trace = [x for x in jax.tree.leaves(outcome.state.opt_state) if x.shape == (8, 16)]
    for array in (params["predictor"]["transfer"]["fc1"]["kernel"], trace[0]):
        assert _own_shape(array) == ((8, 16) if shard == "none" else (8, 4))
    kernel = params["backbone"]["conv"]["kernel"]  # 12 by 8
    assert _own_shape(kernel) == ((3, 8) if shard == "all" else (12, 8))
    assert _own_shape(outcome.state.rng) == (2,)  # no axis that four devices divide


def _own_shape(array):
    return array.addressable_shards[0].data.shape


def test_resuming_changes_no_bit(stand_in, straight, tmp_path):
    stand_in.train(stand_in.make_config(total_steps=5), tmp_path)
    resumed = stand_in.train(stand_in.make_config(), tmp_path)
    assert_states_equal(resumed.state, straight[0].state)


def test_a_line_of_metrics_has_the_steps_before_the_kill(stand_in, straight, tmp_path):
    """Killed after the checkpoint of step 3: the line of step 4 is the mean of steps 3 and 4."""

    def kill(step, batch):
        if step == 7:
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        stand_in.train(stand_in.make_config(), tmp_path, change=kill)
    with runs.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3]
        unreported = checkpoints.read_run(3).unreported
    assert unreported["steps"] == 1 and unreported["sums"]["loss"] > 0
    stand_in.train(stand_in.make_config(), tmp_path)
    ours, theirs = read_metrics(tmp_path), read_metrics(straight[1])
    for line in (*ours, *theirs):
        assert line.pop("images_per_second") > 0 and line.pop("flops_per_second") > 0
    assert ours == theirs


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    stand_in, straight, tmp_path, capsys
):
    stand_in.train(stand_in.make_config(), tmp_path)
    folder = tmp_path / run_folders.FOLDER
    flip_a_bit(next((folder / "8" / "state" / "d").iterdir()))
    with pytest.raises(
        run_folders.CheckpointError, match=r"8/state/d/.*damaged.*step 6 is whole.*"
    ):
        stand_in.train(stand_in.make_config(), tmp_path)
    with pytest.raises(
        run_folders.CheckpointError, match="no checkpoint of step 5, it has 3, 6, 8"
    ):
        stand_in.train(stand_in.make_config(), tmp_path, from_step=5)
    end = stand_in.train(stand_in.make_config(), tmp_path, from_step=6)
    assert_states_equal(end.state, straight[0].state)
    said = capsys.readouterr().err
    assert f"later steps (8) were moved to {tmp_path / 'set_aside'}" in said
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6, 8]
    assert run_folders.checkpoint_steps(tmp_path / "set_aside") == [8]
    # Those of an earlier time stay.
    assert run_folders.return_to(tmp_path, 3) == [6, 8]
    assert sorted(path.name for path in (tmp_path / "set_aside").iterdir()) == ["6", "8", "8-2"]


def test_resuming_on_other_devices(stand_in, straight, tmp_path):
    split = {"training.num_devices": 4, "training.shard": "transfer"}
    stand_in.train(stand_in.make_config(total_steps=5, **split), tmp_path)
    two = {"training.num_devices": 2}
    resumed = stand_in.train(stand_in.make_config(**two), tmp_path)
    assert_states_equal(resumed.state, straight[0].state, rtol=1e-5, atol=1e-5)


def test_steps_are_traced_on_request(stand_in, tmp_path):
    changes = {"training.profile_steps": "1:3", "total_steps": 4}
    stand_in.train(stand_in.make_config(**changes), tmp_path)
    # Where TensorBoard looks for traces, from the work folder on.
    (trace,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
    for wrong in ("3", "3:3", "a:b", "-1:2"):
        with pytest.raises(ValueError, match="profile_steps .* must be FIRST:LAST"):
            stand_in.train(stand_in.make_config(**{"training.profile_steps": wrong}), tmp_path)


def test_a_finished_run_does_nothing(stand_in, straight, capsys):
    outcome, workdir = straight
    before = (workdir / "metrics.jsonl").read_text()
    again = stand_in.train(stand_in.make_config(), workdir)
    assert again.is_complete
    assert_states_equal(again.state, outcome.state)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_resuming_says_what_changed(stand_in, tmp_path, capsys):
    stand_in.train(stand_in.make_config(total_steps=2), tmp_path)
    stand_in.train(stand_in.make_config(total_steps=3), tmp_path)
    said = capsys.readouterr().err
    assert said.count("batch norms in training average over 8 images, those of all devices") == 2
    assert "resuming after step 2" in said
    assert said.count(" parameters on 1 device of 1 process (cpu)") == 2
    changed = [line.strip() for line in said.splitlines() if "changed since" in line]
    assert changed == ["changed since: total_steps: 2 -> 3"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_resumes(stand_in, straight, tmp_path, number):
    def interrupt(step, batch):
        if step == 4:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    outcome = stand_in.train(stand_in.make_config(), tmp_path, change=interrupt)
    assert handlers == [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    assert not outcome.is_complete and 0 < outcome.step < 8
    with runs.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == outcome.step
    resumed = stand_in.train(stand_in.make_config(), tmp_path)
    assert_states_equal(resumed.state, straight[0].state)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_reaches_the_weights(stand_in, tmp_path, bad):
    def spoil(step, batch):
        if step == 4:
            batch["target"][3, 2] = bad

    with pytest.raises(NonFiniteError) as caught:
        stand_in.train(stand_in.make_config(), tmp_path, change=spoil)
    error = caught.value
    assert error.step == 4
    assert error.image_ids == list(range(32, 40))
    assert not np.isfinite(error.losses["fit"]) and np.isfinite(error.losses["noise"])
    assert "step 5" in str(error) and "at step 3" in str(error)
    with runs.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3]
    # With the data repaired, the run resumes as if nothing had happened.
    repaired = stand_in.train(stand_in.make_config(), tmp_path)
    assert repaired.is_complete
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(repaired.state.params))


def test_a_gradient_that_is_not_finite_is_caught_too(stand_in, tmp_path):
    """The derivative of sqrt at 0 is infinite, though the loss is finite."""
    workdir = tmp_path

    def loss_fn(params, batch_stats, batch, key):
        total, (losses, stats) = stand_in.loss_fn(params, batch_stats, batch, key)
        bias = params["backbone"]["conv"]["bias"]
        root = jax.numpy.sqrt(jax.numpy.square(bias).sum())
        return total + root, (losses | {"root": root}, stats)

    with pytest.raises(NonFiniteError, match="gradient norm nan") as caught:
        with stand_in.make_trainer(stand_in.make_config(), workdir, loss_fn) as trainer:
            trainer.fit(stand_in.batches_from)
    assert caught.value.step == 0
    with runs.Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps() == []


def test_the_average_follows_the_parameters(stand_in, tmp_path):
    config = stand_in.make_config(**{"optimizer.ema_decay": 0.9, "total_steps": 2})
    outcome = stand_in.train(config, tmp_path)
    first = stand_in.train(stand_in.make_config(total_steps=1), tmp_path / "one").state.params
    # min(0.9, (1 + step) / (10 + step)): 1 / 10, then 2 / 11.
    expected = jax.tree.map(
        lambda start, one, two: 2 / 11 * (0.1 * start + 0.9 * one) + 9 / 11 * two,
        stand_in.initialise()["params"],
        first,
        outcome.state.params,
    )
    assert_states_equal(outcome.state.ema_params, expected, rtol=1e-5, atol=1e-6)
    read, _ = runs.read_checkpoint(run_folders.find_checkpoint(tmp_path))
    assert_states_equal(read["params"], outcome.state.ema_params)


def test_values_that_do_not_fit_are_refused_before_anything_is_built(stand_in, tmp_path):
    with pytest.raises(ValueError, match="batch_size 8 cannot be split evenly over 3 devices"):
        stand_in.train(stand_in.make_config(**{"training.num_devices": 3}), tmp_path)
    with pytest.raises(ValueError, match="accumulate 4 must divide the 2 images of each device"):
        changes = {"training.num_devices": 4, "training.accumulate": 4}
        stand_in.train(stand_in.make_config(**changes), tmp_path)
    with pytest.raises(ValueError, match="training.shard 'some': one of .*'transfer', 'all'"):
        stand_in.train(stand_in.make_config(**{"training.shard": "some"}), tmp_path)
    with pytest.raises(ValueError, match="there are 4"):
        stand_in.train(stand_in.make_config(**{"training.num_devices": 5}), tmp_path)
    changes = {"training.num_devices": 4, "training.shard": "transfer"}
    config = stand_in.make_config(**changes)

    def without_transfer():
        variables = stand_in.initialise()
        del variables["params"]["predictor"]
        return variables

    with pytest.raises(ValueError, match="no transfer network to split"):
        stand_in.make_trainer(config, tmp_path, initialise=without_transfer)


def test_batches_that_end_are_an_error(stand_in, tmp_path):
    with pytest.raises(ValueError, match="ended at step 2"):
        with stand_in.make_trainer(stand_in.make_config(), tmp_path) as trainer:
            trainer.fit(lambda step: iter([stand_in.make_batch(0), stand_in.make_batch(1)]))


class Scorer:
    """Gives the scores it is told, one call after the other, and keeps what it was called with."""

    def __init__(self, *scores):
        self.scores, self.seen = list(scores), []

    def __call__(self, variables):
        self.seen.append(jax.device_get(variables))
        return {"box": 1.0, "GPSm": self.scores.pop(0)}


def test_scores_stand_beside_the_losses_and_choose_the_best_checkpoint(stand_in, tmp_path):
    """Evaluated after steps 2, 4, 6 and, being the last, 7; the model gets worse after 4."""
    changes = {"training.evaluate_every": 2, "training.keep_last": 1, "total_steps": 7}
    scorer = Scorer(10.0, 30.0, 20.0, 5.0)
    stand_in.train(stand_in.make_config(**changes), tmp_path, evaluate=scorer)
    assert not scorer.scores
    lines = [line for line in read_metrics(tmp_path) if "eval/GPSm" in line]
    assert [(line["step"], line["eval/GPSm"]) for line in lines] == [
        (2, 10.0),
        (4, 30.0),
        (6, 20.0),
        (7, 5.0),
    ]
    assert all(line["eval/box"] == 1.0 for line in lines)
    with runs.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4, 7] and checkpoints.best_step() == 4
    # What was scored is what was saved.
    read, _ = runs.read_checkpoint(tmp_path / run_folders.FOLDER / "4")
    assert_states_equal(scorer.seen[1], read)
    # Evaluation changes nothing of the training.
    alone = stand_in.train(stand_in.make_config(total_steps=7), tmp_path / "alone")
    read, _ = runs.read_checkpoint(tmp_path / run_folders.FOLDER / "7")
    assert_states_equal(read["params"], alone.state.params)


def test_a_resumed_run_keeps_the_best_of_before(stand_in, tmp_path):
    changes = {"training.evaluate_every": 2, "training.keep_last": 1}
    config = stand_in.make_config(**changes, total_steps=4)
    stand_in.train(config, tmp_path, evaluate=Scorer(30.0, 10.0))
    config = stand_in.make_config(**changes, total_steps=6)
    scorer = Scorer(20.0)
    stand_in.train(config, tmp_path, evaluate=scorer)
    assert not scorer.scores  # step 4 is not scored again
    with runs.Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.steps() == [2, 6] and checkpoints.best_step() == 2
    scores = [line["eval/GPSm"] for line in read_metrics(tmp_path) if "eval/GPSm" in line]
    assert scores == [30.0, 10.0, 20.0]


def test_the_average_is_what_is_scored(stand_in, tmp_path):
    """On several devices too, with kernels that are split over them."""
    changes = {
        "optimizer.ema_decay": 0.9,
        "training.evaluate_every": 3,
        "training.num_devices": 4,
        "training.shard": "transfer",
        "total_steps": 3,
    }
    scorer = Scorer(1.0)
    end = stand_in.train(stand_in.make_config(**changes), tmp_path, evaluate=scorer)
    assert_states_equal(scorer.seen[0]["params"], end.state.ema_params)
    assert_states_equal(scorer.seen[0]["batch_stats"], end.state.batch_stats)
    kernel = scorer.seen[0]["params"]["predictor"]["transfer"]["fc1"]["kernel"]
    assert kernel.shape == (8, 16)


def test_a_score_that_is_not_there_cannot_choose(stand_in, tmp_path):
    config = stand_in.make_config(**{"training.evaluate_every": 1, "training.best_metric": "AP"})
    with pytest.raises(ValueError, match="best_metric 'AP' is none of the scores: box, GPSm"):
        stand_in.train(config, tmp_path, evaluate=Scorer(1.0))


def test_steps_by_hand_are_those_of_fit(stand_in, straight, tmp_path):
    """Single steps and saves, then fit for the rest; nobody else trains there meanwhile."""
    with stand_in.make_trainer(stand_in.make_config(), tmp_path) as trainer:
        with pytest.raises(locks.FolderInUseError, match=f"in use by process {os.getpid()}"):
            stand_in.make_trainer(stand_in.make_config(), tmp_path)
        for step in range(3):
            metrics = trainer.step(stand_in.make_batch(step))
            assert metrics.is_finite
        assert trainer.steps_taken == 3
        trainer.save({"loss": 1.0})
        end = trainer.fit(stand_in.batches_from)
    assert_states_equal(end.state, straight[0].state)
    with runs.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3, 6, 8]


@pytest.fixture
def ctrl_c():
    """Python's own handler, which a shell takes away from what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_answered_at_once_and_the_second_aborts(
    stand_in, tmp_path, capfd, ctrl_c
):
    said = []

    def interrupt(step, batch):
        if step == 7:  # made while step 5 is begun: batches are a few ahead
            os.kill(os.getpid(), signal.SIGINT)
            said.append(capfd.readouterr().err)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        stand_in.train(stand_in.make_config(), tmp_path, change=interrupt)
    assert "Ctrl-C: training stops after the current step and saves" in said[0]
    with runs.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3]  # what was saved before is whole


def test_tables_are_arguments_of_the_step(tmp_path, stand_in):
    """Not constants of its program, of which gigabytes would be compiled and kept twice."""

    def loss_fn(params, batch_stats, batch, key, table):
        total, (losses, stats) = stand_in.loss_fn(params, batch_stats, batch, key)
        pull = (table["pull"][None] * params["backbone"]["conv"]["kernel"]).sum()
        return total + pull, (losses | {"pull": pull}, stats)

    pull = np.linspace(1, 2, stand_in.FEATURES).astype(np.float16)
    config = stand_in.make_config(**{"training.num_devices": 0})
    with stand_in.make_trainer(config, tmp_path, loss_fn, tables=({"pull": pull},)) as trainer:
        before = np.asarray(trainer.state.params["backbone"]["conv"]["kernel"])
        metrics = trainer.step(stand_in.make_batch(0))
        np.testing.assert_allclose(metrics.losses["pull"], (pull[None] * before).sum(), rtol=1e-3)
        (table,), _ = trainer._constants
        assert table["pull"].dtype == np.float16 and len(table["pull"].sharding.device_set) > 1
