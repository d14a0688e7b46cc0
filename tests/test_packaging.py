"""What is installed: the requirements, and the contents of a wheel made from a source archive."""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project():
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]


def test_the_list_of_requirements_is_what_the_package_and_its_extra_ask_for(project):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [re.sub(r"(^|\s+)#.*", "", line) for line in lines]
    declared = project["dependencies"] + project["optional-dependencies"]["tfds"]
    assert sorted(map(str, map(Requirement, filter(None, listed)))) == sorted(
        map(str, map(Requirement, declared))
    )


def test_tensorflow_comes_with_the_extra_only(project):
    names = {Requirement(line).name for line in project["dependencies"]}
    assert "jax" in names and not {name for name in names if name.startswith("tensorflow-")}
    assert not names & {"tensorflow", "tensorflow-cpu", "tensorflow-datasets", "torch"}


def _build(kind, source, target):
    """Builds with the setuptools that is installed: nothing is downloaded."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def test_a_wheel_holds_one_package_of_ours_and_all_of_it(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "Makefile"):
        shutil.copy(ROOT / name, source)
    ours = ("ktn_jax", "configs", "data_pipelines", "experiments", "tests")
    for name in ours:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    with tarfile.open(_build("sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(_build("wheel", unpacked, tmp_path)) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        (scripts,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "ktn = ktn_jax.cli:main" in wheel.read(scripts).decode()
    packed = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    wanted = set()
    for folder, prefix in (("ktn_jax", ""), *((name, "ktn_jax/") for name in ours[1:3])):
        files = (path for path in (source / folder).rglob("*") if path.is_file())
        wanted |= {f"{prefix}{path.relative_to(source).as_posix()}" for path in files}
    assert packed == wanted
    some = ("py.typed", "__main__.py", "configs/ktn.py", "data_pipelines/coco/checks.py")
    assert {f"ktn_jax/{name}" for name in some} <= packed
