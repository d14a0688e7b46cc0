"""A small model in place of the large one, for tests of what surrounds it."""

import importlib.util
import pathlib

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

_PATH = pathlib.Path(__file__).parent / "stand_in.py"


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


@pytest.fixture(scope="package")
def stand_in(compiled_programs):
    """The module `stand_in`; its `__file__` runs as a script."""
    spec = importlib.util.spec_from_file_location("stand_in", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
