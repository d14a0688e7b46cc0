"""Configurations: which file is meant, what it may hold, how values are changed and printed."""

import os
import pathlib
import sys

import pytest

from ktn_jax import configs
from ktn_jax.configs import base, cse, densepose_rcnn, keypoint_mid, ktn, rcnn, teacher
from ktn_jax.runtime.configuration import (
    ConfigurationError,
    check_config,
    leaves,
    load_config,
    write_config,
)

SHIPPED = pathlib.Path(configs.__file__).parent
VARIANTS = [
    *(f"ktn:{name}" for name in ktn.VARIANTS),
    *(f"keypoint_mid:{name}" for name in keypoint_mid.VARIANTS),
    *(f"teacher:{name}" for name in teacher.VARIANTS),
    *(f"cse:{name}" for name in cse.VARIANTS),
    *(f"densepose_rcnn:{name}" for name in densepose_rcnn.DEPTHS),
    *(f"densepose_rcnn:{name}" for name in densepose_rcnn.HRNET_WIDTHS),
    *(f"rcnn:{name}" for name in rcnn.TASKS),
    "base",
]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder that is no checkout, as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _own(folder, *lines, name="own.py"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("from ktn_jax.configs import ktn\n\n" + "".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "name", ["ktn:tiny", "ktn.py:tiny", "configs/ktn.py:tiny", f"{SHIPPED}/ktn.py:tiny"]
)
def test_what_ships_is_found_from_any_folder(name, elsewhere):
    assert load_config(name).name == "ktn_tiny"
    assert load_config(name.partition(":")[0]).name == "ktn_r50"


@pytest.mark.parametrize("name", ["own.py", "deep/own.py", "configs/ktn.py", "a:b/own.py"])
def test_a_file_of_ones_own_wins(name, elsewhere):
    lines = ("def get_config(variant='tiny'):", "    config = ktn.get_config(variant)")
    _own(elsewhere, *lines, "    config.seed = 41", "    return config", name=name)
    config = load_config(name)
    assert (config.name, config.seed) == ("ktn_tiny", 41)
    assert load_config(f"{name}:ktm_only", ["seed=42"]).name == "ktn_ktm_only"
    assert not list(elsewhere.rglob("__pycache__"))
    assert load_config("ktn:tiny").seed == 0


def test_another_folder_is_not_the_packages(elsewhere):
    with pytest.raises(ConfigurationError, match="no configuration 'mine/ktn.py'"):
        load_config("mine/ktn.py:r50")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["def get_config(:"], "{path}:3: syntax error: "),
        (["", "1 / 0"], "{path}:4: ZeroDivisionError: division by zero"),
        (["import nothing_of_that_name"], "{path}:3: ModuleNotFoundError: No module named"),
        (["from configs import base"], "the package's configurations are in ktn_jax.configs"),
        (["def get_config():", "    return {}['x']"], "{path}:4: KeyError: 'x'"),
        (["def get_config():", "    return ktn.get_config('r51')"], "{path}:4: unknown variant"),
        (["def get_config():", "    return {}"], "{path}: get_config() must return a ConfigDict"),
        (["config = 1"], "{path} has no get_config()"),
        (["def get_config(size):", "    return 1"], "{path}: get_config() needs a variant"),
        (["\0"], "{path}"),
    ],
)
def test_a_file_that_does_not_run_is_named_with_its_line(lines, message, elsewhere, monkeypatch):
    monkeypatch.setitem(sys.modules, "configs", None)  # in a checkout it could be imported
    path = _own(elsewhere, *lines)
    with pytest.raises(ConfigurationError) as error:
        load_config(os.fspath(path))
    assert message.format(path=path) in str(error.value)


def test_a_variant_that_cannot_be_passed_on_is_named(elsewhere):
    _own(elsewhere, "def get_config():", "    return ktn.get_config()")
    with pytest.raises(ConfigurationError, match="has no variants, got 'r50'"):
        load_config("own.py:r50")


def test_other_formats_are_told_what_to_do(elsewhere):
    (elsewhere / "model.yaml").write_text("seed: 1")
    with pytest.raises(ConfigurationError, match="model.yaml is no Python file.*> own.py"):
        load_config("model.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.optimizer.warmup = 5", "unknown key optimizer.warmup "),
        ("config.optimizer.learnin_rate = 5", r"did you mean optimizer.learning_rate\?"),
        ("del config.loss.point_weight", "missing key loss.point_weight"),
        ("config.batch_size = None", "batch_size must be of type int, got None"),
        ("config.batch_size = True", "batch_size must be of type int, got True"),
        ("config.data.zoom_range = ('a', 'b')", "data.zoom_range must be of type tuple of finite"),
        ("config.optimizer.weight_decay = float('nan')", "weight_decay must be of type finite"),
        ("config.test.batch_size = 0", "test.batch_size must be above 0"),
        ("config.optimizer.momentum = 1.0", r"optimizer.momentum must be in \[0, 1\)"),
        ("config.training.num_devices = -1", "training.num_devices must be 0 or more"),
        ("config.model.dtype = 'float16'", "model.dtype must be float32 or bfloat16"),
    ],
)
def test_wrong_values_are_refused_with_their_file(line, message, elsewhere):
    lines = ("def get_config():", "    config = ktn.get_config('tiny')", f"    {line}")
    path = _own(elsewhere, *lines, "    return config")
    with pytest.raises(ConfigurationError, match=message) as error:
        load_config("own.py")
    assert str(error.value).endswith(f"(configuration {path.name})")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("seed=3", 3),
        ("optimizer.learning_rate=1", 1.0),
        ("optimizer.nesterov=true", True),
        ("optimizer.nesterov=False", False),
        ("model.decoder.name=none", "none"),
        ("model.decoder.name='none'", "none"),
        ("name=2014", "2014"),
        ("training.weights=a=b.pth", "a=b.pth"),
        ("data.symmetry=", ""),
        ("data.annotations=a.json", ("a.json",)),
        ("data.annotations=a.json, b.json", ("a.json", "b.json")),
        ("data.annotations=['a.json', 'b.json']", ("a.json", "b.json")),
        ("data.annotations='a, b.json'", ("a, b.json",)),
        ("data.tfds.splits=2014", ("2014",)),
        ("optimizer.frozen=box_head/", ("box_head/",)),
        ("optimizer.frozen=", ()),
        ("data.short_sides=640", (640,)),
        ("data.short_sides=640,800", (640, 800)),
        ("data.zoom_range=(1, 1.5)", (1.0, 1.5)),
        ("test.size_buckets=[[96, 128]]", ((96, 128),)),
        ("test.size_buckets=(96, 128), (128, 96)", ((96, 128), (128, 96))),
    ],
)
def test_values_are_read_as_what_their_key_holds(change, value):
    config = load_config("ktn:tiny", [change])
    read = dict(leaves(config))[change.partition("=")[0]]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.rpn.nms_treshold=0.6", "no key 'model.rpn.nms_treshold' .*rpn.nms_threshold"),
        ("data.on_bad_images='skip'", r"no key .* \(did you mean data.on_bad\?\)"),
        ("learning_rate=0.6", r"no key 'learning_rate' \(did you mean optimizer.learning_rate\?\)"),
        ("model.nothing.at_all=1", "no key 'model.nothing.at_all'"),
        ("model.rpn=1", "no key 'model.rpn', only a section: .*such as model.rpn.anchor_offset"),
        ("model.rpn.nms_threshold", "no key=value"),
        ("model.rpn.nms_threshold=high", "nms_threshold=high: .*type finite float"),
        ("batch_size=4.0", "batch_size=4.0: .*type int"),
        ("batch_size=True", "batch_size=True: .*type int"),
        ("optimizer.nesterov=1", "optimizer.nesterov=1: .*type bool"),
        ("data.short_sides=small", "data.short_sides=small: .*type tuple of int"),
        ("data.tfds.splits=(1, 2)", "splits=.*type tuple of str"),
        ("model.rpn.anchor_sizes=32", "anchor_sizes=32: .*type tuple of tuple of int"),
    ],
)
def test_changes_that_do_not_fit_name_key_value_and_type(change, message):
    with pytest.raises(ConfigurationError, match=message):
        load_config("ktn:tiny", [change])


def test_files_may_be_in_the_home_folder(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    pathlib.Path("own.py").write_text(
        "from ktn_jax.configs import ktn\n\n\ndef get_config():\n    config = ktn.get_config()\n"
        "    config.data.symmetry = '~/s.mat'\n    return config\n"
    )
    changes = ["data.annotations=~/a.json,b.json", "training.weights=~/w", "name=~/x"]
    changes += ["model.meshes.files=('~/ball.npz',)"]
    changes += ["training.vertex_init=('','laplacian','~/v.npz')"]
    config = load_config("own.py", changes)
    assert config.data.symmetry == "/home/me/s.mat" and config.training.weights == "/home/me/w"
    assert config.data.annotations == ("/home/me/a.json", "b.json")
    assert config.model.meshes.files == ("/home/me/ball.npz",)
    assert config.training.vertex_init == ("", "laplacian", "/home/me/v.npz")
    assert config.name == "~/x"  # no file


def test_the_last_change_of_a_key_holds():
    assert load_config("ktn:tiny", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("only_changes", [False, True])
def test_what_is_printed_reads_back_the_same(name, only_changes, tmp_path):
    config = load_config(name, ["data.annotations=it's.json", "data.images=()"])
    text = write_config(config, only_changes=only_changes)
    (tmp_path / "own.py").write_text(text)
    assert load_config(f"{tmp_path}/own.py").to_dict() == config.to_dict()
    marked = [line.split()[0] for line in text.splitlines() if "  # base: " in line]
    standard = dict(leaves(base.get_config()))
    differ = [f"config.{key}" for key, value in leaves(config) if value != standard[key]]
    assert marked == differ
    assert text.count("    config.") == len(differ if only_changes else standard)


def test_configurations_made_by_hand_can_be_checked():
    config = base.get_config()
    check_config(config)
    config.total_steps = 0
    with pytest.raises(ConfigurationError, match="total_steps must be above 0"):
        check_config(config)
