"""Without TensorFlow: everything but the tf.data and TFDS pipelines works, and those say why."""

import json
import os
import subprocess
import sys

import pytest

# Small images, and the parts of a model that compile soonest.
TINY = (
    "--config=ktn:tiny",
    "--config.data.synthetic.num_images=4",
    "--config.data.synthetic.image_size_hw=(96,96)",
    "--config.data.short_sides=96",
    "--config.data.max_long_side=96",
    "--config.batch_size=2",
    "--config.model.decoder.name=none",
    "--config.model.densepose_head.name=conv_stack",
    "--config.model.densepose_head.norm=",
    "--config.model.densepose_head.num_convs=1",
    "--config.model.predictor.name=chart",
    "--config.test.short_side=96",
    "--config.test.max_side=96",
    "--config.test.size_buckets=((96,96),)",
)


@pytest.fixture
def ktn(tmp_path, quick_compiler):
    """Runs a command as if TensorFlow were not installed, in worker processes too."""
    for name in ("tensorflow", "tensorflow_datasets"):
        (tmp_path / "missing" / name).mkdir(parents=True)
        (tmp_path / "missing" / name / "__init__.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name={name!r})"
        )
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "missing"),
        "XLA_FLAGS": quick_compiler,
    }

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "ktn_jax", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.mark.extended
def test_a_model_is_trained_on_annotation_files_and_scored(ktn, tmp_path):
    options = ("--steps=1", "--test-images=2", "--config.data.loader=processes")
    done = ktn("demo", *TINY, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "demo" / "training" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 1
    record = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert {"bbox", "GPS", "GPSm"} <= record["scores"].keys()


def test_building_a_tfds_dataset_says_what_to_install(ktn):
    done = ktn("data", "build", "custom", "--manual-dir=.", "--data-dir=built")
    assert done.returncode == 1
    assert "pip install 'ktn_jax[tfds]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.extended  # the next has the same in this process
def test_training_on_a_tfds_dataset_says_what_to_install(ktn):
    done = ktn("train", *TINY, "--workdir=work", "--config.data.source=tfds")
    assert done.returncode == 1
    assert "pip install 'ktn_jax[tfds]'" in done.stderr and "Traceback" not in done.stderr


def test_tf_data_says_what_to_install(monkeypatch):
    from ktn_jax.data_pipelines.loading import loaders

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ktn_jax\[tfds\]'"):
        next(loaders.load_with_tf_data(None, workers=1))
