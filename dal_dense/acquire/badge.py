"""BADGE: k-means++ on gradient embeddings (Ash et al. 2020), for regions."""

from __future__ import annotations

from typing import Any

import torch

from dal_dense.acquire.base import Aim
from dal_dense.acquire.one_by_one import one_by_one
from dal_dense.acquire.shards import BasketShard
from dal_dense.acquire.shortlist import Candidates, Picks, Rows, Shards
from dal_dense.acquire.spend import embedding_of
from dal_dense.offers import Offers
from dal_dense.select import badge


class BadgeShard(BasketShard):
    """Rows in the race that `select.seeding` describes; 60 bytes a row beside the columns."""

    def __init__(self, offers: Offers, aim: Aim, number: int = 0, known: Offers | None = None) -> None:
        """As `acquire.shard_of`.

        Raises:
            ConfigError: if the offers carry no embedding.
        """
        super().__init__(offers, aim.budget, number, known)
        self._embedding, self._seed = embedding_of(offers, "badge"), aim.when.seed_for("badge")

    def __call__(self, picks: Picks, count: int, ask: Any) -> Candidates:
        """Its row that arrives first of those that are affordable after these picks; `worth` is minus the time.

        Args:
            picks: of all shards, with their features and times; with none, a choice begins.
            count: is one.
            ask: nothing more.
        """
        self.note(picks)
        offers = self.offers
        if picks.rows is None:
            self._included = 0
            self._race = badge(offers.class_score, self._embedding, offers.key, self._seed)
        else:
            for row in range(self._included, len(picks)):
                taken = picks.rows[torch.tensor([row])]
                factors = taken.offers.class_score, taken.offers.embedding
                self._race.include([f.to(offers.device) for f in factors], -float(taken.worth))
            self._included = len(picks)
        allowed = self.basket.affordable()
        found = [self._race.soonest(allowed)] if allowed.any() else []
        rows = torch.tensor([row for row, _, _ in found], dtype=torch.int64, device=offers.device)
        far, time = (torch.tensor([f[i] for f in found], dtype=torch.float64) for i in (1, 2))
        return self.handed(
            rows,
            -time,
            extra={"price": self.basket.price[rows], "far": far},
            class_score=offers.class_score[rows],
            shares=offers.shares[rows],  # as wide as class scores must be
            embedding=self._embedding[rows],
        )


class Badge:
    """The row of the longest gradient, then rows drawn in proportion to the squared distance to those chosen.

    In a picture the gradient of the last layer is the residual, class by class, times the features. A region has
    many voxels, each with a residual of its own; the region's class-wise uncertainty (`class_score`) stands for
    them, and its embedding for the features. What is labelled plays no part, as published.
    """

    shard = BadgeShard

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """See `ranking.Sharded`."""

        def soonest(rows: Rows) -> tuple[int, float]:
            row = int(rows.worth.argmax())
            return row, float(rows.offers.extra["far"][row])

        return one_by_one(shards, True, soonest)
