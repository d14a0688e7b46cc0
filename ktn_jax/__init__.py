"""Multi-person DensePose in JAX: from a photo to the body-surface point of every person-pixel."""

# Public names are imported when they are first used: importing the package loads nothing else.

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktn_jax.checkpoints.named import load_config
    from ktn_jax.checkpoints.weights import convert
    from ktn_jax.inference.loading import load
    from ktn_jax.inference.model_evaluation import AnnotatedFiles
    from ktn_jax.inference.model_evaluation import evaluate_model as evaluate
    from ktn_jax.inference.predictor import Predictor
    from ktn_jax.results.people import People
    from ktn_jax.results.records import PersonResult, read_results, write_results
    from ktn_jax.results.tracking import Tracker
    from ktn_jax.runtime.video_sources import read_video
    from ktn_jax.training.trainer import Trainer

__version__ = "0.1.0"
__all__ = [
    "AnnotatedFiles",
    "People",
    "PersonResult",
    "Predictor",
    "Tracker",
    "Trainer",
    "convert",
    "evaluate",
    "load",
    "load_config",
    "read_results",
    "read_video",
    "write_results",
]

# Public name -> module, and its name there.
_PLACES = {
    "AnnotatedFiles": ("inference.model_evaluation", "AnnotatedFiles"),
    "People": ("results.people", "People"),
    "PersonResult": ("results.records", "PersonResult"),
    "Predictor": ("inference.predictor", "Predictor"),
    "Tracker": ("results.tracking", "Tracker"),
    "Trainer": ("training.trainer", "Trainer"),
    "convert": ("checkpoints.weights", "convert"),
    "evaluate": ("inference.model_evaluation", "evaluate_model"),
    "load": ("inference.loading", "load"),
    "load_config": ("checkpoints.named", "load_config"),
    "read_results": ("results.records", "read_results"),
    "read_video": ("runtime.video_sources", "read_video"),
    "write_results": ("results.records", "write_results"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
