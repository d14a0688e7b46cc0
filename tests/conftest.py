"""Shared test set-up: CPU, four fake devices, strict rank promotion, reference data."""

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile
import types

# Compiling takes longer than running here; the numbers do not depend on it.
_QUICK_COMPILER = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # The emitters of before: operations outside jit compile in half the time. Later compilers
    # do not have them, and end at a flag that they do not know.
    _QUICK_COMPILER += " --xla_cpu_use_fusion_emitters=false"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        _QUICK_COMPILER,
    )
).strip()

import jax
import jax.monitoring
import numpy as np
import pytest

# Programs that several modules compile, for this process alone: writing is not atomic.
_COMPILED = tempfile.TemporaryDirectory(prefix="ktn_jax_tests_")

os.environ["KTN_CACHE"] = os.path.join(_COMPILED.name, "ktn_jax")
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

_CUT = pathlib.Path(__file__).parent / "goldens" / "ops_cut.npz"
_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# Reference data are not part of the project (size, licences); KTN_SHARED names another place.
_SHARED = pathlib.Path(os.environ.get("KTN_SHARED", _REPOSITORY.parent / "shared"))


def pytest_collection_finish() -> None:
    """Passes over the millions of objects of imported modules when garbage is collected.

    Tracing makes so many objects that a twelfth of the time went into looking at these.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _folder_or_skip(name: str) -> pathlib.Path:
    folder = _SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no reference folder {name!r}: set KTN_SHARED to the folder that holds it")
    return folder


def _module_beside(name: str) -> types.ModuleType:
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def quick_compiler() -> str:
    """Compiler flags of processes that a test starts, in place of those of this one."""
    return _QUICK_COMPILER


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    """Numbers recorded from the PyTorch original."""
    return _folder_or_skip("golden")


@pytest.fixture(scope="session")
def zoo_dir() -> pathlib.Path:
    """Facts of the released models."""
    return _folder_or_skip("zoo")


@pytest.fixture(scope="session")
def real_dir() -> pathlib.Path:
    """Real photos, annotations and outputs."""
    return _folder_or_skip("real")


@pytest.fixture(scope="session")
def cases_dir() -> pathlib.Path:
    """Small files with what once went wrong."""
    return _folder_or_skip("cases")


@pytest.fixture
def file_server(monkeypatch):
    """A file server on this machine, see file_server.py, and no proxy before it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with _module_beside("file_server").FileServer().running() as server:
        yield server


@pytest.fixture
def bucket_server(monkeypatch):
    """gs://bucket on this machine, for this process and its children, see bucket_server.py."""
    pytest.importorskip("gcsfs")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google what it is
    with _module_beside("bucket_server").BucketServer().running() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture(scope="session")
def write_clip():
    """Writes a short video whose frames are all different, see clips.py."""
    return _module_beside("clips").write_clip


@pytest.fixture
def count_traces():
    """Makes a context in which a list gets an entry for all that JAX traces, to be compiled then.

    Whether a compiled program is found in a cache on the disk makes no difference to it.
    """

    @contextlib.contextmanager
    def count():
        traced = []

        def listen(event, *_, **details):
            if event == "/jax/core/compile/jaxpr_trace_duration":
                traced.append(details.get("fun_name"))

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield traced
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return count


@pytest.fixture(scope="session")
def golden(request):
    """Arrays recorded from PyTorch by name: the full file where present, else the cut beside us."""
    try:
        path = request.getfixturevalue("golden_dir") / "ops.npz"
    except pytest.skip.Exception:
        path = _CUT
    if not path.is_file():
        path = _CUT
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def draw_variables():
    """Makes variables of a configuration's model, without compiling its own initialisation."""

    from ktn_jax.checkpoints import weights
    from ktn_jax.modeling.detector import build_model

    def draw_all(config, seed=0):
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            name = path[-1].key
            if name in ("scale", "var"):
                return np.ones(leaf.shape, np.float32)
            if name in ("u_bias", "v_bias"):
                return np.full(leaf.shape, 0.5, np.float32)
            if name.endswith(("bias", "mean")) or not leaf.shape:
                return np.zeros(leaf.shape, leaf.dtype)
            values = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
            # Boxes of some size, scores that differ, U and V in [0, 1]: these need small numbers.
            factors = {"class_kernel": 0.05, "delta_kernel": 0.05, "u_kernel": 0.3, "v_kernel": 0.3}
            factor = 0.05 if path[1].key == "rpn_head" else factors.get(name, 1.0)
            return (factor * values).astype(np.float32)

        shapes = weights.abstract_variables(build_model(config.model))
        return jax.tree_util.tree_map_with_path(draw, shapes)

    return draw_all


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Frees what a module's tests compiled: gigabytes over a whole run."""
    yield
    jax.clear_caches()
