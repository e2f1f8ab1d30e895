"""Image files as lazy arrays: decoded when indexed, or once into a memory-mapped file."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL

from train.formats.files import DataError, opened, reading
from train.formats.images import check_image_shape, read_image

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
