"""The anatomy of a phantom: ellipsoids in millimetres, bent by a smooth warp, painted outside in.

Patient coordinates are LPS: x to the patient's left, y to the back, z to the head, in mm; the
origin lies in the middle of the body, in front of the spine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

LIVER, KIDNEY, SPLEEN, LESION = 1, 2, 3, 4

Number = float | int  # said aloud: run-time checks take no int for a float
Vector = tuple[Number, Number, Number]
Window = tuple[slice, slice, slice]

# HU by contrast phase: mean of the organ; patients vary by about 8 HU around it.
PHASES: dict[str, dict[str, float]] = {
    "native": {"liver": 55, "kidney": 34, "medulla": 28, "spleen": 48, "vessel": 42, "muscle": 52, "lesion": -36},
    "arterial": {"liver": 72, "kidney": 175, "medulla": 75, "spleen": 120, "vessel": 270, "muscle": 58, "lesion": -48},
    "portal": {"liver": 108, "kidney": 165, "medulla": 150, "spleen": 118, "vessel": 155, "muscle": 62, "lesion": -64},
}


@dataclass(frozen=True)
class Blob:
    """An ellipsoid: centre and radii in mm, turned about the head-foot axis by `turn` degrees."""

    centre: Vector
    radii: Vector
    turn: Number = 0.0


def _vector(values: np.ndarray) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


class Canvas:
    """HU and classes on the fine grid, painted from the outside in: what comes later lies on top."""

    def __init__(self, shape: Sequence[int], extent: Vector, rng: np.random.Generator) -> None:
        axes = [((np.arange(n) + 0.5) / n - 0.5) * mm for n, mm in zip(shape, extent, strict=True)]
        self.axes = [axis.astype(np.float32) for axis in axes]
        self.hu = np.full(tuple(shape), -1000, np.float32)
        self.label = np.zeros(tuple(shape), np.uint8)
        self.place = [_warped(self.axes, along, rng) for along in range(3)]

    def window(self, blobs: Sequence[Blob], margin: float = 17.0) -> Window:
        """The box of voxels that the blobs can reach."""
        found = []
        for along, axis in enumerate(self.axes):
            reach = [max(b.radii[:2]) if along < 2 and b.turn else b.radii[along] for b in blobs]
            low = min(b.centre[along] - r for b, r in zip(blobs, reach, strict=True)) - margin
            high = max(b.centre[along] + r for b, r in zip(blobs, reach, strict=True)) + margin
            found.append(slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high))))
        return found[0], found[1], found[2]

    def depth(self, blob: Blob, window: Window) -> Float[np.ndarray, "i j k"]:
        """How deep a voxel lies inside a blob, in mm (roughly; negative outside)."""
        x, y, z = (p[window] - np.float32(c) for p, c in zip(self.place, blob.centre, strict=True))
        if blob.turn:
            cos, sin = (np.float32(f(np.radians(blob.turn))) for f in (np.cos, np.sin))
            x, y = cos * x + sin * y, cos * y - sin * x
        a, b, c = (np.float32(r) for r in blob.radii)
        far = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        return np.asarray((1 - far) * min(blob.radii), np.float32)

    def inside(self, add: Sequence[Blob], cut: Sequence[Blob] = ()) -> tuple[Window, Bool[np.ndarray, "i j k"]]:
        """Where the union of some blobs, less others, lies."""
        window = self.window(add)
        deep = np.max([self.depth(b, window) for b in add], axis=0)
        for blob in cut:
            deep = np.minimum(deep, -self.depth(blob, window))
        return window, np.asarray(deep > 0)

    def paint(
        self,
        add: Sequence[Blob],
        hu: Number,
        *,
        label: int | None = None,
        cut: Sequence[Blob] = (),
        within: int | None = None,
    ) -> None:
        """Fill blobs with a HU and, unless None, a class; `within` keeps to voxels of that class."""
        window, mask = self.inside(add, cut)
        if within is not None:
            mask &= self.label[window] == within
        self.hu[window][mask] = hu
        if label is not None:
            self.label[window][mask] = label


def _warped(axes: Sequence[np.ndarray], along: int, rng: np.random.Generator) -> Float[np.ndarray, "i j k"]:
    """Coordinates along one axis after a smooth warp of a few mm: a sum of three standing waves."""
    x, y, z = np.ix_(*axes)
    out = np.zeros([len(a) for a in axes], np.float32) + (x, y, z)[along]
    for wavelength, size in ((220.0, 6.0), (110.0, 3.0), (45.0, 1.2)):
        turn = rng.uniform(0, 2 * np.pi, 3)
        wave = 2 * np.pi / (wavelength * rng.uniform(0.8, 1.25, 3))
        parts = [np.sin(a * k + t).astype(np.float32) for a, k, t in zip((x, y, z), wave, turn, strict=True)]
        out += np.float32(size * rng.uniform(0.5, 1.5)) * (parts[0] * parts[1] * parts[2])
    return np.asarray(out, np.float32)


class Patient:
    """Draws one patient's measures: size, phase, jitter of every organ."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.size = float(rng.uniform(0.87, 1.07))
        self.fat = float(rng.uniform(6, 24))
        self.phase = str(rng.choice(list(PHASES), p=(0.15, 0.25, 0.6)))
        self.tissue = {k: v + float(rng.normal(0, 8 if v > 60 else 4)) for k, v in PHASES[self.phase].items()}

    def blob(self, centre: Vector, radii: Vector, turn: Number = 0.0, *, loose: Number = 1.0) -> Blob:
        """An ellipsoid of this patient: scaled to the body, moved and reshaped at random."""
        move, grow = self.rng.normal(0, 3.5 * loose, 3), np.exp(self.rng.normal(0, 0.07 * loose, 3))
        x, y, z = ((c * self.size + m) for c, m in zip(centre, move, strict=True))
        a, b, c = (max(1.5, r * self.size * g) for r, g in zip(radii, grow, strict=True))
        return Blob(
            (float(x), float(y), float(z)), (float(a), float(b), float(c)), turn + float(self.rng.normal(0, 6 * loose))
        )


def paint_trunk(canvas: Canvas, patient: Patient) -> None:
    """Skin, fat, muscle wall, ribs, spine, lungs: all without a label."""
    rng, size = patient.rng, patient.size
    x, y, z = canvas.place
    wide, deep = 146 * size, 102 * size
    far = ((np.abs(x) / wide) ** 2.3 + (np.abs(y) / deep) ** 2.3) ** np.float32(1 / 2.3)
    depth = (1 - far) * deep  # mm below the skin
    wall = patient.fat
    canvas.hu[depth > 0] = rng.normal(-102, 5)
    canvas.hu[(depth > 0) & (depth < 2.5)] = 20.0
    canvas.hu[(depth > wall) & (depth < wall + 11)] = patient.tissue["muscle"]
    slope = np.abs(np.arctan2(x, y))  # 0 at the spine: ribs fall from the spine to the front
    rib = np.sin(2 * np.pi * (z + 75 * slope / np.pi) / (27 * size) + rng.uniform(0, 6)) > 0.5
    canvas.hu[rib & (depth > wall + 3) & (depth < wall + 9) & (z > -40 * size)] = rng.uniform(280, 480)
    for side in (-1, 1):
        canvas.paint([patient.blob((side * 34, 74, 0), (30, 19, 400))], patient.tissue["muscle"])
        canvas.paint([patient.blob((side * 37, 44, -85), (19, 22, 75))], patient.tissue["muscle"])
        lung = patient.blob((side * 66, 12, 112), (66, 78, 66))
        canvas.paint([lung], float(rng.uniform(-850, -760)))
    canvas.paint([patient.blob((0, -20, 118), (52, 48, 48))], patient.tissue["vessel"] * 0.6 + 30)  # heart
    _paint_spine(canvas, patient)


def _paint_spine(canvas: Canvas, patient: Patient) -> None:
    """Vertebral bodies with a dense rim, discs between them, canal and processes."""
    rng, size = patient.rng, patient.size
    bone = float(rng.uniform(150, 240))
    canvas.paint([Blob((0, 46 * size, 0), (23 * size, 18 * size, 900))], bone + 170)
    canvas.paint([Blob((0, 46 * size, 0), (20 * size, 15.5 * size, 900))], bone)
    window, column = canvas.inside([Blob((0, 46 * size, 0), (23 * size, 18 * size, 900))])
    disc = np.sin(2 * np.pi * canvas.place[2][window] / (33 * size) + rng.uniform(0, 6)) > 0.86
    canvas.hu[window][column & disc] = 85.0
    canvas.paint([Blob((0, 82 * size, 0), (4, 15 * size, 900))], bone + 120)
    canvas.paint([Blob((s * 22 * size, 68 * size, 0), (18 * size, 5, 900)) for s in (-1, 1)], bone + 90)
    canvas.paint([Blob((0, 68 * size, 0), (9, 8, 900))], 28.0)


def paint_lookalikes(canvas: Canvas, patient: Patient) -> None:
    """Vessels, pancreas, stomach, bowel: soft tissue that is none of the classes."""
    rng, tissue = patient.rng, patient.tissue
    canvas.paint([patient.blob((13, 20, 0), (10, 10, 900))], tissue["vessel"])
    canvas.paint([patient.blob((-19, 22, 0), (12, 10, 900))], tissue["vessel"] * 0.8)
    chain = [
        patient.blob((35 * t - 8, -4 - 8 * np.sin(2 * t), 2 + 10 * t), (16, 9, 10)) for t in np.linspace(-1, 1.4, 6)
    ]
    canvas.paint(chain, tissue["liver"] - 12)
    for _ in range(int(rng.integers(14, 24))):
        centre = (float(rng.uniform(-95, 95)), float(rng.uniform(-70, 5)), float(rng.uniform(-95, -28)))
        loop = patient.blob(
            centre, (float(rng.uniform(12, 24)), float(rng.uniform(11, 18)), float(rng.uniform(10, 22)))
        )
        canvas.paint([loop], float(rng.uniform(15, 75)))
        if rng.random() < 0.3:
            canvas.paint([Blob(loop.centre, (loop.radii[0] * 0.6, loop.radii[1] * 0.5, loop.radii[2] * 0.6))], -700.0)
    stomach = patient.blob((58, -34, 34), (38, 34, 44), 20, loose=1.6)
    canvas.paint([stomach], tissue["muscle"])
    inner = Blob(stomach.centre, (stomach.radii[0] - 5, stomach.radii[1] - 5, stomach.radii[2] - 5), stomach.turn)
    canvas.paint([inner], float(rng.uniform(5, 45)))
    window, lumen = canvas.inside([inner])
    level = canvas.axes[1][None, window[1], None] < stomach.centre[1] - rng.uniform(0, 22)  # gas floats up
    canvas.hu[window][lumen & level] = -930.0


def paint_organs(canvas: Canvas, patient: Patient) -> None:
    """The labelled organs; some patients lack the spleen or a kidney."""
    rng, tissue = patient.rng, patient.tissue
    if rng.random() > 0.1:
        grown = float(rng.choice((1.0, 1.3), p=(0.85, 0.15)))
        body = patient.blob((94, 26, 34), (30 * grown, 46 * grown, 44 * grown), 18, loose=1.4)
        hollow = patient.blob((60, 6, 34), (30, 40, 46), 18)
        canvas.paint([body], tissue["spleen"], label=SPLEEN, cut=[hollow])
    lost = int(rng.choice((0, -1, 1), p=(0.88, 0.06, 0.06)))
    for side in (-1, 1):
        if side != lost:
            _paint_kidney(canvas, patient, side)
    big = float(np.exp(rng.normal(0, 0.07)))
    lobes = [
        patient.blob((-66, -4, 30), (66 * big, 74 * big, 60 * big)),
        patient.blob((-52, -6, -8), (52 * big, 56 * big, 44 * big), loose=1.6),
        patient.blob((4, -44, 42), (62 * big, 34 * big, 34 * big), -8, loose=1.6),
    ]
    cut = [patient.blob((-58, 46, -26), (33, 33, 58)), patient.blob((-10, 44, 0), (34, 34, 900))]
    canvas.paint(lobes, tissue["liver"], label=LIVER, cut=cut)
    gall = patient.blob((-44, -42, -20), (15, 19, 24), 25, loose=1.5)
    canvas.paint([gall], float(rng.uniform(2, 16)), label=0)
    _paint_liver_vessels(canvas, patient)
    _paint_lesions(canvas, patient)


def _paint_kidney(canvas: Canvas, patient: Patient, side: int) -> None:
    """Cortex, medulla, and the fat of the hilum, which is not kidney; now and then a cyst that is."""
    rng, tissue = patient.rng, patient.tissue
    small = 0.72 if rng.random() < 0.12 else 1.0
    whole = patient.blob((side * 60, 42, -28 + 8 * side), (25 * small, 29 * small, 52 * small), side * 25, loose=1.3)
    x, y, z = whole.centre
    hilum = Blob((x - side * 20, y - 8, z), (17.0, 11.0, 17.0), whole.turn)
    canvas.paint([whole], tissue["kidney"], label=KIDNEY, cut=[hilum])
    a, b, c = whole.radii
    canvas.paint([Blob(whole.centre, (a * 0.62, b * 0.62, c * 0.75), whole.turn)], tissue["medulla"], within=KIDNEY)
    if rng.random() < 0.25:
        canvas.paint([Blob((x + side * a * 0.6, y, z + c * 0.4), (11.0, 11.0, 11.0))], 6.0, within=KIDNEY)


def _paint_liver_vessels(canvas: Canvas, patient: Patient) -> None:
    """Branches that run through the liver: chains of small balls, brighter than it after contrast."""
    rng = patient.rng
    hu = patient.tissue["liver"] + 0.45 * (patient.tissue["vessel"] - patient.tissue["liver"])
    for _ in range(5):
        start = np.array((-30.0, 0.0, 25.0)) * patient.size
        step = rng.normal(0, 1, 3) * (11, 8, 8) - (5, 1, 0)
        chain = [
            Blob(_vector(start + i * step + rng.normal(0, 2, 3)), (r, r, r + 1))
            for i, r in enumerate((6.5, 6, 5, 4.5, 4))
        ]
        canvas.paint(chain, hu, within=LIVER)


def _paint_lesions(canvas: Canvas, patient: Patient) -> None:
    """Liver lesions: none in every seventh patient, else one to four; most as dark as water, the others faint."""
    rng = patient.rng
    voxel_mm = float(canvas.axes[0][1] - canvas.axes[0][0])
    deep = ndimage.binary_erosion(canvas.label == LIVER, iterations=max(1, round(8 / voxel_mm)))
    places = np.argwhere(deep)
    if not len(places):
        return
    for _ in range(int(rng.choice(5, p=(0.15, 0.2, 0.25, 0.2, 0.2)))):
        radius = float(np.exp(rng.uniform(np.log(8.0), np.log(28.0))))
        voxel = tuple(places[int(rng.integers(len(places)))])
        at = np.array([p[voxel] for p in canvas.place])
        knobs = [
            Blob(_vector(at + rng.normal(0, 0.35 * radius, 3)), _vector(radius * rng.uniform(0.6, 1.0, 3)))
            for _ in range(3)
        ]
        faint = patient.tissue["liver"] + patient.tissue["lesion"] * float(rng.uniform(0.8, 1.4))
        fluid = float(rng.uniform(0, 25))
        hu = fluid if rng.random() < 0.6 else faint
        canvas.paint(knobs, hu, label=LESION, within=LIVER)
        if radius > 12 and rng.random() < 0.4:  # a dead core
            core = [Blob(knobs[0].centre, _vector(0.5 * np.array(knobs[0].radii)))]
            canvas.paint(core, fluid, within=LESION)
