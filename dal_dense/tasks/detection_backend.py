"""What one detection framework must offer; `detection_task.py` does all the rest.

Backends work in the scaled frame that the network sees: boxes are `x0, y0, x1, y1` in continuous
pixels, class numbers are those of the pool, 0 is background. A framework that numbers its classes
otherwise converts inside its own backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn


def with_offsets(
    logits: Float[Tensor, "1 anchors h w"], offsets: Float[Tensor, "1 4*anchors h w"]
) -> Float[Tensor, "anchors h w"]:
    """Objectness of an RPN, NaN wherever an anchor's offsets are no numbers.

    Frameworks drop such proposals without a word: a broken network would count as one that finds nothing.
    """
    each = offsets.reshape(logits.shape[1], 4, *logits.shape[2:])
    return logits[0] + 0 * each.sum(1)


@dataclass(frozen=True)
class Sample:
    """One training window on the network's scale.

    Attributes:
        image: RGB, 0..255; the backend normalises.
        boxes: objects, x0 y0 x1 y1, inside the window and not empty.
        classes: their class numbers, 1..K.
        absent: predictions that a person rejected: what overlaps one by IoU 0.5 is background.
        known: summed-area table of labelled ground, see `detection_partial.area_table`.
        ignored: likewise of ground that says nothing, no part of `known`; no background even where one was rejected.
    """

    image: Float[Tensor, "3 h w"]
    boxes: Float[Tensor, "n 4"]
    classes: Int[Tensor, " n"]
    absent: Float[Tensor, "k 4"]
    known: Float[Tensor, "h+1 w+1"]
    ignored: Float[Tensor, "h+1 w+1"]


@dataclass(frozen=True)
class Rows:
    """R candidate boxes of one image, row for row, before any suppression.

    Attributes:
        probs: class distribution, background first, rows sum to 1. Heads of independent sigmoids:
            background takes 1 - max, then the row is normalised.
        boxes: each row's box, cut to the image and not mirrored. Where classes have boxes of their own, that of
            the likeliest object class of the first look without dropout, so that all draws mean the same box.
        embedding: feature of each box, without dropout.
    """

    probs: Float[Tensor, "R C"]
    boxes: Float[Tensor, "R 4"]
    embedding: Float[Tensor, "R E"]


@runtime_checkable
class Look(Protocol):
    """One network's view of one image; what else it holds is the backend's own affair."""

    @property
    def dense(self) -> Float[Tensor, "r c"]:
        """Entropy of the dense head (RPN objectness, or the classification head), nats.

        Evenly over the whole input, never mirrored: cell (i, j) covers rows i*h/r..(i+1)*h/r.
        """
        ...

    @property
    def features(self) -> Float[Tensor, "E r2 c2"]:
        """Pyramid features on a coarse grid, evenly over the whole input, never mirrored."""
        ...


@runtime_checkable
class Detector(Protocol):
    """One network of one framework.

    A detector holds no random state of its own: sampling and dropout in `losses` draw from the global
    generator, which the caller has seeded and puts back.
    """

    @property
    def module(self) -> nn.Module:
        """All parameters and buffers; its `state_dict` is what is saved, its device is where things run."""
        ...

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Scalar losses by name, in training mode; windows may differ in size.

        The gradient is exactly 0 from ground that is not known, see `detection_partial`. A batch in which
        nothing may be learnt gives losses of 0 that can be differentiated.
        """
        ...

    def look(self, image: Float[Tensor, "3 h w"], *, like: Look | None = None, flip: bool = False) -> Look:
        """See one image (RGB, 0..255) in evaluation mode, without gradients.

        Args:
            image: on the network's scale.
            like: score the same rows (proposals, anchors or points) as this one did; for ensembles and flips.
            flip: look at the image mirrored left to right; all that comes out is mirrored back.
        """
        ...

    def rows(self, look: Look) -> Rows:
        """The rows of a look of this very detector, without dropout."""
        ...

    def draws(self, look: Look, seeds: Sequence[int]) -> Iterator[Rows]:
        """The rows of a look, once a draw of last-layer dropout; for little, since all features are kept.

        Args:
            look: of this very detector.
            seeds: one a draw, which depends on nothing else but for rounding.
        """
        ...


@dataclass(frozen=True)
class Backend:
    """A framework as `detection_task.Detection` takes it.

    Attributes:
        make_detector: a fresh network, weights from the global generator.
        prefixes: under which the tensors of `task.detection.weights` may belong.
        files: of the user's that decide what the network is; a fit is of their content.
    """

    make_detector: Callable[[], Detector]
    prefixes: tuple[str, ...]
    files: tuple[Path, ...] = ()
