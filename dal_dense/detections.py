"""What a detector says of one frame: kept boxes with their whole class distribution, and a dense map.

Both detection adapters fill these; `box_offers.py` makes offers of them, `acquire/` never sees them.
Rows of all tensors belong together box by box, best first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as nnf

from dal_dense.regions import Regions


@dataclass(frozen=True)
class Detections:
    """N kept boxes of one frame.

    Attributes:
        corners: (first row, first column, last row, last column), continuous pixels of the stored
            frame, inside it; mean over the draws. float32 (N, 4).
        probs: class distribution by class number of the pool, 0 is background; mean over the draws.
            float32 (N, C). Rows sum to 1; of sigmoid heads the background takes the rest of the best class.
        expected_entropy: mean over the draws of the entropy of the distribution, nats (N,).
        spread: deviation of the corners over the draws, as a share of the box's mean side (N,);
            0 where there is one draw.
        consistency: CALD's m (Yu et al. 2022) of a box and itself seen in the mirror, 0..1.3 (N,): distance of
            their agreement from that of a box that is found again, but not surely; 1 where no flip was drawn.
        embedding: RoI feature of each box (N, E).
    """

    corners: Float[Tensor, "N 4"]
    probs: Float[Tensor, "N C"]
    expected_entropy: Float[Tensor, " N"]
    spread: Float[Tensor, " N"]
    consistency: Float[Tensor, " N"]
    embedding: Float[Tensor, "N E"]

    def __len__(self) -> int:
        return self.corners.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Detections:
        return Detections(
            self.corners[rows],
            self.probs[rows],
            self.expected_entropy[rows],
            self.spread[rows],
            self.consistency[rows],
            self.embedding[rows],
        )

    @property
    def scores(self) -> Float[Tensor, " N"]:
        """Probability of the likeliest object class."""
        return self.probs[:, 1:].amax(1)

    @property
    def classes(self) -> Int[Tensor, " N"]:
        """The likeliest object class."""
        return self.probs[:, 1:].argmax(1) + 1


@dataclass(frozen=True)
class FramePrediction:
    """All that offers and proposals of one frame are made from.

    Attributes:
        shape: rows and columns of the stored frame.
        found: kept boxes.
        dense: uncertainty of the dense head (RPN objectness, or the classification head), entropy in
            nats, coarse (r, c) over the whole frame: cell (i, j) covers rows i*rows/r..(i+1)*rows/r.
        features: backbone features on a coarse grid over the whole frame (E, r', c').
        difficulty: PPAL's class difficulty as the fit left it, in 0..1, by class number (C,).
        floor: score up to which boxes were dropped: `min_score`, or the last kept one's where `max_boxes` is reached.
    """

    shape: tuple[int, int]
    found: Detections
    dense: Float[Tensor, "r c"]
    features: Float[Tensor, "E r2 c2"]
    difficulty: Float[Tensor, " C"]
    floor: float

    def pixels(self) -> Regions:
        """Kept boxes rounded to pixels inside the frame, at least one pixel each."""
        corners = self.found.corners.round().long()
        top = torch.tensor(self.shape, device=corners.device)
        start = torch.minimum(corners[:, :2].clamp_min(0), top - 1)
        return Regions(start, torch.minimum(torch.maximum(corners[:, 2:], start + 1), top))

    def dense_map(self) -> Float[Tensor, "rows cols"]:
        """`dense` on the frame's own pixels."""
        full: Tensor = nnf.interpolate(self.dense[None, None].float(), size=self.shape, mode="nearest-exact")[0, 0]
        return full
