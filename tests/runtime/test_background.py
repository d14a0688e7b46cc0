import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ktn_jax.runtime.background import give_way, short_turns


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux only")
def test_only_the_threads_of_the_pool_give_way():
    def niceness():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        assert pool.submit(niceness).result() == max(before, 10)
    assert niceness() == before


def test_the_last_block_of_several_threads_restores_the_turns():
    before = sys.getswitchinterval()
    first, second = short_turns(), short_turns()
    first.__enter__()
    shortened = sys.getswitchinterval()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.getswitchinterval() == shortened < before
    with ThreadPoolExecutor(1) as pool:
        pool.submit(second.__exit__, None, None, None).result()
    assert sys.getswitchinterval() == before
