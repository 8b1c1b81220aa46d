"""Masks of dropout, and how many draws are made at a time."""

import pytest
import torch

from dal_dense.tasks import detection_dropout
from dal_dense.tasks.detection_dropout import masks, together

CPU = torch.device("cpu")


def test_masks_keep_the_mean_and_depend_on_their_seed_alone() -> None:
    found = masks((40, 50), 0.3, [5, 6, 7], CPU)
    assert found.shape == (3, 40, 50)
    assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1.0) / (1 - 0.3))}
    assert (found.mean((1, 2)) - 1).abs().max() < 0.06  # two standard errors are 0.03
    assert torch.equal(found[1], masks((40, 50), 0.3, [6], CPU)[0])
    assert not torch.equal(found[0], found[1])
    assert torch.equal(masks((4, 5), 0.0, [1, 2], CPU), torch.ones(2, 4, 5))


@pytest.mark.parametrize("count", [0, 1, 90])
@pytest.mark.parametrize(("numbers", "most"), [(0, 40), (1, 40), (10, 4), (20, 2), (21, 1), (1000, 1)])
def test_as_many_draws_at_a_time_as_there_is_room_for(
    count: int, numbers: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection_dropout, "AT_ONCE", 40)
    parts = list(together(range(count), numbers))
    assert [seed for part in parts for seed in part] == list(range(count))
    assert all(len(part) == most for part in parts[:-1]) and all(1 <= len(part) <= most for part in parts)
