"""Settings that JAX starts with: a compile cache and a flag; the user's settings are kept."""

import json
import os
import subprocess
import sys

import pytest

from ktn_jax.runtime import host_memory, jax_setup

REPORT = """
import json, os
names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
values = [getattr(jax.config, name) for name in names]
print(json.dumps([*values, os.environ.get("XLA_FLAGS", "")]))
"""
PREPARE = "from ktn_jax.runtime import jax_setup; jax_setup.prepare()\n"


def _run(code, cache_home, **environment):
    """Cache folder, least compile time and compiler flags of a process that ran some code."""
    names = (
        "KTN_CACHE",
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "XLA_FLAGS",
    )
    inherited = {k: v for k, v in os.environ.items() if k not in names}
    output = subprocess.run(
        [sys.executable, "-c", code + REPORT],
        capture_output=True,
        text=True,
        check=True,
        env={**inherited, "XDG_CACHE_HOME": os.fspath(cache_home), **environment},
    )
    return json.loads(output.stdout)


@pytest.mark.parametrize(
    "first", [PREPARE + "import jax", "import jax\n" + PREPARE], ids=["before", "after"]
)
def test_compiled_programs_are_kept_whether_jax_was_there_first(tmp_path, first):
    folder, seconds, _ = _run(first, tmp_path)
    assert folder == os.fspath(tmp_path / "ktn_jax" / "compiled")
    assert seconds == 0


def test_a_process_that_has_compiled_keeps_programs_from_then_on(tmp_path):
    code = f"""
import jax
jax.jit(lambda x: x + 1)(1.0)
{PREPARE}
jax.jit(lambda x: x + 2)(1.0)
"""
    _run(code, tmp_path)
    assert len(list((tmp_path / "ktn_jax" / "compiled").glob("*-cache"))) == 1


def test_what_somebody_has_set_stays(tmp_path):
    own = 'import jax; jax.config.update("jax_compilation_cache_dir", "/own")\n'
    assert _run(own + PREPARE, tmp_path)[:2] == ["/own", 1]
    flag = "--xla_cpu_experimental_ynn_fusion_type=+individual_convolution"
    settings = {
        "JAX_COMPILATION_CACHE_DIR": "/own",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3",
        "XLA_FLAGS": flag,
    }
    for code in (PREPARE + "import jax", "import jax\n" + PREPARE):
        assert _run(code, tmp_path, **settings) == ["/own", 3, flag]


def test_a_compiler_that_may_have_started_gets_no_flag(tmp_path):
    flags = _run("import jax\n" + PREPARE, tmp_path, XLA_FLAGS="--xla_cpu_enable_fast_math=false")[
        2
    ]
    assert flags == "--xla_cpu_enable_fast_math=false"


@pytest.mark.parametrize(
    ("version", "is_known"),
    [
        ("0.10.1", False),
        ("0.10.2", True),
        ("0.11.2", True),
        ("0.12.0", False),
        ("0.11.0rc1", False),
    ],
)
def test_the_convolution_flag_is_for_releases_that_know_it(monkeypatch, version, is_known):
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    monkeypatch.setattr(host_memory, "divide_by_size", lambda: None)
    monkeypatch.delitem(sys.modules, "jax")
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("XLA_FLAGS", "--own=1")
    jax_setup.prepare()
    assert ("individual_convolution" in os.environ["XLA_FLAGS"]) == is_known
    assert os.environ["XLA_FLAGS"].startswith("--own=1")
    flags = os.environ["XLA_FLAGS"]
    jax_setup.prepare()
    assert os.environ["XLA_FLAGS"] == flags


def test_a_command_shows_no_alarms_of_the_compiler_unless_asked(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    jax_setup.silence_compiler()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    jax_setup.silence_compiler()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
