"""Readers of data files.  The only exception is DataError, which names the file and its fault."""

import codecs
import concurrent.futures
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import math
import os
import pathlib
import struct
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import ExifTags, Image

MAX_BYTES, ALWAYS_BYTES, MAX_RATIO = 2**33, 2**28, 200
"""Limits of decompressed bytes: ALWAYS_BYTES, or MAX_RATIO times the file's, up to MAX_BYTES."""
MAX_PIXELS, LARGE, STRIP = 2**27, 2**24, 2**21
"""Limits of pixels.

An image may have up to MAX_PIXELS, which take half a gigabyte.  Images with more than LARGE are
shrunk one at a time, in strips of about STRIP pixels.
"""
MAX_CLASSES = 2**20
"""Limit of classes: their number is the largest label + 1, which may be damaged."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by number of channels."""
JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"}
"""Files that operating systems create in folders, in lower case, apart from dot files."""
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class DataError(ValueError):
    """Data are missing, damaged or unsuitable.  Names the file or data set and its fault."""


@contextlib.contextmanager
def reading(source: str | pathlib.Path) -> Iterator[None]:
    """Turns all exceptions into a DataError naming the source, and hides warnings."""
    try:
        with _without_warnings():
            yield
    except DataError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged input
        lines = str(error).strip().splitlines()
        raise DataError(
            f"{source}: unreadable: {lines[0][:200] if lines else type(error).__name__}"
        ) from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides warnings on the main thread.

    Warning filters are global to the process; concurrent threads would restore the wrong ones.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def opened(file: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file; exceptions while it is open become a DataError.

    Rejects pipes and devices, which may never end.
    """
    with reading(file):
        if not file.is_file():
            raise DataError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
        with open(file, "rb") as raw:
            yield raw


def visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """The entries of a folder, sorted by name, without hidden and JUNK files."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if not (entry.name.startswith(".") or entry.name.lower() in JUNK)
    )


def named(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file with this name in a folder, ignoring case; folder / name if there is none."""
    file = folder / name
    if file.exists() or not folder.is_dir():
        return file
    return next(
        (entry for entry in sorted(folder.iterdir()) if entry.name.lower() == name.lower()), file
    )


def not_read(files: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """A note on files next to the data that were not read; () for none."""
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return (f"not read: {files[0]}{more}",) if files else ()


def _room(raw: BinaryIO, always: int) -> int:
    """The limit of decompressed bytes, against damaged lengths and decompression bombs."""
    return min(MAX_BYTES, max(always, MAX_RATIO * os.fstat(raw.fileno()).st_size))


def read_idx(file: pathlib.Path) -> np.ndarray:
    """Reads an idx file (LeCun's MNIST format), plain or gzipped.

    It has two zero bytes, the type, the rank, the lengths of the axes, and the data.
    """
    with opened(file) as raw:
        stream = _unzipped(raw)
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or magic[3] == 0:
            raise DataError(f"{file}: not an idx file: it starts with {magic.hex() or 'nothing'}")
        dtype, rank = np.dtype(IDX_TYPES[magic[2]]), magic[3]
        lengths = stream.read(4 * rank)
        if len(lengths) < 4 * rank:
            raise DataError(f"{file}: truncated in its header")
        shape = tuple(
            int.from_bytes(lengths[4 * axis : 4 * axis + 4], "big") for axis in range(rank)
        )
        size, room = math.prod(shape) * dtype.itemsize, _room(raw, ALWAYS_BYTES)
        if not 0 < size <= room:
            raise DataError(f"{file}: shape {shape} announces {size} bytes, allowed: 1 to {room}")
        data = stream.read(size)
        if len(data) < size:
            raise DataError(f"{file}: truncated: {len(data)} of {size} bytes for shape {shape}")
        if stream.read(1):
            raise DataError(f"{file}: more than the {size} bytes of its shape {shape}")
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def _unzipped(raw: BinaryIO) -> Any:
    """The content of an open file; detects gzip by the content, not by the name."""
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if zipped else raw


# ---------------------------------------------------------------- text


def read_text(file: pathlib.Path) -> str:
    """Reads a UTF-8 text file, plain or gzipped, with or without byte-order mark.

    Line ends become LF.
    Raises DataError naming the file; for UTF-16, it explains how to convert it.
    """
    return decoded(str(file), _text_bytes(file)).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: pathlib.Path) -> list[str]:
    """The lines of a text file, see ``read_text``.  A DataError also names the line."""
    return [
        decoded(f"{file}:{number}", line) for number, line in enumerate(read_byte_lines(file), 1)
    ]


def read_byte_lines(file: pathlib.Path) -> list[bytes]:
    """The lines of a text file, not decoded, so single lines may not be UTF-8.

    Lines end with LF or CRLF, or with CR in files without LF.  Other separators (CR, form feed,
    Unicode's) do not end a line; otherwise parallel files could differ in their numbers of lines.
    """
    raw = _text_bytes(file)
    end = b"\n" if b"\n" in raw else b"\r"
    return [line.removesuffix(b"\r") for line in raw.removesuffix(end).split(end)] if raw else []


def decoded(source: str, raw: bytes) -> str:
    """Decodes UTF-8, without a byte-order mark.  Raises DataError naming the source."""
    try:
        return _unmarked(source, raw).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 text: {error}") from None


def _text_bytes(file: pathlib.Path) -> bytes:
    with opened(file) as raw:
        stream, room = _unzipped(raw), _room(raw, ALWAYS_BYTES)
        pieces = []
        while piece := stream.read(2**20):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                raise DataError(f"{file}: more than {_room(raw, ALWAYS_BYTES)} bytes")
    return _unmarked(str(file), b"".join(pieces))


def _unmarked(source: str, raw: bytes) -> bytes:
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if marked or b"\0" in raw:
        what = "UTF-16" if marked else f"a NUL character after {raw.index(0)} bytes, as in UTF-16"
        raise DataError(
            f"{source}: {what}; expected text in UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        )
    return raw.removeprefix(codecs.BOM_UTF8)


# ---------------------------------------------------------------- arrays


def read_npz(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file.  Rejects pickled objects."""
    with opened(file) as raw:
        if not zipfile.is_zipfile(raw):
            raise DataError(
                f"{file}: not an npz file (named arrays, as numpy.savez writes them), or truncated"
            )
        with zipfile.ZipFile(raw) as archive:
            members, room = archive.infolist(), _room(raw, ALWAYS_BYTES)
            size = sum(member.file_size for member in members)
            if size > room:
                raise DataError(f"{file}: announces {size} bytes, allowed: {room}")
            arrays = {
                member.filename.removesuffix(".npy"): _read_npy(file, archive, member)
                for member in members
            }
        # zipfile does not check the number of members: one wrong bit in the length of a comment
        # hides all later ones.
        raw.seek(max(os.fstat(raw.fileno()).st_size - 2**16 - 22, 0))
        end = raw.read().rpartition(b"PK\5\6")[2]
        announced = int.from_bytes(end[6:8], "little")
        if not 0 < len(arrays) == announced:
            raise DataError(
                f"{file}: {len(arrays)} arrays where {announced} are announced, "
                "expected the same number, and at least one"
            )
        return arrays


def _read_npy(file: pathlib.Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with reading(f"{file}: {member.filename}"), archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        # zipfile checks the checksum at the end of a member.  With a damaged header, numpy may not
        # read that far.
        if stream.read(1):
            raise DataError(f"{file}: {member.filename}: more than its shape {array.shape} needs")
        return array


# ---------------------------------------------------------------- images


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
    shapes = set()
    for file in files[:: -(-len(files) // LOOKED_AT) or 1]:
        with opened_image(file) as image:
            size = image.size if _turn(image) in SIDEWAYS else (image.height, image.width)
            shapes.add((*size, 1 if image.mode.startswith(GREY) and image.mode != "LA" else 3))
    channels = max((shape[2] for shape in shapes), default=1)
    sizes = sorted({shape[:2] for shape in shapes})
    if len(sizes) != 1:
        (low, wide), (high, broad) = sizes[0], sizes[-1]
        example = f"--data.image-shape {low} {wide} {channels}"
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


ENDS, READERS, AT_ONCE = 4096, 16, 256
"""Bytes that a fingerprint reads at both ends of a file, threads, and files per task."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Image files as a lazy array uint8 [n, height, width, channels]; indexing decodes images.

    root: a folder.  index: paths within it, bytes [n], a tenth of the memory of Path objects.
    """

    root: str
    index: np.ndarray
    image_shape: tuple[int, int, int]

    dtype = np.dtype(np.uint8)

    @classmethod
    def find(
        cls,
        root: str | pathlib.Path,
        files: Sequence[pathlib.Path],
        image_shape: tuple[int, int, int],
    ) -> "Images":
        """The images of these files in the folder ``root``."""
        return cls(
            str(root),
            np.array([os.fsencode(file.relative_to(root)) for file in files], np.bytes_),
            image_shape,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, height, width, channels)."""
        return (len(self.index), *self.image_shape)

    @property
    def ndim(self) -> int:
        """4."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Decodes an image [height, width, channels], or those of a slice or index array [k, ...].

        Raises DataError naming the file.
        """
        files: Any = self.index[rows]
        if isinstance(files, bytes):
            return read_image(self._path(files), self.image_shape)
        images = np.empty((len(files), *self.image_shape), self.dtype)
        for image, file in zip(images, files, strict=True):
            image[...] = read_image(self._path(file), self.image_shape)
        return images

    def select(self, rows: np.ndarray) -> "Images":
        """The images of these rows, not decoded."""
        return dataclasses.replace(self, index=self.index[rows])

    def followed_by(self, *others: "Images") -> "Images":
        """These images followed by others in the same folder, not decoded."""
        return dataclasses.replace(
            self, index=np.concatenate([self.index, *(other.index for other in others)])
        )

    def digest(self) -> bytes:
        """A hash of the files in order: of each, its length and its first and last ENDS bytes.

        It detects all changes of a PNG, which ends with a checksum, and changes of length.  Reading
        whole files would take as long as an epoch.  Names and times of files do not matter.
        """
        blocks = [
            self.index[start : start + AT_ONCE] for start in range(0, len(self.index), AT_ONCE)
        ]
        digest = hashlib.blake2b()
        with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
            for part in readers.map(self._digest_of, blocks):
                digest.update(part)
        return digest.digest()

    def _digest_of(self, files: np.ndarray) -> bytes:
        digest = hashlib.blake2b()
        for file in files:
            with opened(self._path(file)) as raw:
                size = os.fstat(raw.fileno()).st_size
                digest.update(size.to_bytes(8, "little") + raw.read(ENDS))
                raw.seek(max(size - ENDS, raw.tell()))
                digest.update(raw.read(ENDS))
        return digest.digest()

    def _path(self, file: bytes) -> pathlib.Path:
        return pathlib.Path(self.root, os.fsdecode(file))


READ_VERSION = 2
"""Version of ``read_image``, to be raised when its pixels change.  Version 1 ignored EXIF."""
DIGEST = 16
"""Bytes of the hash of an image's pixels; all zero for an unreadable image."""


class Mapped(Images):
    """Images decoded before, in a memory-mapped file: indexing reads them.  See ``map_images``.

    root: the file.  index: positions in it, int32 [n], where images may repeat.
    """

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Copies images, see ``Images``.  Raises DataError if the file is missing."""
        return np.take(self._pixels_and_digests()[0], self.index[rows], axis=0)

    def digest(self) -> bytes:
        """A hash of the pixels of all images, in order."""
        return hashlib.blake2b(self._pixels_and_digests()[1][self.index].tobytes()).digest()

    def readable(self) -> np.ndarray:
        """Which images were readable when the file was made, bool [n]; the others are black."""
        return np.any(self._pixels_and_digests()[1][self.index], axis=1)

    def _pixels_and_digests(self) -> tuple[np.ndarray, np.ndarray]:
        # Not an attribute, so that workers, which receive a pickled copy, map the file themselves.
        return _pixels_and_digests(self.root, self.image_shape)


@functools.lru_cache(maxsize=8)
def _pixels_and_digests(
    file: str, image_shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, height, width, channels] and hashes [n, DIGEST] of a file of ``map_images``."""
    with reading(file):
        whole = np.memmap(file, np.uint8, "r").view(np.ndarray)
        count = len(whole) // (math.prod(image_shape) + DIGEST)
        return whole[: -count * DIGEST].reshape(count, *image_shape), whole[
            -count * DIGEST :
        ].reshape(count, DIGEST)


def map_images(
    files: Sequence[pathlib.Path],
    image_shape: tuple[int, int, int],
    folder: pathlib.Path,
    decoded: Callable[[int], None],
) -> Mapped:
    """Image files, resized, as ``Mapped``: each is decoded once, into a file kept in ``folder``.

    The file's name is a hash of the decoder's version, the shape, and path, length and time of all
    images.  It is renamed when complete, so an incomplete one (*.part) of a killed process is never
    used, and several processes may write it at once.  Unreadable images are black, see
    ``Mapped.readable``.

    decoded: called with the number of newly decoded images.
    Raises DataError if the file cannot be written.
    """
    check_image_shape(image_shape)
    name = hashlib.blake2b(
        repr((READ_VERSION, PIL.__version__, image_shape)).encode(), digest_size=16
    )
    for file in files:
        with reading(file):
            status = file.stat()
        name.update(
            f"{status.st_size} {status.st_mtime_ns} ".encode()
            + os.fsencode(file.absolute())
            + b"\0"
        )
    place = folder / f"{name.hexdigest()}.images"
    with reading(place):
        size = len(files) * (math.prod(image_shape) + DIGEST)
        if not (
            place.is_file()
            and place.stat().st_size == size
            and _as_readable_as_then(files, image_shape, place)
        ):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _decode_all(files, image_shape, place, decoded)
                _pixels_and_digests.cache_clear()
            except OSError as error:
                raise DataError(f"{place}: cannot be written: {error.strerror}") from error
    return Mapped(str(place), np.arange(len(files), dtype=np.int32), image_shape)


def _decode(file: pathlib.Path, image_shape: tuple[int, int, int]) -> bytes | None:
    try:
        return read_image(file, image_shape).tobytes()
    except DataError:
        return None


def _as_readable_as_then(
    files: Sequence[pathlib.Path], image_shape: tuple[int, int, int], place: pathlib.Path
) -> bool:
    """Whether images that were unreadable then still are: permissions and decoders change."""
    then = Mapped(str(place), np.arange(len(files), dtype=np.int32), image_shape).readable()
    return all(
        _decode(file, image_shape) is None
        for file, fine in zip(files, then, strict=True)
        if not fine
    )


def _decode_all(
    files: Sequence[pathlib.Path],
    image_shape: tuple[int, int, int],
    place: pathlib.Path,
    decoded: Callable[[int], None],
) -> None:
    """Writes the pixels of all images, then their hashes."""
    black, digests = bytes(math.prod(image_shape)), []
    handle, temporary = tempfile.mkstemp(".part", dir=place.parent)
    try:
        # Not memory-mapped, because a full disk would then kill the process instead of raising.
        with open(handle, "wb") as out, concurrent.futures.ThreadPoolExecutor(READERS) as readers:
            for start in range(0, len(files), AT_ONCE):
                images = list(
                    readers.map(
                        lambda file: _decode(file, image_shape), files[start : start + AT_ONCE]
                    )
                )
                for image in images:
                    out.write(image or black)
                    digests.append(
                        bytes(DIGEST)
                        if image is None
                        else hashlib.blake2b(image, digest_size=DIGEST).digest()
                    )
                decoded(len(images))
            out.write(b"".join(digests))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise


def check_inputs(source: str, name: str, inputs: np.ndarray) -> np.ndarray:
    """Finite numbers [n, ...], not empty -> float32 or integers of at most 32 bits.

    The result is contiguous and in native byte order.
    """
    kind, size = inputs.dtype.kind, inputs.dtype.itemsize
    if kind not in "buif":
        raise DataError(f"{source}: {name} has dtype {inputs.dtype}, expected numbers")
    if inputs.ndim < 2 or not inputs.size:
        raise DataError(
            f"{source}: {name} has shape {inputs.shape}, "
            "expected [examples, ...] and at least one value"
        )
    if kind == "f":
        return _float32(source, name, inputs)
    if size == 8 and not -(2**31) <= int(inputs.min()) <= int(inputs.max()) < 2**31:
        # A device would silently truncate them.
        raise DataError(f"{source}: {name} holds integers of more than 32 bits")
    return np.asarray(inputs, np.int32 if size == 8 else inputs.dtype.newbyteorder("="), order="C")


def _float32(source: str, name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        array = np.asarray(array, np.float32, order="C")
    if not np.isfinite(array).all():
        raise DataError(f"{source}: {name} holds values that are not finite in float32")
    return array


def check_targets(
    source: str, name: str, targets: np.ndarray, length: int, classes: int = MAX_CLASSES
) -> np.ndarray:
    """Classes [n] -> int32, or real targets [n, k] -> float32.  length: number of inputs."""
    if targets.shape[:1] != (length,):
        raise DataError(f"{source}: {name} has shape {targets.shape} for {length} inputs")
    if targets.dtype.kind in "bui" and targets.ndim == 1:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"{source}: {name} holds class {low if low < 0 else high}, "
                f"allowed: 0 to {classes - 1}"
            )
        return targets.astype(np.int32)
    if targets.dtype.kind == "f" and targets.ndim == 2 and targets.size:
        return _float32(source, name, targets)
    raise DataError(
        f"{source}: {name} has dtype {targets.dtype} and shape {targets.shape}, "
        "expected classes (integers) [n] or numbers (floats) [n, outputs]"
    )
