"""Which way imports point, read from the sources; docs/architecture.md has the picture."""

import ast
import graphlib
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("ktn_jax", "data_pipelines", "configs")

# Package -> what of ours it may import besides itself: packages, or single modules. What is not
# listed may import anything.
ALLOWED = {
    "structures": "",
    "configs": "",
    "runtime": "configs",
    "ops": "structures body.parts",
    "losses": "ops structures body.parts",
    "modeling": "ops structures body.parts",
    "body": "runtime",
    "results": "body runtime",
    "data_pipelines": "body results runtime",
    "checkpoints": "modeling body ops structures runtime configs",
    "evaluation": "results body data_pipelines runtime",
    "training": "checkpoints losses modeling body ops structures runtime",
    "inference": "evaluation results data_pipelines checkpoints modeling body ops structures "
    "runtime",
    "verification": "training inference evaluation results checkpoints losses modeling body ops "
    "structures runtime",
    "demo": "training inference evaluation results checkpoints body data_pipelines configs runtime",
}
# Of other packages: scoring and data work in processes that must start fast, and TensorFlow is
# for input pipelines only.
FORBIDDEN = {
    "evaluation": ("jax", "flax", "tensorflow"),
    "results": ("jax", "flax", "tensorflow"),
    "data_pipelines": ("jax", "flax"),
    "body": ("jax", "flax", "tensorflow"),
    "training": ("tensorflow",),
    "inference": ("tensorflow",),
}


def _modules():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            yield name if package == "ktn_jax" else f"ktn_jax.{name}", path


MODULES = dict(_modules())


def _imports(path):
    """Names that a file imports, wherever it does, be it for typing only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_of(name):
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def _room(module):
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    room = _room(module)
    for imported in _imports(MODULES[module]):
        theirs = _module_of(imported)
        if room in ALLOWED and _room(theirs):
            names = {_room(theirs), theirs.removeprefix("ktn_jax.")}
            assert names & {room, *ALLOWED[room].split()}, f"{module} imports {imported}"
        bad = [p for p in FORBIDDEN.get(room, ()) if imported == p or imported.startswith(p + ".")]
        assert not bad, f"{module} imports {imported}"


def test_the_constants_of_the_body_import_nothing_of_ours():
    parts = "ktn_jax.body.parts"
    assert [name for name in _imports(MODULES[parts]) if _module_of(name)] == []


def test_no_import_runs_in_a_circle():
    graph = {
        module: {_module_of(name) for name in _imports(path)} - {"", module, "ktn_jax"}
        for module, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_package_has_few_entries():
    rooms = sorted(p.name for p in (ROOT / "ktn_jax").iterdir() if p.name != "__pycache__")
    assert len(rooms) <= 18, rooms


def test_every_package_is_installed():
    with open(ROOT / "pyproject.toml", "rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    wanted = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    assert sorted(listed) == sorted(wanted)


def _loaded_by(code):
    """Which of the large packages a process has loaded that ran some code."""
    names = "('jax', 'numpy', 'orbax', 'scipy', 'tensorflow', 'torch')"
    output = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}; import sys; print([m for m in {names} if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return ast.literal_eval(output.stdout)


def test_importing_the_package_is_light():
    assert _loaded_by("import ktn_jax; dir(ktn_jax); hasattr(ktn_jax, 'none')") == []
    assert _loaded_by("import ktn_jax; ktn_jax.read_results; ktn_jax.load_config") == ["numpy"]
    assert _loaded_by("import ktn_jax; ktn_jax.load") == []  # it sets JAX up first


def test_every_public_name_is_there():
    import ktn_jax

    for name in ktn_jax.__all__:
        assert getattr(ktn_jax, name).__doc__
        assert name in dir(ktn_jax)
    with pytest.raises(AttributeError, match="no attribute 'none'"):
        _ = ktn_jax.none


def test_a_photo_and_a_file_of_weights_need_few_packages():
    """Each of the others takes tenths of a second to import, or is not installed."""
    code = "import ktn_jax.inference.photos, ktn_jax.checkpoints.weights, ktn_jax.results.pictures"
    assert _loaded_by(code) == ["jax", "numpy"]
    assert "torch" not in _loaded_by("import ktn_jax.verification.comparison")
