"""Settings that JAX starts with: a cache of compiled programs, a compiler flag, memory settings.

In a new process the first call of a program takes a quarter of the processor time if an earlier
process has compiled that program. `program_store` saves tracing it, which is half of the rest.
"""

import importlib.metadata
import os
import sys

from ktn_jax.runtime import caches, host_memory

_CACHE_OPTION, _CACHE_VARIABLE = "jax_compilation_cache_dir", "JAX_COMPILATION_CACHE_DIR"
_MIN_TIME_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_LOG_VARIABLE, _ONLY_FATAL = "TF_CPP_MIN_LOG_LEVEL", "3"

# On CPUs, these releases of jaxlib send single convolutions to a library that is slow at their
# gradients; without it training is up to three times as fast. Other devices do not read the flag.
_CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_CONVOLUTION_FLAG_VERSIONS = ((0, 10, 2), (0, 11, 2))


def prepare() -> None:
    """Sets JAX and malloc up; settings that the user has made are kept.

    It may be called at any time and repeatedly, but the compiler flag is only set if JAX is not
    imported yet.

    - Compiled programs are kept in the folder `compiled` of our caches (`caches.folder`), or in the
      folder that `JAX_COMPILATION_CACHE_DIR` or `jax_compilation_cache_dir` names.
    - One flag is added to `XLA_FLAGS`, unless it is set there already.
    - malloc is set up by `host_memory.divide_by_size`.
    """
    if "jax" in sys.modules:
        _configure_imported()
    else:
        os.environ.setdefault(_CACHE_VARIABLE, _cache_folder())
        os.environ.setdefault(_MIN_TIME_VARIABLE, "0")
        # Not later: the flags are part of the keys of the cache, and a compiler that has started
        # does not read them again.
        _add_convolution_flag()
    host_memory.divide_by_size()


def silence_compiler() -> None:
    """Keeps what XLA logs off the standard error, for a command; errors are raised all the same.

    Its "Very slow compile?" and its remarks on programs of the cache are logged as errors and are
    none. TF_CPP_MIN_LOG_LEVEL=0 in the environment shows them.
    """
    if "jax" not in sys.modules:
        os.environ.setdefault(_LOG_VARIABLE, _ONLY_FATAL)


def _configure_imported() -> None:
    import jax

    if getattr(jax.config, _CACHE_OPTION) is None and _CACHE_VARIABLE not in os.environ:
        jax.config.update(_CACHE_OPTION, _cache_folder())
        if _MIN_TIME_VARIABLE not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _cache_folder() -> str:
    return os.fspath(caches.folder("compiled"))


def _add_convolution_flag() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if _knows_convolution_flag() and _CONVOLUTION_FLAG.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_CONVOLUTION_FLAG}".strip()


def _knows_convolution_flag() -> bool:
    """Whether the jaxlib that is installed has the flag: an unknown one ends the process."""
    numbers = importlib.metadata.version("jaxlib").split(".")[:3]
    if not all(number.isdigit() for number in numbers):
        return False  # a development build
    first, last = _CONVOLUTION_FLAG_VERSIONS
    return first <= tuple(map(int, numbers)) <= last
