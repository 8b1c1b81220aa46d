"""What stands and moves along a synthetic street, and how each kind of thing is drawn.

`Item.z` is metres along the street; `ahead` is metres ahead of the camera at the time of a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dal_dense.synthetic.scene import IGNORE, Colour, Painter

ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, VEHICLE, PERSON, SIGN = range(8)

_DARK: Colour = (28, 29, 33)
_GLASS: Colour = (58, 68, 80)


@dataclass(frozen=True)
class Item:
    """One thing of the street.

    Attributes:
        kind: a key of `DRAW`.
        x, z: middle of its near end, m; a building's x is its face's.
        size: width, height, length, m.
        colour, second: paint.
        speed: along x and z, m a second.
        thing: object number; 0 for stuff that is not counted.
        look: six numbers in 0..1 that vary its shape.
    """

    kind: str
    x: float
    z: float
    size: tuple[float, float, float]
    colour: Colour
    second: Colour
    speed: tuple[float, float] = (0.0, 0.0)
    thing: int = 0
    look: tuple[float, ...] = (0.5,) * 6


@dataclass(frozen=True)
class Moment:
    """What drawing needs to know of a frame: its time, the sun's side (-1, 1, 0: no sun), lamps lit."""

    time: float
    sun: int
    lit: bool


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour, so much brighter or darker."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _building(p: Painter, item: Item, x: float, ahead: float, now: Moment) -> None:
    side = 1 if x > 0 else -1
    _, height, length = item.size
    face = shaded(item.colour, 0.62 if now.sun == side else 1.0)
    end = shaded(item.colour, 0.8)
    p.plate((x, x + side * 14), (0, height), ahead, end, BUILDING)
    p.wall(x, (0, height), (ahead, ahead + length), face, BUILDING)
    floors, bay = max(1, round(height / 3.2)), 2.2 + 2.0 * item.look[0]
    pane = (225.0, 190.0, 110.0) if now.lit else shaded(_GLASS, 0.8 + 0.6 * item.look[1])
    if ahead + length < 3 or ahead > 60:
        return
    for floor in range(floors):
        low = floor * height / floors + (0.9 if floor else 0.3)
        for n in range(int(length / bay)):
            near = ahead + (n + 0.25) * bay
            dark = now.lit and (n * 7 + floor * 3 + int(item.look[2] * 10)) % 3
            colour = shaded(_GLASS, 0.5) if dark else pane
            p.wall(x, (low, low + 1.2 + 0.5 * item.look[3]), (near, near + bay * 0.5), colour, BUILDING)
    if item.look[4] > 0.6:  # awning or shop front: bright, but no sign
        near = ahead + item.look[5] * length * 0.6
        p.wall(x - side * 0.1, (2.6, 3.4), (near, near + 4.5), item.second, BUILDING)


def _tree(p: Painter, item: Item, x: float, ahead: float, now: Moment) -> None:
    width, height, _ = item.size
    p.plate((x - 0.16, x + 0.16), (0, height * 0.6), ahead, (74, 58, 44), VEGETATION)
    spin = np.array(item.look) * 2 * np.pi
    for n in range(12):
        turn, out = spin[n % 6] + n * 2.4, width * (0.15 + 0.4 * ((n * 0.618 + item.look[n % 6]) % 1))
        cx, cy = x + out * np.cos(turn), height * 0.72 + out * 0.8 * np.sin(turn)
        light = 0.65 + 0.55 * ((n * 0.37 + item.look[(n + 2) % 6]) % 1)
        p.disc(cx, cy, ahead, width * 0.3, shaded(item.colour, light), VEGETATION, sides=8)


def _hedge(p: Painter, item: Item, x: float, ahead: float, now: Moment) -> None:
    side = 1 if x > 0 else -1
    width, height, length = item.size
    p.plate((x, x + side * width), (0, height), ahead, shaded(item.colour, 0.8), VEGETATION)
    p.wall(x, (0, height), (ahead, ahead + length), item.colour, VEGETATION)


def _vehicle(p: Painter, item: Item, x: float, ahead: float, now: Moment) -> None:
    """A body and a narrower cabin; the side that looks to the camera, then the end that does."""
    width, height, length = item.size
    oncoming = item.speed[1] < 0
    boxy = height > 1.9
    left, right = x - width / 2, x + width / 2
    waist = height * (0.5 if boxy else 0.58)
    inner = right if right < 0 else left  # the flank that can be seen
    flank, end = shaded(item.colour, 0.72), item.colour
    p.wall(inner, (0.25, waist), (ahead, ahead + length), flank, VEHICLE, item.thing)
    top = (ahead, ahead + length) if boxy else (ahead + 0.14 * length, ahead + 0.72 * length)
    for level, span, light in ((waist, (ahead, ahead + length), 1.1), (height, top, 1.2)):  # bonnet and boot, roof
        deck = [(left, level, span[0]), (right, level, span[0]), (right, level, span[1]), (left, level, span[1])]
        if level < p.camera.height:
            p.polygon(deck, shaded(item.colour, light), VEHICLE, item.thing)
        else:
            p.plate((left, right), (waist, height), top[1], end, VEHICLE, item.thing)
    p.wall(inner, (waist, height), top, shaded(_GLASS, 0.7) if not boxy else flank, VEHICLE, item.thing)
    for at in (0.18, 0.8):
        middle = ahead + at * length
        p.wall(inner, (0.0, 0.62), (middle - 0.32, middle + 0.32), _DARK, VEHICLE, item.thing)
    p.plate((left, right), (0.28, waist), ahead, end, VEHICLE, item.thing)
    for wheel in (left + 0.05, right - 0.35):
        p.plate((wheel, wheel + 0.3), (0.0, 0.4), ahead, _DARK, VEHICLE, item.thing)
    shrink = 0.03 if boxy else 0.14
    p.plate((left + shrink, right - shrink), (waist, height), top[0], end, VEHICLE, item.thing)
    p.plate(
        (left + shrink + 0.1, right - shrink - 0.1), (waist + 0.06, height - 0.14), top[0], _GLASS, VEHICLE, item.thing
    )
    lamp: Colour = (255, 250, 225) if oncoming else ((255, 60, 45) if now.lit else (150, 26, 24))
    for start in (left + 0.08, right - 0.38):
        p.plate((start, start + 0.3), (waist - 0.3, waist - 0.12), ahead, lamp, VEHICLE, item.thing)
    p.plate((x - 0.26, x + 0.26), (0.42, 0.55), ahead, (215, 215, 205), VEHICLE, item.thing)


def _person(p: Painter, item: Item, x: float, ahead: float, now: Moment) -> None:
    width, height, _ = item.size
    stride = 0.17 * np.sin(now.time * 6 + item.look[0] * 6) * (1 if item.speed != (0.0, 0.0) else 0.15)
    hip, neck = 0.48 * height, 0.84 * height
    for sign in (-1, 1):
        foot = x + sign * (0.07 + stride)
        p.polygon(
            [(x - 0.08, hip, ahead), (x + 0.08, hip, ahead), (foot + 0.07, 0, ahead), (foot - 0.07, 0, ahead)],
            item.second,
            PERSON,
            item.thing,
        )
    half = width / 2
    p.polygon(
        [
            (x - half * 0.75, hip - 0.06, ahead),
            (x + half * 0.75, hip - 0.06, ahead),
            (x + half, neck - 0.06, ahead),
            (x + half * 0.4, neck, ahead),
            (x - half * 0.4, neck, ahead),
            (x - half, neck - 0.06, ahead),
        ],
        item.colour,
        PERSON,
        item.thing,
    )
    skin = shaded((205, 160, 130), 0.45 + 0.65 * item.look[1])
    p.disc(x, height - 0.13, ahead, 0.12, skin, PERSON, item.thing, sides=8)
    if item.look[2] > 0.5:  # hair or a hat
        p.plate(
            (x - 0.12, x + 0.12),
            (height - 0.1, height),
            ahead,
            shaded((60, 45, 35), item.look[3] * 1.5),
            PERSON,
            item.thing,
        )


def _sign(p: Painter, item: Item, x: float, ahead: float, now: Moment) -> None:
    """A panel on a post; posts are thinner than a pixel mostly and are not judged."""
    width, height, _ = item.size
    p.plate((x - 0.05, x + 0.05), (0, height), ahead, (120, 122, 125), IGNORE)
    half, centre = width / 2, height - width / 2
    shape = int(item.look[0] * 4)
    if shape == 0:
        p.disc(x, centre, ahead, half, item.colour, SIGN, item.thing, sides=12)
        p.disc(x, centre, ahead, half * 0.68, item.second, SIGN, item.thing, sides=12)
    elif shape == 1:
        for size, colour in ((1.0, item.colour), (0.6, item.second)):
            tip = [
                (x - half * size, centre - half * size * 0.8, ahead),
                (x + half * size, centre - half * size * 0.8, ahead),
                (x, centre + half * size, ahead),
            ]
            p.polygon(tip, colour, SIGN, item.thing)
    elif shape == 2:
        p.plate((x - half, x + half), (centre - half, centre + half), ahead, item.colour, SIGN, item.thing)
        p.plate(
            (x - half * 0.6, x + half * 0.6),
            (centre - half * 0.5, centre + half * 0.6),
            ahead,
            item.second,
            SIGN,
            item.thing,
        )
    else:  # traffic light
        p.plate((x - 0.2, x + 0.2), (height - 0.95, height), ahead, _DARK, SIGN, item.thing)
        glow: Colour = (245, 50, 35) if item.look[1] > 0.5 else (60, 235, 110)
        p.disc(x, height - (0.22 if item.look[1] > 0.5 else 0.74), ahead, 0.13, glow, SIGN, item.thing, sides=8)


def _lamp(p: Painter, item: Item, x: float, ahead: float, now: Moment) -> None:
    side = 1 if x > 0 else -1
    p.plate((x - 0.07, x + 0.07), (0, item.size[1]), ahead, (96, 98, 100), IGNORE)
    p.plate(
        (min(x, x - side * 1.4), max(x, x - side * 1.4)),
        (item.size[1] - 0.14, item.size[1]),
        ahead,
        (96, 98, 100),
        IGNORE,
    )
    if now.lit:
        p.disc(x - side * 1.3, item.size[1] - 0.2, ahead, 0.22, (255, 236, 180), IGNORE, sides=8)


DRAW: dict[str, Callable[[Painter, Item, float, float, Moment], None]] = {
    "building": _building,
    "tree": _tree,
    "hedge": _hedge,
    "vehicle": _vehicle,
    "person": _person,
    "sign": _sign,
    "lamp": _lamp,
}
