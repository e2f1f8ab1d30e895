"""Readers of data files.  Whatever is wrong with a file, the one exception is DataError, which names the file and the fault."""

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
"""What a file may unfold to: as many bytes as these always may, or MAX_RATIO times its own size up to MAX_BYTES."""
MAX_PIXELS, LARGE, STRIP = 2**27, 2**24, 2**21
"""An image may have MAX_PIXELS, which take half a gigabyte.  One of more than LARGE is shrunk in strips, one image at a time."""
MAX_CLASSES = 2**20
"""Classes are counted from the greatest label, so a damaged label must not announce a billion of them."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for images of so many channels."""
JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"}
"""Names, in lower case, of what operating systems put into folders by themselves, besides names that start with a dot."""
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class DataError(ValueError):
    """Data that is missing, damaged or not what it should be: names the file (or set) and what is wrong with it."""


@contextlib.contextmanager
def reading(source: str | pathlib.Path) -> Iterator[None]:
    """Turns whatever the system or a decoder raises into one DataError that names the source; mere warnings are not faults."""
    try:
        with _without_warnings():
            yield
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged input
        lines = str(error).strip().splitlines()
        raise DataError(
            f"{source}: unreadable: {lines[0][:200] if lines else type(error).__name__}"
        ) from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides warnings, on the main thread.

    Their filters belong to the process: threads that save and restore them at the same time leave it with the wrong ones.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def opened(file: pathlib.Path) -> Iterator[BinaryIO]:
    """The file, open; what is raised while it is becomes a DataError.  Pipes and devices, which may never end, are refused."""
    with reading(file):
        if not file.is_file():
            raise DataError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
        with open(file, "rb") as raw:
            yield raw


def visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """What a person has put into a folder, by name."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if not (entry.name.startswith(".") or entry.name.lower() in JUNK)
    )


def named(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file of that name in a folder, whatever the case of its letters; where there is none, the path that it would have."""
    file = folder / name
    if file.exists() or not folder.is_dir():
        return file
    return next(
        (entry for entry in sorted(folder.iterdir()) if entry.name.lower() == name.lower()), file
    )


def not_read(files: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """A note that names files which lie beside the data and are not read; none where there are no such files."""
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return (f"not read: {files[0]}{more}",) if files else ()


def _room(raw: BinaryIO, always: int) -> int:
    """How much a file may unfold to: neither a damaged length nor a decompression bomb may ask for all the memory there is."""
    return min(MAX_BYTES, max(always, MAX_RATIO * os.fstat(raw.fileno()).st_size))


def read_idx(file: pathlib.Path) -> np.ndarray:
    """An idx file, plain or gzipped (LeCun's MNIST format): two zero bytes, a type, the rank, the lengths, the data."""
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
    """What is in an open file, which may be gzipped, whatever it is called."""
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if zipped else raw


# ---------------------------------------------------------------- text


def read_text(file: pathlib.Path) -> str:
    """A text file: UTF-8, plain or gzipped, with or without a byte-order mark; whatever ends its lines becomes LF.

    Raises DataError that names the file, and says how UTF-16 becomes UTF-8.
    """
    return decoded(str(file), _text_bytes(file)).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: pathlib.Path) -> list[str]:
    """The lines of such a file.  Raises DataError that names the line, too."""
    return [
        decoded(f"{file}:{number}", line) for number, line in enumerate(read_byte_lines(file), 1)
    ]


def read_byte_lines(file: pathlib.Path) -> list[bytes]:
    """The lines of such a file, any of which may be no UTF-8.

    Lines end with LF or CRLF, or where there is no LF, with CR.  Anything else that ends lines elsewhere (a CR, a form feed, what
    Unicode has) is within a line: files whose lines belong together would not have the same number of them.
    """
    raw = _text_bytes(file)
    end = b"\n" if b"\n" in raw else b"\r"
    return [line.removesuffix(b"\r") for line in raw.removesuffix(end).split(end)] if raw else []


def decoded(source: str, raw: bytes) -> str:
    """UTF-8 as text, without a byte-order mark.  Raises DataError that names the source."""
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
    """The arrays of an npz file.  Pickled objects are refused."""
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
        # zipfile does not compare: one wrong bit in the length of a comment hides all later members.
        raw.seek(max(os.fstat(raw.fileno()).st_size - 2**16 - 22, 0))
        end = raw.read().rpartition(b"PK\5\6")[2]
        announced = int.from_bytes(end[6:8], "little")
        if not 0 < len(arrays) == announced:
            raise DataError(
                f"{file}: {len(arrays)} arrays where {announced} are announced, expected as many, and at least one"
            )
        return arrays


def _read_npy(file: pathlib.Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with reading(f"{file}: {member.filename}"), archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        # The checksum is compared where the member ends, which numpy does not reach when a damaged header announces too little.
        if stream.read(1):
            raise DataError(f"{file}: {member.filename}: more than its shape {array.shape} needs")
        return array


# ---------------------------------------------------------------- images


def check_image_shape(shape: tuple[int, int, int]) -> None:
    """Raises DataError unless images can be given that shape."""
    height, width, channels = shape
    if channels not in MODES or min(height, width) < 1:
        raise DataError(
            f"image_shape={shape}, allowed: height, width of at least 1 and 1, 3 or 4 channels"
        )


def read_image(file: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An image file of any format -> uint8 [height, width, channels], upright, resized; channels 1 (grey), 3 or 4.

    Of an animation the first frame; with 1 or 3 channels, what is transparent becomes white.
    """
    return read_sized_image(file, shape)[0]


def read_sized_image(
    file: pathlib.Path, shape: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """``read_image``, and height and width of the image as it was, upright."""
    check_image_shape(shape)
    height, width, channels = shape
    with opened_image(file) as image:
        large, (across, down) = image.width * image.height > LARGE, image.size
        # Otherwise every thread that reads images might hold a large one.
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
    """An image file of any format, open, of which no pixel is decoded yet.  Raises DataError that names it."""
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
    """Like ``Image.open``, whose limit of pixels is a setting of the process and half as high as ours."""
    Image.init()
    prefix = raw.read(16)
    # The likely ones first: each is tried.  EPS is a program, which Pillow would have Ghostscript run.
    for name in ("PNG", "JPEG", *sorted(set(Image.OPEN) - {"PNG", "JPEG", "EPS"})):
        factory, accept = Image.OPEN[name]
        # Another format after all, or damaged, is one of these errors.
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            accepted = accept is None or accept(prefix)
            if accepted and not isinstance(
                accepted, str
            ):  # text says what this Pillow was built without
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
"""What turns an image upright, by its EXIF orientation."""
SIDEWAYS = {TURNS[orientation] for orientation in (5, 6, 7, 8)}


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns the pixels of an image, which this decodes, upright.

    Only then it is known: Pillow turns TIFFs itself, and EXIF may follow the pixels of a PNG.
    """
    image.load()
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of damaged EXIF anything; the pixels are there
        return None


def image_size(file: pathlib.Path) -> tuple[int, int]:
    """Height and width of an image file, upright.  Raises DataError that names it."""
    with opened_image(file) as image:
        return image.size if _turn(image) in SIDEWAYS else (image.height, image.width)


GREY = ("1", "L", "I", "F")
"""How Pillow's names of grey modes begin."""
LOOKED_AT = 1000
"""Images whose sizes are compared, evenly spaced among more of them."""


def common_shape(where: object, files: Sequence[pathlib.Path]) -> tuple[int, int, int]:
    """Height, width and channels that images have: 1 channel where all are grey, else 3.

    Raises DataError that names the option to give where their sizes differ.
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
    """Numbers of classes from a PNG of palette indices or grey values of up to 8 bits -> uint8 [height, width], upright."""
    with opened_image(file) as image:
        if image.format != "PNG" or image.mode not in ("P", "L", "1"):
            raise DataError(
                f"{file}: {image.format} of mode {image.mode}, expected a PNG with a palette or up to 8 bits of grey"
            )
        turn = _turn(image)
        values = np.array(image if turn is None else image.transpose(turn)).astype(np.uint8)
    return values // np.uint8(255 // (2 ** _bits(file) - 1)) if image.mode == "L" else values


def _bits(file: pathlib.Path) -> int:
    """Bits of each sample of a PNG; Pillow scales grey of fewer than 8 bits to 0..255."""
    with opened(file) as raw:
        return raw.read(25)[24]


def _converted(
    file: pathlib.Path, image: Image.Image, mode: str, size: tuple[int, int]
) -> Image.Image:
    """Like ``image.convert(mode)``, but right for 16 bits and transparency; a large one is shrunk to twice ``size`` or more."""
    if image.mode in ("I", "F"):
        raise DataError(f"{file}: pixels of 32 bits, whose range is not known; expected 8 or 16")
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
    """Scales the transparent grey of a PNG as Pillow scales its pixels; of one of 3 x 16 bits, returns the lower 8 of each."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or image.mode not in ("L", "RGB"):
        return None
    bits = _bits(file)
    if bits < 8:
        image.info["transparency"] = key * (255 // (2**bits - 1))
    if bits != 16:
        return None
    with opened_image(file) as again:
        # Pillow keeps the first of two bytes; told that the last comes first, it keeps the other one.
        tiles: Any = again
        tiles.tile = [tile._replace(args="RGB;16L") for tile in tiles.tile]
        return again.copy()


def _strip(image: Image.Image, low: Image.Image | None, mode: str) -> Image.Image:
    """An image, or some rows of it, in another mode.  low: see ``_prepare_transparency``."""
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
"""A fingerprint reads as many bytes of each end of a file, with so many threads, of as many files in one go."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Image files as an array uint8 [n, height, width, channels] that is not in memory: what is indexed is decoded then.

    root: a folder; index: their paths in it, bytes [n], which take a tenth of the memory of as many paths.
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
        """files: within the folder ``root``."""
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
        """An index -> [height, width, channels]; a slice or an array of indices -> [k, height, width, channels].

        Raises DataError that names the file.
        """
        files: Any = self.index[rows]
        if isinstance(files, bytes):
            return read_image(self._path(files), self.image_shape)
        images = np.empty((len(files), *self.image_shape), self.dtype)
        for image, file in zip(images, files, strict=True):
            image[...] = read_image(self._path(file), self.image_shape)
        return images

    def select(self, rows: np.ndarray) -> "Images":
        """Those of the rows, not decoded."""
        return dataclasses.replace(self, index=self.index[rows])

    def followed_by(self, *others: "Images") -> "Images":
        """All of them, one after the other, not decoded; of the same folder."""
        return dataclasses.replace(
            self, index=np.concatenate([self.index, *(other.index for other in others)])
        )

    def digest(self) -> bytes:
        """A hash of what lies in the files, in their order: of each its length and its first and last ENDS bytes.

        Any change of a PNG shows there (its last bytes hold checksums), and whatever changes the length of a file; reading all
        of a set that does not fit in memory would take as long as an epoch.  Names and times of files do not matter.
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
"""Version of ``read_image``, raised when it reads other pixels from the same file.  Version 1 did not turn images upright."""
DIGEST = 16
"""Bytes of the hash of an image's pixels; zeros where it could not be read."""


class Mapped(Images):
    """Images that were decoded before, in a file that is mapped into memory: only what is indexed is read.  See ``map_images``.

    root: that file; index: their places in it, int32 [n], where the same image may come several times.
    """

    def __getitem__(self, rows: Any) -> np.ndarray:
        """See ``Images``; a copy.  Raises DataError that names the file when it is gone."""
        return np.take(self._pixels_and_digests()[0], self.index[rows], axis=0)

    def digest(self) -> bytes:
        """A hash of the pixels of all of them, in their order."""
        return hashlib.blake2b(self._pixels_and_digests()[1][self.index].tobytes()).digest()

    def readable(self) -> np.ndarray:
        """Which of them could be read when the file was made, bool [n]; the others are black."""
        return np.any(self._pixels_and_digests()[1][self.index], axis=1)

    def _pixels_and_digests(self) -> tuple[np.ndarray, np.ndarray]:
        # Not an attribute: a worker that is sent this maps the file itself.
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
    """Image files, resized, as ``Mapped``: each is decoded once, into a file that stays in ``folder``.

    That file is named after what decodes them, the shape, and the path, length and time of every image, so that others make
    another one.  It gets its name when it is complete: one that a killed process leaves half-written (*.part) is never used, and
    several processes may make the same one.  Images that cannot be read are black, see ``Mapped.readable``.

    decoded: is told how many images were, each time that some were.  Raises DataError when the file cannot be written.
    """
    check_image_shape(image_shape)
    name = hashlib.blake2b(
        repr((READ_VERSION, PIL.__version__, image_shape)).encode(), digest_size=16
    )
    for file in files:
        with reading(file):
            found = file.stat()
        name.update(
            f"{found.st_size} {found.st_mtime_ns} ".encode() + os.fsencode(file.absolute()) + b"\0"
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
    """Whether images that could not be read when the file was made cannot be read now: rights and decoders change."""
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
    """Writes the file: the pixels of all images, then their hashes."""
    black, digests = bytes(math.prod(image_shape)), []
    handle, temporary = tempfile.mkstemp(".part", dir=place.parent)
    try:
        # Written rather than mapped, as a full disk is then an error and not the end of this process.
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
    """Finite numbers [n, ...], not empty -> float32, or integers of at most 32 bits; contiguous, in this machine's byte order."""
    kind, size = inputs.dtype.kind, inputs.dtype.itemsize
    if kind not in "buif":
        raise DataError(f"{source}: {name} has dtype {inputs.dtype}, expected numbers")
    if inputs.ndim < 2 or not inputs.size:
        raise DataError(
            f"{source}: {name} has shape {inputs.shape}, expected [examples, ...] and at least one value"
        )
    if kind == "f":
        return _float32(source, name, inputs)
    if size == 8 and not -(2**31) <= int(inputs.min()) <= int(inputs.max()) < 2**31:
        raise DataError(
            f"{source}: {name} holds integers of more than 32 bits"
        )  # a device would cut them off without a word
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
    """Classes [n] -> int32, or real targets [n, k] -> float32; as many as there are inputs."""
    if targets.shape[:1] != (length,):
        raise DataError(f"{source}: {name} has shape {targets.shape} for {length} inputs")
    if targets.dtype.kind in "bui" and targets.ndim == 1:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"{source}: {name} holds class {low if low < 0 else high}, allowed: 0 to {classes - 1}"
            )
        return targets.astype(np.int32)
    if targets.dtype.kind == "f" and targets.ndim == 2 and targets.size:
        return _float32(source, name, targets)
    raise DataError(
        f"{source}: {name} has dtype {targets.dtype} and shape {targets.shape}, "
        "expected classes (integers) [n] or numbers (floats) [n, outputs]"
    )
