"""Reads arrays from idx and npz files, and checks arrays of inputs and targets."""

import math
import os
import pathlib
import zipfile

import numpy as np

from train.formats.files import DataError, opened, reading, room_for, unzipped

MAX_CLASSES = 2**20
"""Limit of classes: their number is the largest label + 1, which may be damaged."""
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(file: pathlib.Path) -> np.ndarray:
    """Reads an idx file (LeCun's MNIST format), plain or gzipped.

    It has two zero bytes, the type, the rank, the lengths of the axes, and the data.
    """
    with opened(file) as raw:
        stream = unzipped(raw)
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
        size, room = math.prod(shape) * dtype.itemsize, room_for(raw)
        if not 0 < size <= room:
            raise DataError(f"{file}: shape {shape} announces {size} bytes, allowed: 1 to {room}")
        data = stream.read(size)
        if len(data) < size:
            raise DataError(f"{file}: truncated: {len(data)} of {size} bytes for shape {shape}")
        if stream.read(1):
            raise DataError(f"{file}: more than the {size} bytes of its shape {shape}")
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def read_npz(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file.  Rejects pickled objects."""
    with opened(file) as raw:
        if not zipfile.is_zipfile(raw):
            raise DataError(
                f"{file}: not an npz file (named arrays, as numpy.savez writes them), or truncated"
            )
        with zipfile.ZipFile(raw) as archive:
            members, room = archive.infolist(), room_for(raw)
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
