#!/usr/bin/env python
"""What a frame, a volume, a row and a selection cost, and what a fleet would need by these figures.

    python tools/bench_scale.py [--device cuda] [--threads 2] [--rows 10000000] [--out FILE]

Networks are untrained and pools made up: cost does not depend on what is in them. On the CPU the figures are CPU
seconds of all threads, so other work on the machine hardly shows; on a GPU they are seconds. Prints tables;
--out writes them with date, machine and command. docs/scale.md says how to read them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))

from dal_dense.benchmark_page import facts, page, parser_of, publish
from dal_dense.cli import command
from dal_dense.errors import ConfigError

if TYPE_CHECKING:
    from dal_dense.offer_maps import OfferSpec
    from dal_dense.offers import Offers

CARS, HOURS, FRAMES_A_SECOND = 100, 8.0, 1.0
"""The fleet: cars, hours a day, and frames that are kept of each second."""
ROWS_A_FRAME = 36
"""Regions on offer in each frame of the fleet."""
REPEATS = 3
ENOUGH = 10**6
"""Rows from which on the time of a selection goes with the rows."""
POOLS = (10**4, 10**5, 10**6, 10**7)
"""Rows that are chosen from, as far as --rows allows."""


@dataclass(frozen=True)
class Image:
    """A kind of image, with the network that looks at it."""

    name: str
    grid: tuple[int, ...]
    patch: tuple[int, ...]
    channels: tuple[int, ...]
    in_channels: int
    classes: int
    box: tuple[int, ...]

    @property
    def axial(self) -> int | None:
        """Axis across axial slices."""
        return 2 if len(self.grid) == 3 else None


IMAGES = (
    Image("frame 512 x 1024, 19 classes", (512, 1024), (512, 1024), (32, 64, 128, 256), 3, 19, (128, 128)),
    Image("frame 512 x 1024, 4 classes", (512, 1024), (512, 1024), (32, 64, 128, 256), 3, 4, (128, 128)),
    Image("volume 128 x 128 x 96, 14 classes", (128, 128, 96), (64, 64, 96), (16, 32, 64, 128), 1, 14, (32, 32, 16)),
    Image("volume 128 x 128 x 96, 2 classes", (128, 128, 96), (64, 64, 96), (16, 32, 64, 128), 1, 2, (32, 32, 16)),
)
LARGE = Image("volume 512 x 512 x 300, 14 classes", (512, 512, 300), (96, 96, 96), (32, 64, 128, 256), 1, 14, (48,) * 3)
"""For GPUs only: a CPU takes several minutes for one draw."""


@command
def main(argv: list[str]) -> int:
    """Measure, calculate, print."""
    given = parse(argv)
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device; leave it out to measure on the CPU")
    torch.set_num_threads(given.threads)
    device = torch.cuda.get_device_name() if given.device == "cuda" else f"cpu, {given.threads} threads"
    unit = "s" if given.device == "cuda" else "CPU s"
    images = IMAGES if given.device == "cpu" else (*IMAGES, LARGE)
    costs = [image_costs(image, given.device) for image in images]
    lines = [f"| image | one draw, {unit} | a draw more into the sums, {unit} | maps, {unit} | offers, {unit} | rows |"]
    lines += ["|---|--:|--:|--:|--:|--:|", *(c.line() for c in costs), ""]
    lines += [*bytes_a_row(), ""]
    chosen, rows, seconds = selection_costs(given.rows, given.device, unit)
    lines += [*chosen, "", *disk_costs(min(given.rows, 10**6)), "", *fleet(costs[0], seconds, rows, given.device)]
    publish(page("What scale costs", {**facts("bench_scale.py", argv), "device": device}, lines), given.out)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where (cpu)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--rows", type=int, default=10**7, help="largest pool that is chosen from (10000000)")
    parser.add_argument("--out", type=Path, default=None, help="file for the tables")
    return parser.parse_args(argv)


def timed(
    do: Callable[[], object], device: str, repeats: int = REPEATS, before: Callable[[], object] = lambda: None
) -> float:
    """The least of a few: CPU seconds of all threads, or seconds on a GPU. One call warms up; `before` is not timed."""
    import torch

    before()
    do()
    found = []
    for _ in range(repeats):
        before()
        if device == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter if device == "cuda" else time.process_time
        began = clock()
        do()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - began)
    return min(found)


# --- images ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageCost:
    """Seconds: one draw through the network, one draw into the sums, the maps, the offers."""

    image: Image
    draw: float
    add: float
    maps: float
    offers: float
    rows: int

    def line(self) -> str:
        """A row of the table."""
        return (
            f"| {self.image.name} | {self.draw:.3f} | {self.add:.3f} | {self.maps:.3f} | {self.offers:.3f} "
            f"| {self.rows} |"
        )

    @property
    def single(self) -> float:
        """Everything, with one draw."""
        return self.draw + self.add + self.maps + self.offers


def image_costs(image: Image, device: str) -> ImageCost:
    """Each step of one image, alone."""
    import torch

    from dal_dense.config_task import NetworkConfig
    from dal_dense.offer_maps import DensePrediction, offers_from_maps
    from dal_dense.regions import Regions
    from dal_dense.tasks.monai_infer import Windows, window_logits
    from dal_dense.tasks.monai_networks import build_network
    from dal_dense.uncertainty import DrawSums

    ndim = len(image.grid)
    settings = NetworkConfig(name="unet", channels=image.channels)
    network = build_network(settings, ndim=ndim, in_channels=image.in_channels, classes=image.classes, seed=0)
    network = network.to(device).eval()
    pixels = torch.rand(image.in_channels, *image.grid, generator=torch.Generator().manual_seed(0)).to(device)
    windows = Windows(image.patch, 0.25, torch.device(device))
    probs = torch.softmax(window_logits(network, pixels, windows), 0)
    sums = DrawSums()
    names = ("predictive_entropy", "mutual_information")
    draw = timed(lambda: torch.softmax(window_logits(network, pixels, windows), 0), device)
    add = timed(lambda: sums.add(probs), device)
    maps = timed(lambda: sums.finish(names), device, before=lambda: sums.add(probs))  # finish empties the sums
    sums.add(probs)
    prediction = DensePrediction(*sums.finish(names))
    none = Regions.of([], ndim)

    def offer() -> Offers:
        return offers_from_maps(
            prediction, spec_of(image), image_id="image", image=0, group=0, labelled=none, blocked=none
        )

    return ImageCost(image, draw, add, maps, timed(offer, device), len(offer()))


def spec_of(image: Image) -> OfferSpec:
    """Twelve of the best boxes, as many for the classes, as many drawn blindly."""
    from dal_dense.costs import PRESETS
    from dal_dense.offer_maps import OfferSpec

    preset = "frame_polygon" if image.axial is None else "ct_contour"
    return OfferSpec(
        kind="crop",
        sizes=(image.box,),
        spacing=(1.0,) * len(image.grid),
        axial_axis=image.axial,
        costs=PRESETS[preset],
        per_image=12,
        stride=4,
        score="predictive_entropy",
        quota_classes=tuple(range(1, image.classes)),
    )


# --- rows -----------------------------------------------------------------------------------


def bytes_of(offers: Offers) -> float:
    """Bytes a row of all columns."""
    from dal_dense.offer_store import OfferStore

    with tempfile.TemporaryDirectory() as folder:
        OfferStore(Path(folder)).append(offers)
        return sum(f.stat().st_size for f in Path(folder).glob("*.bin")) / len(offers)


def bytes_a_row() -> list[str]:
    """By classes and width of the embedding."""
    from engine_bench.scale import driving_pool

    lines = ["| classes | embedding | bytes a row |", "|--:|--:|--:|"]
    for classes, embedding in ((0, 0), (4, 0), (19, 0), (19, 64), (19, 256)):
        size = bytes_of(driving_pool(3600, 0, classes=classes, embedding=embedding))
        lines.append(f"| {classes} | {embedding} | {size:.0f} |")
    return lines


def disk_costs(rows: int) -> list[str]:
    """Writing, mapping, and one selection from the files."""
    from engine_bench.scale import driving_pool

    from dal_dense.offer_store import OfferStore

    offers = driving_pool(rows, 0, classes=19, embedding=64)
    with tempfile.TemporaryDirectory() as folder:
        store = OfferStore(Path(folder))
        began = time.process_time()
        store.append(offers)
        wrote = time.process_time() - began
        size = sum(f.stat().st_size for f in Path(folder).glob("*.bin"))
        read = timed(lambda: choose(store.read(), "per_second", 4.0), "cpu", 1)
    return [
        f"{rows:,} rows with 19 classes and 64 features are {size / 1e9:.2f} GB: {wrote:.2f} CPU s to write, "
        f"{read:.2f} CPU s to choose from."
    ]


# --- selection ------------------------------------------------------------------------------


def choose(offers: Offers, name: str, hours: float) -> int:
    """Spend so many hours of an expert; how many regions that buys."""
    from dal_dense.acquire import Budget, Round, acquire
    from dal_dense.config import StrategyConfig

    budget = Budget(hours * 3600, max_per_image=4)
    rule = StrategyConfig.model_validate({"name": name})
    return len(acquire(offers, budget, rule, Round(1, 5, 0), quota_classes=(1, 2, 3), checked=True))


def selection_costs(most: int, device: str, unit: str) -> tuple[list[str], int, float]:
    """By strategy, pool and budget; and the rows of the largest pool with the seconds of `per_second` from it."""
    import torch
    from engine_bench.scale import driving_pool

    lines = [f"| strategy | rows | budget, h | regions | {unit} |", "|---|--:|--:|--:|--:|"]
    sizes = sorted({min(rows, most) for rows in POOLS})
    last = 0.0

    def add(name: str, offers: Offers, hours: float) -> float:
        found: list[int] = []
        seconds = timed(lambda: found.append(choose(offers, name, hours)), device, 1)
        lines.append(f"| {name} | {len(offers):,} | {hours:g} | {found[-1]} | {seconds:.2f} |")
        return seconds

    for rows in sizes:
        offers = driving_pool(rows, 0, classes=4).to(device)
        for name in ("random", "power", "per_second"):
            last = add(name, offers, 4.0)
        if rows == 10**6:
            add("per_second", offers, 1.0)
            add("per_second", offers, 16.0)
    for rows in sizes:
        offers = driving_pool(rows, 0, classes=4).to(device)
        features = torch.rand(rows, 32, generator=torch.Generator().manual_seed(0)).to(device)
        add("hybrid", replace(offers, embedding=features), 4.0)
    return lines, sizes[-1], last


# --- the fleet ------------------------------------------------------------------------------


def fleet(frame: ImageCost, seconds: float, rows: int, device: str) -> list[str]:
    """Frames, hours of the network, storage and selection for a day, each with its formula."""
    from engine_bench.scale import driving_pool

    frames = CARS * HOURS * 3600 * FRAMES_A_SECOND
    offers = frames * ROWS_A_FRAME
    size = bytes_of(driving_pool(3600, 0, classes=19, embedding=64))
    hours = frames * frame.single / 3600
    where = "GPU" if device == "cuda" else "CPU"
    lean = bytes_of(driving_pool(3600, 0))
    chosen = f"{seconds:.2f} s x rows / {rows:,} | {seconds * offers / rows:,.1f} {where} s"
    if rows < ENOUGH:
        chosen = f"{rows:,} rows show only what regions cost: give --rows {ENOUGH} | –"
    return [
        f"| a day of {CARS} cars x {HOURS:g} h | formula | result |",
        "|---|---|--:|",
        f"| frames | cars x hours x 3600 x {FRAMES_A_SECOND:g} a second | {frames:,.0f} |",
        f"| {where} hours, one draw | frames x {frame.single:.3f} s / 3600 | {hours:,.1f} |",
        f"| {where} hours, each draw more | frames x {frame.draw + frame.add:.3f} s / 3600 "
        f"| {frames * (frame.draw + frame.add) / 3600:,.1f} |",
        f"| rows on offer | frames x {ROWS_A_FRAME} | {offers:,.0f} |",
        f"| storage of the offers, 19 classes, 64 features | rows x {size:.0f} B | {offers * size / 1e9:,.1f} GB |",
        f"| of it read by a ranking | rows x at most {lean:.0f} B | {offers * lean / 1e9:,.1f} GB |",
        f"| memory while the selection begins | rows x 24 B | {offers * 24 / 1e9:,.1f} GB |",
        f"| selection (per_second, 4 h) | {chosen} |",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
