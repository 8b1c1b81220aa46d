"""Frames near in time are found as by looking at all pairs, and no more pairs than allowed are looked at together."""

from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense.acquire import Basket, Budget
from dal_dense.acquire.rows_by_image import in_parts
from dal_dense.acquire.times import Times
from tests.conformance.test_strategies import image_offers

MOMENTS = st.sampled_from([0.1 * i for i in range(12)] + [1e9, 1e9 + 0.1, 1e9 + 0.3, -4.0, float("nan"), float("inf")])
FRAMES = st.lists(st.tuples(st.integers(-1, 3), MOMENTS), max_size=20)


@given(FRAMES, FRAMES, st.lists(st.integers(0, 19), max_size=9), st.sampled_from([0.1, 0.2, 0.3, 0.7, 50.0]))
@settings(max_examples=300, deadline=None)
def test_near_is_what_all_pairs_say(
    frames: list[tuple[int, float]], elsewhere: list[tuple[int, float]], own: list[int], gap: float
) -> None:
    taken = [(i, *frames[i]) for i in own if i < len(frames)]
    taken += [(100 + i, *frame) for i, frame in enumerate(elsewhere)]
    near = [
        i
        for i, (group, time) in enumerate(frames)
        if any(i != j and group == g and abs(time - when) < gap for j, g, when in taken)
    ]
    images, groups = (torch.tensor([t[k] for t in taken], dtype=torch.int64) for k in (0, 1))
    when = torch.tensor([t[2] for t in taken], dtype=torch.float64)
    group_of = torch.tensor([f[0] for f in frames], dtype=torch.int64)
    time_of = torch.tensor([f[1] for f in frames], dtype=torch.float64)
    with mock.patch("dal_dense.acquire.times._PAIRS", 3):
        assert Times(torch.arange(len(frames)), group_of, time_of).near(images, groups, when, gap).tolist() == near


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_parts_hold_what_they_may(counts: list[int], most: int) -> None:
    parts = torch.split(torch.tensor(counts, dtype=torch.int64), in_parts(torch.tensor(counts).long(), most))
    assert [c for part in parts for c in part.tolist()] == counts
    assert all(int(part[:-1].sum()) < most for part in parts)
    assert len(parts) <= sum(counts) // most + 1


def test_labelled_boxes_of_one_image_are_looked_at_in_parts() -> None:
    gen = torch.Generator().manual_seed(0)
    offers = image_offers(0, 300, gen, axes=2)
    labelled = int(offers.labelled.sum())
    whole = Basket(offers, Budget(9.0)).price
    seen: list[int] = []
    forbid = Basket._forbid_overlaps

    def watched(basket: Basket, *args: torch.Tensor) -> torch.Tensor:
        seen.append(len(block := forbid(basket, *args)))  # type: ignore[arg-type]
        return block

    with (
        mock.patch("dal_dense.acquire.basket._PAIRS", 1000),
        mock.patch.object(Basket, "_forbid_overlaps", watched),
    ):
        assert torch.equal(Basket(offers, Budget(9.0)).price, whole)
    assert sum(seen) == labelled * 300 > 4 * 1300 and max(seen) <= 1300
