#!/usr/bin/env python
"""Where the time of a round goes: fits, forward passes, and everything else.

    python tools/bench_round.py --config configs/openkbp_hn5.yaml [--out docs/benchmarks/round_openkbp_hn5.md]
        [--threads 1] [--any.key value]

Runs the loop of tools/train_al.py in a temporary folder, with the rounds of the config. A forward pass is the time
within a call of a network outside the fit, for segmentation with its windows and their blending; reading and
resampling of images, uncertainty, offers, selection, metrics, pictures, the ledger and the report are the rest, as
far as they are not done by another thread while a network is at work.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dal_dense.benchmark_page import facts, page, parser_of, publish
from dal_dense.cli import command

STEPS = ("ask", "answer", "fit", "measure", "report")
GOAL = 5.0


class Clock:
    """Seconds by round and step, and those of them within a network outside the fit."""

    def __init__(self) -> None:
        self.whole: dict[tuple[int, str], float] = defaultdict(float)
        self.forward: dict[tuple[int, str], float] = defaultdict(float)
        self._now: tuple[int, str] | None = None
        self._lock = threading.Lock()  # two threads look at the pool
        self._depth, self._began = 0, 0.0

    def watch(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, with its time taken; the report belongs to the round before it."""

        def timed(run: Any, number: int | None = None) -> Any:
            self._now = (max(r for r, _ in self.whole) if number is None else number, name)
            began = time.perf_counter()
            try:
                return step(run) if number is None else step(run, number)
            finally:
                self.whole[self._now] += time.perf_counter() - began
                self._now = None

        return timed

    def watch_networks(self) -> None:
        """Take the time of the outermost module, or pass over windows, that is called."""
        from torch.nn.modules import module

        from dal_dense.tasks import monai_infer

        module.register_module_forward_pre_hook(self._enter)
        module.register_module_forward_hook(self._leave, always_call=True)
        passes = monai_infer.pass_logits

        def timed(*given: Any) -> Any:
            self._enter()
            try:
                return passes(*given)
            finally:
                self._leave()

        monai_infer.pass_logits = timed

    def _enter(self, *_: object) -> None:
        with self._lock:
            if self._depth == 0 and self._outside_fit():
                self._began = _idle()
            self._depth += 1

    def _leave(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._now is not None and self._outside_fit():
                self.forward[self._now] += _idle() - self._began

    def _outside_fit(self) -> bool:
        return self._now is not None and self._now[1] != "fit"

    def table(self) -> list[str]:
        """A row a round: each step's seconds, and the share of what is neither fit nor forward."""
        lines = [
            f"| round | {' | '.join(STEPS)} | forward in ask, answer, measure | neither fit nor forward |",
            f"|{'--:|' * (len(STEPS) + 3)}",
        ]
        rounds = sorted({number for number, _ in self.whole})
        for number in [*rounds, None]:
            some = rounds if number is None else [number]
            took = {step: sum(self.whole[n, step] for n in some) for step in STEPS}
            inside = {step: sum(self.forward[n, step] for n in some) for step in STEPS if step != "fit"}
            rest = sum(took.values()) - took["fit"] - sum(inside.values())
            cells = [f"{took[step]:.1f}" for step in STEPS] + [
                ", ".join(f"{inside[s]:.1f}" for s in ("ask", "answer", "measure"))
            ]
            share = 100 * rest / sum(took.values())
            name = "all" if number is None else number
            lines.append(f"| {name} | {' | '.join(cells)} | {rest:.1f} s, {share:.1f} % |")
        return [*lines, "", f"Seconds. Goal: at most {GOAL:.0f} %. Round 0 asks without a model."]


def _idle() -> float:
    """The time once a GPU has done what it was given, by the other thread too: forward is at most what it seems."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@command
def main(argv: list[str]) -> int:
    """Run the loop, print and write the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings")
    parser.add_argument("--out", type=Path, default=None, help="file for the table")
    given, rest = parser.parse_known_args(argv)

    import torch
    from train_al import main as train_al

    from dal_dense import rounds

    clock = Clock()
    clock.watch_networks()
    for name in STEPS:
        setattr(rounds, name, clock.watch(name, getattr(rounds, name)))
    with tempfile.TemporaryDirectory() as folder:
        status = train_al(["--config", str(given.config), *rest, "--run_dir", folder])
    if status:
        return status
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    title = f"Where a round's time goes: {given.config.stem}"
    publish(page(title, {**facts("bench_round.py", argv), **gpu}, clock.table()), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
