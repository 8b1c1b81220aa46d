"""Frames to PNG crops, whole frames with marks and index masks; index masks back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dal_dense.errors import DataError, LabelError
from dal_dense.exchange.asked import Asked, Returned
from dal_dense.frames import stored_values
from dal_dense.query import QueryRegion
from dal_dense.regions import slices
from dal_dense.tasks.base import Proposal

MARK = (255, 0, 255)
"""Magenta, which roads do not have; drawn around a region, never on it."""

_PNG_HEAD = 24
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_frame(
    folder: Path,
    image_id: str,
    image: Float[np.ndarray, "channels h w"],
    source: Path,
    regions: Sequence[QueryRegion],
    proposals: Mapping[str, Proposal],
) -> dict[str, dict[str, str]]:
    """Write one frame's crops, index-mask proposals and the whole frame with the regions marked.

    Args:
        folder: the batch.
        image_id: names the whole frame's file.
        image: RGB, 0..255; of any other number of channels, the first is shown in grey.
        source: the frame's own file; a JPEG is written as JPEG again, to stay small.
        regions: the regions asked of this frame.
        proposals: the model's answers by region id, where there are any.

    Returns:
        Region id to (role to file, relative to `folder`).
    """
    pixels = pixels_of(image)
    frame = save_marked(folder, image_id, pixels, source, regions)
    files = {}
    for region in regions:
        roles = {"image": f"images/{region.id}.png", "frame": frame}
        save(folder / roles["image"], pixels[slices(region.box)])
        if region.id in proposals:
            roles["proposal"] = f"proposals/{region.id}.png"
            save(folder / roles["proposal"], proposals[region.id].label.astype(np.uint8))
        files[region.id] = roles
    return files


def pixels_of(image: Float[np.ndarray, "channels h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of an image as it is read: 0..255; of any other number of channels, the first is shown in grey."""
    shown = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    return np.ascontiguousarray(np.clip(np.rint(shown), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def save_marked(
    folder: Path, image_id: str, pixels: UInt8[np.ndarray, "h w 3"], source: Path, regions: Sequence[QueryRegion]
) -> str:
    """Write the whole frame with its regions outlined; its name, relative to the batch."""
    suffix = ".jpg" if source.suffix.lower() in (".jpg", ".jpeg") else ".png"
    frame = f"frames/{image_id}{suffix}"
    save(folder / frame, marked(pixels, regions))
    return frame


def marked(pixels: UInt8[np.ndarray, "h w 3"], regions: Sequence[QueryRegion]) -> UInt8[np.ndarray, "h w 3"]:
    """A copy with a rectangle around each region; no pixel inside any region changes."""
    copy = pixels.copy()
    thick = max(2, min(pixels.shape[:2]) // 240)
    for region in regions:
        (top, left), (bottom, right) = region.box
        copy[max(top - thick, 0) : bottom + thick, max(left - thick, 0) : right + thick] = MARK
    for region in regions:
        copy[slices(region.box)] = pixels[slices(region.box)]
    return copy


def save(path: Path, pixels: UInt8[np.ndarray, "..."]) -> None:
    """Write RGB or one channel; lossless unless the name says JPEG."""
    values = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(values), options)
    if not done:
        raise DataError(f"{path}: OpenCV cannot encode an image of shape {pixels.shape}; the region is too large")
    path.write_bytes(data.tobytes())


def read_index(path: Path, name: str, asked: Asked, file: str) -> list[Returned]:
    """The regions that one returned PNG of class numbers answers: a crop, or a whole frame.

    Args:
        path: the file.
        name: its name without the suffix: a region's or an image's id.
        asked: what was asked.
        file: how messages name it.

    Raises:
        LabelError: if it was not asked, cannot be read, has another size, or holds values that are
            no classes.
    """
    entries, own_name = asked.named(name, file)
    entries = entries if own_name else asked.finished(entries, file)
    size = png_size(path, file)
    whole = entries[0].source.shape
    if len(whole) != 2:
        raise LabelError(f"{file}: a PNG for a region of a volume; return a NIfTI label")
    is_crop = own_name and size == entries[0].region.shape
    expected = entries[0].region.shape if is_crop else whole
    if size != expected:
        wanted = " or ".join(str(s) for s in dict.fromkeys([*(e.region.shape for e in entries), whole]))
        raise LabelError(f"{file}: {size} rows and columns; expected {wanted}, not resized")
    try:
        values, mode = stored_values(path)
    except DataError as error:
        raise LabelError(f"{file}: {error}") from error
    if values.ndim != 2:
        raise LabelError(f"{file}: in colour (mode {mode}); save one class number a pixel, as an 8-bit grey PNG")
    found = []
    for entry in entries:
        cut = values if is_crop else values[slices(entry.region.box)]
        found.append(Returned(entry.region.id, asked.checked(cut, entry.region.id, file), None, file))
    return found


def png_size(path: Path, file: str) -> tuple[int, int]:
    """Rows and columns from the head alone, so that a huge picture is refused before it is decoded."""
    with path.open("rb") as stream:
        head = stream.read(_PNG_HEAD)
    if len(head) < _PNG_HEAD or not head.startswith(_PNG_SIGNATURE):
        raise LabelError(f"{file}: not a PNG; save the class numbers as an 8-bit PNG")
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
