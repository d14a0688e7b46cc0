"""Times what a user waits for before the first result: importing, predicting one photo, training.

    python experiments/bench/startup.py                    # small model
    python experiments/bench/startup.py --full             # `ktn.py:r50`, a photo of 480 x 640

Every command is a new process. The first `ktn predict` and `ktn train` find an empty cache of
compiled programs, the others the cache that it left. `predict` finds eight people, and counts until
the process has ended and all files are written; training until its first step has ended.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import common
import cv2

FULL = "configs/ktn.py:r50"
SMALL = "configs/ktn.py:tiny"
# Untrained weights find people everywhere.
PEOPLE = ("--set", "model.box_head.max_detections=8")


def run(*arguments, until=None):
    """Seconds of a `ktn` command, until it ends or its stderr says `until`."""
    command = [sys.executable, "-m", "ktn_jax", *map(os.fspath, arguments)]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        said = []
        for line in process.stderr:
            said.append(line.decode(errors="replace"))
            if until is not None and until in said[-1]:
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    if process.returncode or until is not None:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {''.join(said)}")
    return time.perf_counter() - start


def time_import(code):
    """Seconds of a process that runs some code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def measure(config_name, folder, arguments, report):
    """All figures of one configuration."""
    from inference import make_photo

    from ktn_jax.checkpoints import weights
    from ktn_jax.runtime import configuration

    config = configuration.load_config(config_name, [])
    photo, checkpoint = folder / "photo.png", folder / "weights.safetensors"
    cv2.imwrite(os.fspath(photo), make_photo((480, 640)))
    weights.write_variables(checkpoint, weights.initialise(config, seed=0))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.fspath(folder / "cache")

    def predict():
        return run(
            "predict", photo, "--config", config_name, "--weights", checkpoint,
            "--output", folder / "out", *PEOPLE,
        )  # fmt: skip

    def train():
        workdir = folder / "work"
        shutil.rmtree(workdir, ignore_errors=True)
        sizes = ["data.source=synthetic", "data.synthetic.num_images=8", "batch_size=2"]
        changes = [part for change in sizes for part in ("--set", change)]
        return run(
            "train", "--config", config_name, "--workdir", workdir, "--weights", checkpoint,
            *changes, until="first step ended",
        )  # fmt: skip

    calls = {"predict": predict, "train, to its first step": train}
    rows = []
    for name, call in calls.items():
        rows.append(common.Row(f"{name}: first run", [call()]))
        rows.append(common.Row(f"{name}: next runs", [call() for _ in range(arguments.repeats)]))
    report.section(config.name, rows)


def main():
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, repeats=5)
    parser.add_argument("--config", nargs="+")
    parser.add_argument("--full", action="store_true", help=FULL)
    arguments = parser.parse_args()
    common.prepare()
    report = common.Report("startup", arguments.output)
    codes = {"python": "pass", "import ktn_jax": "import ktn_jax", "import jax": "import jax"}
    calls = {name: lambda code=code: time_import(code) for name, code in codes.items()}
    seconds = common.take_turns(calls, arguments.repeats)
    report.section("imports", [common.Row(name, values) for name, values in seconds.items()])
    for name in arguments.config or [FULL if arguments.full else SMALL]:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, pathlib.Path(folder), arguments, report)
    report.close()


if __name__ == "__main__":
    main()
