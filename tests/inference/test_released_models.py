"""Every released model, in its full size and with random weights, finds somebody in a picture."""

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from ktn_jax.checkpoints import named, zoo
from ktn_jax.inference.predictor import Predictor
from ktn_jax.inference.stages import Stages

# Of sides up to 64 pixels HRFPN has no level left, as the original.
_CHANGES = [
    "test.short_side=96",
    "test.max_side=128",
    "test.size_buckets=((96,128),)",
    "TEST.DETECTIONS_PER_IMAGE=2",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.0",
]


def _calm(path, leaf):
    """Damps what residual blocks add: the boxes of a hundred random layers are empty."""
    place = jax.tree_util.keystr(path)
    adds = "conv3" in place or "_fuse" in place or ("_branch" in place and "conv2" in place)
    return 0.2 * leaf if adds and place.endswith("['scale']") else leaf


@pytest.fixture(scope="module")
def find_people(draw_variables):
    """Runs a model; released ones that differ in their training only share a run."""
    found = {}

    def find(config):
        key = FrozenConfigDict(config.model)
        if key not in found:
            photo = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
            variables = jax.tree_util.tree_map_with_path(_calm, draw_variables(config))
            found[key] = Predictor(Stages(config, variables))(photo)
            jax.clear_caches()
        return found[key]

    return find


@pytest.mark.extended
@pytest.mark.parametrize("name", zoo.models())
def test_the_model_runs(name, find_people):
    config = named.load_config(name, _CHANGES)
    people = find_people(config)
    assert 0 < len(people) <= 2
    for person in people:
        assert np.isfinite(person.box_xyxy).all() and 0 <= person.score <= 1
        if zoo.find(name).family == "embedding":
            section = config.model.meshes
            number = section.num_vertices[section.names.index(person.mesh)]
            assert -1 <= person.vertices.min() and person.vertices.max() < number
        else:
            assert person.iuv[0].max() <= 24
        assert (person.keypoints is not None) == (zoo.find(name).family == "KTN")
        assert ("sigma" in person.confidences) == ("_WC" in name)
