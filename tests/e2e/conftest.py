"""The command, ready to be called."""

from __future__ import annotations

import pytest

from dal_dense import build
from dal_dense.report import figures
from tests.e2e.command import Ended, TrainAl, build_toy, main_of_script


@pytest.fixture
def train_al(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> TrainAl:
    """`tools/train_al.py` in this process, with the toy task in place of the network and no curves drawn."""
    monkeypatch.setattr(build, "build_task", build_toy)
    monkeypatch.setattr(figures, "_svg", lambda *given, **more: "<svg/>")
    main = main_of_script()

    def call(argv: list[str]) -> Ended:
        capsys.readouterr()
        status = main(argv)
        said = capsys.readouterr()
        return Ended(status, " ".join(said.out.split()), said.err)

    return call
