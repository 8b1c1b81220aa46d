"""Hybrid, the default: uncertainty, class balance, diversity and cost in one product.

    utility = U * volume * D^diversity / seconds^cost_power * exp(Gumbel / beta_t)
    U = (1 - q) * score / <score> + q * C / <C>,        q = class_share, <.>: mean over the rows on offer
    C = sum over quota classes c of w_c * class_score_c,   w_c = rarity_c^balance
    D = distance to the nearest labelled or chosen embedding / its median, clipped to 0.05..1

What it takes from where. Quotas and fading noise: ClaSP PE (nnActive; Lüth et al. 2025). Weights from
what is labelled so far instead of equal quotas, which ask for easy classes for ever. Distance to
labelled ground as core-set (Sener & Savarese 2018), capped at the median so that it punishes repetition
and does not reward outliers. Value per second: CEF (Leskovec et al. 2007). Every factor is a ratio,
so units, the choice of score and the width of the embedding cancel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.distance import nearest
from dal_dense.acquire.values import log_of, scheduled_beta
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers

CLOSEST = 0.05
"""Least factor of diversity: a copy of labelled ground is worth a twentieth, not nothing."""
UNSEEN = 0.01
"""Share of the ground that a class is credited with before any of it is seen: bounds its weight."""


def hybrid(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """Take the row of greatest utility; then update prices, class weights and distances.

    Without an embedding D is 1; without quota classes U is the score alone.
    """
    draw = noise.gumbel(offers.key, when.seed_for("hybrid"), "hybrid") / scheduled_beta(options, when)
    volume = offers.extent
    fixed = draw + log_of(volume)
    open_rows = ~offers.labelled
    quota = torch.tensor(quota_classes, dtype=torch.int64, device=offers.device)
    by_class = offers.class_score.double()[:, quota]
    amount = volume if offers.parts is None else offers.objects.double()  # ground by class, or objects by class
    mass = offers.shares.double()[:, quota] * amount[:, None]
    ground = mass[offers.labelled].sum(0)
    plain = _relative(offers.score.double(), open_rows)
    share = options.class_share if len(quota_classes) else 0.0
    far = nearest(offers.embedding, offers.embedding[offers.labelled]) if offers.embedding.shape[1] else None
    while True:
        wanted = _relative(by_class @ _rarity(ground, options.balance), open_rows) if share else 0.0 * plain
        utility = fixed + log_of((1 - share) * plain + share * wanted)
        utility = utility - options.cost_power * log_of(basket.price)
        if far is not None:
            utility = utility + options.diversity * torch.log(_diversity(far, open_rows))
        row = basket.best(utility)
        if row is None:
            return
        basket.take(row, utility[row])
        ground = ground + mass[row]
        if far is not None:
            far = torch.minimum(far, nearest(offers.embedding, offers.embedding[row : row + 1]))


def _relative(value: Float[Tensor, " N"], rows: Tensor) -> Float[Tensor, " N"]:
    """Over its mean on these rows; zero stays zero."""
    return value / value[rows].mean().clamp_min(1e-30)


def _rarity(ground: Float[Tensor, " K"], balance: float) -> Float[Tensor, " K"]:
    """Weight of each class: its share of labelled and chosen ground, inverted, to the power of balance."""
    ground = ground + UNSEEN * ground.sum().clamp_min(1e-30)
    return (ground.mean() / ground) ** balance


def _diversity(far: Float[Tensor, " N"], rows: Tensor) -> Float[Tensor, " N"]:
    """Distance over its median, clipped; 1 while there is nothing to be far from."""
    if not far.isfinite().all():
        return torch.ones_like(far, dtype=torch.float64)
    middle = far[rows].median().clamp_min(1e-30)
    return (far / middle).double().clamp(CLOSEST, 1.0)
