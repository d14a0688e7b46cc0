"""make, check and show data: synth, check, convert-cse, show, inpaint, bootstrap, build, ..."""

import argparse
import pathlib
import sys

EXAMPLES = """
  ktn data synth --output people/ --images 200 --seed 0 --scene hard
  ktn data check annotations/densepose_minival2014.json --images val2014/
  ktn data check people/
  ktn data check densepose_lvis_v1_ds1_val_v1.json --category cat --category dog
  ktn data convert-cse densepose_train2014.json --template DensePoseData/eval_data/ \\
      --output densepose_train2014_cse.json
  ktn data show people/annotations.json --images people/images --output pictures/ --count 5
  ktn data bootstrap --model densepose_rcnn_R_50_FPN_WC2M_s1x --sampler uv_confidence \\
      --images photos/ --output bootstrapped.json
  ktn data bootstrap --config ktn:r50 --weights R --video clip.mp4 --every 10 --images frames/ \\
      --output bootstrapped.json
  ktn data inpaint --config teacher:r50 --weights T --annotations a.json --images photos/ \\
      --output b.json
  ktn data build densepose_coco_2014 --manual-dir coco/ --data-dir tfds/ --on-bad skip
  ktn data graph --output graph.npz --picture graph.png
  ktn data template --output template/
  ktn data template --output template/ --official DensePoseData/eval_data/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one parser for each action."""
    from ktn_jax.commands import data_bootstrap, data_inpaint

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_synth(actions.add_parser("synth", help="render people with exact dense truth"))
    _add_check(actions.add_parser("check", help="report every bad record of a dataset"))
    _add_convert_cse(
        actions.add_parser("convert-cse", help="give annotated points vertices, for embeddings")
    )
    _add_show(actions.add_parser("show", help="draw annotations on their images"))
    data_inpaint.add_arguments(
        actions.add_parser("inpaint", help="label every pixel of annotated people with a teacher")
    )
    data_bootstrap.add_arguments(
        actions.add_parser(
            "bootstrap", help="label photos or a video without annotations with a model"
        )
    )
    _add_build(actions.add_parser("build", help="build a TensorFlow dataset (TFDS)"))
    _add_graph(actions.add_parser("graph", help="build the commonsense graph of the body"))
    _add_template(actions.add_parser("template", help="make the template that evaluation needs"))


def run(arguments: argparse.Namespace) -> int:
    """Runs an action; the exit code is 1 if a checked dataset has errors."""
    return _ACTIONS[arguments.action](arguments)


def _add_synth(parser: argparse.ArgumentParser) -> None:
    from ktn_jax import commands

    parser.add_argument("--output", required=True, type=pathlib.Path, help="new folder")
    parser.add_argument("--images", required=True, type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="decides every image (default 0)")
    parser.add_argument(
        "--scene", default="default", help="default, frontal, busy, large, everyday, easy or hard"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="size of the images")
    parser.add_argument("--processes", type=int, default=1, help="rendering processes (default 1)")
    commands.add_quiet_argument(parser)


def _synth(arguments: argparse.Namespace) -> int:
    import dataclasses

    from ktn_jax.data_pipelines.synthetic import dataset_files, scene
    from ktn_jax.runtime import locks

    if arguments.scene not in scene.PRESETS:
        raise ValueError(f"--scene {arguments.scene!r}: one of {sorted(scene.PRESETS)}")
    settings = scene.PRESETS[arguments.scene]
    if arguments.size:
        settings = dataclasses.replace(settings, image_size_hw=tuple(arguments.size))
    with locks.hold(arguments.output):
        path = dataset_files.write_dataset(
            arguments.output,
            arguments.images,
            seed=arguments.seed,
            scene=settings,
            num_processes=arguments.processes,
        )
    print(f"{arguments.images} images, annotations in {path}")  # noqa: T201
    return 0


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE|DIR",
        type=pathlib.Path,
        help="DensePose-COCO JSON, or a folder with annotations.json (or annotations/*.json) and "
        "images",
    )
    parser.add_argument(
        "--images",
        help="folder of the images, to check them too; of a folder those in it are checked anyway",
    )
    parser.add_argument("--max-findings", type=int, help="print only the first so many")
    _add_categories(parser)


def _add_categories(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--category",
        dest="categories",
        action="append",
        metavar="NAME",
        help="categories of the file, such as cat, in the order of the classes (default: person); "
        "may be repeated",
    )


def _categories(arguments: argparse.Namespace) -> tuple[str, ...]:
    return tuple(arguments.categories or ("person",))


def _check(arguments: argparse.Namespace) -> int:
    from ktn_jax.data_pipelines.coco import checks
    from ktn_jax.data_pipelines.densepose_coco import layout

    files: dict[pathlib.Path, pathlib.Path | None] = {arguments.file: None}
    if arguments.file.is_dir():
        files = layout.find_annotation_files(arguments.file)
    bad = []
    for file, images in files.items():
        report = checks.check_file(file, arguments.images or images, _categories(arguments))
        print(report.format(arguments.max_findings))  # noqa: T201
        bad += [] if report.ok else [file]
    if len(files) > 1:
        print(f"{len(bad)} of {len(files)} files have errors")  # noqa: T201
    return 1 if bad else 0


def _add_convert_cse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=pathlib.Path, help="DensePose-COCO JSON with dp_I, dp_U, dp_V")
    parser.add_argument(
        "--template",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="evaluation template (`ktn data template`, or the official files)",
    )
    parser.add_argument(
        "--output", required=True, type=pathlib.Path, metavar="FILE.json", help="new file"
    )
    parser.add_argument(
        "--mesh", default="", help="name of the template's mesh (default: smpl_27554 or body)"
    )
    parser.add_argument(
        "--on-bad",
        choices=("raise", "skip"),
        default="raise",
        help="bad records: stop and name them (default), or keep them as they are",
    )


def _convert_cse(arguments: argparse.Namespace) -> int:
    from ktn_jax.evaluation import vertex_annotations

    counts = vertex_annotations.convert_file(
        arguments.file, arguments.output, arguments.template, arguments.mesh, arguments.on_bad
    )
    dropped = f"; {counts.dropped} points are on no patch and left out" if counts.dropped else ""
    print(  # noqa: T201
        f"{counts.people} people with {counts.points} vertices{dropped}; {counts.others} other "
        f"annotations kept as they are: {arguments.output}"
    )
    return 0


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="DensePose-COCO JSON")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder for pictures")
    parser.add_argument("--count", type=int, default=10, help="number of images (default 10)")
    parser.add_argument("--first", type=int, default=0, help="index of the first image (default 0)")
    _add_categories(parser)


def _show(arguments: argparse.Namespace) -> int:
    from ktn_jax.data_pipelines.coco import annotations, show
    from ktn_jax.data_pipelines.loading import sources

    dataset = annotations.parse_dataset(arguments.file, categories=_categories(arguments))
    source = sources.FolderSource(dataset, arguments.images)
    last = min(arguments.first + arguments.count, len(source))
    wanted = range(arguments.first, last)
    written = show.write_pictures(source, arguments.output, wanted)
    print(f"{len(written)} pictures in {arguments.output}")  # noqa: T201
    return int(len(written) < len(wanted))


def _inpaint(arguments: argparse.Namespace) -> int:
    from ktn_jax.commands import data_inpaint

    return data_inpaint.run(arguments)


def _bootstrap(arguments: argparse.Namespace) -> int:
    from ktn_jax.commands import data_bootstrap

    return data_bootstrap.run(arguments)


def _add_build(parser: argparse.ArgumentParser) -> None:
    from ktn_jax import commands

    parser.add_argument("config", help="densepose_coco_2014, ultrapose or custom")
    parser.add_argument("--manual-dir", required=True, help="folder with the downloaded files")
    parser.add_argument("--data-dir", required=True, help="folder to build in")
    parser.add_argument("--on-bad", choices=("raise", "skip"), default="raise")
    parser.add_argument(
        "--max-skipped",
        type=commands.finite,
        default=0.01,
        help="largest share of bad records for --on-bad skip (default 0.01)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="build again where DATA_DIR holds a dataset of other files or options",
    )
    _add_categories(parser)
    commands.add_quiet_argument(parser)


def _build(arguments: argparse.Namespace) -> int:
    from ktn_jax.data_pipelines.densepose_coco import builder
    from ktn_jax.runtime import locks

    with locks.hold(arguments.data_dir):
        built = builder.build(
            arguments.config,
            manual_dir=arguments.manual_dir,
            data_dir=arguments.data_dir,
            on_bad=arguments.on_bad,
            max_skipped_fraction=arguments.max_skipped,
            overwrite=arguments.overwrite,
            categories=_categories(arguments),
        )
    if built.was_complete:
        print(  # noqa: T201
            f"already built in {arguments.data_dir}, of the same files and options; nothing to do"
        )
    for split, facts in built.splits.items():
        print(f"{split}: {facts['images']} images, skipped: {facts['skipped']}")  # noqa: T201
    return 0


def _add_graph(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, type=pathlib.Path, help="new .npz file")
    parser.add_argument("--relationships", help="Visual Genome's relationships.json")
    parser.add_argument("--word-vectors", help="glove.6B.300d.txt")
    parser.add_argument(
        "--as-original",
        action="store_true",
        help="the matrices of KTN's own script, which differ for left and right",
    )
    parser.add_argument("--picture", type=pathlib.Path, help="file for a heatmap, .png or .pdf")


def _graph(arguments: argparse.Namespace) -> int:
    from ktn_jax.body.graph import body_graph

    graph = body_graph.build_graph(
        arguments.relationships, arguments.word_vectors, as_original=arguments.as_original
    )
    body_graph.save_graph(arguments.output, graph)
    if arguments.picture:
        body_graph.draw_graph(arguments.picture, graph)
    if not (arguments.relationships and arguments.word_vectors):
        print(  # noqa: T201
            "note: without --relationships and --word-vectors the graph rests on structure and on "
            "word similarities that ship with the project",
            file=sys.stderr,
        )
    print(f"graph written to {arguments.output}")  # noqa: T201
    return 0


def _add_template(parser: argparse.ArgumentParser) -> None:
    from ktn_jax import commands

    parser.add_argument("--output", required=True, type=pathlib.Path, help="new folder")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--official",
        metavar="DIR",
        help="folder with SMPL_subdiv.mat, SMPL_SUBDIV_TRANSFORM.mat and Pdist_matrix.pkl",
    )
    source.add_argument("--charts", metavar="UV_Processed.mat", help="charts for --body")
    parser.add_argument(
        "--body",
        metavar="FILE.npy",
        help="body of your own: vertices [6890, 3] in SMPL's order, y up",
    )
    parser.add_argument(
        "--metres-per-unit",
        type=commands.finite,
        default=1.0,
        help="unit of --body: 0.01 for centimetres",
    )
    parser.add_argument(
        "--coarse", action="store_true", help="do not split the edges of the mesh: smaller, faster"
    )


def _template(arguments: argparse.Namespace) -> int:
    from ktn_jax.runtime import locks

    if bool(arguments.charts) != bool(arguments.body):
        raise ValueError("--charts and --body go together")
    with locks.hold(arguments.output):
        _write_template(arguments)
    print(f"template written to {arguments.output}")  # noqa: T201
    return 0


def _write_template(arguments: argparse.Namespace) -> None:
    from ktn_jax.body import loading
    from ktn_jax.body.procedural import assembly
    from ktn_jax.evaluation import template_files

    if arguments.official:
        template_files.convert_official_files(arguments.official, arguments.output)
    else:
        if arguments.charts:
            body = loading.load_template(
                arguments.charts, arguments.body, metres_per_unit=arguments.metres_per_unit
            )
            origin = f"{pathlib.Path(arguments.body).name} with published charts"
        else:
            body, origin = assembly.make_body().template, "the project's procedural body"
        template_files.write_body_template(
            arguments.output, body, origin, subdivided=not arguments.coarse
        )
        print(  # noqa: T201
            "note: scores on this template are not comparable with published numbers",
            file=sys.stderr,
        )


_ACTIONS = {
    "synth": _synth,
    "check": _check,
    "convert-cse": _convert_cse,
    "show": _show,
    "bootstrap": _bootstrap,
    "inpaint": _inpaint,
    "build": _build,
    "graph": _graph,
    "template": _template,
}
