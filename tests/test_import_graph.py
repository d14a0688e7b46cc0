"""Which way imports point, read from the sources."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("ktn_jax", "data_pipelines", "configs")

# Folder or module -> what of ours it may import. Those not listed may import anything below cli.
ALLOWED = {
    "ktn_jax.structures": (),
    "ktn_jax.ops": ("ktn_jax.ops", "ktn_jax.structures"),
    "ktn_jax.modeling": ("ktn_jax.modeling", "ktn_jax.ops", "ktn_jax.structures"),
    "ktn_jax.losses": ("ktn_jax.losses", "ktn_jax.ops", "ktn_jax.structures"),
    "ktn_jax.template": ("ktn_jax.template", "ktn_jax.pickles", "ktn_jax.atomic_files"),
    "configs": ("configs",),
}
FORBIDDEN = {
    "ktn_jax.training": ("data_pipelines",),
    "ktn_jax.evaluation": ("jax", "flax", "ktn_jax.modeling", "ktn_jax.ops"),
    "data_pipelines": ("jax", "flax", "ktn_jax.modeling", "ktn_jax.ops", "ktn_jax.training"),
    "ktn_jax.template": ("jax", "flax"),
}


def _modules():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), path


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_under(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize(("module", "path"), list(_modules()), ids=lambda value: str(value))
def test_imports_point_one_way(module, path):
    for imported in _imports(path):
        for prefix, allowed in ALLOWED.items():
            if _is_under(module, prefix) and imported.split(".")[0] in PACKAGES:
                assert any(_is_under(imported, name) for name in allowed), f"{module}: {imported}"
        for prefix, forbidden in FORBIDDEN.items():
            if _is_under(module, prefix):
                bad = [name for name in forbidden if _is_under(imported, name)]
                assert not bad, f"{module} imports {imported}"


def test_importing_the_package_is_light():
    code = "import sys, ktn_jax; print([m for m in ('jax', 'numpy', 'torch') if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert output.stdout.strip() == "[]"


def test_inference_needs_neither_tensorflow_nor_torch():
    code = (
        "import sys, ktn_jax.inference, ktn_jax.prediction, ktn_jax.verification.verify;"
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert output.stdout.strip() == "[]"
