"""ProbCover: regions whose neighbourhoods cover the most (Yehuda et al. 2022)."""

from __future__ import annotations

from dal_dense import noise
from dal_dense.acquire.base import Aim
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.spend import embedding_of, spend
from dal_dense.select import ProbCover, k_means, pure_radius
from dal_dense.select.prob_cover import SAMPLE


def probcover(basket: Basket, aim: Aim) -> None:
    """The row that has the most rows within the radius which none labelled or chosen has; once all are covered, by key.

    The radius is found as published: k-means with a cluster for each class stands for the classes, and 95 % of the
    balls must hold one cluster only.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    offers = basket.offers
    rows, seed = embedding_of(offers, "probcover"), aim.when.seed_for("probcover")
    clusters = k_means(rows, max(2, offers.class_score.shape[1]), offers.key, seed)
    sample = noise.uniform(offers.key, seed, "sample").argsort(stable=True)[:SAMPLE]
    spend(basket, ProbCover(rows, pure_radius(rows, clusters.label, sample), rows[offers.labelled]))
