"""Each score of a box by hand."""

import math

import pytest
import torch

from dal_dense.box_scores import binary_entropy, box_scores, class_weights, entropy
from dal_dense.config import UncertaintyConfig
from dal_dense.detections import Detections

PROBS = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0]]


def found(**columns: list[float]) -> Detections:
    n = len(PROBS)
    given = {name: torch.tensor(columns.get(name, [0.0] * n)) for name in ("expected_entropy", "spread", "consistency")}
    return Detections(corners=torch.rand(n, 4), probs=torch.tensor(PROBS), embedding=torch.zeros(n, 2), **given)


def score(name: str, difficulty: list[float] | None = None, **columns: list[float]) -> list[float]:
    return box_scores(name, found(**columns), torch.tensor(difficulty or [0.0, 0.0, 0.0])).tolist()


H = [1.5 * math.log(2), -(0.1 * math.log(0.1) + 0.2 * math.log(0.2) + 0.7 * math.log(0.7)), 0.0]


def test_of_the_whole_distribution() -> None:
    assert score("predictive_entropy") == pytest.approx(H)
    assert score("margin") == pytest.approx([0.75, 0.5, 0.0])
    assert score("least_confidence") == pytest.approx([0.5, 0.3, 0.0])


def test_of_the_draws() -> None:
    assert score("expected_entropy", expected_entropy=[0.3, 0.2, 0.1]) == pytest.approx([0.3, 0.2, 0.1])
    assert score("mutual_information", expected_entropy=[0.3, 0.2, 0.1]) == pytest.approx([H[0] - 0.3, H[1] - 0.2, 0.0])
    assert score("spread", spread=[0.1, 0.0, 2.0]) == pytest.approx([0.1, 0.0, 2.0])


def test_cald_prefers_what_is_near_the_base_point() -> None:
    """m = |agreement - 1.3|: lost (0) and found again for sure (2) are less worth than in between."""
    agreement = [0.0, 1.3, 2.0]
    lost, between, sure = score("inconsistency", consistency=[abs(a - 1.3) for a in agreement])
    assert (lost, between, sure) == pytest.approx((0.0, 1.3, 0.6))


def test_ppal_weights_as_published() -> None:
    """w = 1 + a b ln(1 + (e^(1/a) - 1) d), a = .3, b = .2: 1 at d = 0 and 1 + b at d = 1."""
    weights = class_weights(torch.tensor([0.0, 1.0, 0.5, 2.0])).tolist()
    middle = 1 + 0.06 * math.log(1 + (math.exp(1 / 0.3) - 1) * 0.5)
    assert weights == pytest.approx([1.0, 1.2, middle, 1.2])


def test_ppal_score_weighs_the_binary_entropy_by_the_class() -> None:
    def h(s: float) -> float:
        return -(s * math.log(s) + (1 - s) * math.log(1 - s))

    assert score("difficulty_entropy", [0.0, 0.0, 1.0]) == pytest.approx([h(0.25), 1.2 * h(0.7), 0.0])


def test_no_score_is_negative_or_nan_where_probabilities_round() -> None:
    off = torch.tensor([[1 + 1e-7, 0.0], [-1e-9, 1 + 1e-7]])
    assert (entropy(off.clamp_min(0)) >= 0).all() and entropy(off.clamp_min(0)).isfinite().all()
    assert binary_entropy(torch.tensor([0.0, 1.0, 1 + 1e-7])).tolist() == [0, 0, 0]


def test_every_score_of_the_settings_has_a_formula() -> None:
    allowed = UncertaintyConfig.model_json_schema()["properties"]["score"]["enum"]
    for name in allowed:
        values = score(name)
        assert len(values) == 3 and min(values) >= 0
    with pytest.raises(ValueError, match="no score of a box is called 'luck'"):
        score("luck")


def test_no_boxes_no_scores() -> None:
    none = found()[torch.zeros(3, dtype=torch.bool)]
    for name in UncertaintyConfig.model_json_schema()["properties"]["score"]["enum"]:
        assert len(box_scores(name, none, torch.zeros(3))) == 0
