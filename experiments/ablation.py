"""How many people with surface points do the models need: what MID and KTM change.

    python experiments/ablation.py --size small --jobs 2     # 2 CPU cores, four hours, in pieces
    python experiments/ablation.py --size gpu                # one GPU

The experiment is that of the KTN paper (Wang et al., ACM MM 2020), on rendered people. Models first
learn keypoints from everybody, with the decoder that they will have (MID or none); then, from that
start, surfaces from N people, who are at most 14 points a part, and whatever else they can use:

    DensePose R-CNN, + MID   everybody's boxes; parts and surface points of the N
    + KTM, KTNv2             the same; body masks of the N and everybody's keypoints

All models of a seed see the same pictures, people with points (those of a smaller N are among those
of a larger one), steps and order; half of the pictures of a batch show somebody with points. KTNv2
is also trained with keypoint classifiers drawn anew and with a body graph of noise. Test people are
never trained on; their surface is the project's own body, so scores compare with no published ones.

Results go to OUTPUT/results.md, seed after seed. The same command resumes a stopped study. With
--remedies KTNv2 is then trained in other ways, compared in OUTPUT/remedies.md.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import studies
from ablation_runs import (
    BASE,
    BOTH,
    KTM_ONLY,
    MID_ONLY,
    REMEDIES,
    SIZES,
    Size,
    models_at,
    pretraining,
    render,
    surface_run,
)
from study_commands import FOUND, TRUE_BOXES
from study_results import (
    draw_curves,
    format_gain,
    format_mean,
    markdown_table,
    paired_gains,
    write_page,
)

COLUMNS = ("AP", "AP50", "AP75", "AP_M", "AP_L")
PATCHES = {
    "hands": ("right_hand", "left_hand"),
    "feet": ("left_foot", "right_foot"),
    "head": ("right_head", "left_head"),
    "torso": ("torso_back", "torso_front"),
}


@dataclasses.dataclass(frozen=True)
class Results:
    """Scores of the runs of seeds that are done."""

    size: Size
    output: pathlib.Path
    seeds: tuple[int, ...]

    def values(
        self, name: str, labelled: int, step: str, read: Callable[[Mapping[str, Any]], Any]
    ) -> list[Any]:
        """A number of each seed."""
        folders = [
            surface_run(self.size, self.output, seed, name, labelled).folder for seed in self.seeds
        ]
        return [read(studies.read_scores(folder / step)) for folder in folders]


def average_precision(scores: Mapping[str, Any]) -> float:
    """GPSm AP."""
    return float(scores["GPSm"]["AP"] or 0.0)


def near_share(names: Sequence[str]) -> Callable[[Mapping[str, Any]], float]:
    """Reads the per cent of the points on some patches that are within 10 cm of where they are."""

    def read(scores: Mapping[str, Any]) -> float:
        rows = [scores["patches"][name] for name in names]
        points = sum(row["points"] for row in rows)
        near = sum(row["points"] * (row["within_10cm_percent"] or 0.0) for row in rows)
        return near / max(points, 1)

    return read


def table_at(results: Results, labelled: int) -> str:
    """The paper's table for one N, with people found and with their true boxes."""
    rows = []
    for name in models_at(results.size, labelled):
        cells = [
            format_mean(results.values(name, labelled, FOUND, lambda s, c=c: s["GPSm"].get(c)))
            for c in COLUMNS
        ]
        cells.append(format_mean(results.values(name, labelled, FOUND, lambda s: s["bbox"]["AP"])))
        cells.append(format_mean(results.values(name, labelled, TRUE_BOXES, average_precision)))
        cells.append(format_mean(results.values(name, labelled, TRUE_BOXES, near_share(["all"]))))
        rows.append([name, *cells])
    heads = [f"{labelled} people", *(f"GPSm {column}" for column in COLUMNS), "box AP"]
    return markdown_table([*heads, "true boxes: GPSm AP", "points within 10 cm, %"], rows)


def gains(
    results: Results, name: str, step: str, base: str = BASE
) -> dict[int | str, Sequence[float]]:
    """What a model gains in GPSm AP over the base, of each seed: at every N, and in their mean."""
    at: dict[int | str, Sequence[float]] = {
        labelled: paired_gains(
            results.values(name, labelled, step, average_precision),
            results.values(base, labelled, step, average_precision),
        )
        for labelled in results.size.labelled
    }
    at["mean"] = [statistics.mean(values) for values in zip(*at.values(), strict=True)]
    return at


def gain_table(results: Results, step: str) -> str:
    """Paired gains over the base model with their intervals."""
    rows = []
    for name in results.size.models:
        if name != BASE:
            rows.append([name, *map(format_gain, gains(results, name, step).values())])
    heads = [f"{labelled} people" for labelled in results.size.labelled]
    return markdown_table(["gain in GPSm AP", *heads, "mean"], rows)


def patch_table(results: Results) -> str:
    """Points within 10 cm by patch, in true boxes, and what KTM changes of it."""
    rows = []
    names = results.size.models
    pairs = [(KTM_ONLY, BASE), (BOTH, MID_ONLY)] if KTM_ONLY in names else [(BOTH, BASE)]
    for group, patches in PATCHES.items():
        for labelled in results.size.labelled:
            shares = {
                name: results.values(name, labelled, TRUE_BOXES, near_share(patches))
                for name in names
            }
            changes = [paired_gains(shares[name], shares[base]) for name, base in pairs]
            of_seeds = [statistics.mean(values) for values in zip(*changes, strict=True)]
            cells = [format_mean(values) for values in shares.values()]
            rows.append([group, str(labelled), *cells, format_gain(of_seeds)])
    return markdown_table(["patches", "people", *names, "by KTM"], rows)


def blocks(results: Results) -> list[str]:
    """The text of the page; draws its picture."""
    size = results.size
    panels = {
        title: {
            name: {n: results.values(name, n, step, read) for n in size.labelled}
            for name in size.models
        }
        for title, step, read in (
            ("GPSm AP", FOUND, average_precision),
            ("GPSm AP in true boxes", TRUE_BOXES, average_precision),
            ("points within 10 cm in true boxes, %", TRUE_BOXES, near_share(["all"])),
        )
    }
    draw_curves(panels, results.output / "curves.png", label="people with surface points")
    setting = (
        f"Models of `ktn:{size.variant}`: {size.pretraining_steps} steps on keypoints, then "
        f"{size.steps} on surfaces; {size.num_images} pictures of one or two people to train on, "
        f"{size.num_test_images} to test on, {size.image_side} x {size.image_side} pixels. Mean ± "
        f"standard deviation of seeds {', '.join(map(str, results.seeds))}."
    )
    return [
        setting,
        "![curves](curves.png)",
        *(table_at(results, labelled) for labelled in size.labelled),
        f"Gain over {BASE} of the same seed, with the 90 % bootstrap interval of the mean:",
        gain_table(results, FOUND),
        "The same in true boxes:",
        gain_table(results, TRUE_BOXES),
        "Points within 10 cm of where they are, per cent, in true boxes; the last column is the "
        "gain by KTM, with and without MID:",
        patch_table(results),
    ]


def remedy_blocks(results: Results) -> list[str]:
    """The text of the page of remedies: what each gains over KTNv2 of the same seed."""
    rows = []
    for name in REMEDIES:
        cells = []
        for step, read in (
            (FOUND, average_precision),
            (TRUE_BOXES, average_precision),
            (TRUE_BOXES, near_share(["all"])),
        ):
            for labelled in results.size.redrawn_labelled:
                pair = [results.values(model, labelled, step, read) for model in (name, BOTH)]
                cells.append(format_gain(paired_gains(*pair)))
        rows.append([name, *cells])
    heads = [
        f"{labelled} people: {measure}"
        for measure in ("GPSm AP", "in true boxes", "within 10 cm, %")
        for labelled in results.size.redrawn_labelled
    ]
    return [
        f"Gain over {BOTH} of the same seed, with the 90 % bootstrap interval of the mean.",
        markdown_table(["remedy", *heads], rows),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the arguments ask for."""
    flags = {"remedies": "train KTNv2 in other ways too"}
    arguments = studies.parse_arguments(__doc__, SIZES, "ablation", argv, flags)
    size, output = studies.chosen_size(SIZES, arguments), arguments.output
    with studies.resumable(output):
        runs: list[studies.Run] = []
        for seed in range(size.seeds):
            render(size, output, seed)
            starts = [pretraining(size, output, seed, with_mid) for with_mid in (False, True)]
            studies.run_all(starts, arguments.jobs)
            surfaces = [
                surface_run(size, output, seed, name, labelled)
                for labelled in size.labelled
                for name in models_at(size, labelled)
            ]
            studies.run_all(surfaces, arguments.jobs)
            runs += starts + surfaces
            results = Results(size, output, tuple(range(seed + 1)))
            write_page(output, "What MID and KTM change", blocks(results), runs)
        if arguments.remedies:
            run_remedies(results, arguments.jobs)


def run_remedies(results: Results, jobs: int) -> None:
    """Trains KTNv2 in the ways of REMEDIES, from the starts that are there, and writes the page."""
    size, output = results.size, results.output
    runs = [
        surface_run(size, output, seed, name, labelled)
        for seed in results.seeds
        for labelled in size.redrawn_labelled
        for name in REMEDIES
    ]
    studies.run_all(runs, jobs)
    write_page(output, "Remedies", remedy_blocks(results), runs, "remedies.md")


if __name__ == "__main__":
    main()
