"""One drive: a street laid out at random, its weather, and the pictures taken along it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8
from scipy import ndimage

from dal_dense.synthetic.scene import IGNORE, NEAR, Camera, Colour, Layers, Number, Painter, sampled, speckle
from dal_dense.synthetic.street import (
    DRAW,
    PERSON,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    VEGETATION,
    VEHICLE,
    Item,
    Moment,
    shaded,
)

_FINE = 2  # fine pixels a pixel and axis
_FAR = 85.0  # m: nothing stands further away
_LANE = 3.3  # m
_SPECK = 6  # pixels: smaller pieces of an object are cleaned away
_SLIVER = 1 / 1500  # of the picture: smaller pieces of ground, sky, walls are

_CLOTHES = (
    (35, 40, 60),
    (150, 40, 40),
    (200, 195, 185),
    (60, 90, 60),
    (90, 88, 86),
    (40, 40, 42),
    (190, 150, 60),
    (70, 100, 160),
)
_PAINT = (
    (200, 202, 205),
    (40, 42, 46),
    (120, 122, 126),
    (150, 30, 32),
    (45, 70, 130),
    (170, 165, 150),
    (70, 95, 80),
    (225, 225, 222),
)
_BRICK = ((150, 120, 100), (170, 160, 140), (120, 112, 108), (140, 90, 78), (190, 182, 165), (112, 118, 124))
_PANEL = (
    ((190, 30, 35), (235, 235, 230)),
    ((30, 70, 160), (225, 228, 235)),
    ((220, 180, 40), (40, 40, 40)),
    ((40, 110, 70), (230, 232, 230)),
)


@dataclass(frozen=True)
class Weather:
    """Light and air of a drive.

    Attributes:
        gain: brightness of the whole picture.
        shade: light left in cast shadows, 1: no shadows.
        haze: metres after which 1/e of an object's own colour is left.
        air: colour of haze and low sky; `zenith`: of the high sky.
        noise: of the sensor, in grey values.
        lit: lamps and windows are on.
    """

    gain: float
    shade: float
    haze: Number
    air: Colour
    zenith: Colour
    noise: float
    lit: bool = False


WEATHER: dict[str, Weather] = {
    "sun": Weather(1.12, 0.42, 420, (205, 218, 232), (95, 145, 215), 3.0),
    "dusk": Weather(0.52, 1.0, 260, (205, 150, 120), (70, 76, 120), 6.5, lit=True),
    "overcast": Weather(0.92, 1.0, 230, (188, 192, 196), (150, 156, 164), 4.0),
    "fog": Weather(0.95, 1.0, 34, (186, 190, 192), (172, 177, 182), 4.0),
}


@dataclass(frozen=True)
class Frame:
    """One picture with its truth.

    Attributes:
        image: red, green, blue.
        label: class numbers, 255 where nothing is judged (posts, own bonnet).
        thing: object number, 0 where there is none; the same object keeps its number in a drive.
    """

    image: UInt8[np.ndarray, "rows columns 3"]
    label: UInt8[np.ndarray, "rows columns"]
    thing: Int32[np.ndarray, "rows columns"]


class Drive:
    """A street with everything on it. `frame(n)` is the n-th picture; any order, any subset.

    Args:
        rng: all of the layout comes from it.
        weather: a key of `WEATHER`.
        size: rows, columns of a picture.
        step: seconds between pictures.
    """

    def __init__(self, rng: np.random.Generator, weather: str, size: tuple[int, int], step: float) -> None:
        self.size, self.step, self.weather = size, step, WEATHER[weather]
        self.noise_seed = int(rng.integers(2**62))
        self.mirrored = bool(rng.random() < 0.3)  # traffic on the left
        self.height, self.focal, self.tilt = rng.uniform(1.25, 2.3), rng.uniform(0.72, 0.98), rng.uniform(0.4, 0.5)
        self.speed, self.bend, self.bend_wave = rng.uniform(4, 9), rng.uniform(0, 0.0022), rng.uniform(150, 400)
        self.sun = int(rng.choice((-1, 1))) if self.weather.shade < 1 else 0
        self.reach = rng.uniform(0.45, 1.2)  # shadow length a metre of height
        self.parking = rng.random(2) < 0.6  # left, right
        self.left, self.right = -1.5 * _LANE - 2.2 * self.parking[0], 0.5 * _LANE + 2.2 * self.parking[1]
        self.walk = rng.uniform(1.8, 4.0)
        self.verge = float(rng.choice((0.0, 1.5, 5.0)))
        self.crossing, self.period = rng.uniform(25, 70), rng.uniform(60, 100)
        self.asphalt, self.paving = rng.uniform(70, 118), rng.uniform(110, 165)
        self.bonnet = rng.uniform(0.03, 0.09) if rng.random() < 0.6 else 0.0
        self.texture = speckle(rng)
        self.items = _layout(self, rng, length=400.0)

    def crossing_near(self, z: np.ndarray) -> Bool[np.ndarray, "..."]:
        """Whether a place along the street lies in a side street."""
        return np.asarray(np.abs(np.mod(z - self.crossing + self.period / 2, self.period) - self.period / 2) < 4.5)

    def frame(self, number: int) -> Frame:
        """The picture taken `number` steps into the drive."""
        time = number * self.step
        at = self.speed * time
        rows, columns = (n * _FINE for n in self.size)
        bend = self.bend * np.sin(2 * np.pi * at / self.bend_wave)
        shake = 0.006 * np.sin(9.1 * time) * rows
        camera = Camera(rows, columns, self.focal * columns, self.tilt * rows + shake, self.height, bend)
        painter = Painter(camera)
        now = Moment(time, self.sun, self.weather.lit)
        placed = [(item, item.x + item.speed[0] * time, item.z + item.speed[1] * time - at) for item in self.items]
        seen = [p for p in placed if p[2] < _FAR and p[2] + p[0].size[2] > NEAR]
        for item, x, ahead in sorted(
            seen, key=lambda p: -p[2] - (0.5 * p[0].size[2] if p[0].kind == "building" else 0)
        ):
            DRAW[item.kind](painter, item, x, ahead, now)
        layers = painter.over(*_background(self, camera, at, seen))
        return _photograph(self, layers, number)


def _layout(drive: Drive, rng: np.random.Generator, length: float) -> tuple[Item, ...]:
    """Everything along the street, near to far."""
    items: list[Item] = []
    for side, edge in ((-1, drive.left), (1, drive.right)):
        kerb, line = edge + side * 0.5, edge + side * (drive.walk + drive.verge)
        items += _fronts(drive, rng, side, line, length)
        for z in np.arange(rng.uniform(5, 20), length, rng.uniform(24, 45)):
            items.append(Item("lamp", kerb, float(z), (0.2, 6.5, 0.2), (0, 0, 0), (0, 0, 0)))
        for z in np.cumsum(rng.uniform(14, 45, 25)):
            colour, second = _PANEL[int(rng.integers(len(_PANEL)))]
            size = (float(rng.uniform(0.6, 1.1)), float(rng.uniform(2.3, 3.4)), 0.1)
            items.append(Item("sign", kerb + side * 0.15, float(z), size, colour, second, look=_look(rng)))
        if drive.verge > 1 or rng.random() < 0.4:
            for z in np.cumsum(rng.uniform(8, 22, 40)):
                size = (float(rng.uniform(2.2, 4.2)), float(rng.uniform(4.5, 8.5)), 0.5)
                green = shaded((88, 120, 58), float(rng.uniform(0.6, 1.2)))
                items.append(Item("tree", line - side * 0.8, float(z), size, green, green, look=_look(rng)))
        for z in np.cumsum(rng.exponential(16, 40)) - 5:
            items.append(_walker(rng, edge + side * float(rng.uniform(0.4, drive.walk)), float(z)))
    for z in np.cumsum(rng.exponential(55, 6)) + 15:  # those who cross the road
        walker = _walker(rng, drive.right, float(z))
        items.append(
            replace(walker, x=float(rng.uniform(drive.left, drive.right)), speed=(float(rng.normal(0, 0.7)), 0.0))
        )
    items += _traffic(drive, rng, length)
    return tuple(replace(i, thing=n + 1 if i.kind in ("vehicle", "person", "sign") else 0) for n, i in enumerate(items))


def _look(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(float(v) for v in rng.random(6))


def _fronts(drive: Drive, rng: np.random.Generator, side: int, line: float, length: float) -> list[Item]:
    """Houses, hedges and gaps along one side, leaving the side streets free."""
    items = []
    z = -30.0
    built = rng.uniform(0.45, 0.95)
    while z < length + _FAR:
        run = float(rng.uniform(8, 24))
        if drive.crossing_near(np.linspace(z, z + run, 12)).any():
            z += 3.0
            continue
        if rng.random() < built:
            size = (14.0, float(rng.uniform(4, 17)), run)
            colour = shaded(_BRICK[int(rng.integers(len(_BRICK)))], float(rng.uniform(0.75, 1.15)))
            awning = _PANEL[int(rng.integers(len(_PANEL)))][0]
            items.append(Item("building", line, z, size, colour, awning, look=_look(rng)))
        else:
            green = shaded((82, 104, 56), float(rng.uniform(0.6, 1.1)))
            items.append(Item("hedge", line, z, (6.0, float(rng.uniform(0.8, 3.0)), run), green, green))
        z += run
    return items


def _walker(rng: np.random.Generator, x: float, z: float) -> Item:
    size = (float(rng.uniform(0.42, 0.6)), float(rng.choice((1.2, 1.65, 1.75, 1.85), p=(0.12, 0.3, 0.33, 0.25))), 0.3)
    shirt, legs = (shaded(_CLOTHES[int(rng.integers(len(_CLOTHES)))], float(rng.uniform(0.7, 1.2))) for _ in range(2))
    speed = float(rng.choice((-1.3, 0.0, 1.3))) * float(rng.uniform(0.7, 1.2))
    return Item("person", x, z, size, shirt, legs, (0.0, speed), look=_look(rng))


def _traffic(drive: Drive, rng: np.random.Generator, length: float) -> list[Item]:
    """Parked cars, cars ahead, cars that come towards us."""
    items = []
    lanes = [(drive.left + 1.1, 0.0, 9.0, drive.parking[0]), (drive.right - 1.1, 0.0, 8.0, drive.parking[1])]
    lanes += [(0.0, drive.speed, 45.0, True), (-_LANE, -drive.speed, 34.0, True)]
    for x, speed, gap, used in lanes:
        z = float(rng.uniform(8, 30))
        while used and z < length * (2.0 if speed < 0 else 1.0):
            kind = rng.choice(3, p=(0.78, 0.13, 0.09))
            size = ((1.78, 1.48, 4.2), (1.95, 2.25, 5.2), (2.45, 3.1, 8.5))[kind]
            own = speed * float(rng.uniform(0.75, 1.15))
            paint = shaded(_PAINT[int(rng.integers(len(_PAINT)))], float(rng.uniform(0.8, 1.1)))
            if not (speed == 0 and drive.crossing_near(np.array([z, z + size[2]])).any()):
                offset = float(rng.normal(0, 0.12))
                items.append(Item("vehicle", x + offset, z, size, paint, paint, (0.0, own), look=_look(rng)))
            z += size[2] + 0.8 + float(rng.exponential(gap))
    return items


Placed = tuple[Item, float, float]


def _background(
    drive: Drive, camera: Camera, at: float, seen: list[Placed]
) -> tuple[
    Float32[np.ndarray, "rows columns 3"], UInt8[np.ndarray, "rows columns"], Float32[np.ndarray, "rows columns"]
]:
    """Sky and ground: colour, class, depth."""
    x, z = camera.ground()
    top = int(np.isinf(z[:, 0]).sum())
    ground, label = _ground(drive, x[top:], z[top:], at, seen)
    sky = _sky(drive, camera, top)
    labels = np.concatenate([np.full(sky.shape[:2], SKY, np.uint8), label])
    return np.concatenate([sky, ground]), labels, np.asarray(z, np.float32)


def _ground(
    drive: Drive, x: np.ndarray, z: np.ndarray, at: float, seen: list[Placed]
) -> tuple[Float32[np.ndarray, "rows columns 3"], UInt8[np.ndarray, "rows columns"]]:
    """Road, pavement and grass where street coordinates say so: colour and class."""
    place = z + np.float32(at)
    side_street = drive.crossing_near(place)
    road = ((x > drive.left) & (x < drive.right)) | side_street
    walk = (x > drive.left - drive.walk) & (x < drive.right + drive.walk) & ~road
    label = np.where(road, ROAD, np.where(walk, SIDEWALK, VEGETATION)).astype(np.uint8)
    fade = np.exp(-z / 14)  # texture finer than a pixel greys out
    fine, broad = sampled(drive.texture, x * 40, place * 40) * fade, sampled(drive.texture, x * 5 + 31, place * 5)
    grey = drive.asphalt * (1 + 0.08 * fine + 0.07 * broad)
    grey = np.where(_markings(drive, x, place, side_street), 205 + 10 * broad, grey)
    slab = drive.paving * (1 + 0.06 * fine + 0.05 * broad) - 14 * ((np.mod(place, 1.2) < 0.08) & (z < 15))
    plain = np.where(road, grey, slab)
    grass = (78 + 9 * broad, 98 + 12 * broad + 9 * fine, 52 + 6 * broad)
    green = label == VEGETATION
    colour = np.stack([np.where(green, tint, plain) for tint in grass], 2)
    colour *= _shadow(drive, x, place, at, seen)[..., None]
    return colour.astype(np.float32), label


def _sky(drive: Drive, camera: Camera, rows: int) -> Float32[np.ndarray, "rows columns 3"]:
    """From the high sky's colour down to the haze, with clouds unless it is foggy."""
    weather = drive.weather
    down = (np.arange(rows, dtype=np.float32) / max(camera.horizon, 1))[:, None, None] ** 1.5
    sky = np.array(weather.zenith, np.float32) * (1 - down) + np.array(weather.air, np.float32) * down
    cloud = cv2.resize(drive.texture[60:140, 60:200], (camera.columns, max(rows, 1)))[:rows, :, None] * 0.35
    return np.asarray(sky + np.clip(cloud, 0, 1) * (240 - sky) * (0.5 if weather.haze > 200 else 0.0), np.float32)


def _markings(
    drive: Drive, x: np.ndarray, place: np.ndarray, side_street: np.ndarray
) -> Bool[np.ndarray, "rows columns"]:
    """Worn paint: dashes between the lanes, zebra stripes before side streets."""
    middle = (np.abs(x + _LANE / 2) < 0.08) & (np.mod(place, 7) < 3.2) & ~side_street
    to_crossing = np.mod(place - drive.crossing + 9, drive.period)
    zebra = (to_crossing < 2.6) & (np.mod(x, 1.1) < 0.55) & (x > drive.left) & (x < drive.right)
    worn = sampled(drive.texture, x * 25, place * 25) < 1.1
    return np.asarray((middle | zebra) & worn)


def _shadow(
    drive: Drive, x: np.ndarray, place: np.ndarray, at: float, seen: list[Placed]
) -> Float32[np.ndarray, "rows columns"]:
    """Light that reaches the ground: cast shadows of houses and trees, the dark below cars."""
    light = np.ones(x.shape, np.float32)
    for item, at_x, ahead in seen:
        near = place - at - ahead  # metres behind the item's near end
        if drive.sun and item.kind == "building" and np.sign(at_x) == drive.sun:
            cast = (at_x - x) * drive.sun
            hit = (near > -1) & (near < item.size[2]) & (cast > 0) & (cast < item.size[1] * drive.reach)
            light[hit] = drive.weather.shade
        elif drive.sun and item.kind == "tree":
            middle = at_x - drive.sun * item.size[1] * 0.7 * drive.reach
            spread = ((x - middle) / (item.size[0] * 0.8)) ** 2 + (near / (item.size[0] * 0.6)) ** 2
            hit = (spread < 1) & (sampled(drive.texture, x * 18, place * 18) > -0.1)
            light[hit] = drive.weather.shade
    for item, at_x, ahead in seen:
        if item.kind == "vehicle" and ahead < 45:
            near = place - at - ahead
            lean = -drive.sun * 0.6
            low, high = at_x - item.size[0] / 2 - 0.1 + min(lean, 0), at_x + item.size[0] / 2 + 0.1 + max(lean, 0)
            light[(near > -0.5) & (near < item.size[2]) & (x > low) & (x < high)] *= 0.45
    return light


def _tidied(
    label: UInt8[np.ndarray, "rows columns"], thing: Int32[np.ndarray, "rows columns"]
) -> tuple[UInt8[np.ndarray, "rows columns"], Int32[np.ndarray, "rows columns"]]:
    """Truth as a person would draw it: specks take the class and object of the nearest ground."""
    speck = np.zeros(label.shape, bool)
    for number in np.unique(label):
        _, piece, stats, _ = cv2.connectedComponentsWithStats((label == number).astype(np.uint8), connectivity=4)
        small = stats[:, cv2.CC_STAT_AREA] < (_SPECK if number in (VEHICLE, PERSON, SIGN) else _SLIVER * label.size)
        small[0] = False
        speck |= small[piece]
    near = ndimage.distance_transform_edt(speck, return_distances=False, return_indices=True)
    return np.ascontiguousarray(label[tuple(near)]), np.ascontiguousarray(thing[tuple(near)])


def _photograph(drive: Drive, layers: Layers, number: int) -> Frame:
    """Haze, exposure, lens and sensor; then the fine grid becomes pixels."""
    rng = np.random.default_rng((drive.noise_seed, number))
    weather = drive.weather
    grain = drive.texture[np.ix_(np.arange(layers.label.shape[0]) % 256, np.arange(layers.label.shape[1]) % 256)]
    rough = np.where(layers.label == VEGETATION, 0.16, 0.045) * np.isfinite(layers.depth)
    colour = layers.colour * (1 + rough * grain)[..., None]
    clear = np.where(np.isfinite(layers.depth), np.exp(-np.minimum(layers.depth, 1e4) / weather.haze), 1)[..., None]
    colour = colour * clear + np.array(weather.air) * (1 - clear)
    rows, columns = drive.size
    label, thing = _tidied(layers.label[::_FINE, ::_FINE], layers.thing[::_FINE, ::_FINE])
    small = cv2.resize(colour.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    down, across = np.mgrid[0:rows, 0:columns].astype(np.float32)
    off = ((across / columns - 0.5) ** 2 + (down / rows - 0.5) ** 2) * 0.55
    small *= (weather.gain * np.exp(rng.normal(0, 0.04)) * (1 - off))[..., None]
    if drive.bonnet:
        edge = rows * (1 - drive.bonnet * (1 - 1.6 * (across / columns - 0.5) ** 2))
        hood = down > edge
        small[hood] = np.array((34, 36, 42)) * weather.gain + 0.1 * small[hood]
        label[hood], thing[hood] = IGNORE, 0
    small = cv2.GaussianBlur(small, (0, 0), 0.45)
    small += rng.normal(0, 1, small.shape) * (weather.noise + 0.02 * small)
    image = np.clip(np.round(small), 0, 255).astype(np.uint8)
    if drive.mirrored:
        image, label, thing = (np.ascontiguousarray(a[:, ::-1]) for a in (image, label, thing))
    return Frame(image, label, thing)
