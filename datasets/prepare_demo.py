#!/usr/bin/env python
"""Make the data of the demo: CT phantoms or synthetic driving frames.

    python datasets/prepare_demo.py ct runs/demo_ct/data [--seed 0 --train 16 --test 6 --shape "[64,48,32]"]
    python datasets/prepare_demo.py driving runs/demo_driving/data [--drives 4 --frames_per_drive 15 ...]

Does nothing if that very set is there already; the same numbers always make the same files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, auto_cli
from rich.console import Console
from rich.progress import Progress

from dal_dense.cli import command, wrong_value
from dal_dense.errors import ConfigError
from dal_dense.synthetic import ensure_ct, ensure_driving


def _with_bar(make: Any, root: Path, **numbers: Any) -> None:
    with Progress(transient=True) as bar:
        task = bar.add_task("")
        made = make(
            root,
            **numbers,
            progress=lambda what, n, total: bar.update(task, description=what, completed=n, total=total),
        )
    Console().print(f"{root}: {'made' if made else 'there already'}", highlight=False, soft_wrap=True)


def ct(root: Path, seed: int = 0, train: int = 16, test: int = 6, shape: tuple[int, int, int] = (64, 48, 32)) -> None:
    """CT phantoms of the upper abdomen, as an MSD-style folder.

    Args:
        root: folder to make.
        seed: everything random comes from it.
        train: patients in the pool.
        test: patients to measure with.
        shape: voxels right-left, front-back, foot-head.
    """
    _with_bar(ensure_ct, root, seed=seed, train=train, test=test, shape=shape)


def driving(
    root: Path,
    seed: int = 0,
    drives: int = 4,
    frames_per_drive: int = 15,
    test_drives: int = 4,
    test_frames_per_drive: int = 4,
    size: tuple[int, int] = (192, 320),
) -> None:
    """Synthetic driving frames: images, index masks, splits, COCO boxes.

    Args:
        root: folder to make.
        seed: everything random comes from it.
        drives: drives in the pool; sun, dusk, overcast and fog take turns.
        frames_per_drive: frames of each.
        test_drives: drives to measure with.
        test_frames_per_drive: frames of each.
        size: rows, columns.
    """
    _with_bar(
        ensure_driving,
        root,
        seed=seed,
        drives=drives,
        frames_per_drive=frames_per_drive,
        test_drives=test_drives,
        test_frames_per_drive=test_frames_per_drive,
        size=size,
    )


@command
def main(argv: list[str]) -> int:
    """Make the set that the first argument names."""
    try:
        auto_cli([ct, driving], args=argv, as_positional=True, exit_on_error=False)
    except ArgumentError as problem:
        raise ConfigError(_one_line(str(problem))) from None
    return 0


def _one_line(text: str) -> str:
    """The parser's words as `argument: fact; what to do`."""
    key = re.search(r'Parser key "([\w.]+)"', text)
    told = key and wrong_value(key[1], text)
    return told or f"{' '.join(text.split()).rstrip('.')}; correct it, or see --help"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
