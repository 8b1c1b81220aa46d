"""Label images to COCO annotations, exact to the pixel: outlines along pixel edges, or run lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

Point = tuple[int, int]
Segmentation = list[list[int]] | dict[str, list[int]]


@dataclass(frozen=True)
class Piece:
    """Pixels of one class that touch by an edge: a mask of its bounding box, and where that lies."""

    mask: Bool[np.ndarray, "h w"]
    top: int
    left: int


def components(label: UInt8[np.ndarray, "h w"], value: int) -> Iterator[Piece]:
    """All pieces of one class."""
    count, numbers, boxes, _ = cv2.connectedComponentsWithStats((label == value).astype(np.uint8), connectivity=4)
    for number in range(1, count):
        left, top, width, height = boxes[number, :4].tolist()
        yield Piece(numbers[top : top + height, left : left + width] == number, top, left)


def segmentation(piece: Piece, shape: tuple[int, int]) -> Segmentation:
    """One polygon along the pixel edges; for a piece with holes, which no polygon can say, run lengths.

    COCO's rasteriser gives back these very pixels.

    Args:
        piece: what to draw.
        shape: rows, columns of the image it lies in.
    """
    rings = outlines(piece.mask)
    if len(rings) == 1:
        return [[number for x, y in rings[0] for number in (x + piece.left, y + piece.top)]]
    return {"size": list(shape), "counts": _placed_runs(piece, shape)}


def _placed_runs(piece: Piece, shape: tuple[int, int]) -> list[int]:
    """Run lengths of a piece in its image, from the columns it touches alone."""
    rows, columns = piece.mask.shape
    strip = np.zeros((shape[0], columns), dtype=bool)
    strip[piece.top : piece.top + rows] = piece.mask
    counts = run_lengths(strip)
    counts[0] += piece.left * shape[0]
    behind = (shape[1] - piece.left - columns) * shape[0]
    if behind and len(counts) % 2:
        counts[-1] += behind
    elif behind:
        counts.append(behind)
    return counts


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """COCO's uncompressed run lengths: column by column, a run of zeros first."""
    flat = np.concatenate(([False], mask.ravel(order="F"), [False]))
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate(([0], turns, [mask.size])))
    runs: list[int] = counts.tolist()
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs


def outlines(piece: Bool[np.ndarray, "h w"]) -> list[list[Point]]:
    """Closed rings of (x, y) corners, the inside on the right hand: one outside, one a hole."""
    edges = _edges(piece)
    rings = []
    while edges:
        start = next(iter(edges))
        point, heading = start, next(iter(edges[start]))
        ring: list[Point] = []
        while True:
            ahead = edges[point]
            turn = _turn(heading, set(ahead))
            if turn != heading or not ring:
                ring.append(point)
            heading = turn
            ahead.remove(heading)
            if not ahead:
                del edges[point]
            point = (point[0] + heading[0], point[1] + heading[1])
            if point == start and start not in edges:
                break
        rings.append(_without_straight_start(ring))
    return rings


def _edges(piece: Bool[np.ndarray, "h w"]) -> dict[Point, list[Point]]:
    """Pixel edges between inside and outside: corner to the unit steps that leave it."""
    padded = np.pad(piece, 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # neighbour outside, offset of the edge's first corner, step along the edge
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    edges: dict[Point, list[Point]] = {}
    for neighbour, (dx, dy), step in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        for x, y in zip((columns + dx).tolist(), (rows + dy).tolist(), strict=True):
            edges.setdefault((x, y), []).append(step)
    return edges


def _turn(heading: Point, ahead: set[Point]) -> Point:
    """Where pixels touch by a corner only, turn right: it stays on the same pixel."""
    right = (-heading[1], heading[0])
    return right if right in ahead else next(iter(ahead))


def _without_straight_start(ring: list[Point]) -> list[Point]:
    """Drop the first point if the ring runs straight through it."""
    (ax, ay), (bx, by), (cx, cy) = ring[-1], ring[0], ring[1]
    straight = (bx - ax) * (cy - by) == (by - ay) * (cx - bx)
    return ring[1:] if straight else ring
