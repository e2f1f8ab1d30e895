"""Readers of data files.  Whatever is wrong with a file, the one exception is DataError, which names the file and the fault."""

import contextlib
import gzip
import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

MAX_BYTES = 2**33
"""Largest array that a file may announce: a damaged header must not ask for all the memory there is."""

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class DataError(ValueError):
    """Data that is missing, damaged or not what it should be: names the file (or set) and what is wrong with it."""


@contextlib.contextmanager
def reading(file: pathlib.Path) -> Iterator[None]:
    """Turns whatever a decoder raises, or warns of, into one DataError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except Exception as error:  # decoders raise nearly anything on damaged input
        lines = str(error).strip().splitlines()
        raise DataError(f"{file}: unreadable: {lines[0][:200] if lines else type(error).__name__}") from error


def read_idx(file: pathlib.Path) -> np.ndarray:
    """An idx file, plain or gzipped (LeCun's MNIST format): two zero bytes, a type, the rank, the lengths, the data."""
    with reading(file), open(file, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or magic[3] == 0:
            raise DataError(f"{file}: not an idx file: it starts with {magic.hex() or 'nothing'}")
        dtype, rank = np.dtype(IDX_TYPES[magic[2]]), magic[3]
        lengths = stream.read(4 * rank)
        if len(lengths) < 4 * rank:
            raise DataError(f"{file}: truncated in its header")
        shape = tuple(int.from_bytes(lengths[4 * axis : 4 * axis + 4], "big") for axis in range(rank))
        size = math.prod(shape) * dtype.itemsize
        if not 0 < size <= MAX_BYTES:
            raise DataError(f"{file}: shape {shape} announces {size} bytes, allowed: 1 to {MAX_BYTES}")
        data = stream.read(size)
        if len(data) < size:
            raise DataError(f"{file}: truncated: {len(data)} of {size} bytes for shape {shape}")
        if stream.read(1):
            raise DataError(f"{file}: more than the {size} bytes of its shape {shape}")
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def read_npz(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file.  Pickled objects are refused."""
    with reading(file), np.load(file, allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{file}: an npy file; expected npz, with named arrays")
        _check_announced(file, archive)
        return {name: np.asarray(archive[name]) for name in archive.files}


def _check_announced(file: pathlib.Path, archive: Any) -> None:
    for member in archive.zip.namelist():
        with archive.zip.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
        if math.prod(shape) * dtype.itemsize > MAX_BYTES:
            raise DataError(f"{file}: {member} announces shape {shape}, more than {MAX_BYTES} bytes")


def read_image(file: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An image file of any format -> uint8 [height, width, channels], resized; channels 1 (grey), 3 or 4."""
    from PIL import Image

    height, width, channels = shape
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None or min(height, width) < 1:
        raise DataError(f"image_shape={shape}, allowed: height, width of at least 1 and 1, 3 or 4 channels")
    with reading(file), Image.open(file) as image:
        resized = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized, np.uint8).reshape(shape)


def check_inputs(source: str, name: str, inputs: np.ndarray) -> np.ndarray:
    """Inputs [n, ...] of numbers, finite, not empty."""
    if inputs.dtype.kind not in "buif":
        raise DataError(f"{source}: {name} has dtype {inputs.dtype}, expected numbers")
    if inputs.ndim < 2 or not inputs.size:
        raise DataError(f"{source}: {name} has shape {inputs.shape}, expected [examples, ...] and at least one value")
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise DataError(f"{source}: {name} holds values that are not finite")
    return inputs.astype(np.float32) if inputs.dtype.kind == "f" else inputs


def check_targets(source: str, name: str, targets: np.ndarray, length: int, classes: int | None = None) -> np.ndarray:
    """Classes [n] -> int32, or real targets [n, k] -> float32; as many as there are inputs."""
    if targets.shape[:1] != (length,):
        raise DataError(f"{source}: {name} has shape {targets.shape} for {length} inputs")
    if targets.dtype.kind in "ui" and targets.ndim == 1:
        low, high = int(targets.min()), int(targets.max())
        top = classes if classes is not None else 2**31
        if low < 0 or high >= top:
            raise DataError(f"{source}: {name} holds class {low if low < 0 else high}, allowed: 0 to {top - 1}")
        return targets.astype(np.int32)
    if targets.dtype.kind == "f" and targets.ndim == 2 and np.isfinite(targets).all():
        return targets.astype(np.float32)
    raise DataError(
        f"{source}: {name} has dtype {targets.dtype} and shape {targets.shape}, "
        "expected classes (integers) [n] or finite numbers [n, outputs]"
    )
