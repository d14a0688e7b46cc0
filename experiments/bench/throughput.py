"""Times `ktn predict` on a folder of photos against the network alone on the same photos, in turn.

    python experiments/bench/throughput.py                          # small model, 200 photos
    python experiments/bench/throughput.py --config densepose_rcnn:r50 --photos 24 --repeats 2
    python experiments/bench/throughput.py --batch 1 2 4            # photos in a batch

The photos are JPEGs of a temporary folder, of sizes as people have them: of phones (12 megapixels,
either way up), of screens, of the web. The network alone has them decoded and resized in memory,
one bucket after the other, and gives the people's maps back to the host. The command decodes,
resizes, brings people to their pixels, and writes the usual three pictures of each photo and the
results. Models have random weights and find people of at least `MIN_SCORE` in noise.
"""

import argparse
import functools
import pathlib
import shutil
import tempfile

import common
import numpy as np
from inference import make_photo

SIZES_HW = (  # of eight photos in turn
    *((3024, 4032), (1080, 1920), (480, 640), (4032, 3024)),
    *((768, 1024), (1440, 1080), (600, 800), (2048, 1536)),
)
MIN_SCORE = 0.5


def make_photos(folder, number):
    """Writes JPEGs of the sizes above, of the quality that phones use."""
    import cv2

    paths = []
    for index in range(number):
        height, width = SIZES_HW[index % len(SIZES_HW)]
        small = make_photo((height // 2, width // 2))
        small = np.roll(small, 48 * index, axis=1)
        photo = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        paths.append(folder / f"{index:04d}.jpg")
        cv2.imwrite(str(paths[-1]), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    return paths


def measure(name, batch_size, paths, folder, arguments, report):
    """One model with one size of batches."""
    from ktn_jax.checkpoints import weights
    from ktn_jax.inference import batching, photos
    from ktn_jax.inference.loading import load
    from ktn_jax.runtime import configuration, images

    config = configuration.load_config(name, arguments.changes)
    config.test.batch_size = batch_size
    config.model.box_head.score_threshold = MIN_SCORE  # as the command sets it
    model = load(config, weights.initialise(config, seed=0))
    test = config.test
    resized = [
        images.resize_short_side(images.read_image(path), test.short_side, test.max_side)
        for path in paths
    ]

    def bucket_of(index):
        return batching.choose_bucket(resized[index].shape[:2], test.size_buckets)

    batches = list(batching.batches_of_one_size(range(len(resized)), bucket_of, batch_size))

    def network():
        for batch in batches:
            model.find([resized[index] for index in batch])

    def command():
        out = folder / "out"
        summary = photos.predict_files(model, paths, out, MIN_SCORE)
        shutil.rmtree(out)
        if summary.num_photos != len(paths):
            raise RuntimeError(f"{summary.num_photos} photos of {len(paths)}: {summary.failures}")
        people.append(summary.num_people)

    people = []
    calls = {"network alone": network, "ktn predict": command}
    answers = common.take_turns(
        {name: functools.partial(common.time_once, call) for name, call in calls.items()},
        arguments.repeats,
    )
    rows, ratios = common.compare_whole(answers, "ktn predict", len(paths))
    rows[1].peak_bytes = common.peak_memory()
    title = f"{config.name}, {len(paths)} photos in batches of {batch_size}, {people[-1]} people"
    report.section(title, rows, **ratios)


def main():
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, repeats=3)
    parser.add_argument("--config", nargs="+", default=["ktn:tiny"])
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="photos in a batch")
    arguments = parser.parse_args()
    common.prepare()
    report = common.Report("throughput", arguments.output)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        paths = make_photos(folder, arguments.photos)
        for config in arguments.config:
            for batch_size in arguments.batch:
                measure(config, batch_size, paths, folder, arguments, report)
    report.close()


if __name__ == "__main__":
    main()
