"""Writes exported programs as a TensorFlow SavedModel."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export


def check_libraries() -> None:
    """Checks that `write` can be called, before the programs are made, which takes minutes.

    Raises:
        ImportError: TensorFlow is not installed; or it or JAX no longer has what no public
            function of theirs does.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "writing a SavedModel needs TensorFlow: pip install 'ktn_jax[tfds]'"
        ) from error
    try:
        # Neither promises to keep these; the functions are those that jax2tf is made of.
        from jaxlib.mlir.dialects.stablehlo import (  # noqa: F401
            StablehloCompatibilityRequirement,
            get_version_from_compatibility_requirement,
            serialize_portable_artifact_str,
        )
        from tensorflow.compiler.tf2xla.python.xla import call_module  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"TensorFlow {tf.__version__} and JAX {jax.__version__} cannot write a "
            f"SavedModel: {error}. Write --format stablehlo, or install other versions of them"
        ) from error


def write(
    folder: pathlib.Path,
    programs: Mapping[str, export.Exported],
    weights: Mapping[str, np.ndarray],
) -> None:
    """Writes a SavedModel whose variables are the weights, once for all signatures.

    `jax2tf` would write StableHLO of the version that JAX writes, which is newer than TensorFlow
    reads: here it is one of twelve weeks before.

    Args:
        folder: that exists.
        programs: by the names of their signatures; of the weights, images [B, H, W, 3] and sizes
            [B, 2], where B is symbolic. They return arrays by name.
        weights: arrays by name.

    Raises:
        ImportError: see `check_libraries`.
    """
    check_libraries()
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # TensorFlow would reserve the memory JAX needs
    module = tf.Module()
    # A list, as modules do not take names with slashes.
    module.weights = [tf.Variable(array, trainable=False) for array in weights.values()]
    variables = dict(zip(weights, module.weights, strict=True))
    tf.saved_model.save(
        module,
        str(folder),
        signatures={
            name: _to_function(tf, program, variables).get_concrete_function()
            for name, program in programs.items()
        },
    )


def _to_function(tf: Any, program: export.Exported, variables: Mapping[str, Any]) -> Any:
    """Makes a `tf.function` of images and their sizes, by the operation that jax2tf makes too."""
    from jaxlib.mlir.dialects import stablehlo
    from tensorflow.compiler.tf2xla.python import xla

    version = stablehlo.get_version_from_compatibility_requirement(
        stablehlo.StablehloCompatibilityRequirement.WEEK_12
    )
    content = stablehlo.serialize_portable_artifact_str(program.mlir_module(), version)

    def shape(array: Any) -> list[int | None]:
        return [size if isinstance(size, int) else None for size in array.shape]

    images, sizes = program.in_avals[-2:]
    specification = [
        tf.TensorSpec(shape(images), images.dtype.name, name="images"),
        tf.TensorSpec(shape(sizes), sizes.dtype.name, name="image_size_hw"),
    ]

    def find(images: Any, image_size_hw: Any) -> Any:
        arguments = jax.tree.leaves((dict(variables), images, image_size_hw))
        results = xla.call_module(
            [tf.convert_to_tensor(arguments[i]) for i in program.module_kept_var_idx],
            version=program.calling_convention_version,
            module=content,
            Sout=[shape(array) for array in program.out_avals],
            Tout=[array.dtype.name for array in program.out_avals],
            platforms=[platform.upper() for platform in program.platforms],
            function_list=[],
            disabled_checks=[],
        )
        return jax.tree.unflatten(program.out_tree, results)

    return tf.function(find, input_signature=specification, autograph=False)
