"""What a SavedModel needs of other libraries; tests/inference/test_exported_files.py writes one."""

import sys
import types

import pytest
from jaxlib.mlir.dialects import stablehlo

from ktn_jax.checkpoints import saved_model


def _pretend_tensorflow(monkeypatch, **functions):
    """A TensorFlow whose private module has these functions."""
    names = "tensorflow", "tensorflow.compiler", "tensorflow.compiler.tf2xla"
    names += (f"{names[-1]}.python", f"{names[-1]}.python.xla")
    for name in names:
        module = types.ModuleType(name)
        module.__path__, module.__version__ = [], "9.9"
        monkeypatch.setitem(sys.modules, name, module)
    vars(module).update(functions)


def test_missing_libraries_are_told_from_those_that_changed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"needs TensorFlow: pip install 'ktn_jax\[tfds\]'"):
        saved_model.check_libraries()
    _pretend_tensorflow(monkeypatch)
    with pytest.raises(ImportError, match=r"TensorFlow 9.9 and JAX .*'call_module'.*stablehlo"):
        saved_model.check_libraries()
    _pretend_tensorflow(monkeypatch, call_module=print)
    saved_model.check_libraries()
    monkeypatch.delattr(stablehlo, "serialize_portable_artifact_str")
    with pytest.raises(ImportError, match="cannot write a SavedModel: .*portable_artifact_str"):
        saved_model.check_libraries()
