"""A small model in place of the large one, for tests of what surrounds it."""

import importlib.util
import pathlib
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

_PATH = pathlib.Path(__file__).parent / "stand_in.py"
_BENCH = pathlib.Path(__file__).parents[2] / "experiments" / "bench"


@pytest.fixture(scope="package")
def compiled_programs(tmp_path_factory):
    """Where programs are kept, so that each is compiled once for all tests here."""
    folder = tmp_path_factory.mktemp("compiled")
    changes = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="package")
def stand_in(compiled_programs):
    """The module `stand_in`; its `__file__` runs as a script."""
    return _load(_PATH)


@pytest.fixture(scope="package")
def hlo():
    """The module of `experiments/bench` that reads compiled programs."""
    return _load(_BENCH / "hlo.py")
