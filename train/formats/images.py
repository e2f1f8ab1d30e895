"""Decodes images and masks, upright, and resizes images to one shape."""

import contextlib
import pathlib
import statistics
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from train.formats.files import DataError, opened

MAX_PIXELS, LARGE, STRIP = 2**27, 2**24, 2**21
"""Limits of pixels.

An image may have up to MAX_PIXELS, which take half a gigabyte.  Images with more than LARGE are
shrunk one at a time, in strips of about STRIP pixels.
"""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by number of channels."""


def check_image_shape(shape: tuple[int, int, int]) -> None:
    """Raises DataError unless it is a valid shape of images."""
    height, width, channels = shape
    if channels not in MODES or min(height, width) < 1:
        raise DataError(
            f"image_shape={shape}, allowed: height, width of at least 1 and 1, 3 or 4 channels"
        )


def read_image(file: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads an image file in any format -> uint8 [height, width, channels], upright and resized.

    channels: 1 (grey), 3 or 4.  With 1 or 3, transparent pixels become white.  Reads the first
    frame of animations.
    """
    return read_sized_image(file, shape)[0]


def read_sized_image(
    file: pathlib.Path, shape: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """``read_image``, and the original height and width of the upright image."""
    check_image_shape(shape)
    height, width, channels = shape
    with opened_image(file) as image:
        large, (across, down) = image.width * image.height > LARGE, image.size
        # One at a time, because all threads that read images might hold large ones.
        with _ONE_LARGE if large else contextlib.nullcontext():
            if large:  # JPEG is decoded at 1/2, 1/4 or 1/8 of its size
                side = 2 * max(height, width)
                image.draft(None, (side, side))
            turn = _turn(image)
            sideways = turn in SIDEWAYS
            pixels = _converted(
                file, image, MODES[channels], (height, width) if sideways else (width, height)
            )
            pixels = pixels if turn is None else pixels.transpose(turn)
            resized = np.asarray(
                pixels.resize((width, height), Image.Resampling.BILINEAR), np.uint8
            )
    return resized.reshape(shape), (across, down) if sideways else (down, across)


_ONE_LARGE = threading.Lock()


@contextlib.contextmanager
def opened_image(file: pathlib.Path) -> Iterator[Image.Image]:
    """Opens an image file in any format, without decoding pixels yet.  Raises DataError."""
    with opened(file) as raw:
        image = _identified(raw)
        if image is None:
            raise DataError(f"{file}: not an image, or damaged")
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{file}: {image.width} x {image.height} pixels, allowed: {MAX_PIXELS:,} in all"
                )
            yield image


def _identified(raw: BinaryIO) -> Image.Image | None:
    """Like ``Image.open``, whose limit of pixels is a global setting and half of MAX_PIXELS."""
    Image.init()
    prefix = raw.read(16)
    # Most likely formats first.  Not EPS, because Pillow would run it as a program in Ghostscript.
    for name in ("PNG", "JPEG", *sorted(set(Image.OPEN) - {"PNG", "JPEG", "EPS"})):
        factory, accept = Image.OPEN[name]
        # These errors mean another format, or a damaged file.
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            accepted = accept is None or accept(prefix)
            # A text explains what this build of Pillow lacks.
            if accepted and not isinstance(accepted, str):
                raw.seek(0)
                return factory(raw, "")
    return None


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image upright, by EXIF orientation."""
SIDEWAYS = {TURNS[orientation] for orientation in (5, 6, 7, 8)}


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that turns an image upright; None for none.  Decodes the pixels.

    It is unknown before decoding: Pillow rotates TIFFs itself, and EXIF may follow a PNG's pixels.
    """
    image.load()
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises anything, but the pixels are fine
        return None


def image_size(file: pathlib.Path) -> tuple[int, int]:
    """Height and width of an image file, upright.  Raises DataError naming the file."""
    with opened_image(file) as image:
        return image.size if _turn(image) in SIDEWAYS else (image.height, image.width)


GREY = ("1", "L", "I", "F")
"""Prefixes of Pillow's grey modes."""
LOOKED_AT = 1000
"""Most images whose sizes are compared, evenly spaced over all."""


def common_shape(where: object, files: Sequence[pathlib.Path]) -> tuple[int, int, int]:
    """Common height, width and channels of images: 1 channel if all are grey, else 3.

    Raises DataError if sizes differ, naming the option to set.
    """
    shapes = []
    for file in files[:: -(-len(files) // LOOKED_AT) or 1]:
        with opened_image(file) as image:
            size = image.size if _turn(image) in SIDEWAYS else (image.height, image.width)
            shapes.append((*size, 1 if image.mode.startswith(GREY) and image.mode != "LA" else 3))
    channels = max((shape[2] for shape in shapes), default=1)
    sizes = sorted({shape[:2] for shape in shapes})
    if len(sizes) != 1:
        (low, wide), (high, broad) = sizes[0], sizes[-1]
        height, width = (statistics.median_low(shape[axis] for shape in shapes) for axis in (0, 1))
        example = f"--data.image-shape {height} {width} {channels}"
        differ = f"images of {len(sizes)} sizes, such as {low}x{wide} and {high}x{broad}"
        raise DataError(f"{where}: {differ}; give the one to resize to, such as {example}")
    return (*sizes[0], channels)


def read_mask(file: pathlib.Path) -> np.ndarray:
    """Reads class indices from a PNG mask -> uint8 [height, width], upright.

    They are palette indices or grey values of up to 8 bits.
    """
    with opened_image(file) as image:
        if image.format != "PNG" or image.mode not in ("P", "L", "1"):
            raise DataError(
                f"{file}: {image.format} of mode {image.mode}, "
                "expected a PNG with a palette or up to 8 bits of grey"
            )
        turn = _turn(image)
        values = np.array(image if turn is None else image.transpose(turn)).astype(np.uint8)
    return values // np.uint8(255 // (2 ** _bits(file) - 1)) if image.mode == "L" else values


def _bits(file: pathlib.Path) -> int:
    """Bits per sample of a PNG; Pillow scales grey of fewer than 8 bits to 0..255."""
    with opened(file) as raw:
        return raw.read(25)[24]


def _converted(
    file: pathlib.Path, image: Image.Image, mode: str, size: tuple[int, int]
) -> Image.Image:
    """Like ``image.convert(mode)``, but correct for 16 bits and transparency.

    Shrinks a large image, to at least twice ``size``.
    """
    if image.mode in ("I", "F"):
        raise DataError(f"{file}: pixels of 32 bits, with unknown range; expected 8 or 16 bits")
    low = _prepare_transparency(file, image)
    if image.width * image.height <= LARGE:
        return _strip(image, low, mode)
    across, down = (max(have // (2 * want), 1) for have, want in zip(image.size, size, strict=True))
    shrunk = Image.new(mode, (-(-image.width // across), -(-image.height // down)))
    rows = max(STRIP // (image.width * down), 1) * down
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = _strip(image.crop(box), low and low.crop(box), mode)
        shrunk.paste(strip.reduce((across, down)), (0, top // down))
    return shrunk


def _prepare_transparency(file: pathlib.Path, image: Image.Image) -> Image.Image | None:
    """Scales the transparent grey value of a PNG like Pillow scales its pixels.

    For a PNG with 16 bits per channel, returns an image of the lower 8 bits of each, which Pillow
    drops.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or image.mode not in ("L", "RGB"):
        return None
    bits = _bits(file)
    if bits < 8:
        image.info["transparency"] = key * (255 // (2**bits - 1))
    if bits != 16:
        return None
    with opened_image(file) as again:
        # Pillow keeps the first of two bytes; declared as little-endian, it keeps the other one.
        tiles: Any = again
        tiles.tile = [tile._replace(args="RGB;16L") for tile in tiles.tile]
        return again.copy()


def _strip(image: Image.Image, low: Image.Image | None, mode: str) -> Image.Image:
    """Converts an image, or some of its rows.  low: see ``_prepare_transparency``."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        image = Image.fromarray((values >> 8).astype(np.uint8))
        if key is not None:
            image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    elif low is not None:
        values = np.asarray(image, np.uint16) << 8 | np.asarray(low)
        image = image.copy()
        del image.info["transparency"]
        image.putalpha(
            Image.fromarray(np.where((values == key).all(axis=-1), 0, 255).astype(np.uint8))
        )
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
