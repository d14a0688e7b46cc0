"""Programs that are traced once: what finds them again, and what must not."""

import typing

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.runtime import program_store
from ktn_jax.runtime.program_store import ProgramStore

X = np.float32([1.0, 2.0])


class _Program:
    """Adds a number, and counts how often it is traced."""

    def __init__(self, number):
        self.number, self.traced = number, 0

    def __call__(self, tree):
        self.traced += 1
        return {"sum": tree["x"] + self.number, "none": None}


def _run(folder, number=1.0, x=X, **settings):
    """A process: the sum, and whether the program was traced."""
    program = _Program(number)
    run = ProgramStore(folder).jit(program, {"program": "add", **settings})
    outputs = [run({"x": x})["sum"] for _ in range(2)]
    np.testing.assert_array_equal(*outputs)
    return np.asarray(outputs[0]), program.traced == 1


def test_a_program_is_traced_once(tmp_path):
    first, is_traced = _run(tmp_path)
    assert is_traced and first.tolist() == [2.0, 3.0]
    # Another number, which the settings do not tell of, shows that the program is the stored one.
    again, is_traced = _run(tmp_path, number=5.0)
    assert not is_traced and again.tolist() == [2.0, 3.0]
    # Of the device, as the stages pass their variables.
    again, is_traced = _run(tmp_path, x=jnp.asarray(X) * 2)
    assert not is_traced and again.tolist() == [3.0, 5.0]


def test_everything_that_decides_about_a_program_finds_another(tmp_path, monkeypatch):
    _run(tmp_path)
    assert _run(tmp_path, number=5.0, model={"name": "other"})[0].tolist() == [6.0, 7.0]
    assert _run(tmp_path, number=5.0, x=np.float32([1, 2, 3]))[0].tolist() == [6.0, 7.0, 8.0]
    assert _run(tmp_path, number=5, x=np.int32([1, 2]))[0].dtype == np.int32
    with jax.default_matmul_precision("float32"):
        assert _run(tmp_path, number=5.0)[1]
    monkeypatch.setattr(program_store, "_digest_of_sources", lambda: "other sources")
    assert _run(tmp_path, number=5.0)[0].tolist() == [6.0, 7.0]


def test_the_sources_are_those_of_the_package(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "room").mkdir(parents=True)
    monkeypatch.setattr(program_store.ktn_jax, "__file__", str(package / "__init__.py"))
    digests = set()
    for content in ("", "x = 1\n", "x = 2\n"):
        (package / "room" / "module.py").write_text(content)
        digests.add(program_store._digest_of_sources())
    (package / "room" / "module.py").rename(package / "module.py")
    digests.add(program_store._digest_of_sources())
    assert len(digests) == 4


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:40] + b"?" + b[41:], lambda _: b""]
)
def test_a_damaged_file_is_made_again(tmp_path, damage):
    _run(tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert _run(tmp_path)[1]
    assert not _run(tmp_path)[1]


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path):
    folder = tmp_path / "file" / "programs"
    (tmp_path / "file").write_text("")
    for _ in range(2):
        outputs, is_traced = _run(folder)
        assert is_traced and outputs.tolist() == [2.0, 3.0]


def test_a_folder_of_somebody_else_is_read(tmp_path, monkeypatch):
    _run(tmp_path)

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(program_store.os, "utime", refuse)
    assert not _run(tmp_path)[1]


def test_what_was_not_used_for_longest_is_removed(tmp_path, monkeypatch):
    store = ProgramStore(tmp_path)

    def text(name):
        """The text of that name, and whether it was made."""
        made = []

        def make():
            made.append(name)
            return name.encode() * 100

        assert store.read_or_make({"name": name}, make) == name.encode() * 100
        return bool(made)

    monkeypatch.setattr(program_store, "_MAX_BYTES", 3 * 132)
    for name in "abc":
        text(name)
    assert not text("a")
    text("d")  # b was used before a
    assert [name for name in "acdb" if text(name)] == ["b"]


@flax.struct.dataclass
class _State:
    value: jax.Array
    count: jax.Array


class _Pair(typing.NamedTuple):
    state: _State
    more: dict[str, jax.Array]


def test_options_and_containers_are_those_of_jit(tmp_path):
    program_store.register(*program_store.classes_in(_Pair(_State(1, 2), {"x": [3, None]})))

    def step(pair, change):
        state = _State(pair.state.value + change, pair.state.count + 1)
        return _Pair(state, {"x": pair.more["x"] * 2})

    for _ in range(2):
        take = ProgramStore(tmp_path).jit(step, {"program": "step"}, donate_argnums=0)
        pair = _Pair(_State(jnp.zeros(1000), jnp.zeros((), jnp.int32)), {"x": jnp.ones(2)})
        compiled = take.lower(pair, 2.0 * jnp.ones(())).compile()
        after = compiled(pair, 2.0 * jnp.ones(()))
        assert pair.state.value.is_deleted()
        assert isinstance(after, _Pair) and isinstance(after.state, _State)
        assert after.state.value.sum() == 2000 and after.state.count == 1
        assert after.more["x"].tolist() == [2.0, 2.0]


def test_a_class_with_other_values_is_refused():
    @flax.struct.dataclass
    class Named:
        value: jax.Array
        name: str = flax.struct.field(pytree_node=False)

    with pytest.raises(TypeError, match="Named has values"):
        program_store.register(Named)


def test_the_classes_in_a_tree():
    tree = {"a": [_Pair(_State(1, (2, None)), {}), 3]}
    assert program_store.classes_in(tree) == {_Pair, _State}
