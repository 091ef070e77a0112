"""A Ctrl-C inside the protected block arrives after it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from fastflow.interrupt import deferred_interrupt


def test_the_block_is_finished_first():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("rest of the block")
    assert done == ["rest of the block"]
    with pytest.raises(KeyboardInterrupt):  # and the usual handler is back
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 0.1)


def test_a_signal_is_not_lost_where_the_block_fails():
    with pytest.raises(KeyboardInterrupt) as caught, deferred_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError("full")
    assert str(caught.value.__context__) == "full"


def test_nothing_happens_without_an_interrupt_or_off_the_main_thread():
    done = []

    def work():
        with deferred_interrupt():
            done.append(True)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True, True]
