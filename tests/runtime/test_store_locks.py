"""Locks of folders of stores: whoever holds one gives signs of life, a dead one is taken over."""

import json
import time

import fsspec
import pytest

from ktn_jax.runtime import locks, store_locks
from ktn_jax.runtime.processes import Processes
from ktn_jax.runtime.stores import Store


@pytest.fixture
def store(monkeypatch):
    """A folder of a store, with a lock of a tenth of the seconds."""
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(store_locks, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(store_locks, "_EXPIRY_SECONDS", 0.4)
    monkeypatch.setattr(store_locks, "_POLL_SECONDS", 0.02)
    return Store("memory://bucket/run")


def elsewhere(store):
    """A lock of a process on another host."""
    lock = store_locks.StoreLock(store)
    owner = json.loads(lock._owner.to_json()) | {"host": "other"}
    lock._owner, lock._boot = locks.Owner(**owner), "other 1"
    return lock


def test_one_process_holds_it_and_gives_it_back(store):
    with store_locks.hold(store) as lock:
        lock.check()
        with pytest.raises(locks.FolderInUseError, match="^memory://bucket/run is in use by"):
            store_locks.StoreLock(store).acquire()
    assert not store.files()


def test_a_living_process_elsewhere_keeps_it(store):
    other = elsewhere(store)
    other.acquire()
    with pytest.raises(locks.FolderInUseError, match="in use by process .* on other since"):
        store_locks.StoreLock(store).acquire()
    other.release()
    assert not store.files()


def test_a_dead_one_is_taken_over_after_a_while(store):
    other = elsewhere(store)
    assert other._is_taken()  # and gives no sign of life
    start = time.monotonic()
    with store_locks.hold(store):
        assert time.monotonic() - start >= 0.4
        # The owner was cut off from the store and comes back: it saves nothing any more.
        other._beat()
        with pytest.raises(locks.FolderInUseError, match="has taken the folder over"):
            other.check()
        other.release()
        assert list(store.files()) == [locks.LOCK_FILE]


def test_that_of_a_dead_process_here_is_taken_at_once(store, monkeypatch):
    dead = store_locks.StoreLock(store)
    dead._owner = locks.Owner(**json.loads(dead._owner.to_json()) | {"started": "never"})
    assert dead._is_taken()
    monkeypatch.setattr(store_locks, "_EXPIRY_SECONDS", 60)
    with store_locks.hold(store):
        pass


def test_a_request_that_was_sent_twice_is_no_other_owner(store, monkeypatch):
    create = store.create
    # The first try arrived, its answer did not, and the second is told that there is an object.
    monkeypatch.setattr(store, "create", lambda *given: create(*given) and create(*given))
    with store_locks.hold(store) as lock:
        lock.check()
    assert not store.files()


def test_a_damaged_one_counts_as_dead(store):
    store.write(locks.LOCK_FILE, b"\xff[")
    with store_locks.hold(store) as lock:
        lock.check()


def test_the_processes_of_a_run_hold_it_through_the_first(store):
    said = []
    first, second = Processes(0, 2, share=lambda t: said.append(t) or t), Processes(1, 2)
    with first.hold(store) as check, second.hold(store):
        check()
        with pytest.raises(locks.FolderInUseError):
            first.hold(store).__enter__()
    assert said[0] == "" and "in use by process" in said[1]
