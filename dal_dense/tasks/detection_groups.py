"""Average precision of any mixture of groups, from one matching.

What is found in a frame is matched within that frame alone, so pycocotools matches each frame once and
any drawing of groups needs only its detections put in order again. AP is no mean over groups: the interval
comes from the AP of whole drawn test sets (Efron 1979; groups are drawn, never frames).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools.cocoeval import COCOeval

from dal_dense.noise import derive_seed

DRAWS = 500
"""Bootstrap draws; the ends of a 95% interval then move by about a thirtieth of its width."""


@dataclass(frozen=True)
class Ranked:
    """The detections of one class in all frames, surest first, as pycocotools matched them.

    Attributes:
        group: number of the group of each detection.
        hit: found an object, at each IoU threshold.
        false: found nothing; detections on ground to ignore are neither.
        objects: objects to be found, by group.
        recalls: points at which precision is read.
    """

    group: Int[np.ndarray, " found"]
    hit: Bool[np.ndarray, "thresholds found"]
    false: Bool[np.ndarray, "thresholds found"]
    objects: Int[np.ndarray, " groups"]
    recalls: Float[np.ndarray, " recalls"]

    def precision(self, times: Int[np.ndarray, " groups"]) -> float:
        """AP of a test set that holds each group so many times; NaN without objects."""
        wanted = int(times @ self.objects)
        if wanted == 0:
            return float("nan")
        weight = times.astype(np.int32)[self.group]
        values = [self._read(hit, false, weight, wanted) for hit, false in zip(self.hit, self.false, strict=True)]
        return float(np.mean(values))

    def _read(self, hit: np.ndarray, false: np.ndarray, weight: Int[np.ndarray, " found"], wanted: int) -> float:
        """AP at one threshold."""
        hits, finds = (hit * weight).cumsum(dtype=np.int32), ((hit | false) * weight).cumsum(dtype=np.int32)
        there = np.flatnonzero(hit)  # only here does the best precision from a rank on change
        precision = hits[there] / np.maximum(finds[there], 1)
        best_from = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # 0: a recall that is never reached
        return float(best_from[np.searchsorted(hits[there] / wanted, self.recalls)].mean())


def ranked(run: COCOeval, groups: Int[np.ndarray, " frames"], thresholds: int) -> list[Ranked]:
    """The matches of each class, objects of every size, at the first IoU thresholds.

    Args:
        run: evaluated; its frames in the order of `groups`.
        groups: number of each frame's group.
        thresholds: how many.
    """
    params, count = run.params, int(groups.max(initial=-1)) + 1
    found = []
    for k in range(len(params.catIds)):
        first = k * len(params.areaRng) * len(groups)  # the first range of areas holds all sizes
        frames = [(g, e) for g, e in zip(groups, run.evalImgs[first : first + len(groups)], strict=True) if e]
        objects = np.zeros(count, np.int64)
        for group, e in frames:
            objects[group] += np.count_nonzero(e["gtIgnore"] == 0)
        score = np.concatenate([np.zeros(0), *(e["dtScores"] for _, e in frames)])
        order = np.argsort(-score, kind="stable")
        none = np.zeros((thresholds, 0), bool)
        matched = np.concatenate([none, *(e["dtMatches"][:thresholds] > 0 for _, e in frames)], axis=1)
        ignored = np.concatenate([none, *(e["dtIgnore"][:thresholds] > 0 for _, e in frames)], axis=1)
        owner = np.repeat(np.array([g for g, _ in frames], np.int64), [len(e["dtScores"]) for _, e in frames])
        hit, false = (matched & ~ignored)[:, order], (~matched & ~ignored)[:, order]
        found.append(Ranked(owner[order], hit, false, objects, np.asarray(params.recThrs)))
    return found


def mean_precision(classes: Sequence[Ranked], times: Int[np.ndarray, " groups"]) -> float:
    """Mean over the classes that have objects; NaN if none has."""
    known = [p for p in (one.precision(times) for one in classes) if not np.isnan(p)]
    return float(np.mean(known)) if known else float("nan")


def interval(classes: Sequence[Ranked], groups: int, *, seed: int) -> tuple[float, float] | None:
    """95% percentile bootstrap of the mean AP; None for fewer than two groups, or without any object.

    A class that has no object in a draw is left out of that draw's mean, as it is out of any test set's.
    """
    if groups < 2:
        return None
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    draws = rng.multinomial(groups, np.full(groups, 1 / groups), DRAWS)
    values = np.array([mean_precision(classes, times) for times in draws])
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
