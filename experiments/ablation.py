"""Trains KTN with and without MID and KTM on rendered people, and prints the scores.

    python experiments/ablation.py --size small                    # CPU
    python experiments/ablation.py --size gpu --output ablation_gpu

Four models share everything but MID (the decoder) and KTM (the surface classifier made from
knowledge), and learn under one budget from the same pictures: people of many sizes, behind things
and each other, 60 % of them with surface points, at most 14 a part (the scene `busy`). Every seed
has its own people, initial weights and order. The table is that of the KTN paper (Wang et al.), on
test people never trained on; their surface is the project's own body, so the numbers do not compare
with published ones. The same command resumes a stopped run.
"""

import argparse
import dataclasses
import json
import logging
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("AP", "AP50", "AP75", "AP_M", "AP_L")
MEASURES = ("GPSm", "GPS", "bbox")
# What each model changes of KTN. Without KTM the surface classifier is learnt like any other, and
# nothing learns keypoints or coarse parts; without MID people are pooled from the plain pyramid.
MODELS = {
    "DensePose R-CNN": ("model.decoder.name=none", "model.predictor.name=chart"),
    "+ MID": ("model.predictor.name=chart",),
    "+ KTM": ("model.decoder.name=none",),
    "KTNv2 (MID + KTM)": (),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """A budget: the same for all models.

    Attributes:
        config: what is trained, before the changes in MODELS.
        steps: of training.
        seeds: how many runs of each model.
        num_test_images: for the scores of one run.
        changes: of the configuration.
    """

    config: str
    steps: int
    seeds: int
    num_test_images: int
    changes: tuple[str, ...]


SIZES = {
    "small": Size(
        "configs/ktn.py:demo",
        steps=1200,
        seeds=2,
        num_test_images=200,
        changes=(
            "data.synthetic.preset=busy",
            "data.synthetic.num_images=2500",
            "data.synthetic.people_range=(1, 3)",
            "data.max_people=3",
            "loss.densepose_rois_per_image=3",
            # All pixels that are rendered: the smallest people are 64 of them tall.
            "data.short_sides=(160,)",
            "data.max_long_side=160",
            "test.short_side=160",
            "test.max_side=160",
            "test.size_buckets=((160,160),)",
        ),
    ),
    "gpu": Size(
        "configs/ktn.py:demo_gpu",
        steps=3000,
        seeds=3,
        num_test_images=400,
        changes=(
            "data.synthetic.preset=busy",
            "data.synthetic.num_images=6000",
            "data.synthetic.people_range=(1, 4)",
            "data.max_people=4",
            "loss.densepose_rois_per_image=4",
        ),
    ),
}


def run_models(size: Size, output: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """Trains and scores every model with every seed; returns the scores of the runs by model."""
    from ktn_jax.demo.run import DemoRequest, run_demo

    scores: dict[str, list[dict[str, Any]]] = {name: [] for name in MODELS}
    for seed in range(size.seeds):  # all models of a seed first: a stopped run can be compared
        for number, (name, changes) in enumerate(MODELS.items()):
            print(f"{name}, seed {seed}", flush=True)  # noqa: T201
            request = DemoRequest(
                output=output / f"model{number}_seed{seed}",
                config_name=size.config,
                changes=(*size.changes, *changes),
                steps=size.steps,
                seed=seed,
                num_test_images=size.num_test_images,
                shared=output / f"people_seed{seed}",
            )
            outcome = run_demo(request, lambda text: print(" ", text, flush=True))  # noqa: T201
            if not outcome.is_complete:
                sys.exit("stopped; the same command resumes")
            scores[name].append(outcome.record["scores"])
    return scores


def summarise(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over the seeds; a dash where nobody was of that size."""
    present = [value for value in values if value is not None]
    if not present:
        return "–"
    spread = f" ± {statistics.stdev(present):.1f}" if len(present) > 1 else ""
    return f"{statistics.mean(present):.1f}{spread}"


def table(scores: Mapping[str, Sequence[Mapping[str, Any]]], measure: str) -> str:
    """Markdown of one measure: a row for each model.

    The last column is the gain in AP over the first model of the same seed. Seeds differ in their
    people and so in what can be reached; the models of a seed do not.
    """
    heads = (*COLUMNS, "gain in AP")
    lines = [f"| {measure} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    first = next(iter(scores.values()))
    for name, runs in scores.items():
        cells = [summarise([run[measure].get(column) for run in runs]) for column in COLUMNS]
        pairs = zip(runs, first, strict=True)
        gains = [run[measure]["AP"] - base[measure]["AP"] for run, base in pairs]
        cells.append("" if runs is first else summarise(gains))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(scores: Mapping[str, Sequence[Mapping[str, Any]]], path: pathlib.Path) -> None:
    """Draws AP and AP50 of every run, and their means."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [(measure, column) for measure in MEASURES[:2] for column in COLUMNS[:2]]
    for axes, (measure, column) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for place, runs in enumerate(scores.values()):
            values = [run[measure][column] for run in runs]
            axes.bar(place, statistics.mean(values), color=f"C{place}", alpha=0.5)
            axes.plot([place] * len(values), values, ".", color="black")
        axes.set(title=f"{measure} {column}", ylim=(0, None))
        axes.set_xticks(range(len(scores)), list(scores), rotation=60, ha="right", fontsize="small")
    figure.savefig(path, dpi=110)


def commit_id() -> str:
    """The commit of the code, marked where files differ from it; empty outside a repository."""
    folder = pathlib.Path(__file__).resolve().parent
    command = ["git", "-C", os.fspath(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("ablation"))
    parser.add_argument("--steps", type=int, help="of each training (default: of the size)")
    parser.add_argument("--seeds", type=int, help="runs of each model (default: of the size)")
    arguments = parser.parse_args()
    from ktn_jax.runtime import host_memory, jax_setup

    host_memory.restart_with_huge_pages()
    jax_setup.prepare()
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every step of every save
    size = SIZES[arguments.size]
    size = dataclasses.replace(
        size, steps=arguments.steps or size.steps, seeds=arguments.seeds or size.seeds
    )
    scores = run_models(size, arguments.output)
    tables = "\n\n".join(table(scores, measure) for measure in MEASURES)
    text = (
        f"{tables}\n\n{size.config}, {size.steps} steps, {size.seeds} seeds, "
        f"{size.num_test_images} test images; mean ± standard deviation. Commit {commit_id()}.\n"
    )
    print(text)  # noqa: T201
    content = {"size": dataclasses.asdict(size), "scores": scores}
    (arguments.output / "scores.json").write_text(json.dumps(content, indent=1))
    (arguments.output / "table.md").write_text(text)
    draw(scores, arguments.output / "table.png")


if __name__ == "__main__":
    main()
