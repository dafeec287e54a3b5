"""An append that a signal, a thread or an exception comes between."""

import signal
import threading

import pytest
from support.journal_folder import folder
from support.journals import log, new_journal, seqs_and_gaps, write

from sidestep.records import KeySetLayout
from sidestep_schemas.wire import DTYPE_FLOAT64

__all__ = ["folder"]


def test_a_signal_handler_that_logs_in_the_middle_of_an_append_is_refused_and_does_not_hang(folder):
    journal = new_journal(folder)
    refused = []

    def handler(*_: object) -> None:
        with pytest.raises(RuntimeError, match="signal handler"):
            log(journal)
        with pytest.raises(RuntimeError, match="signal handler"):
            write(journal, 1)
        refused.append(True)

    def values():
        yield 1.0
        signal.raise_signal(signal.SIGUSR1)
        yield 2.0

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        assert journal.append_scalars(1, 0, 0.0, KeySetLayout(0, 2, DTYPE_FLOAT64), values())
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert refused
    assert log(journal)
    assert seqs_and_gaps(journal.shipments()) == ([0, 1], [])
    journal.close(delivered=True)


def test_an_append_waits_for_another_threads_however_long_it_takes(folder):
    journal = new_journal(folder)
    is_inside, may_go_on = threading.Event(), threading.Event()

    def slowly(seq: int) -> bytes:
        is_inside.set()
        assert may_go_on.wait(20.0)
        return bytes([0xCC, seq])

    slow = threading.Thread(target=journal.append, args=(slowly,))
    slow.start()
    assert is_inside.wait(20.0)
    waiting = threading.Thread(target=log, args=(journal,))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    may_go_on.set()
    slow.join()
    waiting.join()
    assert [shipment.records for shipment in journal.shipments()] == [2]
    journal.close(delivered=True)


def test_an_interrupt_in_the_middle_of_an_append_leaves_a_journal_that_goes_on(folder):
    journal = new_journal(folder)

    def values():
        yield 1.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.append_scalars(1, 0, 0.0, KeySetLayout(0, 2, DTYPE_FLOAT64), values())
    assert log(journal)
    assert seqs_and_gaps(journal.shipments()) == ([0], [])
    journal.close(delivered=True)
