#!/usr/bin/env python
"""What MC-dropout costs, and what training on crops loses against whole frames.

    python tools/bench_detection.py dropout [--out docs/benchmarks/mc_dropout.md]
    python tools/bench_detection.py crops --config configs/bccd.yaml [--seeds 0,1,2 --boxes 700] [--any.key value]

dropout: ten draws of last-layer dropout on cached features beside one plain pass, per network.
crops: whole frames, and crops of `query.sizes` drawn at random, until each has so many labelled boxes; the same
fit on both; AP50 on the test images. Prints a table; --out writes it with date, machine and command.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dal_dense.benchmark_page import facts, page, parser_of, publish
from dal_dense.cli import command, load_config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dal_dense.config import Config
    from dal_dense.pool import Pool
    from dal_dense.tasks.base import LabelledImage
    from dal_dense.tasks.detection_backend import Detector

DRAWS = 10
REPEATS = 5
CLASSES = (3, 20)


@command
def main(argv: list[str]) -> int:
    """Run one part, print and write its table."""
    parser = parser_of(__doc__)
    parser.add_argument("part", choices=["dropout", "crops"])
    parser.add_argument("--config", type=Path, help="crops: YAML file of settings")
    parser.add_argument("--seeds", default="0,1,2", help="crops: numbers, comma between")
    parser.add_argument("--boxes", type=int, default=700, help="crops: labelled boxes on each side")
    parser.add_argument("--size", default="480,640", help="dropout: rows,columns of the frame")
    parser.add_argument("--out", type=Path, default=None, help="file for the table")
    given, rest = parser.parse_known_args(argv)
    if given.part == "dropout" and rest:
        parser.error(f"dropout takes no {rest[0]}")
    if given.part == "crops" and given.config is None:
        parser.error("crops needs --config FILE")
    if given.part == "dropout":
        rows, columns = map(int, given.size.split(","))
        title, lines = f"MC-dropout: {DRAWS} draws on a frame of {rows} x {columns}", dropout((rows, columns))
    else:
        config = load_config(["--config", str(given.config), *rest], description=__doc__)
        seeds = [int(s) for s in given.seeds.split(",")]
        title, lines = f"Crops against whole frames: {given.config.stem}", crops(config, seeds, given.boxes)
    publish(page(title, facts("bench_detection.py", argv), lines), given.out)
    return 0


def dropout(size: tuple[int, int]) -> list[str]:
    """One plain pass against ten further draws of the last layer, a line a network."""
    import torch

    from dal_dense.config import DetectionConfig, NetworkConfig

    torch.set_num_threads(1)
    lines = [
        "| backend | network | classes | rows | one pass, s | ten draws more, s | share |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    image = 255 * torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    for backend, made in backends().items():
        for backbone, name, classes in product(("resnet18", "tiny"), ("faster_rcnn", "retinanet", "fcos"), CLASSES):
            network = NetworkConfig(name=name, dropout=0.1)  # type: ignore[arg-type]
            net = made(network, DetectionConfig(backbone=backbone), 1 + classes)  # type: ignore[arg-type]
            net.module.eval()
            plain, more = [], []
            for _ in range(REPEATS):  # in turn, so that a busy moment of the machine meets both
                began = time.perf_counter()
                look = net.look(image)
                net.rows(look)
                between = time.perf_counter()
                list(net.draws(look, range(DRAWS)))
                plain.append(between - began)
                more.append(time.perf_counter() - between)
            one, ten = statistics.median(plain), statistics.median(more)
            count = len(net.rows(look).probs)
            lines.append(
                f"| {backend} | {backbone} {name} | {classes} | {count} | {one:.3f} | {ten:.3f} "
                f"| +{100 * ten / one:.1f} % |"
            )
    return [*lines, "", f"Median of {REPEATS}, one CPU thread. Passes that are not cached would cost +{100 * DRAWS} %."]


def backends() -> dict[str, Callable[..., Detector]]:
    """Detectors by framework, of those that can be imported."""
    from dal_dense.errors import MissingPackageError
    from dal_dense.tasks.detectron2_detection import require_detectron2
    from dal_dense.tasks.torchvision_detection import TorchvisionDetector

    found: dict[str, Callable[..., Detector]] = {"torchvision": TorchvisionDetector}
    with suppress(MissingPackageError):
        require_detectron2()
        from dal_dense.tasks.detectron2_detector import Detectron2Detector

        found["detectron2"] = Detectron2Detector
    return found


def crops(config: Config, seeds: Sequence[int], boxes: int) -> list[str]:
    """AP50 of the same fit on whole frames and on crops with equally many labelled boxes."""
    import torch

    from dal_dense.build import build_task, channels_of
    from dal_dense.pool import open_pool
    from dal_dense.tasks.base import Hooks

    torch.set_num_threads(config.threads or 1)
    console = Console(stderr=True)
    pool = open_pool(config.data, config.data_root, seed=config.seed, boxes=True)
    found: dict[str, list[float]] = {"whole frames": [], "crops": []}
    lines = ["| seed | labelled | regions | frames | boxes | cut | AP50 |", "|--:|---|--:|--:|--:|--:|--:|"]
    for seed in seeds:
        for kind in found:
            labelled = drawn(config, pool, kind == "crops", boxes, seed)
            task = build_task(config, pool, channels_of(config, pool))
            with tempfile.TemporaryDirectory() as folder:
                fitted = task.fit(labelled, seed=seed, out=Path(folder), previous=None, hooks=Hooks())
                measured = task.evaluate(task.load(fitted.weights), pool.test, hooks=Hooks())
            value = measured.extra["ap50"]
            found[kind].append(value)
            regions = sum(len(k.labels) for k in labelled)
            count = sum(objects(label) for k in labelled for label in k.labels)
            share = f"{100 * cut(labelled) / count:.0f} %"
            lines.append(f"| {seed} | {kind} | {regions} | {len(labelled)} | {count} | {share} | {value:.3f} |")
            console.print(lines[-1], highlight=False)
    means = {kind: statistics.mean(values) for kind, values in found.items()}
    share = 100 * means["crops"] / max(means["whole frames"], 1e-9)
    means_text = ", ".join(f"{kind} {value:.3f}" for kind, value in means.items())
    return [*lines, "", f"Mean AP50: {means_text}; crops reach {share:.1f} % of whole frames."]


def drawn(config: Config, pool: Pool, as_crops: bool, boxes: int, seed: int) -> list[LabelledImage]:
    """Frames, or disjoint crops of all frames, in random order until so many objects are labelled."""
    import torch

    from dal_dense.candidates import random_boxes
    from dal_dense.images import read_header
    from dal_dense.labels import whole
    from dal_dense.noise import text_key, uniform
    from dal_dense.regions import Box, Regions
    from dal_dense.tasks.base import LabelledImage

    size, none = config.query.sizes[0], Regions.of([], 2)
    rules = config.task.detection.min_visible
    everything: list[tuple[str, Box]] = []
    for record in pool.train:
        shape = read_header(record).shape
        if as_crops:
            fit = math.prod(max(1, n // s) for n, s in zip(shape, size, strict=True))
            everything += [(record.id, box) for box in random_boxes(record.id, shape, size, fit, none, seed).boxes()]
        else:
            everything.append((record.id, whole(shape)))
    keys = torch.tensor([text_key(f"{name} {box}") for name, box in everything])
    taken: dict[str, list[tuple[Box, object]]] = {}
    count = 0
    for i in uniform(keys, seed, "crops").argsort().tolist():
        name, box = everything[i]
        truth = pool.boxes(pool[name])
        if truth is None:
            continue
        table = truth.within(box, rules).table()
        taken.setdefault(name, []).append((box, table))
        count += objects(table)
        if count >= boxes:
            break
    return [
        LabelledImage(
            pool[name],
            Regions.of((box for box, _ in pairs), 2),
            tuple(table for _, table in pairs),  # type: ignore[misc]
            ("crop" if as_crops else "image",) * len(pairs),
        )
        for name, pairs in sorted(taken.items())
    ]


def objects(table: object) -> int:
    """Objects in a table of boxes."""
    return len(corners(table))


def cut(labelled: Sequence[LabelledImage]) -> int:
    """Objects that the border of a crop has cut."""
    from dal_dense.images import read_header
    from dal_dense.tasks.detection_ground import at_border

    found = 0
    for known in labelled:
        shape = read_header(known.record).shape
        for box, table in zip(known.regions.boxes(), known.labels, strict=True):
            found += int(at_border(corners(table), box, shape).sum())
    return found


def corners(table: object) -> NDArray[np.float64]:
    """Of the objects in a table of boxes."""
    import numpy as np

    from dal_dense.boxes import OBJECT

    rows = np.asarray(table, np.float64)
    return rows[rows[:, 5] == OBJECT, :4]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
