"""What is known of the pool, read from the ledger: labels to learn from, and ground to keep off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dal_dense.boxes import Boxes
from dal_dense.errors import DataError, LabelError
from dal_dense.images import read_header, sha256_of
from dal_dense.ledger import Initial, Ledger
from dal_dense.ledger_rows import label_sha256
from dal_dense.pool import ImageRecord, Pool
from dal_dense.regions import Box, Regions
from dal_dense.tasks.base import IGNORE, Judged, LabelledImage


def know_initial(
    ledger: Ledger,
    pool: Pool,
    records: Iterable[ImageRecord],
    bad: Callable[[ImageRecord, DataError], None] | None = None,
) -> int:
    """Record the masks of these images as known from the start; returns how many are new.

    May be called at every start: masks that are recorded already are not read again, and an image
    of which regions were asked meanwhile keeps its answers instead.

    Args:
        ledger: the run.
        pool: its images.
        records: the images whose masks are known.
        bad: told of each mask that cannot be used, now and not in the middle of the first fit; None raises.

    Raises:
        LabelError: if an image has no mask.
        DataError: if a mask cannot be used and `bad` is None.
    """
    passed = {i.image_id for i in ledger.initial()} | {r.image_id for q in ledger.queries() for r in q.regions}
    passed |= pool.quarantined.keys()
    new = 0
    for record in records:
        if record.id not in passed:
            try:
                mask = _mask(pool, record)
            except DataError as problem:
                if bad is None:
                    raise
                bad(record, problem)
                continue
            new += ledger.record_initial(record.id, str(record.mask), _fingerprint(record, mask))
    return new


def labelled_images(ledger: Ledger, pool: Pool, *, upto: int | None = None) -> list[LabelledImage]:
    """Everything to learn from, by image id: initial masks as one whole box, and answered regions.

    Quarantined images are left out. Answers of an image are in the order in which they were asked.

    Args:
        ledger: the run.
        pool: its images.
        upto: only what had arrived when this round was closed, so that a fit that is repeated after
            a crash learns from the same labels.

    Raises:
        LabelError: if an initial mask changed since the run began.
        DataError: if an initial mask cannot be read, or an image with labels is not in the pool any more.
    """
    found: dict[str, list[tuple[Box, np.ndarray, str]]] = {}
    for known in ledger.initial():
        if (record := _record(pool, known.image_id)) is not None:
            mask = _unchanged(pool, record, known)
            found[known.image_id] = [(whole(read_header(record).shape), mask, "image")]
    for answer in ledger.answered(upto=upto):
        if _record(pool, answer.region.image_id) is not None:
            found.setdefault(answer.region.image_id, []).append((answer.region.box, answer.label, answer.region.kind))
    return [
        LabelledImage(
            record=pool[image_id],
            regions=Regions.of((box for box, _, _ in pairs), pool[image_id].ndim),
            labels=tuple(label for _, label, _ in pairs),
            kinds=tuple(kind for _, _, kind in pairs),
        )
        for image_id, pairs in sorted(found.items())
    ]


def ground(ledger: Ledger, pool: Pool) -> tuple[dict[str, list[Box]], dict[str, list[Box]], dict[str, Judged]]:
    """(labelled, blocked, judged) by image id. Blocked: asked and still open, or rejected.

    Labelled and blocked ground is known, or asked, whole. Boxes that were asked one by one say nothing of the
    ground around them, so they are apart. Reads headers of images with an initial mask and the answers to single
    boxes, but no other labels and no voxels. Quarantined images are left out.

    Raises:
        DataError: if such an image is not in the pool any more, or its header cannot be read.
    """
    labelled: dict[str, list[Box]] = {}
    for known in ledger.initial():
        if (record := _record(pool, known.image_id)) is not None:
            labelled[known.image_id] = [whole(read_header(record).shape)]
    waiting = [*ledger.open_regions(), *(j.region for j in ledger.rejected())]
    _join(labelled, ((r.image_id, r.box) for r in ledger.answered_regions() if r.kind != "box"), pool)
    blocked = _join({}, ((r.image_id, r.box) for r in waiting if r.kind != "box"), pool)
    single = ((a.region.image_id, box) for a in ledger.answered(kind="box") for box in _judged(a.region.box, a.label))
    answered = _join({}, single, pool)
    unanswered = _join({}, ((r.image_id, r.box) for r in waiting if r.kind == "box"), pool)
    judged = {
        image_id: Judged(*(Regions.of(dict.fromkeys(of.get(image_id, ())), 2) for of in (answered, unanswered)))
        for image_id in {**answered, **unanswered}
    }
    return labelled, blocked, judged


def _join(found: dict[str, list[Box]], pairs: Iterable[tuple[str, Box]], pool: Pool) -> dict[str, list[Box]]:
    for image_id, box in pairs:
        if image_id not in pool.quarantined:
            found.setdefault(image_id, []).append(box)
    return found


def _judged(asked: Box, label: np.ndarray) -> Iterator[Box]:
    """What was asked, and the objects of the answer, rounded to pixels inside the frame: at least one each."""
    yield asked
    corners = Boxes.from_table(label).objects.corners
    start = np.minimum(corners[:, :2].round(), np.ceil(corners[:, 2:]) - 1).astype(int)
    stop = np.maximum(corners[:, 2:].round().astype(int), start + 1)
    for first, last in zip(start.tolist(), stop.tolist(), strict=True):
        yield tuple(first), tuple(last)


def classes_in(label: np.ndarray) -> set[int]:
    """Class numbers that a label teaches; boxes are drawn on background."""
    if label.dtype == np.float64:
        return {0, *Boxes.from_table(label).objects.classes.tolist()}
    return set(np.unique(label).tolist()) - {IGNORE}


def whole(shape: tuple[int, ...]) -> Box:
    """The box of a whole image."""
    return (0,) * len(shape), tuple(int(n) for n in shape)


def _record(pool: Pool, image_id: str) -> ImageRecord | None:
    """The image; None if it is quarantined."""
    return None if image_id in pool.quarantined else pool[image_id]


def _mask(pool: Pool, record: ImageRecord) -> np.ndarray:
    mask = pool.truth(record)
    if mask is None:
        raise LabelError(f"image {record.id}: its mask is to be known from the start, but there is none; add the file")
    return mask


def _unchanged(pool: Pool, record: ImageRecord, known: Initial) -> np.ndarray:
    mask = _mask(pool, record)
    if _fingerprint(record, mask) != known.sha256:
        raise LabelError(
            f"{record.mask}: the mask of {record.id} changed since the run began; "
            "restore the file, or begin a new run_dir with the new mask"
        )
    return mask


def _fingerprint(record: ImageRecord, mask: np.ndarray) -> str:
    """Of the mask's own file; in a COCO json, which may grow by other images, of its voxels."""
    if record.mask_format == "coco" or record.mask is None:
        return label_sha256(mask)
    return sha256_of(record.mask)
