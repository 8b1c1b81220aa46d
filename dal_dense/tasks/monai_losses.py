"""Dice and cross-entropy that see labelled voxels only.

MONAI's DiceCELoss has no ignore index; its FocalLoss and MaskedLoss are wrong with one. This one
shares a single softmax between both terms; tests hold it against MONAI's `DiceLoss(ignore_index=255)`
and torch's `cross_entropy(ignore_index=255)`, which are exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dal_dense.tasks.base import IGNORE

SMOOTH = 1e-5
"""Added above and below in Dice, as MONAI does."""


def dice_ce(
    logits: Float[Tensor, "batch classes *grid"], label: UInt8[Tensor, "batch *grid"], *, background: bool
) -> Float[Tensor, ""]:
    """Mean cross-entropy plus soft Dice loss over the batch as a whole (Milletari et al. 2016; nnU-Net).

    Dice is averaged over the classes that occur among the batch's labelled voxels, background left
    out if there is one. The gradient is exactly zero wherever the label is `IGNORE`; a batch
    without any labelled voxel has loss 0.

    Args:
        logits: raw network output.
        label: class numbers or `IGNORE`.
        background: class 0 is background.
    """
    log_p = torch.log_softmax(logits.float().contiguous(), 1)
    numbers = torch.arange(logits.shape[1], device=label.device).reshape(-1, *(1,) * (label.ndim - 1))
    truth = (label.unsqueeze(1) == numbers).to(log_p.dtype)  # all zero where the label is IGNORE
    valid = (label != IGNORE).unsqueeze(1).to(log_p.dtype)
    space = [0, *range(2, logits.ndim)]
    count = truth.sum(space)
    cross = -(log_p * truth).sum() / count.sum().clamp_min(1)
    probs = log_p.exp()
    shared, claimed = (probs * truth).sum(space), (probs * valid).sum(space)
    dice = 1 - (2 * shared + SMOOTH) / (claimed + count + SMOOTH)
    counted = count > 0
    if background:
        counted[0] = False
    return cross + torch.where(counted, dice, 0).sum() / counted.sum().clamp_min(1)
