"""The PyTorch sides of the benchmarks compute the same maps, however they are compiled."""

import inference
import pytest

from ktn_jax.checkpoints import files, weights
from ktn_jax.runtime import configuration

torch = pytest.importorskip("torch", reason="the peers are made of PyTorch's layers")
compiled_peer = pytest.importorskip("compiled_peer", reason="is made of PyTorch's layers")

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
CONFIG = "configs/ktn.py:tiny"
SIZE_HW = (70, 96)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "weights.safetensors"
    config = configuration.load_config(CONFIG)
    variables = inference.spread_weights(weights.initialise(config, seed=0))
    weights.write_variables(path, variables)
    return files.read_state_dict(path)


def maps_of(name, state, **changes):
    config = configuration.load_config(CONFIG, [f"{k}={v}" for k, v in changes.items()])
    photo, boxes = inference.make_photo(SIZE_HW), inference.make_boxes(SIZE_HW, 2)
    side = inference.Theirs(name, config, dict(state), photo, boxes)
    side.stages()
    return side.maps()


@pytest.fixture(scope="module")
def eager(state):
    return maps_of("eager", state)


def test_folded_exported_and_constant_stages_are_the_eager_ones(state, eager, monkeypatch):
    monkeypatch.setitem(compiled_peer.ENGINES, "tuned", lambda exported, _: exported.module())
    found = maps_of("tuned", state)
    assert found.keys() == eager.keys()
    largest, typical = inference.agreement(found, eager)
    # Sums in another order. Norms that are not folded, or with a wrong epsilon, move maps by 0.05.
    assert largest < 1e-4
    assert typical < 1e-5


@pytest.mark.parametrize("name", ["tuned", "openvino"])
@pytest.mark.parametrize(
    "dtype,largest,typical", [("float32", 1e-4, 1e-5), ("bfloat16", 0.3, 0.05)]
)
def test_compiled_peers_compute_what_the_eager_one_does(
    state, eager, name, dtype, largest, typical
):
    if name == "openvino":
        pytest.importorskip("openvino", reason="the extra `bench` installs OpenVINO")
    found = inference.agreement(maps_of(name, state, **{"test.matmul_dtype": dtype}), eager)
    assert found[0] < largest
    assert found[1] < typical
    if (name, dtype) == ("tuned", "bfloat16"):  # OpenVINO keeps float32 where the CPU lacks it
        assert found[1] > 1e-3
