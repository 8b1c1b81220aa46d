"""Frames: PNG and JPEG, whatever their bit depth or colours, with defined results.

    stored as                  becomes
    RGB, 8 bit                 itself, 0..255
    grey, 8 or 16 bit          three equal channels; 16 bit divided by 257, so white is 255
    grey, 2 or 4 bit           three equal channels, stretched so that white is 255
    RGB, 16 bit                its high bytes
    palette, CMYK              its RGB colours
    black and white, 1 bit     0 or 255
    with alpha                 its colours; alpha is dropped, not blended

An orientation tag (EXIF) is left alone, so that pixels stay where a mask or a box says they are.
Damaged files are refused: a JPEG that ends early is never filled with grey.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image, UnidentifiedImageError

from dal_dense.errors import DataError
from dal_dense.records import Header
from dal_dense.volumes import readable

FRAMES = (".png", ".jpg", ".jpeg")
_GREY = {"1", "L", "LA", "I", "I;16"}
_BIT_DEPTH = 24


def _open(path: Path) -> Image.Image:
    """Header only; the caller holds `readable` open."""
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes); copy it again")
    try:
        return Image.open(path, formats=("PNG", "JPEG"))
    except (UnidentifiedImageError, ValueError):  # the latter for a header that is cut short
        raise DataError(f"{path}: neither a PNG nor a JPEG image inside; convert it or copy it again") from None
    except Image.DecompressionBombError as problem:
        raise DataError(f"{path}: {problem}; cut it into tiles") from None


def frame_header(path: Path) -> Header:
    """Rows and columns; reads no pixel.

    Raises:
        DataError: if the file is missing, empty, locked or no image.
    """
    with readable(path), _open(path) as image:
        return Header((image.height, image.width), (1.0, 1.0), None)


def stored_values(path: Path) -> tuple[Shaped[np.ndarray, "rows cols *channels"], str]:
    """Pixels as stored (palette indices, not colours; 2-bit grey 0..3) and the Pillow mode, such as L, P, I;16, RGB.

    Raises:
        DataError: if the file cannot be read to its end.
    """
    with readable(path), _open(path) as image:
        _decode(path, image)
        values = np.asarray(image)
        if image.format == "PNG" and image.mode == "L":
            values = values // (255 // ((1 << _grey_bits(path)) - 1))  # Pillow stretches 2 and 4 bits to 0..255
        return values, image.mode


def read_frame(path: Path) -> Float32[np.ndarray, "3 rows cols"]:
    """RGB, 0..255, channels first; see the table above.

    Raises:
        DataError: if the file cannot be read to its end.
    """
    with readable(path), _open(path) as image:
        _decode(path, image)
        if image.mode in _GREY:
            grey = np.asarray(image.getchannel(0) if image.mode == "LA" else image)
            scale = 255.0 if image.mode == "1" else 1 / 257 if image.mode in ("I", "I;16") else 1.0
            return np.repeat(grey.astype(np.float32)[None] * np.float32(scale), 3, axis=0)
        colour = np.asarray(image.convert("RGBA" if image.mode in ("P", "PA", "RGBA") else "RGB"))[..., :3]
    return np.ascontiguousarray(np.moveaxis(colour, -1, 0), dtype=np.float32)


def _grey_bits(path: Path) -> int:
    """Bits a pixel, from a PNG's first chunk (IHDR), where they always lie."""
    with path.open("rb") as stream:
        return stream.read(_BIT_DEPTH + 1)[_BIT_DEPTH]


def _decode(path: Path, image: Image.Image) -> None:
    try:
        image.load()
    except (SyntaxError, ValueError) as problem:  # what Pillow raises for a broken PNG chunk
        raise DataError(f"{path}: damaged ({problem}); copy the file again") from None
