"""Every piece once, by as many threads as there is work for."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dal_dense.pieces import TURNS, in_pieces

CPU = torch.device("cpu")


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@given(st.integers(0, 200), st.integers(1, 30), st.integers(1, 5))
def test_every_place_is_worked_on_once(length: int, step: int, threads: int) -> None:
    times = [0] * length
    calls: list[int] = []

    def work(pieces: Sequence[slice]) -> None:
        calls.append(threading.get_ident())
        for piece in pieces:
            assert 0 < piece.stop - piece.start <= step
            for i in range(piece.start, piece.stop):
                times[i] += 1

    with threads_of_torch(threads):
        in_pieces(length, step, CPU, work)
    assert times == [1] * length
    assert len(set(calls)) <= threads


def test_more_threads_than_one_are_used_where_there_is_work() -> None:
    meeting = threading.Barrier(2, timeout=60)  # passed only by two at once
    met: set[int] = set()

    def work(pieces: Sequence[slice]) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            meeting.wait()

    with threads_of_torch(2):
        in_pieces(2 * TURNS, 1, CPU, work)
    assert len(met) == 2


def test_what_fails_in_a_thread_is_told_and_torch_has_its_threads_again() -> None:
    def work(pieces: Sequence[slice]) -> None:
        if any(piece.start == 30 for piece in pieces):
            raise ValueError("piece 30")

    with threads_of_torch(2):
        with pytest.raises(ValueError, match="piece 30"):
            in_pieces(40, 1, CPU, work)
        assert of_a_new_thread() == 2


def of_a_new_thread() -> int:
    """Threads that torch would use there: for that counts what any thread set last."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_torch_starts_no_threads_in_ours_and_as_many_as_before_elsewhere() -> None:
    found: set[int] = set()
    with threads_of_torch(3):
        in_pieces(40, 1, CPU, lambda pieces: found.add(torch.get_num_threads()))
        assert found == {1}
        assert torch.get_num_threads() == of_a_new_thread() == 3
