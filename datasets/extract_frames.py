#!/usr/bin/env python
"""Turn videos of drives into frames that a pool can read: JPEGs, and a COCO json with drive and time.

    python datasets/extract_frames.py --videos drives --out data --classes "[car, person]" [--every 1 --difference 2]

Call it again after a stop, or with more videos: finished ones are left as they are.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress

from dal_dense.errors import ConfigError, DalDenseError, DataError
from dal_dense.report.words import count

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".mpg", ".mpeg", ".ts", ".webm", ".wmv")
LISTING, IMAGES = "frames.json", "images"
THUMB = (64, 36)
"""Columns and rows on which neighbours are compared."""
SHORT = 0.9
"""A video that ends before this share of the frames it announces is told."""
_ODD = re.compile(r"[^A-Za-z0-9_-]+")

Tick = Callable[[int, int], None]
"""Told of frames gone through and frames announced (0: unknown)."""


@dataclass(frozen=True)
class How:
    """Settings that decide which frames are taken; one folder holds frames of one choice."""

    every: float
    difference: float
    quality: int

    def as_json(self) -> dict[str, float]:
        """As the listing keeps it."""
        return {"every": self.every, "difference": self.difference, "quality": self.quality}


@dataclass
class Listing:
    """What lies in the folder already: the COCO json as a document."""

    path: Path
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def videos(self) -> dict[str, dict[str, Any]]:
        """Finished drives: name and size of the video, number of frames."""
        found: dict[str, dict[str, Any]] = self.document["info"]["videos"]
        return found

    def add(self, drive: str, video: Path, images: Sequence[dict[str, Any]]) -> None:
        """Take in a finished drive and write the file anew, whole or not at all."""
        known: list[dict[str, Any]] = self.document["images"]
        first = max((int(i["id"]) for i in known), default=0) + 1
        known += [{"id": first + n, **image} for n, image in enumerate(images)]
        self.videos[drive] = {"file": video.name, "bytes": video.stat().st_size, "frames": len(images)}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.document, indent=1), encoding="utf-8")
        partial.replace(self.path)


def open_listing(out: Path, how: How, classes: Sequence[str]) -> Listing:
    """The listing of a folder, or a new one.

    Raises:
        ConfigError: if the folder was filled with other settings or classes.
        DataError: if its listing is damaged.
    """
    path = out / LISTING
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(classes, 1)]
    if not path.exists():
        info = {"description": "frames of drives", "settings": how.as_json(), "videos": {}}
        return Listing(path, {"info": info, "images": [], "annotations": [], "categories": categories})
    try:
        document = json.loads(path.read_bytes())
        settings, videos, named = document["info"]["settings"], document["info"]["videos"], document["categories"]
        images = document["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no listing that this tool wrote ({error!r}); move it away and call again") from error
    if not isinstance(videos, dict) or not isinstance(images, list):
        raise DataError(f"{path}: no listing that this tool wrote; move it away and call again")
    if settings != how.as_json():
        raise ConfigError(f"{path}: was made with {settings}, now {how.as_json()} is asked; name another folder")
    if [c.get("name") for c in named] != list(classes):
        raise ConfigError(f"{path}: has the classes {[c.get('name') for c in named]}, now {list(classes)}; keep them")
    return Listing(path, document)


def find_videos(sources: Sequence[str | Path]) -> dict[str, Path]:
    """Drive to its video. Folders are searched; there, subfolders become part of the drive's name.

    Raises:
        DataError: if there is none, one is not there, or two would share a name.
    """
    found: dict[str, Path] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise DataError(f"{source}: no such file or folder; correct the path")
        inside = sorted(p for p in source.rglob("*") if p.suffix.lower() in VIDEOS) if source.is_dir() else [source]
        if not inside:
            raise DataError(f"{source}: holds no video ({', '.join(VIDEOS)}); correct the path")
        for path in inside:
            parts = path.relative_to(source).with_suffix("").parts if source.is_dir() else (path.stem,)
            drive = _ODD.sub("-", "-".join(parts)).strip("-_") or "drive"
            if found.setdefault(drive, path) != path:
                raise DataError(f"{path}: would be the drive {drive!r}, as {found[drive]} is; rename one of them")
    return found


def frames_of(path: Path, every: float, tick: Tick) -> Iterator[tuple[int, np.ndarray]]:
    """Milliseconds and BGR pixels of the first frame at or after each multiple of `every` seconds.

    Raises:
        DataError: if the video cannot be read.
    """
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise DataError(
                f"{path}: OpenCV cannot open it as a video; convert it (ffmpeg -i IN OUT.mp4) or copy it anew"
            )
        rate, announced = video.get(cv2.CAP_PROP_FPS), max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        number, due, before = 0, 0, -1
        while video.grab():
            seconds = _time(video, number, rate, before)
            if seconds is None:
                raise DataError(f"{path}: tells neither times nor frames a second; convert it (ffmpeg -i IN OUT.mp4)")
            now = round(seconds * 1000)
            if now >= round(due * every * 1000) and now > before:
                done, pixels = video.retrieve()
                if done:
                    yield now, pixels
                    before, due = now, int((now / 1000 + 1e-6) / every) + 1
            number += 1
            tick(number, announced)
        if number == 0:
            raise DataError(f"{path}: not one frame can be decoded; convert it (ffmpeg -i IN OUT.mp4) or copy it anew")
    finally:
        video.release()


def _time(video: cv2.VideoCapture, number: int, rate: float, before: int) -> float | None:
    """Seconds of the frame that was grabbed: its own time where the container tells it, else by the frame rate."""
    told = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
    if np.isfinite(told) and told > 0 and told * 1000 > before:
        return float(told)
    return number / rate if np.isfinite(rate) and rate > 0 else None if number else 0.0


def extract_drive(
    drive: str, path: Path, out: Path, how: How, tick: Tick = lambda done, all: None
) -> list[dict[str, Any]]:
    """Write one drive's frames; their records without ids.

    The same video gives the same frames, so a drive that was broken off is gone through again.

    Raises:
        DataError: if the video cannot be read or the disk is full.
    """
    images: list[dict[str, Any]] = []
    kept: np.ndarray | None = None
    for milliseconds, pixels in frames_of(path, how.every, tick):
        if how.difference > 0:
            small = thumbnail(pixels)
            if kept is not None and float(np.abs(small - kept).mean()) < how.difference:
                continue
            kept = small
        name = f"{drive}_{milliseconds:08d}.jpg"
        _save(out / IMAGES / name, pixels, how.quality)
        rows, columns = pixels.shape[:2]
        record = {"file_name": name, "width": columns, "height": rows, "drive": drive, "time": milliseconds / 1000}
        images.append(record)
    return images


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Grey, small, float32: what two frames are compared by."""
    small = cv2.resize(pixels, THUMB, interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if small.ndim == 3 else small
    return np.asarray(grey, np.float32)


def _save(path: Path, pixels: np.ndarray, quality: int) -> None:
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError(f"{path}: OpenCV cannot encode a frame of shape {pixels.shape}")
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); free space and call again") from error


def extract_all(videos: dict[str, Path], out: Path, how: How, listing: Listing, console: Console) -> list[str]:
    """Every drive that is not finished; what could not be read is told at the end and hides no other drive."""
    problems: list[str] = []
    with Progress(console=console, transient=True) as bar:
        for drive, path in videos.items():
            if drive in listing.videos:
                if listing.videos[drive]["bytes"] != path.stat().st_size:
                    problems.append(f"{path}: changed since its frames were taken; rename it to make it another drive")
                continue
            task = bar.add_task(drive, total=None)
            seen = [0, 0]

            def tick(done: int, announced: int, task: Any = task, seen: list[int] = seen) -> None:
                seen[:] = done, announced
                bar.update(task, completed=done, total=announced or None)

            try:
                images = extract_drive(drive, path, out, how, tick)
            except DataError as error:
                problems.append(str(error))
                continue
            finally:
                bar.remove_task(task)
            listing.add(drive, path, images)
            console.print(f"{drive}: {count(len(images), 'frame')}", highlight=False, soft_wrap=True)
            if seen[0] < SHORT * seen[1]:
                problems.append(f"{path}: ends after {seen[0]} of {seen[1]} frames; these are kept. Copy it anew?")
    return problems


def extract(
    videos: list[str] | str,
    out: Path,
    classes: list[str],
    every: float = 1.0,
    difference: float = 0.0,
    quality: int = 95,
) -> None:
    """Frames of videos, for `data.format: coco` with `data.listing: frames.json`.

    Args:
        videos: a file, a folder to search, or a list of them; a video is a drive.
        out: folder to fill: images/ and frames.json.
        classes: names of the objects that will be labelled; their ids count from 1.
        every: seconds between two frames of a drive.
        difference: a frame is left out while it differs by less from the last one taken (a standing car): mean
            absolute difference in grey levels 0..255; 2 to 4 suit most cameras, 0 takes all.
        quality: of the JPEGs, 1..100.
    """
    if not every > 0:
        raise ConfigError(f"every: {every} seconds; give more than 0")
    if not difference >= 0:
        raise ConfigError(f"difference: {difference} grey levels; give 0 or more")
    if not 1 <= quality <= 100:
        raise ConfigError(f"quality: {quality}; give 1 to 100")
    if not classes or len(set(classes)) < len(classes):
        raise ConfigError(f"classes {classes}: name each class of object once")
    how, found = How(every, difference, quality), find_videos([videos] if isinstance(videos, str) else videos)
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    listing = open_listing(out, how, classes)
    console = Console(stderr=True)
    problems = extract_all(found, out, how, listing, console)
    frames = sum(int(v["frames"]) for v in listing.videos.values())
    console.print(
        f"{out / LISTING}: {count(len(listing.videos), 'drive')}, {count(frames, 'frame')}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if problems:
        raise DataError("\n".join(problems))


if __name__ == "__main__":
    try:
        auto_cli(extract, as_positional=False)
    except DalDenseError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
