"""One round's folder for the annotators: written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dal_dense.errors import DataError
from dal_dense.exchange import boxes_out, coco, frames, nifti
from dal_dense.exchange.asked import RETURNED, SIDECAR, load_sidecar
from dal_dense.exchange.guide import write_guide
from dal_dense.images import read_header, read_image, sha256_of
from dal_dense.pool import Pool
from dal_dense.query import Query, QueryRegion, Sidecar, SidecarRegion, SourceImage
from dal_dense.records import IGNORE, ImageRecord
from dal_dense.tasks.base import Proposal


def batch_folder(run_dir: Path, round: int) -> Path:
    """Where the batch of one round lies."""
    return run_dir / "queries" / f"round_{round:03d}"


def write_batch(
    batch_dir: Path,
    query: Query,
    pool: Pool,
    proposals: Mapping[str, Proposal],
    *,
    run_id: str,
    classes: Sequence[str],
    model_sha256: str | None,
    background: int | None = 0,
    boxes: bool = False,
) -> Path:
    """Export one query: crops, proposals, whole images, sidecar and instructions.

    Everything is written beside `batch_dir` and renamed at the end, so a killed export leaves nothing
    that looks complete. A batch that is there already is left as it is.

    Args:
        batch_dir: see `batch_folder`.
        query: what is asked.
        pool: knows the images.
        proposals: the model's answers by region id; empty before the first fit.
        run_id: of the ledger.
        classes: names; the position is the class number.
        model_sha256: the weights behind the proposals.
        background: class of ground that COCO leaves without annotation; None if there is no such class.
        boxes: labels and proposals are tables of boxes (detection), not masks.

    Returns:
        `batch_dir`.

    Raises:
        DataError: if an image cannot be read, another query's batch is in the way, or the disk is full.
    """
    if batch_dir.exists():
        check_batch(batch_dir, query, run_id=run_id, classes=classes)
        return batch_dir
    _check_names(query)
    parts = batch_dir.with_name(f".{batch_dir.name}.partial")
    try:
        shutil.rmtree(parts, ignore_errors=True)
        folders = ("images", "proposals", "scans" if pool.ndim == 3 else "frames")
        for name in (*(boxes_out.FOLDERS if boxes else folders), RETURNED):
            (parts / name).mkdir(parents=True)
        entries = _write_images(parts, query, pool, proposals, classes if boxes else None)
        if boxes:
            boxes_out.write_crops(parts, entries, proposals, classes)
            boxes_out.write_frames(parts, entries, proposals, classes)
        elif pool.ndim == 2:
            coco.write_crops(parts, entries, proposals, classes, background)
            coco.write_frames(parts, entries, proposals, classes, background)
        sidecar = Sidecar(
            labels="boxes" if boxes else "mask",
            run=run_id,
            round=query.round,
            strategy=query.strategy,
            seed=query.seed,
            model_sha256=model_sha256,
            classes={str(i): name for i, name in enumerate(classes)},
            ignore_index=IGNORE,
            background=background,
            regions=tuple(entries),
        )
        write_guide(parts, sidecar, pool.ndim)
        (parts / SIDECAR).write_text(sidecar.model_dump_json(indent=1), encoding="utf-8")
        parts.rename(batch_dir)
    except OSError as error:
        shutil.rmtree(parts, ignore_errors=True)
        raise DataError(
            f"{batch_dir}: the batch cannot be written ({error.strerror or error}); "
            "free space or mend the folder's permissions, then call again"
        ) from error
    return batch_dir


def check_batch(
    batch_dir: Path, query: Query, *, run_id: str, classes: Sequence[str], unsent: Collection[str] = ()
) -> None:
    """Is this the batch of this very query? What comes back is cut and named by its sidecar.

    Args:
        batch_dir: the batch.
        query: what the ledger says was asked.
        run_id: of the ledger.
        classes: names; the position is the class number.
        unsent: ids of regions that may be missing, since they were rejected before the export.

    Raises:
        DataError: if the batch is of another run or query, or its sidecar is missing or damaged.
    """
    sidecar = load_sidecar(batch_dir)
    if sidecar.run != run_id:  # region ids repeat from run to run
        raise DataError(f"{batch_dir}: this batch is of another run; move the folder away and call again")
    there = {e.region.id: (e.region.image_id, e.region.box) for e in sidecar.regions}
    wanted = {r.id: (r.image_id, r.box) for r in query.regions if r.id in there or r.id not in unsent}
    differ = sorted(n for n in there.keys() | wanted.keys() if there.get(n) != wanted.get(n))
    if differ or sidecar.round != query.round or len(there) < len(sidecar.regions):
        raise DataError(
            f"{batch_dir}: holds another query ({len(sidecar.regions)} regions) than round {query.round} asks "
            f"({len(wanted)} regions; they differ in {differ[0] if differ else 'the round'}); restore its {SIDECAR}, "
            "or move the folder away and call again"
        )
    named = {str(i): name for i, name in enumerate(classes)}
    if sidecar.classes != named or sidecar.ignore_index != IGNORE:
        raise DataError(
            f"{batch_dir}: its {SIDECAR} has the classes {sidecar.classes}, the run {named}; "
            "restore the file as it was written"
        )


def _check_names(query: Query) -> None:
    """A returned file's name must mean one thing."""
    clash = {r.id for r in query.regions} & {r.image_id for r in query.regions}
    if clash:
        raise DataError(f"{sorted(clash)[0]} is both a region's and an image's id; rename the image file")


def _write_images(
    parts: Path, query: Query, pool: Pool, proposals: Mapping[str, Proposal], boxes_of: Sequence[str] | None
) -> list[SidecarRegion]:
    by_image: dict[str, list[QueryRegion]] = {}
    for region in query.regions:
        by_image.setdefault(region.image_id, []).append(region)
    entries: dict[str, SidecarRegion] = {}
    for image_id, regions in by_image.items():
        record = pool[image_id]
        values = read_image(record)
        source = _source(record)
        if boxes_of is not None:
            asked = [_storable(r) for r in regions]
            described = record.paths[0], source
            entries |= boxes_out.write_frame(parts, image_id, values, described, asked, proposals, boxes_of)
            continue
        _check_proposals(regions, proposals)
        if record.ndim == 3:
            files = nifti.write_volume(parts, image_id, values, _affine(record), regions, proposals)
        else:
            files = frames.write_frame(parts, image_id, values, record.paths[0], regions, proposals)
        entries |= {r.id: SidecarRegion(region=_storable(r), source=source, files=files[r.id]) for r in regions}
    return [entries[r.id] for r in query.regions]


def _affine(record: ImageRecord) -> Float[np.ndarray, "4 4"]:
    affine = read_header(record).affine
    if affine is None:
        raise DataError(f"{record.paths[0]}: the volume has no affine, so a crop cannot be placed; give it one (sform)")
    return affine


def _check_proposals(regions: Sequence[QueryRegion], proposals: Mapping[str, Proposal]) -> None:
    for region in regions:
        if region.id in proposals and proposals[region.id].label.shape != region.shape:
            found = proposals[region.id].label.shape
            raise ValueError(f"proposal for {region.id} has shape {found}, the region {region.shape}")


def _storable(region: QueryRegion) -> QueryRegion:
    """JSON has no NaN; a region chosen without a score gets 0."""
    return region if isfinite(region.score) else region.model_copy(update={"score": 0.0})


def _source(record: ImageRecord) -> SourceImage:
    header = read_header(record)
    affine = None if header.affine is None else np.asarray(header.affine, dtype=np.float64)
    return SourceImage(
        path=record.relative[0],
        sha256=sha256_of(record.paths[0]),
        shape=tuple(int(n) for n in header.shape),
        affine=None if affine is None else tuple(tuple(row) for row in affine.tolist()),
    )
