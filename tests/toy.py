"""A task in a hundred lines: one Gaussian of intensity a class. For tests, and to show what an adapter is.

It learns and predicts in milliseconds, so the whole loop can be killed and resumed hundreds of times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dal_dense.config import QueryConfig
from dal_dense.costs import CostModel
from dal_dense.errors import Stopped
from dal_dense.images import read_header, read_image
from dal_dense.offer_maps import DensePrediction, offers_from_maps
from dal_dense.offers import Offers
from dal_dense.pool import ImageRecord
from dal_dense.query_sizes import offer_spec
from dal_dense.regions import Regions, slices
from dal_dense.tasks.base import IGNORE, FitReport, Hooks, LabelledImage, Measurement, Proposal
from dal_dense.uncertainty import DrawSums


@dataclass(frozen=True)
class Gaussians:
    """Mean and deviation of the first channel's intensity, and frequency, a class."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    frequency: tuple[float, ...]
    sha256: str

    def probabilities(self, image: np.ndarray) -> Tensor:
        x = torch.from_numpy(image[0])[None].double()
        shape = (-1,) + (1,) * (x.ndim - 1)
        mean, deviation, frequency = (torch.tensor(v).double().reshape(shape) for v in self._columns())
        logits = -((x - mean) ** 2) / (2 * deviation**2) - deviation.log() + frequency.log()
        return logits.softmax(0).float()

    def _columns(self) -> tuple[tuple[float, ...], ...]:
        return self.mean, self.deviation, self.frequency


class ToyTask:
    """See `dal_dense.tasks.base.Task`."""

    def __init__(
        self,
        *,
        query: QueryConfig,
        costs: CostModel,
        classes: Sequence[str],
        mask_of: Callable[[ImageRecord], np.ndarray | None],
        seed: int = 0,
    ) -> None:
        self._query, self._costs, self._classes = query, costs, tuple(classes)
        self._mask_of, self._seed = mask_of, seed

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    def fit(
        self, labelled: Sequence[LabelledImage], *, seed: int, out: Path, previous: Path | None, hooks: Hooks
    ) -> FitReport:
        if hooks.stopping():
            raise Stopped
        values: list[list[np.ndarray]] = [[] for _ in self._classes]
        for known in labelled:
            image = read_image(known.record)[0]
            for box, label in zip(known.regions.boxes(), known.labels, strict=True):
                for c in range(len(self._classes)):
                    values[c].append(image[slices(box)][label == c])
        flat = [np.concatenate(v) if v else np.zeros(0) for v in values]
        total = sum(len(v) for v in flat)
        rng = np.random.default_rng(seed)  # so that another seed gives another model
        table = {
            "mean": [float(v.mean() + 0.1 * rng.normal()) if len(v) else 0.0 for v in flat],
            "deviation": [float(v.std() + 1.0) if len(v) else 1000.0 for v in flat],
            "frequency": [(len(v) + 1) / (total + len(flat)) for v in flat],
        }
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(table, sort_keys=True)
        (out / "model.json").write_text(text)
        return FitReport(out, hashlib.sha256(text.encode()).hexdigest(), {"iterations": 1.0, "loss": 0.0})

    def load(self, weights: Path) -> Gaussians:
        text = (weights / "model.json").read_text()
        table = {k: tuple(v) for k, v in json.loads(text).items()}
        return Gaussians(**table, sha256=hashlib.sha256(text.encode()).hexdigest())

    def evaluate(self, model: object, records: Sequence[ImageRecord], *, hooks: Hooks) -> Measurement:
        assert isinstance(model, Gaussians)
        hits = np.zeros((3, len(self._classes)))
        groups = {}
        for record in records:
            truth, found = self._mask_of(record), model.probabilities(read_image(record)).argmax(0).numpy()
            assert truth is not None
            known = truth != IGNORE
            each = np.array(
                [
                    [((found == c) & (truth == c)).sum(), ((found == c) & known).sum(), (truth == c).sum()]
                    for c in range(len(self._classes))
                ]
            ).T
            hits += each
            groups[record.group] = float((2 * each[0] / np.maximum(each[1] + each[2], 1))[1:].mean())
        dice = 2 * hits[0] / np.maximum(hits[1] + hits[2], 1)
        return Measurement("dice", float(dice[1:].mean()), dict(zip(self._classes, dice.tolist(), strict=True)), groups)

    def offers(
        self, model: object, record: ImageRecord, labelled: Regions, blocked: Regions, *, image: int, group: int
    ) -> Offers:
        header = read_header(record)
        foreground = tuple(range(1, len(self._classes)))
        return offers_from_maps(
            self._predict(model, record),
            offer_spec(self._query, header, self._costs, quota_classes=foreground),
            image_id=record.id,
            image=image,
            group=group,
            labelled=labelled,
            blocked=blocked,
            seed=self._seed,
        )

    def propose(self, model: object, record: ImageRecord, regions: Regions) -> list[Proposal]:
        found = self._predict(model, record)
        return [
            Proposal(
                found.mean[(slice(None), *slices(box))].argmax(0).to(torch.uint8).numpy(),
                found.maps["predictive_entropy"][slices(box)].numpy(),
            )
            for box in regions.boxes()
        ]

    def parameters_sha256(self, model: object) -> str:
        assert isinstance(model, Gaussians)
        return model.sha256

    def _predict(self, model: object, record: ImageRecord) -> DensePrediction:
        assert isinstance(model, Gaussians)
        image = read_image(record)
        sums = DrawSums()
        sums.add(model.probabilities(image))
        pool = torch.nn.functional.adaptive_avg_pool3d if image.ndim == 4 else torch.nn.functional.adaptive_avg_pool2d
        coarse = pool(torch.from_numpy(image)[None].float(), 4)[0]
        return DensePrediction(*sums.finish(["predictive_entropy"]), coarse)
