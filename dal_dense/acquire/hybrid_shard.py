"""A shard of hybrid: its best rows, with distances to ground that are worked out only where they can matter.

A distance that is not up to date is too large, so the utility is too: a bound. Rows are taken by their bound and
brought up to date; those that still rank above the bound of all others are the best (lazy evaluation, Minoux 1978).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from dal_dense.acquire.base import Aim
from dal_dense.acquire.distance import nearest
from dal_dense.acquire.hybrid_scales import Columns, Scales, mass_of
from dal_dense.acquire.shards import PART, BasketShard, first_of
from dal_dense.acquire.shortlist import Candidates, Picks
from dal_dense.acquire.survey import survey_of
from dal_dense.offers import Offers

ENOUGH = 1 / 8
"""Share of the rows asked for that is worth handing over; with fewer the shard looks at more first."""
_UNKNOWN = -1


class HybridShard(BasketShard):
    """Rows, what has been bought of them and how far they are from it; 16 bytes a row beside the columns."""

    def __init__(self, offers: Offers, aim: Aim, number: int = 0, known: Offers | None = None) -> None:
        """As `acquire.shard_of`."""
        super().__init__(offers, aim.budget, number, known)
        self._options, self._when, self._quota = aim.options, aim.when, aim.quota_classes
        self._slim = replace(offers, embedding=offers.embedding[:, :0], extra={}, parts=None)
        self._labelled = offers.embedding[:0]
        self._far = torch.full_like(offers.score, torch.inf)
        self._counted = torch.full_like(offers.score, _UNKNOWN, dtype=torch.int32)  # picks that `_far` knows of

    def __call__(self, picks: Picks, count: int, ask: Scales | None) -> Candidates:
        """Its best rows that are affordable after these picks; `worth` holds their distances.

        Args:
            picks: of all shards, with their features.
            count: at most so many, mates apart.
            ask: what utility is measured by; None: the labelled rows, and others, drawn by key (`survey`).
        """
        if ask is None:
            return self._survey(count)
        if ask.labelled is not None:  # a choice begins
            self._labelled = ask.labelled.to(self.offers.device)
            self._far.fill_(torch.inf)
            self._counted.fill_(_UNKNOWN)
        self.note(picks)

        def rank(rows: Tensor | slice, price: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
            columns = Columns.of(self._slim[rows], self._options, self._when, self._quota)
            return ask.utility(replace(columns, far=self._far[rows]), price)

        look, enough = count, max(1, ENOUGH * count)
        while True:
            rows, floor = self.best(look, rank)
            self._measure(rows, picks)
            ranks = rank(rows, self.basket.price[rows])
            if floor is None:
                break
            sure = ranks >= floor[0]
            rows, ranks = rows[sure], ranks[sure]
            if len(rows) >= enough:
                break
            look *= 4
        if len(rows) > count:
            key = self.offers.key[rows]
            kept = first_of(ranks, key, count)
            rows, floor = rows[kept], (float(ranks[kept].min()), int(key[kept].max()))
        if floor is not None:
            rows = self.with_mates(rows, floor[0], rank)
            self._measure(rows, picks)
        return self._handed(rows, floor)

    def _measure(self, rows: Int[Tensor, " K"], picks: Picks) -> None:
        """Bring the distances of rows up to date."""
        chosen = self._labelled[:0] if picks.rows is None else picks.rows.offers.embedding.to(self.offers.device)
        if not chosen.shape[1]:
            return
        behind = rows[self._counted[rows] < len(picks)]
        for counted in self._counted[behind].unique().tolist():  # type: ignore[no-untyped-call]
            centres = chosen[max(counted, 0) :]
            if counted == _UNKNOWN:
                centres = torch.cat([self._labelled, centres])
            for some in torch.split(behind[self._counted[behind] == counted], PART):
                self._far[some] = torch.minimum(self._far[some], nearest(self.offers.embedding[some], centres))
        self._counted[behind] = len(picks)

    def _survey(self, count: int) -> Candidates:
        return self._handed(*survey_of(self.offers, self._when, count))

    def _handed(self, rows: Int[Tensor, " K"], floor: tuple[float, int] | None) -> Candidates:
        """Rows with what the rule needs: of the class columns those of the quota, and `mass_of` as `shares`."""
        few = self._slim[rows]
        return self.handed(
            rows,
            self._far[rows].double(),
            floor,
            score=few.score,
            class_score=few.class_score[:, list(self._quota)],
            shares=mass_of(few, self._quota, objects=self.offers.parts is not None),
            embedding=self.offers.embedding[rows],
        )
