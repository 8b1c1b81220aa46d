"""Seconds of an expert's time for a region, and how the run's own log corrects them.

    seconds = go to the region + look through its area + draw its contours + begin and finish its objects

and, once an image and round, the time to open the image. Figures and their derivations are in
`docs/concepts/costs.md`. Selection uses predictions; the ledger is charged with the same model
applied to the truth (oracle), or with the logged time (people).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal, Protocol, overload, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from dal_dense.config import CostConfig
from dal_dense.contours import area_of, contour_length, object_count

__all__ = [
    "PRESETS", "PRIORS", "CostModel", "CostPrior", "Logged",
    "area_of", "contour_length", "cost_model", "object_count", "refit",
]  # fmt: skip

SHRINK_ENTRIES = 8.0
"""Answers that the preset counts for, against the run's own log."""

OUTLIER = 4.0
"""An answer that took so many times longer (or shorter) than the median ratio is cut to that."""


@dataclass(frozen=True)
class CostModel:
    """What an action takes, in seconds.

    Attributes:
        image_seconds: open an image, once an image and round.
        region_seconds: go to a region.
        search_seconds: look through 1000 units of area (mm^2 summed over slices, or pixels^2).
        boundary_seconds: draw one unit of contour (mm or pixel).
        object_seconds: begin, name and finish one object (in volumes: one object in one slice).
        verify_seconds: look at one predicted box and decide.
        fix_seconds: correct one predicted box.
        unit: of length.
        source: where the figures come from.
        correction: factor that `refit` has multiplied into all figures; 1 if none.
    """

    image_seconds: float
    region_seconds: float
    search_seconds: float
    boundary_seconds: float
    object_seconds: float
    unit: Literal["mm", "pixel"]
    source: str
    verify_seconds: float = 0.0
    fix_seconds: float = 0.0
    correction: float = 1.0

    @overload
    def seconds(self, area: float, boundary: float, objects: float) -> float: ...
    @overload
    def seconds(
        self, area: Float[Tensor, " N"], boundary: Float[Tensor, " N"], objects: Float[Tensor, " N"]
    ) -> Float[Tensor, " N"]: ...
    def seconds(
        self, area: float | int | Tensor, boundary: float | int | Tensor, objects: float | int | Tensor
    ) -> float | int | Tensor:
        """Time for a region without opening its image; an empty one costs its search.

        Args:
            area: ground to look through, units^2.
            boundary: length of contours, units.
            objects: number of objects.
        """
        drawing = self.boundary_seconds * boundary + self.object_seconds * objects
        return self.region_seconds + self.search_seconds / 1000 * area + drawing

    def scaled(self, factor: float) -> CostModel:
        """Every figure times this factor."""
        return replace(
            self,
            image_seconds=self.image_seconds * factor,
            region_seconds=self.region_seconds * factor,
            search_seconds=self.search_seconds * factor,
            boundary_seconds=self.boundary_seconds * factor,
            object_seconds=self.object_seconds * factor,
            verify_seconds=self.verify_seconds * factor,
            fix_seconds=self.fix_seconds * factor,
            correction=self.correction * factor,
        )


PRESETS = {
    "ct_contour": CostModel(
        image_seconds=15.0,
        region_seconds=5.0,
        search_seconds=0.05,
        boundary_seconds=0.23,
        object_seconds=5.0,
        unit="mm",
        source="30-60 min an abdominal organ and CT volume (AbdomenAtlas-8K, Qu et al. 2023); the rest assumed",
    ),
    "frame_polygon": CostModel(
        image_seconds=10.0,
        region_seconds=3.0,
        search_seconds=0.03,
        boundary_seconds=0.23,
        object_seconds=10.0,
        unit="pixel",
        source="79.2 s an instance polygon in COCO (Lin et al. 2014, as quoted by Cheng et al. 2022); the rest assumed",
    ),
    "frame_clicks": CostModel(
        image_seconds=10.0,
        region_seconds=3.0,
        search_seconds=0.03,
        boundary_seconds=0.2625,
        object_seconds=3.15,
        unit="pixel",
        source="Cityscapes: 1.5 h a frame (Cordts et al. 2016) over 1,713 clicks a frame (Cai et al. 2021), "
        "3.15 s a click; 12 pixels between clicks and the rest assumed",
    ),
    "box_clicks": CostModel(
        image_seconds=5.0,
        region_seconds=1.0,
        search_seconds=0.03,
        boundary_seconds=0.0,
        object_seconds=7.0,
        verify_seconds=1.8,
        fix_seconds=7.0,
        unit="pixel",
        source="7.0 s a box by extreme clicking (Papadopoulos et al. 2017), 1.6-2 s to verify one (Papadopoulos et "
        "al. 2016); a fix costs as much as a new box (Shen et al. 2022, OLALA); the rest assumed",
    ),
    "box_drawing": CostModel(
        image_seconds=5.0,
        region_seconds=1.0,
        search_seconds=0.03,
        boundary_seconds=0.0,
        object_seconds=25.5,
        verify_seconds=1.8,
        fix_seconds=25.5,
        unit="pixel",
        source="25.5 s to draw a box in the classic interface (Konyushkova et al. 2018); verifying and fixing as "
        "box_clicks; the rest assumed",
    ),
}
"""Figures from the literature by name; derivations in docs/concepts/costs.md."""


def cost_model(config: CostConfig) -> CostModel:
    """The preset with the figures that the settings override."""
    model = PRESETS[config.preset]
    names = (
        "image_seconds", "region_seconds", "search_seconds", "boundary_seconds", "object_seconds",
        "verify_seconds", "fix_seconds",
    )  # fmt: skip
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if not given:
        return model
    return replace(model, **given, source=f"{model.source}; set by the user: {', '.join(given)}")


@runtime_checkable
class Logged(Protocol):
    """What the ledger knows of one answered region; `ledger.cost_log()` gives them."""

    @property
    def round(self) -> int:
        """The round that asked."""

    @property
    def arrived(self) -> int:
        """The round whose fit could first learn from it; queries of later rounds know what it cost."""

    @property
    def predicted_seconds(self) -> float:
        """As it was predicted when it was asked, opening included."""

    @property
    def charged_seconds(self) -> float:
        """As it was charged, opening included."""

    @property
    def boundary(self) -> float | None:
        """True length of contours, if known."""

    @property
    def objects(self) -> float | None:
        """True number of objects, if known."""

    @property
    def area(self) -> float | None:
        """Ground that was searched, if known."""


def refit(model: CostModel, log: Iterable[Logged]) -> CostModel:
    """The model times what the run's answers took over what they were predicted to take.

    The factor is the ratio of sums (so that the total comes out right), with every answer's ratio
    cut to within `OUTLIER` of the median ratio (an expert who went for lunch), shrunk towards 1 in
    the logarithm as if the preset were `SHRINK_ENTRIES` answers. Predictions of later rounds
    already hold the factor of their time; it is divided out by replaying the rounds in order.

    Args:
        model: the uncorrected model, the one that made the predictions of the first round.
        log: answered regions, in any order.
    """
    entries = [e for e in log if e.predicted_seconds > 0]
    base: list[tuple[int, float, float]] = []  # arrived, uncorrected prediction, charged
    for number in sorted({e.round for e in entries}):
        factor = _factor([(p, c) for arrived, p, c in base if arrived < number])
        base += [
            (e.arrived, e.predicted_seconds / factor, float(e.charged_seconds)) for e in entries if e.round == number
        ]
    return model.scaled(_factor([(p, c) for _, p, c in base]))


def _factor(pairs: Sequence[tuple[float, float]]) -> float:
    """Robust, shrunk ratio of charged to predicted seconds."""
    middle = median(c / p for p, c in pairs) if pairs else 0.0
    if middle <= 0:
        return 1.0
    charged = math.fsum(min(max(c, middle / OUTLIER * p), middle * OUTLIER * p) for p, c in pairs)
    ratio = charged / math.fsum(p for p, _ in pairs)
    return math.pow(ratio, len(pairs) / (len(pairs) + SHRINK_ENTRIES))


@dataclass(frozen=True)
class CostPrior:
    """How much there is to draw in ground that no model has looked at.

    Attributes:
        boundary: contour length per 1000 units of area.
        objects: objects per 1000 units of area.
        weight: area, in 1000 units, that these rates count for against the run's own answers.
    """

    boundary: float
    objects: float
    weight: float

    @classmethod
    def of(cls, config: CostConfig, log: Iterable[Logged] = ()) -> CostPrior:
        """The preset's or the settings' rates, updated by the answers: posterior means of a gamma-Poisson model.

        Answers are of the regions that were chosen; after rounds that sought out contours the rates
        are too high for ground at large, which only makes a model-free strategy careful.
        """
        prior = PRIORS[config.preset]
        prior = replace(
            prior,
            boundary=prior.boundary if config.prior_boundary is None else config.prior_boundary,
            objects=prior.objects if config.prior_objects is None else config.prior_objects,
        )
        known = [(e.area / 1000, e.boundary, e.objects) for e in log
                 if e.area is not None and e.boundary is not None and e.objects is not None]  # fmt: skip
        weight = prior.weight + math.fsum(area for area, _, _ in known)
        return cls(
            boundary=(prior.boundary * prior.weight + math.fsum(length for _, length, _ in known)) / weight,
            objects=(prior.objects * prior.weight + math.fsum(count for _, _, count in known)) / weight,
            weight=weight,
        )


PRIORS = {
    "ct_contour": CostPrior(boundary=7.5, objects=0.05, weight=500.0),
    "frame_polygon": CostPrior(boundary=9.1, objects=0.054, weight=200.0),
    "frame_clicks": CostPrior(boundary=9.1, objects=0.054, weight=200.0),
    "box_clicks": CostPrior(boundary=0.0, objects=0.02, weight=200.0),
    "box_drawing": CostPrior(boundary=0.0, objects=0.02, weight=200.0),
}
"""Rates by preset; derivations in docs/concepts/costs.md."""
