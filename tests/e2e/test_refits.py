"""`tools/refit.py`: the last labels fitted again, and the run left as it was."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from dal_dense import build
from dal_dense.ledger import Ledger
from dal_dense.refits import figures, fit_noise
from dal_dense.tasks.base import Measurement
from tests.e2e.command import SCRIPT, TrainAl, build_toy, story
from tests.toy import ToyTask
from tests.world import settings, write_volumes


class Moody(ToyTask):
    """A toy whose metric depends on the fit's seed, as a network's does."""

    fitted: list[int] = []  # noqa: RUF012

    def fit(self, labelled, *, seed, out, **rest):  # type: ignore[no-untyped-def]
        Moody.fitted.append(seed)
        report = super().fit(labelled, seed=seed, out=out, **rest)
        (out / "seed.txt").write_text(str(seed))
        return report

    def load(self, weights: Path) -> object:
        self._mood = int((weights / "seed.txt").read_text()) % 1000 / 1000
        return super().load(weights)

    def evaluate(self, model, records, *, hooks):  # type: ignore[no-untyped-def]
        return Measurement("dice", self._mood, {})


def refit_tool() -> Callable[[list[str]], int]:
    """`main` of `tools/refit.py`."""
    spec = importlib.util.spec_from_file_location("refit", SCRIPT.with_name("refit.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main


def test_last_labels_are_fitted_again(
    train_al: TrainAl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def moody(config, pool, channels):  # type: ignore[no-untyped-def]
        toy = build_toy(config, pool, channels)
        return Moody(query=config.query, costs=toy._costs, classes=pool.classes, mask_of=pool.mask, seed=config.seed)

    monkeypatch.setattr(build, "build_task", moody)
    given = settings(write_volumes(tmp_path / "data"), tmp_path / "run")
    tool = refit_tool()
    assert tool(["--repeats", "2", *given]) == 2  # no run is there
    assert capsys.readouterr().err.startswith(f"run_dir: {tmp_path / 'run'} holds no run; give the folder of ")
    assert not (tmp_path / "run").exists()
    waiting = settings(tmp_path / "data", tmp_path / "waiting", annotator__name="people")
    assert train_al(waiting).status == 0
    assert tool(["--repeats", "2", *waiting]) == 1  # nothing is measured yet
    assert "let the run finish" in capsys.readouterr().err
    assert train_al(given).status == 0
    before, Moody.fitted = story(tmp_path / "run"), []
    assert tool(["--repeats", "1", *given]) == 0
    assert "dice of the fit and of 1 other: " in " ".join(capsys.readouterr().out.split())
    assert tool(["--repeats", "2", *given]) == 0
    assert "dice of the fit and of 2 others: " in " ".join(capsys.readouterr().out.split())
    assert len(set(Moody.fitted)) == 2
    with Ledger.read(tmp_path / "run") as ledger:
        found = figures(ledger)
    assert len(set(found)) == 3  # the run's own fit and two others
    assert story(tmp_path / "run") == before
    assert tool(["--repeats", "2", *given]) == 0
    assert len(Moody.fitted) == 2  # nothing is measured twice
    noise = fit_noise([tmp_path / "run"])
    mean = sum(found) / 3
    assert noise == pytest.approx((sum((f - mean) ** 2 for f in found) / 2) ** 0.5)
