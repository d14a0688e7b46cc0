"""Python first: a model from names, and photos of every kind through it."""

import concurrent.futures
import gc
import itertools
import multiprocessing
import os
import pathlib
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

import ktn_jax
from ktn_jax.checkpoints import weights
from ktn_jax.inference import batching
from ktn_jax.inference.augmentation import AugmentedPredictor
from ktn_jax.inference.predictor import Predictor
from ktn_jax.runtime import jax_setup
from ktn_jax.runtime.configuration import ConfigurationError, load_config

NAME = "configs/ktn.py:tiny"
CHANGES = [
    "test.short_side=96",
    "test.max_side=128",
    "test.size_buckets=((96,128),)",
    "model.box_head.max_detections=3",
    "test.augmentation.short_sides=(96,)",
    "test.augmentation.max_side=128",
]
ONE_VIEW = "test.augmentation.flip=False"


@pytest.fixture(autouse=True)
def _own_setup(monkeypatch):
    """What `load` sets for JAX must not reach other tests; whether it does is theirs to say."""
    calls = []
    monkeypatch.setattr(jax_setup, "prepare", lambda: calls.append(1))
    return calls


@pytest.fixture(scope="module")
def variables(draw_variables):
    return draw_variables(load_config(NAME, CHANGES))


@pytest.fixture(scope="module")
def model(variables):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax_setup, "prepare", lambda: None)
        return ktn_jax.load(NAME, variables, changes=CHANGES)


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (9, 12, 3), np.uint8), np.ones((10, 10, 1), np.uint8))


def assert_same_people(actual, expected):
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert one.score == other.score
        np.testing.assert_array_equal(one.box_xyxy, other.box_xyxy)
        np.testing.assert_array_equal(one.iuv, other.iuv)
        np.testing.assert_array_equal(one.keypoints, other.keypoints)


def test_a_model_is_loaded_from_names_paths_and_values(
    tmp_path, variables, model, photo, _own_setup
):
    path = tmp_path / "w.safetensors"
    config = load_config(NAME, CHANGES)
    constants = weights.constants(config.model)
    weights.write_variables(path, {**variables, "constants": constants})
    expected = model(photo)
    assert isinstance(expected[0], ktn_jax.PersonResult)
    shipped = pathlib.Path(ktn_jax.__file__).parents[1] / "configs" / "ktn.py"
    # A program of one's own for each, which compiles: these two differ in every argument.
    for name, given in ((f"{shipped}:tiny", os.fspath(path)), (load_config(NAME), path)):
        loaded = ktn_jax.load(name, given, changes=CHANGES)
        assert isinstance(loaded, Predictor)
        assert loaded.config.to_json_best_effort() == config.to_json_best_effort()
        for one, other in zip(
            *(x.stages.variables["params"]["rpn_head"].values() for x in (loaded, model)),
            strict=True,
        ):
            assert one.keys() == other.keys()
    assert_same_people(loaded(photo), expected)
    assert len(_own_setup) == 2


def test_views_are_averaged_on_demand(variables, model, photo):
    augmented = ktn_jax.load(NAME, variables, changes=[*CHANGES, ONE_VIEW], augmented=True)
    assert isinstance(augmented, AugmentedPredictor)
    assert_same_people(augmented(photo), model(photo))
    (one,), (other,) = augmented([photo]), augmented(iter([photo]))
    assert_same_people(one, other)
    assert one.image_size_hw == photo.shape[:2]


def test_wrong_arguments_are_named(variables):
    for arguments, error, text in (
        ((7, variables), TypeError, "config: a name, a path or a ConfigDict, got int"),
        ((NAME, 7), TypeError, "weights: a path or variables, got int"),
        (("none:r50", variables), ConfigurationError, "no configuration 'none"),
        ((NAME, "none.safetensors"), FileNotFoundError, "none.safetensors"),
        ((NAME, {"params": {}}), ValueError, "the variables given does not fit|do not fit"),
    ):
        with pytest.raises(error, match=text):
            ktn_jax.load(*arguments)
    with pytest.raises(TypeError, match="weights: "):  # without charts no symmetry is missing
        ktn_jax.load("configs/rcnn.py:mask_r50", 7, augmented=True)
    with pytest.raises(ConfigurationError, match="no key 'test.shortside'"):
        ktn_jax.load(load_config(NAME), variables, changes=["test.shortside=3"])
    config = load_config(NAME)
    ktn_jax.load(config, variables, changes=CHANGES)
    assert config.test.short_side != 96  # a copy was changed


def test_every_kind_of_photo_gives_the_same_people(model, photo, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    transparent = np.dstack([photo, np.full(photo.shape[:2], 9, np.uint8)])
    expected = model(photo)
    kinds = [os.fspath(path), path, Image.fromarray(photo), transparent, photo]
    for kind in kinds:
        assert_same_people(model(kind), expected)
    two = kinds[1:3]
    for several in (two, tuple(two), iter(two), (kind for kind in two)):
        found = list(model(several))
        assert len(found) == 2
        for people in found:
            assert_same_people(people, expected)
            assert people.image_size_hw == photo.shape[:2]
    assert model([]) == [] and list(model(iter(()))) == []
    grey = photo[..., 0]
    assert_same_people(model(grey), model(np.dstack([grey] * 3)))
    assert_same_people(model(grey[..., None]), model(Image.fromarray(grey)))


def test_results_are_in_the_order_of_photos_of_mixed_sizes(model, photo):
    mixed = [photo[:60], photo, photo[:60], photo]
    for found, streamed, one in zip(model(mixed), model(iter(mixed)), mixed, strict=True):
        assert_same_people(found, model(one))
        assert_same_people(streamed, found)


def test_an_endless_stream_is_taken_as_its_people_are_asked_for(model, photo):
    taken = []
    frames = (taken.append(n) or np.roll(photo, n, axis=1) for n in itertools.count())
    stream = model(frames)
    assert taken == []
    most = (batching.BATCHES_AHEAD + 3) * model.config.test.batch_size
    for number in range(6):
        people = next(stream)
        assert len(taken) <= number + most
        assert people.draw().shape == photo.shape  # its frame is still there
        assert_same_people(people, model(np.roll(photo, number, axis=1)))
    stream.close()
    assert len(taken) <= 6 + most


def test_a_broken_photo_ends_a_stream_after_those_before(model, photo):
    good = 3 * model.config.test.batch_size
    stream = model(iter([*[photo] * good, "none.jpg", photo]))
    for _ in range(good):
        next(stream)
    with pytest.raises(ValueError, match="^none.jpg: there is no such file"):
        next(stream)


def test_threads_find_what_one_finds(model, photo):
    photos = [np.roll(photo, 10 * number, axis=1) for number in range(4)]
    expected = [model(one) for one in photos]
    ready = threading.Barrier(4)

    def work(shift):
        ready.wait(30)
        order = [(number + shift) % 4 for number in range(4)]
        return [(number, model(photos[number])) for number in order]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            for number, people in found:
                assert_same_people(people, expected[number])


@pytest.mark.extended
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_process_that_lives_long_does_not_grow(model, photo):
    def resident_mb():
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    sizes = []
    for number in range(250):
        frame = np.roll(photo, number, axis=1)
        model(frame).draw()
        if number % 50 == 49:
            gc.collect()
            sizes.append(resident_mb())
    assert max(sizes) - sizes[0] < 16, sizes


@pytest.mark.parametrize(
    ("photos", "error", "text"),
    [
        (None, TypeError, "give a photo .* got NoneType"),
        (3, TypeError, "got int"),
        ({"a": 1}, TypeError, "got dict"),
        (b"photo.jpg", TypeError, "got bytes"),
        ([None], TypeError, "photo 0: a photo is a path.*got NoneType"),
        (np.zeros((8, 8, 3)), TypeError, r"must hold uint8, 0 to 255: got float64 .*\(8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint16), TypeError, "got uint16"),
        (np.zeros((2, 8, 8, 3), np.uint8), ValueError, r"of several give a list.*\(2, 8, 8, 3\)"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, r"\[H, W\] grey: got .*\(8, 8, 2\)"),
        (np.zeros(8, np.uint8), ValueError, r"got uint8 of shape \(8,\)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "no pixels"),
        ([np.zeros((8, 8, 3), np.float32)], TypeError, "photo 0: .*float32"),
        ("none.jpg", ValueError, "none.jpg: there is no such file"),
        (["none.jpg"], ValueError, "^none.jpg: there is no such file"),
        (Image.new("F", (8, 8)), ValueError, "PIL image .F, 8 x 8.: its samples are 32-bit"),
    ],
)
def test_what_is_no_photo_is_said(model, photos, error, text):
    with pytest.raises(error, match=text):
        model(photos)


def _pickled(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301 (of our own making)


def test_a_pickled_model_finds_the_same_people(model, variables, photo):
    assert_same_people(_pickled(model)(photo), model(photo))
    augmented = ktn_jax.load(NAME, variables, changes=[*CHANGES, ONE_VIEW], augmented=True)
    again = _pickled(augmented)
    assert isinstance(again, AugmentedPredictor)
    assert again.config.to_json_best_effort() == augmented.config.to_json_best_effort()


@pytest.mark.extended
def test_a_model_works_in_another_process(model, photo, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.fspath(tmp_path))
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert_same_people(pool.submit(model, photo).result(timeout=300), model(photo))
    assert list(tmp_path.iterdir())  # compiled programs are kept
