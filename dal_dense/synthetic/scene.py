"""A street in metres and a pinhole camera: flat shapes painted far to near into one map of ids.

Every shape paints its number; colour, class, object and depth are looked up by number at the end,
so they can never disagree. The ground is not painted but computed: each pixel below the horizon
knows where on the street it lies.

Street coordinates: X to the right, Y up, Z ahead of the camera, in metres; the road bends by
`bend * Z^2`. Pixels are (row, column), the mask's class numbers are those of `driving.DRIVING_CLASSES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

IGNORE = 255
NEAR = 1.2  # m: what is nearer is cut off
_SHIFT = 4  # binary digits of a pixel that OpenCV's polygons keep

Number = float | int
"""Said aloud: run-time checks take no int for a float."""

Colour = tuple[Number, Number, Number]
"""Red, green, blue, 0 to 255."""

Point = tuple[Number, Number, Number]
"""X, Y, Z in metres."""


@dataclass(frozen=True)
class Camera:
    """A forward-looking camera.

    Attributes:
        rows, columns: size of the picture it renders.
        focal: in pixels.
        horizon: row of the horizon.
        height: above the road, m.
        bend: of the road, 1/m.
    """

    rows: int
    columns: int
    focal: float
    horizon: float
    height: float
    bend: float

    def project(self, points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 2"]:
        """(column, row) of points ahead of the camera."""
        x, y, z = points.T
        column = self.columns / 2 + self.focal * (x + self.bend * z**2) / z
        return np.stack([column, self.horizon + self.focal * (self.height - y) / z], 1)

    def ground(self) -> tuple[Float32[np.ndarray, "rows columns"], Float32[np.ndarray, "rows columns"]]:
        """X and Z of the ground under each pixel; Z is infinite at and above the horizon."""
        below = np.maximum(np.arange(self.rows, dtype=np.float32)[:, None] + 0.5 - self.horizon, 1e-6)
        z = np.where(below > 1e-5, self.focal * self.height / below, np.inf).astype(np.float32)
        finite = np.where(np.isfinite(z), z, 0)
        x = (np.arange(self.columns, dtype=np.float32)[None] + 0.5 - self.columns / 2) / self.focal * finite
        x = x - self.bend * finite**2
        return x.astype(np.float32), np.broadcast_to(z, x.shape)


@dataclass(frozen=True)
class Layers:
    """A rendered frame before weather and lens.

    Attributes:
        colour: 0 to 255, linear enough for a demo.
        label: class numbers or `IGNORE`.
        thing: object number, 0 where there is none.
        depth: metres; infinite in the sky.
    """

    colour: Float32[np.ndarray, "rows columns 3"]
    label: UInt8[np.ndarray, "rows columns"]
    thing: Int32[np.ndarray, "rows columns"]
    depth: Float32[np.ndarray, "rows columns"]


class Painter:
    """Collects shapes far to near, then looks their colours, classes and objects up."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self._id = np.zeros((camera.rows, camera.columns), np.int32)
        self._rows: list[tuple[Colour, int, int, float]] = [((0.0, 0.0, 0.0), 0, 0, 0.0)]

    def polygon(self, points: Sequence[Point], colour: Colour, label: int, thing: int = 0) -> None:
        """A flat shape; the part behind the near plane is cut away."""
        kept = _clipped(np.asarray(points, np.float64))
        if len(kept) < 3:
            return
        corners = self.camera.project(kept)
        if corners[:, 0].max() < 0 or corners[:, 0].min() > self.camera.columns or corners[:, 1].max() < 0:
            return
        flat = np.clip(np.round((corners - 0.5) * (1 << _SHIFT)), -(1 << 18), 1 << 18).astype(np.int32)
        cv2.fillPoly(self._id, [flat], len(self._rows), lineType=cv2.LINE_8, shift=_SHIFT)
        self._rows.append((colour, label, thing, float(kept[:, 2].mean())))

    def plate(
        self, x: tuple[Number, Number], y: tuple[Number, Number], z: Number, colour: Colour, label: int, thing: int = 0
    ) -> None:
        """A rectangle that faces the camera."""
        self.polygon([(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)], colour, label, thing)

    def wall(
        self, x: Number, y: tuple[Number, Number], z: tuple[Number, Number], colour: Colour, label: int, thing: int = 0
    ) -> None:
        """A rectangle that runs along the street."""
        self.polygon([(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])], colour, label, thing)

    def disc(
        self, x: float, y: float, z: float, radius: float, colour: Colour, label: int, thing: int = 0, sides: int = 10
    ) -> None:
        """A round shape that faces the camera."""
        turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
        self.polygon([(x + radius * np.cos(t), y + radius * np.sin(t), z) for t in turn], colour, label, thing)

    def over(self, colour: np.ndarray, label: np.ndarray, depth: np.ndarray) -> Layers:
        """All shapes, on top of a background."""
        paint = np.array([row[0] for row in self._rows], np.float32)[self._id]
        painted = self._id > 0
        labels, things, depths = (np.array([row[k] for row in self._rows])[self._id] for k in (1, 2, 3))
        return Layers(
            colour=np.where(painted[..., None], paint, colour).astype(np.float32),
            label=np.where(painted, labels, label).astype(np.uint8),
            thing=np.where(painted, things, 0).astype(np.int32),
            depth=np.where(painted, depths, depth).astype(np.float32),
        )


def _clipped(points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "kept 3"]:
    """The part of a polygon ahead of the near plane (Sutherland & Hodgman 1974)."""
    if (points[:, 2] >= NEAR).all():
        return points
    kept = []
    for here, there in zip(points, np.roll(points, -1, 0), strict=True):
        if here[2] >= NEAR:
            kept.append(here)
        if (here[2] >= NEAR) != (there[2] >= NEAR):
            kept.append(here + (there - here) * (NEAR - here[2]) / (there[2] - here[2]))
    return np.array(kept).reshape(-1, 3)


def speckle(rng: np.random.Generator, side: int = 256) -> Float32[np.ndarray, "side side"]:
    """A texture that repeats without a seam: noise of three grain sizes, mean 0, deviation 1."""
    out = np.zeros((side, side), np.float32)
    for grain, weight in ((1, 1.0), (4, 1.0), (24, 1.2)):
        noise = rng.standard_normal((side, side)).astype(np.float32)
        tiled = cv2.GaussianBlur(np.tile(noise, (3, 3)), (0, 0), grain * 0.7)[side : 2 * side, side : 2 * side]
        out += weight * tiled / tiled.std()
    return np.asarray(out / out.std(), np.float32)


def sampled(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> Float32[np.ndarray, "rows columns"]:
    """The texture at finite (u, v) texels, repeated for ever."""
    side = texture.shape[0]
    u, v = (np.asarray(c - side * np.floor(c / side), np.float32) for c in np.broadcast_arrays(u, v))
    return np.asarray(cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.float32)
