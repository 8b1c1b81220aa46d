"""Every piece once, by as many threads as there is work for."""

import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dal_dense.pieces import TURNS, in_pieces

CPU = torch.device("cpu")


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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        in_pieces(length, step, CPU, work)
    assert times == [1] * length
    assert len(set(calls)) <= threads


def test_more_threads_than_one_are_used_where_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    meeting = threading.Barrier(2, timeout=60)  # passed only by two at once
    met: set[int] = set()

    def work(pieces: Sequence[slice]) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            meeting.wait()

    in_pieces(2 * TURNS, 1, CPU, work)
    assert len(met) == 2


def test_what_fails_in_a_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def work(pieces: Sequence[slice]) -> None:
        if any(piece.start == 30 for piece in pieces):
            raise ValueError("piece 30")

    with pytest.raises(ValueError, match="piece 30"):
        in_pieces(40, 1, CPU, work)
