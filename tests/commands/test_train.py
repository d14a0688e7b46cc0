"""`ktn train`: what it refuses before anything is compiled, and how it ends."""

import contextlib
import types

import numpy as np
import pytest

from ktn_jax import cli
from ktn_jax.checkpoints import files
from ktn_jax.commands import EXIT_INTERRUPTED, train
from ktn_jax.runtime import jax_setup
from ktn_jax.training import configured, distributed, trainer

CONFIG = "--config=configs/ktn.py:tiny"


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch):
    """The first step is where compilation would begin."""
    monkeypatch.setattr(jax_setup, "prepare", lambda: None)

    def refuse(*arguments, **options):
        raise AssertionError("the training began")

    monkeypatch.setattr(trainer.Trainer, "fit", refuse)


def run(tmp_path, *arguments):
    return cli.main(["train", CONFIG, f"--workdir={tmp_path / 'work'}", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set=optimizer.learning_rat=1"], "no key 'optimizer.learning_rat'"),
        (["--set=total_steps=0"], "total_steps must be above 0"),
        (["--set=optimizer.momentum=1.0"], "optimizer.momentum must be in [0, 1)"),
        (["--set=model.dtype='float16'"], "model.dtype must be float32 or bfloat16"),
        (["--set=optimizer.schedule='linear'"], "optimizer.schedule 'linear'"),
        (["--set=batch_size=6", "--set=training.num_devices=4"], "multiple of 4"),
        (["--set=data.synthetic.num_images=0"], "empty"),
        (["--set=data.source='densepose_coco'"], "densepose_train2014.json"),
        (["--set=model.backbone.norm='FrozenBN'"], "give --weights"),
        (["--weights=nowhere.pkl"], "no weights at nowhere.pkl"),
        (["--num-processes=2"], "need --coordinator"),
        (["--cluster=pbs"], "--cluster pbs: one of slurm, ompi"),
        (["--workdir=nostore://bucket/run"], "nostore://bucket/run: "),
        (["--weights=memory://nowhere/R.pkl"], "memory://nowhere/R.pkl is not there"),
        (["--from-step=13"], "no checkpoint of step 13, it has none"),
    ],
)
def test_mistakes_are_messages(tmp_path, capsys, arguments, message):
    assert run(tmp_path, *arguments) == 1
    assert message in capsys.readouterr().err


def test_a_key_that_nobody_reads_is_refused(tmp_path, capsys):
    """In a file of the user's own, which may add what it likes."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from ktn_jax.configs import ktn\n\ndef get_config():\n"
        "    config = ktn.get_config('tiny')\n"
        "    config.optimizer.warmup = 5\n    return config\n"
    )
    assert cli.main(["train", f"--config={path}", f"--workdir={tmp_path}"]) == 1
    assert "unknown key optimizer.warmup" in capsys.readouterr().err


def test_weights_of_another_shape_are_refused(tmp_path, capsys):
    state = {"roi_heads.box_predictor.cls_score.weight": np.zeros((2, 1024), np.float32)}
    files.write_state_dict(tmp_path / "wide.safetensors", state)
    assert run(tmp_path, f"--weights={tmp_path / 'wide.safetensors'}") == 1
    message = capsys.readouterr().err
    assert (
        "(params/box_head/class_kernel): the model's is (128, 2), the file's (1024, 2)" in message
    )


@pytest.fixture
def pretend(monkeypatch):
    """Puts a trainer that only does what it is told in the place of the detector's."""

    def put(fit):
        stand_in = contextlib.nullcontext(types.SimpleNamespace(fit=fit))
        monkeypatch.setattr(configured, "make_trainer", lambda *_, **__: stand_in)

    return put


@pytest.mark.parametrize(("is_complete", "code"), [(True, 0), (False, EXIT_INTERRUPTED)])
def test_exit_codes_tell_a_finished_run_from_an_interrupted_one(
    tmp_path, pretend, is_complete, code
):
    end = trainer.TrainingEnd(step=7, is_complete=is_complete, state=None)
    pretend(lambda *arguments: end)
    assert run(tmp_path) == code


def test_a_run_that_is_aborted_ends_without_a_traceback(tmp_path, pretend, capsys):
    def abort(*arguments):
        raise KeyboardInterrupt

    pretend(abort)
    assert run(tmp_path) == 130
    said = capsys.readouterr().err
    assert said.endswith("ktn train: stopped\n") and "Traceback" not in said


def test_a_loss_that_is_not_finite_has_its_own_exit_code(tmp_path, pretend, capsys):
    metrics = types.SimpleNamespace(losses={"u": np.float32(np.nan)}, gradient_norm=1.0)

    def diverge(*arguments):
        raise trainer.NonFiniteError(41, metrics, np.array([785, 12]), 30)

    pretend(diverge)
    assert run(tmp_path) == train.EXIT_NOT_FINITE
    said = capsys.readouterr().err
    assert "step 42" in said and "u nan" in said and "[785, 12]" in said and "step 30" in said


def test_processes_are_given_completely():
    with pytest.raises(ValueError, match="together"):
        distributed.join_processes("127.0.0.1:1234", num_processes=2)
