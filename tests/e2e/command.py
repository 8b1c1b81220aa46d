"""What the tests of the whole program share: the command in this process, its end, and what its ledger tells."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np

from dal_dense.config import Config
from dal_dense.costs import cost_model
from dal_dense.ledger import Ledger
from dal_dense.pool import Pool
from tests.toy import ToyTask

SCRIPT = Path(__file__).parents[2] / "tools" / "train_al.py"


@dataclass(frozen=True)
class Ended:
    """How a call ended: exit status, and what it said with line breaks as spaces."""

    status: int
    out: str
    err: str


TrainAl = Callable[[list[str]], Ended]


def main_of_script() -> Callable[[list[str]], int]:
    """`main` of `tools/train_al.py`."""
    spec = importlib.util.spec_from_file_location("train_al", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main


def build_toy(config: Config, pool: Pool, channels: int) -> ToyTask:
    """Stands in for `build.build_task`."""
    costs = cost_model(config.costs)
    return ToyTask(query=config.query, costs=costs, classes=pool.classes, mask_of=pool.mask, seed=config.seed)


def story(run_dir: Path) -> list[object]:
    """All that must not depend on when the run was stopped."""
    with Ledger.read(run_dir) as ledger:
        answers = [(a.region.id, a.label.tobytes(), a.seconds, a.image_seconds, a.arrived) for a in ledger.answered()]
        fits = [(f.round, f.sha256) for f in ledger.fits()]
        return [ledger.queries(), answers, fits, ledger.measurements(), ledger.spent()]


def labels(run_dir: Path) -> dict[str, bytes]:
    """Every label that the ledger keeps, by region."""
    with Ledger.read(run_dir) as ledger:
        return {a.region.id: a.label.tobytes() for a in ledger.answered()}


def batch(run_dir: Path, number: int) -> Path:
    """Where a round's batch lies."""
    return run_dir / "queries" / f"round_{number:03d}"


def draw(data: Path, folder: Path, which: Sequence[int] | None = None, *, wrong: bool = False) -> list[str]:
    """Play the people: label these regions of a batch of volumes, all by default. Returns their ids."""
    regions = json.loads((folder / "query.json").read_text())["regions"]
    done = []
    for entry in regions if which is None else [regions[i] for i in which]:
        region = entry["region"]
        truth = np.asarray(nib.load(data / "labelsTr" / f"{region['image_id']}.nii.gz").dataobj).astype(np.uint8)
        box = tuple(slice(a, b) for a, b in zip(region["start"], region["stop"], strict=True))
        label = np.full_like(truth[box], 2) if wrong else truth[box]
        crop = nib.load(folder / entry["files"]["image"])
        nib.save(nib.Nifti1Image(label, crop.affine), folder / "returned" / f"{region['id']}.nii.gz")
        done.append(region["id"])
    return done


def draw_frames(data: Path, folder: Path) -> list[str]:
    """The same for a batch of frames, as PNG of class numbers."""
    done = []
    for entry in json.loads((folder / "query.json").read_text())["regions"]:
        region = entry["region"]
        truth = cv2.imread(str(data / "masks" / f"{region['image_id']}.png"), cv2.IMREAD_UNCHANGED)
        box = tuple(slice(a, b) for a, b in zip(region["start"], region["stop"], strict=True))
        cv2.imwrite(str(folder / "returned" / f"{region['id']}.png"), truth[box])
        done.append(region["id"])
    return done
