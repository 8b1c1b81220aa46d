"""The one place where names in the settings become objects."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import torch

from dal_dense.annotators import Annotator, Oracle, People
from dal_dense.box_answers import BoxRules
from dal_dense.config import Config
from dal_dense.console import Screen
from dal_dense.costs import cost_model
from dal_dense.errors import ConfigError, DataError
from dal_dense.images import read_header, read_image
from dal_dense.ledger import Ledger
from dal_dense.pool import Pool, open_pool
from dal_dense.query_sizes import array_size, box_in_voxels
from dal_dense.ranks import Ranks, device_of
from dal_dense.report.words import count
from dal_dense.run import Run
from dal_dense.shapes import check_shapes
from dal_dense.splits import Known
from dal_dense.tasks.base import Hooks, Task

PACKAGES = ("dal-dense", "torch", "monai", "numpy", "nibabel", "opencv-python-headless", "pycocotools", "scipy")


@contextmanager
def open_run(config: Config, screen: Screen, ranks: Ranks) -> Iterator[Run]:
    """Everything a run needs, wired, in its first process; the ledger is held until the block ends.

    The ledger comes last: what fails before it leaves no trace, so the settings can still be mended.

    Raises:
        ConfigError: if settings and data do not fit each other.
        DataError: if the listing of the pool cannot be used, or an image has another shape than when it was asked.
        LedgerError: if another process holds the run, or its settings changed.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    detection = config.task.name != "monai_segmentation"
    known = known_pool(config.run_dir)
    pool = open_pool(config.data, config.data_root, seed=config.seed, known=known, boxes=detection)
    check_dimensions(config, pool)
    check_intensity(config, pool)
    check_initial_masks(config, pool)
    check_parts(config, ranks)
    check_shapes(config.run_dir, pool)
    channels = channels_of(config, pool)
    task = build_task(here(config, ranks), pool, channels)
    ranks.send((pool, channels))
    with (
        located(config.run_dir),
        Ledger.open(
            config.run_dir,
            config=json.loads(config.model_dump_json()),
            versions=software(),
            seed=config.seed,
            clock=time.time,
        ) as ledger,
    ):
        run = Run(
            config=config,
            pool=pool,
            channels=channels,
            task=task,
            annotator=build_annotator(config),
            costs=cost_model(config.costs),
            ledger=ledger,
            screen=screen,
            ranks=ranks,
        )
        warn_of_large_sizes(run)
        remember_pool(run)
        tell_who_shares(run)
        yield run


def follow(config: Config, screen: Screen, ranks: Ranks) -> int:
    """All that the other processes of a run do: run the jobs that the first one leads, until it is done.

    Returns:
        Exit status.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if (parts := ranks.receive()) is not None:  # None: the first process gave up at the door
        pool, channels = parts
        task = build_task(here(config, ranks), pool, channels)
        ranks.follow(task, Hooks(stopping=screen.stopping, ranks=ranks))
    return 0


def here(config: Config, ranks: Ranks) -> Config:
    """The settings with this process's own device."""
    return config.model_copy(update={"device": str(ranks.device)})


@contextmanager
def located(run_dir: Path) -> Iterator[None]:
    """Name the run's folder in an error of the file system that names no file: a failed write does not."""
    try:
        yield
    except OSError as problem:
        problem.filename = problem.filename or str(run_dir)
        raise


def known_pool(run_dir: Path) -> Known | None:
    """Which image was in which split when the run began, with those that joined since; None for a new run."""
    if not Ledger.begun(run_dir):
        return None
    with Ledger.read(run_dir) as ledger:
        begun = ledger.events("pool")
        grown = [image for event in ledger.events("grown") for image in event["images"]]
    if not begun:
        return None
    return Known((*begun[0]["train"], *grown), tuple(begun[0]["test"]), frozenset(begun[0]["left_out"]))


def remember_pool(run: Run) -> None:
    """Keep the splits in the ledger once, and set aside what was quarantined before."""
    if not run.ledger.events("pool"):
        known = run.pool.known
        decided = {"train": known.train, "test": known.test, "left_out": sorted(known.left_out)}
        run.ledger.record_event("pool", decided)
    for image, reason in run.pool.absent.items():
        run.ledger.record_event("absent", {"image": image, "reason": reason}, once=True)
    for event in run.ledger.events("quarantine"):
        run.pool = run.pool.quarantine(event["image"], event["reason"])
    run.screen.say(
        f"pool: {len(run.pool.train)} images to ask from, {len(run.pool.test)} to measure on, "
        f"{len(run.pool.classes)} classes"
    )
    for note in run.pool.notes:
        run.screen.warn(note)
    for image, reason in run.pool.quarantined.items():
        run.screen.warn(f"{image} is quarantined: {reason}")


def tell_who_shares(run: Run) -> None:
    """Say what several processes share, and what would make them differ from one."""
    size, parts = run.ranks.size, run.config.task.train.parts
    if size == 1:
        return
    training = "training" if parts > 1 else "the first one trains, since task.train.parts is 1"
    run.screen.say(f"{size} processes share scoring, measuring{' and ' if parts > 1 else '; '}{training}")
    if run.config.threads is None and run.ranks.device.type == "cpu":
        run.screen.warn(
            "the last bits of a network's output on a CPU depend on the number of threads, and torchrun gives each "
            "process one; set --threads for the same query from any number of processes"
        )


def software() -> dict[str, str]:
    """Versions that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def build_task(config: Config, pool: Pool, channels: int) -> Task:
    """The adapter that `task.name` names."""
    if config.task.name != "monai_segmentation":
        return _detection(config, pool, channels)
    from dal_dense.tasks.monai_segmentation import MonaiSegmentation

    return MonaiSegmentation(
        task=config.task,
        uncertainty=config.uncertainty,
        query=config.query,
        costs=cost_model(config.costs),
        classes=pool.classes,
        ndim=pool.ndim,
        in_channels=channels,
        device=device_of(config.device),
        mask_of=pool.mask,
        seed=config.seed,
    )


def _detection(config: Config, pool: Pool, channels: int) -> Task:
    if config.task.name == "torchvision_detection":
        from dal_dense.tasks.torchvision_detection import backend
    else:
        from dal_dense.tasks.detectron2_detection import backend
    from dal_dense.tasks.detection_task import Detection

    return Detection(
        backend=backend,
        task=config.task,
        uncertainty=config.uncertainty,
        query=config.query,
        costs=cost_model(config.costs),
        classes=pool.classes,
        ndim=pool.ndim,
        in_channels=channels,
        device=device_of(config.device),
        boxes_of=pool.boxes,
        seed=config.seed,
        matching=config.strategy.name == "ppal",
    )


def channels_of(config: Config, pool: Pool) -> int:
    """Channels of the pool's first readable image.

    Raises:
        DataError: if none of the first images can be read, or strictness is asked for.
    """
    last: DataError | None = None
    for record in pool.train[:20]:
        try:
            return int(read_image(record).shape[0])
        except DataError as problem:
            if config.data.strict:
                raise
            last = problem
    raise DataError(f"none of the pool's first images can be read; the last one says: {last}")


def build_annotator(config: Config) -> Annotator:
    """Held-back masks, or people."""
    costs, background = cost_model(config.costs), 0 if config.task.background else None
    given = config.annotator
    boxes = None
    if config.task.name != "monai_segmentation":
        boxes = BoxRules(config.task.detection.min_visible, given.accept_iou, given.fix_iou)
    if given.name == "oracle":
        return Oracle(costs=costs, background=background, boxes=boxes)
    returns = Path(given.returns) if given.returns else None
    return People(costs=costs, run_dir=config.run_dir, returns=returns, background=background, boxes=boxes)


def check_dimensions(config: Config, pool: Pool) -> None:
    """Settings that only the data can prove wrong."""
    axes = len(config.task.train.patch)
    if axes != pool.ndim:
        raise ConfigError(
            f"task.train.patch: {axes} numbers, but the pool holds {'volumes' if pool.ndim == 3 else 'frames'}; "
            f"give {pool.ndim} numbers"
        )


def check_intensity(config: Config, pool: Pool) -> None:
    """CT would become -9 to 23 with the scale of colours, which clips nothing."""
    if config.task.intensity.kind == "rgb" and pool.ndim == 3:
        raise ConfigError(
            "task.intensity.kind: rgb scales colours from 0 to 255, but the pool holds volumes; set it to window (CT, "
            "with task.intensity.low and high) or zscore"
        )


def warn_of_large_sizes(run: Run) -> None:
    """Say which boxes of `query.sizes` are cut to the image, going by the first one that can be read."""
    query = run.config.query
    if query.kind not in ("crop", "box"):
        return
    with suppress(DataError):
        header = read_header(run.pool.train[0])
        for size in query.sizes:
            wanted, cut = box_in_voxels(size, query.unit, header), array_size(size, query.unit, header)
            if wanted != cut:
                run.screen.warn(
                    f"query.sizes: {list(size)} is larger than {run.pool.train[0].id}, whose array is "
                    f"{' x '.join(map(str, header.shape))}, and is cut to it; choose smaller ones, or query.kind image"
                )


def check_parts(config: Config, ranks: Ranks) -> None:
    """Can the processes share the parts of a step evenly?"""
    parts, size = config.task.train.parts, ranks.size
    if parts > 1 and parts % size:
        fitting = ", ".join(str(n) for n in range(1, parts + 1) if parts % n == 0)
        raise ConfigError(
            f"task.train.parts: {parts} parts cannot be shared evenly by {size} processes; start {fitting} processes "
            f"(--nproc-per-node), or begin another run with --task.train.parts {size}"
        )


def check_initial_masks(config: Config, pool: Pool) -> None:
    """Are the images that `annotator.initial_masks` names in the pool, with a mask each?"""
    wanted = config.annotator.initial_masks
    if isinstance(wanted, str):
        return
    masked = {r.id for r in pool.members if r.mask is not None}
    held = [name for name in wanted if name in {r.id for r in pool.held_out}]
    if held:
        raise ConfigError(
            f"annotator.initial_masks: {', '.join(held)} is held out to measure the model; name other images, or say "
            "with data.split_file which ones measure"
        )
    unused = [name for name in wanted if name in pool.left_out]
    if unused:
        raise ConfigError(
            f"annotator.initial_masks: {', '.join(unused)} is left out {_why_left_out(config, pool)}; name other "
            "images, or begin in another run_dir with a larger data.max_pool or a data.split_file that names it"
        )
    lacking = [name for name in wanted if name not in masked]
    if lacking:
        raise ConfigError(
            f"annotator.initial_masks: {', '.join(lacking)} is not an image of the pool that has a mask; "
            f"correct the ids (the pool has {count(len(masked), 'image')} with masks)"
        )


def _why_left_out(config: Config, pool: Pool) -> str:
    """The settings that had no room for an image; without one, it goes with the test images."""
    kept = {"max_pool": len(pool.members), "max_test": len(pool.held_out)}
    limits = {name: getattr(config.data, name) for name in kept}
    full = [f"data.{name} ({limits[name]})" for name in kept if limits[name] is not None and kept[name] >= limits[name]]
    return f"by {' or '.join(full)}" if full else "with what is held out to measure the model"
