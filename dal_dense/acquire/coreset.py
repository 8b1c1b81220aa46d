"""Core-set: k-centre greedy on embeddings (Sener & Savarese 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dal_dense.acquire.base import Aim
from dal_dense.acquire.one_by_one import one_by_one
from dal_dense.acquire.shards import BasketShard
from dal_dense.acquire.shortlist import Candidates, Picks, Rows, Shards
from dal_dense.acquire.spend import embedding_of
from dal_dense.acquire.survey import sample_of, survey_of, surveyed
from dal_dense.offers import Offers
from dal_dense.select import KCenter
from dal_dense.select.blocks import middle_of

SAMPLE = 4096
"""Rows on offer whose mean the first pick is far from, where nothing is labelled."""


@dataclass(frozen=True)
class Begin:
    """What a choice begins with.

    Attributes:
        centres: features of all labelled rows.
        origin: what the first pick is far from, where there are none.
    """

    centres: Float[Tensor, "M E"]
    origin: Float[Tensor, " E"]


class CoresetShard(BasketShard):
    """Rows, and bounds of how far they are from labelled and chosen ones.

    Some 80 bytes a row beside the columns, and twice that where most rows are alike.
    """

    def __init__(self, offers: Offers, aim: Aim, number: int = 0, known: Offers | None = None) -> None:
        """As `acquire.shard_of`.

        Raises:
            ConfigError: if the offers carry no embedding.
        """
        super().__init__(offers, aim.budget, number, known)
        self._embedding, self._when = embedding_of(offers, "coreset"), aim.when
        self._counted = 0  # picks that are centres

    def __call__(self, picks: Picks, count: int, ask: Begin | bool | None) -> Candidates:
        """Its farthest row that is affordable after these picks; `worth` is its squared distance.

        Args:
            picks: of all shards, with their features.
            count: is one, but for the survey.
            ask: a choice begins, or goes on; None: what `survey.survey_of` finds.
        """
        if ask is None:
            rows, floor = survey_of(self.offers, self._when, count)
            return self.handed(rows, torch.zeros_like(rows).double(), floor, embedding=self._embedding[rows])
        self.note(picks)
        device = self.offers.device
        if isinstance(ask, Begin):
            self._counted = 0
            centres, origin = ask.centres.to(device), ask.origin.to(device)
            self._far = KCenter(self._embedding, centres, key=self.offers.key, origin=origin)
        if picks.rows is not None:
            for centre in torch.split(picks.rows.offers.embedding[self._counted :].to(device), 1):
                self._far.include(centre)
        self._counted = len(picks)
        allowed = self.basket.affordable()
        found = [self._far.farthest(allowed)] if allowed.any() else []
        rows = torch.tensor([row for row, _ in found], dtype=torch.int64, device=device)
        far = torch.tensor([far for _, far in found], dtype=torch.float64)
        return self.handed(rows, far, extra={"price": self.basket.price[rows]}, embedding=self._embedding[rows])


class Coreset:
    """The row farthest from all labelled and chosen ones, again and again while the budget lasts.

    With nothing labelled the first is the row farthest from the mean (of a sample). At most twice the radius
    of the best cover with as many centres (Gonzalez 1985), where all rows cost the same and may be taken.
    """

    shard = CoresetShard

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """See `ranking.Sharded`."""
        known = surveyed(shards, aim.when, SAMPLE)
        origin = middle_of(sample_of(known, aim.when, SAMPLE).embedding)

        def best(rows: Rows) -> tuple[int, float]:
            row = int(rows.worth.argmax())
            return row, math.sqrt(float(rows.worth[row]))

        return one_by_one(shards, Begin(known.embedding[known.labelled], origin), best)
