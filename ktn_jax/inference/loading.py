"""From a configuration and weights to a predictor."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from ktn_jax.runtime import configuration, jax_setup

if TYPE_CHECKING:
    from ktn_jax.inference.augmentation import AugmentedPredictor
    from ktn_jax.inference.predictor import Predictor


def load(
    config: str | os.PathLike[str] | ConfigDict,
    weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    changes: Sequence[str] = (),
    augmented: bool = False,
) -> "Predictor | AugmentedPredictor":
    """Loads a model that finds people in photos.

    JAX and malloc are set up as by the command line (see `jax_setup.prepare`): the programs of a
    model are compiled once and cached for later processes. Call it before JAX is imported, as one
    compiler flag can only be set then.

    Example:
        model = ktn_jax.load("densepose_rcnn_R_50_FPN_s1x")
        people = model("photo.jpg")

    Args:
        config: the name of a released model (`ktn models` lists them) or of a configuration (see
            `load_config`), or a whole configuration.
        weights: a file or a folder (see `checkpoints.weights.read_variables`), or the variables of
            the model. None: those of the released model, fetched the first time.
        changes: `key=value` for the configuration.
        augmented: average over the views of `test.augmentation`. For models of real people mirrored
            views need `data.symmetry`.

    Returns:
        A `Predictor`, or an `AugmentedPredictor`, which is called in the same way.

    Raises:
        ValueError: an unknown configuration, or changes or weights that do not fit it.
        FileNotFoundError: the weights do not exist.
        ktn_jax.runtime.downloads.DownloadError: they could not be fetched.
        TypeError: an argument of another type.
    """
    # Before the modules that import JAX: some of it is read when JAX is imported.
    jax_setup.prepare()
    from ktn_jax.checkpoints import named
    from ktn_jax.checkpoints import weights as checkpoints
    from ktn_jax.inference.augmentation import AugmentedPredictor
    from ktn_jax.inference.predictor import Predictor
    from ktn_jax.inference.stages import Stages
    from ktn_jax.inference.symmetries import load_symmetry
    from ktn_jax.runtime.program_store import ProgramStore

    programs = ProgramStore()
    name = config.name if isinstance(config, ConfigDict) else str(config)
    config = _to_config(config, changes)
    # Before the weights are read, so that a missing file is reported at once.
    symmetry = load_symmetry(config) if augmented else None
    if isinstance(weights, Mapping):
        fitted = checkpoints.fit(config, weights, "the variables given", programs)
        stages = Stages(config, fitted, programs)
    elif weights is None or isinstance(weights, (str, os.PathLike)):
        if weights is None:
            weights = named.find_weights(name)
        # Passed without a name, so that weights which inference does not need are freed.
        stages = Stages(config, checkpoints.load(config, weights, programs=programs), programs)
    else:
        raise TypeError(f"weights: a path or variables, got {type(weights).__name__}")
    return AugmentedPredictor(stages, symmetry) if augmented else Predictor(stages)


def _to_config(config: Any, changes: Sequence[str]) -> ConfigDict:
    from ktn_jax.checkpoints import named

    if isinstance(config, ConfigDict):
        return configuration.change_config(config, changes)
    if isinstance(config, (str, os.PathLike)):
        return named.load_config(os.fspath(config), changes)
    raise TypeError(f"config: a name, a path or a ConfigDict, got {type(config).__name__}")
