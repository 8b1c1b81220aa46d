import math

import pytest
import torch

from dal_dense.calibration import CalibrationSums, fit_temperature, negative_log_likelihood, reliability_bins


def overconfident(factor: float, n: int = 20000) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, 3, generator=gen)
    truth = torch.multinomial(torch.softmax(logits, 1), 1, generator=gen)[:, 0]
    return (logits * factor)[None], truth


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_finds_the_factor_that_logits_were_scaled_by(factor):
    logits, truth = overconfident(factor)
    temperature = fit_temperature(logits, truth)
    assert temperature == pytest.approx(factor, rel=0.05)
    best = negative_log_likelihood(logits, truth, temperature)
    assert all(best <= negative_log_likelihood(logits, truth, temperature * d) for d in (0.9, 1.1))


def test_stays_within_its_bounds():
    logits = torch.tensor([[[9.0, 0.0]] * 8])
    assert fit_temperature(logits, torch.zeros(8, dtype=torch.int64)) == pytest.approx(0.25, rel=1e-3)
    assert fit_temperature(logits, torch.ones(8, dtype=torch.int64)) == pytest.approx(8.0, rel=1e-3)


def test_expected_calibration_error_by_hand():
    sums = CalibrationSums()
    sums.add(torch.tensor([[0.9, 0.9, 0.2], [0.1, 0.1, 0.8]]), torch.tensor([0, 1, 1]))
    # bin of .9: confidence .9, half right: .4 for 2 of 3; bin of .8: confidence .8, right: .2 for 1 of 3
    assert sums.error() == pytest.approx((2 * 0.4 + 0.2) / 3)
    assert math.isnan(CalibrationSums().error())


def test_streaming_equals_all_at_once():
    logits, truth = overconfident(2.0, 1000)
    probs = torch.softmax(logits[0], 1).T
    whole, parts = CalibrationSums(), CalibrationSums()
    whole.add(probs, truth)
    for i in range(0, 1000, 300):
        parts.add(probs[:, i : i + 300], truth[i : i + 300])
    assert whole.error() == pytest.approx(parts.error())


def test_bins_go_to_the_ledger_and_come_back():
    sums = CalibrationSums()
    sums.add(torch.tensor([[0.9, 0.9, 0.2], [0.1, 0.1, 0.8]]), torch.tensor([0, 1, 1]))
    assert reliability_bins({"ece": 0.1, **sums.bins()}) == [
        (pytest.approx(0.8), pytest.approx(1.0)),
        (pytest.approx(0.9), pytest.approx(0.5)),
    ]
    assert reliability_bins(CalibrationSums().bins()) == []
