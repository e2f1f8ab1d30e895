"""Readers of data files: correct content, and DataError for every damaged file."""

import concurrent.futures
import gzip
import io
import os
import pathlib
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

import train.formats.files
import train.formats.images
from train.data import load_data
from train.formats import (
    DataError,
    Images,
    check_inputs,
    check_targets,
    common_shape,
    image_size,
    map_images,
    read_idx,
    read_image,
    read_mask,
    read_npz,
)

CODES = {0x08: "B", 0x09: "b", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}


def idx_bytes(code: int, shape: tuple[int, ...], values) -> bytes:
    """An idx file built with struct, independently of the reader."""
    header = struct.pack(">BBBB", 0, 0, code, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    return header + struct.pack(f">{len(values)}{CODES[code]}", *values)


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the same damage every time


def npz_bytes(save=np.savez, **arrays) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def image_bytes(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def by_hand(
    rows: bytes | list[bytes],
    *,
    bits: int,
    width: int,
    height: int,
    colours: int = 0,
    transparent: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG of a type that Pillow does not write, from filtered rows.  after: EXIF after pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    packer = zlib.compressobj(1)
    packed = b"".join(
        [*map(packer.compress, [rows] if isinstance(rows, bytes) else rows), packer.flush()]
    )
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"".join((
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", header),
        chunk(b"tRNS", transparent) if transparent else b"",
        chunk(b"IDAT", packed),
        chunk(b"eXIf", after) if after else b"",
        chunk(b"IEND", b""),
    ))  # fmt: skip


def write(file: pathlib.Path, data: bytes) -> pathlib.Path:
    """Writes without truncating first, after which some file systems wait for the disk."""
    with open(file, "r+b" if file.exists() else "wb") as stream:
        stream.write(data)
        stream.truncate()
    return file


# ---------------------------------------------------------------- damage


EDGES = (0, 1, 2, 4, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damage(rng: np.random.Generator, data: bytes, donors: list[bytes]) -> bytes:
    """One to three faults: wrong bits and bytes, lost, added, foreign parts, extreme lengths."""
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, size = int(rng.integers(len(damaged) + 1)), int(rng.integers(1, 17))
        if rng.random() < 0.4:  # headers are damaged more often than by chance
            at = min(at, int(rng.integers(64)))
        donor = donors[rng.integers(len(donors))]
        start = int(rng.integers(len(donor)))
        match rng.integers(8):
            case 0 if at < len(damaged):
                damaged[at] ^= 1 << int(rng.integers(8))
            case 1 if at < len(damaged):
                damaged[at] = int(rng.integers(256))
            case 2:
                del damaged[at:]
            case 3:
                del damaged[at : at + size]
            case 4:
                damaged[at:at] = rng.bytes(size)
            case 5:
                edge = EDGES[rng.integers(len(EDGES))]
                damaged[at : at + 4] = edge.to_bytes(4, "big" if rng.random() < 0.5 else "little")
            case 6:
                damaged[at : at + size] = donor[start : start + size]
            case _:
                damaged += rng.bytes(size)
    return bytes(damaged)


@pytest.fixture
def bounded() -> Iterator[None]:
    """The memory of the process grows by less than a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**30 / (1 if sys.platform == "darwin" else 1024)


def fuzz(
    file: pathlib.Path, valid: list[bytes], count: int, seed: int, read: Callable, check: Callable
) -> None:
    """Reads ``count`` damaged files: each raises DataError with its name or passes ``check``."""
    rng = np.random.default_rng(seed)
    said = []
    for _ in range(count):
        data = damage(rng, valid[rng.integers(len(valid))], valid)
        write(file, data)
        start = time.process_time()
        try:
            found = read(file)
        except DataError as error:
            said.append(str(error))
        else:
            check(found, data)
        assert time.process_time() - start < 5
    assert len(said) > count / 2
    assert all(
        message.startswith(str(file)) and len(message) > len(str(file)) + 5 for message in said
    )


def same_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def idx_examples() -> list[bytes]:
    shapes = ((5,), (2, 3), (3, 4, 4))
    return [
        idx_bytes(code, shape, [(7 * i + code) % 100 for i in range(np.prod(shape))])
        for code in CODES
        for shape in shapes
    ]


def test_damaged_idx_files_are_refused_or_read_consistently(tmp_path, bounded):
    def check(array, data):
        start = 4 + 4 * array.ndim
        assert array.dtype.isnative
        assert struct.unpack(f">{array.ndim}I", data[4:start]) == array.shape
        assert array.astype(array.dtype.newbyteorder(">")).tobytes() == data[start:]

    fuzz(tmp_path / "plain", idx_examples(), 3_500, 1, read_idx, check)


def test_damaged_gzipped_idx_files_are_refused_or_read_right(tmp_path, bounded):
    valid = [gzipped(data) for data in idx_examples()]
    rights = [read_idx(write(tmp_path / "right", data)) for data in valid]

    def check(array, _):
        assert any(same_arrays({"": array}, {"": right}) for right in rights)

    fuzz(tmp_path / "damaged.gz", valid, 3_000, 2, read_idx, check)


def test_damaged_npz_files_are_refused_or_read_right(tmp_path, bounded):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(6, 3)).astype(np.float32), np.arange(6)
    valid = [
        npz_bytes(np.savez, inputs=inputs, targets=targets),
        npz_bytes(np.savez_compressed, inputs=inputs, targets=targets),
        npz_bytes(
            np.savez, x=np.asfortranarray(np.ones((3, 5))), y=np.array(["a"]), z=np.zeros(2, ">i4")
        ),
        npz_bytes(np.savez_compressed, zeros=np.zeros((300, 300), np.uint8)),
    ]
    rights = [read_npz(write(tmp_path / "right", data)) for data in valid]

    def check(arrays, _):
        assert any(same_arrays(arrays, right) for right in rights)

    fuzz(tmp_path / "damaged.npz", valid, 3_500, 3, read_npz, check)


def image_examples() -> list[bytes]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    kinds = (
        "PNG:L PNG:RGBA PNG:P PNG:1 JPEG:L JPEG:RGB JPEG:CMYK GIF:P BMP:L BMP:RGB PPM:L PPM:RGB "
        "TIFF:L TIFF:RGBA TIFF:CMYK"
    )
    kinds += " TGA:RGB ICO:RGBA PCX:P SGI:RGB DDS:RGBA"
    return [
        image_bytes(image.convert(mode), kind)
        for kind, mode in (word.split(":") for word in kinds.split())
    ]


def test_damaged_images_are_refused_or_become_images_of_that_shape(tmp_path, bounded, capfd):
    def check(image, _):
        assert (image.shape, image.dtype) == ((8, 6, 3), np.uint8)

    fuzz(
        tmp_path / "damaged.png",
        image_examples(),
        2_000,
        4,
        lambda file: read_image(file, (8, 6, 3)),
        check,
    )


def test_a_damaged_image_in_a_folder_is_refused_by_its_name_or_becomes_an_example(tmp_path):
    valid = image_examples()
    files = [tmp_path / label / f"{number}.png" for label in ("a", "b") for number in range(5)]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        write(file, valid[number])
    rng = np.random.default_rng(5)
    said = []
    for _ in range(200):
        number = int(rng.integers(len(files)))
        write(files[number], damage(rng, valid[number], valid))
        try:
            dataset = load_data(f"folder:{tmp_path}", image_shape=(4, 4, 1))
        except DataError as error:
            said.append(str(error).startswith(str(files[number])))
        else:
            assert sum(len(table["targets"]) for table in dataset.splits.values()) == len(files)
        write(files[number], valid[number])
    assert all(said)
    assert len(said) > 50


# ---------------------------------------------------------------- idx


@pytest.mark.parametrize("pack", [bytes, gzipped], ids=["plain", "gzipped"])
@pytest.mark.parametrize(
    ("code", "values", "dtype"),
    [
        (0x08, [0, 1, 2, 127, 128, 255], np.uint8),
        (0x09, [0, 1, 2, 127, -128, -1], np.int8),
        (0x0B, [0, 1, 256, -32768, 32767, -2], np.int16),
        (0x0C, [0, 1, 65536, -(2**31), 2**31 - 1, -2], np.int32),
        (0x0D, [0.0, 1.5, -2.25, 1e10, -1e-10, 3.0], np.float32),
        (0x0E, [0.0, 1.5, -2.25, 1e300, -1e-300, 3.0], np.float64),
    ],
)
def test_idx_files_of_every_type(tmp_path, pack, code, values, dtype):
    array = read_idx(write(tmp_path / "file", pack(idx_bytes(code, (2, 3), values))))
    assert array.dtype == dtype
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, np.array(values, dtype).reshape(2, 3))


def test_idx_bytes_written_out_by_hand(tmp_path):
    data = (
        b"\x00\x00\x08\x03"
        + b"\x00\x00\x00\x02"
        + b"\x00\x00\x00\x01"
        + b"\x00\x00\x00\x03"
        + b"\x01\x02\x03\xfd\xfe\xff"
    )
    assert read_idx(write(tmp_path / "file", data)).tolist() == [[[1, 2, 3]], [[253, 254, 255]]]


IDX = idx_bytes(0x08, (2, 3), range(6))
ZIPPED = gzipped(IDX)


FAULTS = {
    "empty": (b"", "not an idx file: it starts with nothing"),
    "three bytes": (b"\x00\x00\x08", "not an idx file"),
    "an image": (b"\x89PNG\r\n", "not an idx file: it starts with 89504e47"),
    "a type that does not exist": (b"\x00\x00\x0a" + IDX[3:], "not an idx file"),
    "rank 0": (b"\x00\x00\x08\x00\x01", "not an idx file"),
    "cut in the header": (IDX[:7], "truncated in its header"),
    "cut in the data": (IDX[:-1], "truncated: 5 of 6 bytes"),
    "longer": (IDX + b"\0", "more than the 6 bytes"),
    "no examples": (idx_bytes(0x08, (0, 3), []), "announces 0 bytes"),
    "enormous": (
        struct.pack(">BBBBIII", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        "announces .* allowed: 1 to",
    ),
    "more axes than numpy has": (
        struct.pack(">BBBB100I", 0, 0, 8, 100, *[1] * 100) + b"\0",
        "unreadable",
    ),
    "gzip cut": (ZIPPED[:-9], "unreadable: Compressed file ended"),
    "gzip checksum": (ZIPPED[:-5] + b"\0" + ZIPPED[-4:], "unreadable: CRC check failed"),
    "gzip and garbage": (ZIPPED + b"garbage", "unreadable: Not a gzipped file"),
    "gzip longer": (ZIPPED + gzipped(b"more"), "more than the 6 bytes"),
    "gzip of nothing": (gzipped(b""), "it starts with nothing"),
    "gzip of gzip": (gzipped(ZIPPED), "not an idx file"),
}


@pytest.mark.parametrize(("data", "fault"), FAULTS.values(), ids=FAULTS)
def test_faults_of_idx_files_are_named(tmp_path, data, fault):
    file = write(tmp_path / "train-images", data)
    with pytest.raises(DataError, match=f"{file}: .*{fault}"):
        read_idx(file)


def peak(read: Callable) -> int:
    """Peak bytes allocated by Python and numpy while ``read`` failed."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"announces|pixels, allowed"):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_size_suggested_for_images_of_many_sizes_is_their_median(tmp_path):
    sizes = [(10, 90), (20, 21), (20, 22), (21, 20), (70, 9)]
    files = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for file, (height, width) in zip(files, sizes, strict=True):
        Image.new("L", (width, height)).save(file)
    with pytest.raises(DataError, match=r"5 sizes, .* such as --data\.image-shape 20 21 1$"):
        common_shape(tmp_path, files)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train.formats.files, "ALWAYS_BYTES", 2**20)
    zeros = bytes(2**26)
    idx = write(
        tmp_path / "bomb.gz", gzipped(struct.pack(">BBBBI", 0, 0, 8, 1, len(zeros)) + zeros)
    )
    npz = write(
        tmp_path / "bomb.npz", npz_bytes(np.savez_compressed, inputs=np.frombuffer(zeros, np.uint8))
    )
    many = {f"x{number}": np.zeros(2**19, np.uint8) for number in range(64)}
    parts = write(tmp_path / "parts.npz", npz_bytes(np.savez_compressed, **many))
    image = write(tmp_path / "bomb.png", by_hand(bytes(100), bits=1, width=30_000, height=30_000))
    assert max(file.stat().st_size for file in (idx, npz, parts, image)) < 100_000
    for read in (
        lambda: read_idx(idx),
        lambda: read_npz(npz),
        lambda: read_npz(parts),
        lambda: read_image(image, (8, 8, 1)),
    ):
        assert peak(read) < 2**22


def test_highly_compressible_data_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(train.formats.files, "ALWAYS_BYTES", 2**10)
    images = np.zeros((2_000, 28, 28), np.uint8)
    images[:, 10:18, 13:15] = np.random.default_rng(0).integers(0, 256, (2_000, 8, 2))
    assert same_arrays(
        read_npz(write(tmp_path / "x.npz", npz_bytes(np.savez_compressed, x=images))), {"x": images}
    )


# ---------------------------------------------------------------- what is not a file


@pytest.mark.parametrize(
    "read",
    [read_idx, read_npz, lambda file: read_image(file, (8, 8, 1))],
    ids=["idx", "npz", "image"],
)
class TestNotAFile:
    def test_missing_file_is_refused(self, tmp_path, read):
        with pytest.raises(DataError, match=f"{tmp_path}/x: no such file"):
            read(tmp_path / "x")

    def test_directory_is_refused(self, tmp_path, read):
        with pytest.raises(DataError, match=f"{tmp_path}: not a file"):
            read(tmp_path)

    def test_dangling_link_is_refused(self, tmp_path, read):
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(DataError, match="link: no such file"):
            read(tmp_path / "link")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
    @pytest.mark.timeout(20)
    def test_a_pipe_does_not_hang(self, tmp_path, read):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="pipe: not a file"):
            read(tmp_path / "pipe")

    def test_invalid_file_name_is_refused(self, tmp_path, read):
        for name in ("x" * 5000, "nul\0"):
            with pytest.raises(DataError, match=r"unreadable|no such file"):
                read(tmp_path / name)

    def test_unreadable_file_is_refused(self, tmp_path, read, monkeypatch):
        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(
            train.formats.files, "open", refuse, raising=False
        )  # the superuser may read everything
        with pytest.raises(DataError, match=r"secret: unreadable: .*Permission denied"):
            read(write(tmp_path / "secret", b"x"))


# ---------------------------------------------------------------- npz


def test_npz_keeps_names_types_and_values(tmp_path):
    arrays = {
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 3)),
        "scalar": np.float16(2),
        "words": np.array(["a", "bc"]),
    }
    for save in (np.savez, np.savez_compressed):
        found = read_npz(write(tmp_path / "x.npz", npz_bytes(save, **arrays)))
        assert same_arrays(found, {name: np.asarray(array) for name, array in arrays.items()})


def test_arrays_that_python_2_wrote_are_read(tmp_path):
    array = npz_bytes(np.savez, x=np.arange(3, dtype="<i4"))
    with zipfile.ZipFile(io.BytesIO(array)) as archive:
        member = archive.read("x.npy").replace(b"(3,), }", b"(3L,),}")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", member)
    assert read_npz(write(tmp_path / "x.npz", stream.getvalue()))["x"].tolist() == [0, 1, 2]


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name + ".npy", data)
    return stream.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


NPY = npy_bytes(np.arange(9, dtype=np.uint8))
DEEP = b"\x93NUMPY\x02\x00" + (9000).to_bytes(4, "little") + b"(" * 9000


NPZ_FAULTS = {
    "empty": (b"", "not an npz file"),
    "text": (b"inputs, targets\n1, 2\n", "not an npz file"),
    "npy": (NPY, "not an npz file"),
    "cut": (zipped(x=NPY)[:-30], "not an npz file .*or truncated"),
    "no members": (zipped(), "expected the same number, and at least one"),
    "a member of text": (zipped(x=NPY, y=b"text"), "y.npy: unreadable: .*magic string"),
    "an empty member": (zipped(x=b""), "x.npy: unreadable"),
    "a member cut": (zipped(x=NPY[:-1]), "x.npy: unreadable"),
    "a member longer": (zipped(x=NPY + b"\0"), "x.npy: more than its shape"),
    "a deep header": (zipped(x=DEEP), "x.npy: unreadable"),
    "a negative length": (zipped(x=NPY.replace(b"(9,)", b"(-9,)")), "x.npy: unreadable"),
    "enormous": (
        zipped(x=NPY.replace(b"(9,), }          ", b"(9999999999999,)}")),
        "x.npy: unreadable",
    ),
    "pickled objects": (
        npz_bytes(np.savez, x=np.array([{}, None], object)),
        "x.npy: unreadable: Object arrays cannot be loaded",
    ),
}


@pytest.mark.parametrize(("data", "fault"), NPZ_FAULTS.values(), ids=NPZ_FAULTS)
def test_faults_of_npz_files_are_named(tmp_path, data, fault):
    file = write(tmp_path / "data.npz", data)
    with pytest.raises(DataError, match=f"{file}: .*{fault}"):
        read_npz(file)


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def test_an_encrypted_member_is_named(tmp_path):
    data = zipped(x=NPY)
    central = data.index(b"PK\x01\x02")
    data = flipped(flipped(data, 6, 1), central + 8, 1)
    with pytest.raises(DataError, match=r"x.npy: unreadable: .*encrypted"):
        read_npz(write(tmp_path / "x.npz", data))


def test_short_header_does_not_bypass_the_checksum(tmp_path):
    data = zipped(x=npy_bytes(np.zeros(90_000, np.uint8))).replace(b"(90000,)", b"(10000,)")
    with np.load(io.BytesIO(data)) as arrays:
        assert arrays["x"].shape == (10_000,), (
            "numpy does not notice; if it did, the reader could be simpler"
        )
    with pytest.raises(DataError, match=r"x.npy: more than its shape \(10000,\) needs"):
        read_npz(write(tmp_path / "x.npz", data))


def test_a_wrong_bit_does_not_hide_later_members(tmp_path):
    data = zipped(x=NPY, y=NPY)
    comment_length = data.index(b"PK\x01\x02") + 33
    data = flipped(data, comment_length, 0x80)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["x.npy"], (
            "zipfile does not notice; if it did, the reader could be simpler"
        )
    with pytest.raises(DataError, match="1 arrays where 2 are announced"):
        read_npz(write(tmp_path / "x.npz", data))


def test_duplicate_npz_members_are_refused(tmp_path):
    data = zipped(x=NPY, y=NPY).replace(b"y.npy", b"x.npy")
    with pytest.raises(DataError, match="1 arrays where 2 are announced"):
        read_npz(write(tmp_path / "x.npz", data))


# ---------------------------------------------------------------- images


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path):
    rng = np.random.default_rng(0)
    for channels in (1, 3, 4):
        pixels = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        file = write(tmp_path / "image", image_bytes(Image.fromarray(pixels.squeeze()), "PNG"))
        np.testing.assert_array_equal(read_image(file, (5, 7, channels)), pixels)


def test_an_image_is_resized_with_height_first(tmp_path):
    image = np.zeros((8, 4), np.uint8)
    image[4:] = 200
    found = read_image(
        write(tmp_path / "image", image_bytes(Image.fromarray(image), "PNG")), (2, 6, 1)
    )
    assert found.shape == (2, 6, 1)
    assert (found[0] < found[1]).all()


RED = Image.new("RGB", (4, 4), (255, 0, 0))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "WEBP", "GIF", "JPEG"])
@pytest.mark.parametrize(
    ("channels", "expected"), [(1, [76]), (3, [255, 0, 0]), (4, [255, 0, 0, 255])]
)
def test_colour_channels_are_in_rgb_order(tmp_path, kind, channels, expected):
    options = {"lossless": True} if kind == "WEBP" else {}
    found = read_image(
        write(tmp_path / "image", image_bytes(RED, kind, **options)), (4, 4, channels)
    )
    assert np.abs(found.astype(int) - expected).max() <= (2 if kind == "JPEG" else 0)


def test_first_frame_of_an_animation_is_read(tmp_path):
    blue = Image.new("RGB", (4, 4), (0, 0, 255))
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        file = write(
            tmp_path / "image",
            image_bytes(RED, kind, save_all=True, append_images=[blue], **options),
        )
        assert (read_image(file, (4, 4, 3)) == [255, 0, 0]).all()


def test_transparency_is_white_without_an_alpha_channel(tmp_path):
    ink = np.zeros((2, 4, 4), np.uint8)  # black all over, but opaque only on the left
    ink[:, :2, 3] = 255
    rgba = write(tmp_path / "rgba", image_bytes(Image.fromarray(ink), "PNG"))
    palette = Image.fromarray(np.repeat([[0, 0, 1, 1]], 2, 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    several = write(tmp_path / "several", image_bytes(palette, "PNG", transparency=b"\xff\x00"))
    one = write(tmp_path / "one", image_bytes(palette, "GIF", transparency=1))
    for file in (rgba, several, one):
        assert read_image(file, (2, 4, 1))[0, :, 0].tolist() == [0, 0, 255, 255]
        assert read_image(file, (2, 4, 3))[0, :, 1].tolist() == [0, 0, 255, 255]
        assert read_image(file, (2, 4, 4))[0, :, 3].tolist() == [255, 255, 0, 0]


def test_16_bits_are_scaled_and_32_bits_refused(tmp_path):
    values = np.array([[0, 128, 256], [0x8000, 0xFF00, 0xFFFF]], np.uint16)
    for kind in ("PNG", "TIFF"):
        file = write(tmp_path / "16", image_bytes(Image.fromarray(values), kind))
        assert read_image(file, (2, 3, 1))[..., 0].tolist() == [[0, 0, 1], [128, 255, 255]]
    for dtype in (np.int32, np.float32):
        file = write(tmp_path / "32", image_bytes(Image.fromarray(values.astype(dtype)), "TIFF"))
        with pytest.raises(DataError, match="32: pixels of 32 bits"):
            read_image(file, (2, 3, 1))


def png_16(values: np.ndarray, transparent: list[int] | None = None) -> bytes:
    """A PNG of 16-bit values [height, width, channels]: grey or RGB, with or without alpha."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    data = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    key = b"" if transparent is None else np.array(transparent, ">u2").tobytes()
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return by_hand(data, bits=16, colours=kind, width=width, height=height, transparent=key)


def test_transparency_of_16_bits(tmp_path):
    """Values that differ from the transparent one in their lower bits only are not transparent."""
    grey = np.array([[0x1234, 0x1235, 0x1334, 0xFFFF]])[..., None]
    file = write(tmp_path / "grey.png", png_16(grey, [0x1234]))
    for channels in (1, 3):
        assert read_image(file, (1, 4, channels))[0, :, 0].tolist() == [255, 0x12, 0x13, 255]
    assert read_image(file, (1, 4, 4))[0, :, 3].tolist() == [0, 255, 255, 255]
    assert read_image(write(tmp_path / "opaque.png", png_16(grey)), (1, 4, 1)).ravel().tolist() == [
        0x12,
        0x12,
        0x13,
        255,
    ]

    colours = np.array(
        [[[0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABD], [0x34, 0x78, 0xBC], [0, 0, 0]]]
    )
    file = write(tmp_path / "colours.png", png_16(colours, [0x1234, 0x5678, 0x9ABC]))
    assert read_image(file, (1, 4, 3)).tolist() == [
        [[255] * 3, [0x12, 0x56, 0x9A], [0] * 3, [0] * 3]
    ]
    assert read_image(file, (1, 4, 4))[0, :, 3].tolist() == [0, 255, 255, 255]
    file = write(tmp_path / "black.png", png_16(colours, [0, 0, 0]))
    assert read_image(file, (1, 4, 3))[0].tolist() == [
        [0x12, 0x56, 0x9A],
        [0x12, 0x56, 0x9A],
        [0] * 3,
        [255] * 3,
    ]

    for name, values in {
        "la.png": [[0x4000, 0xFFFF], [0x4000, 0]],
        "rgba.png": [[0x4000] * 3 + [0xFFFF], [0x4000] * 3 + [0]],
    }.items():
        file = write(tmp_path / name, png_16(np.array([values])))
        for channels in (1, 3):
            assert read_image(file, (1, 2, channels))[0, :, 0].tolist() == [0x40, 255]
        assert read_image(file, (1, 2, 4))[0, :, 3].tolist() == [255, 0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_of_few_bits(tmp_path, bits):
    values = np.arange(8).reshape(1, 8) % 2**bits
    packed = np.packbits((values[..., None] >> np.arange(bits)[::-1]) & 1).tobytes()
    file = write(
        tmp_path / "x.png",
        by_hand(b"\0" + packed, bits=bits, width=8, height=1, transparent=b"\0\1"),
    )
    expected = np.where(values == 1, 255, values * (255 // (2**bits - 1)))
    np.testing.assert_array_equal(read_image(file, (1, 8, 1))[..., 0], expected)


# ---------------------------------------------------------------- images that are turned


CORNERS = np.kron(
    np.array([[10, 90], [170, 250], [50, 130]], np.uint8), np.ones((16, 16), np.uint8)
)
"""Upright, 48 high and 32 wide; no two turns or reflections of it are the same."""
AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda upright: np.rot90(upright, 2).T,
    8: lambda upright: np.rot90(upright, -1),
}
"""By EXIF's definition: in orientation 6, row 0 is the upright image's right, column 0 its top."""


def turned(kind: str, orientation: int, mode: str = "L") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict = (
        {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    )
    stored = Image.fromarray(np.ascontiguousarray(AS_STORED[orientation](CORNERS)))
    return image_bytes(stored.convert(mode), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", AS_STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright_by_exif_orientation(tmp_path, kind, orientation):
    file = write(tmp_path / "image", turned(kind, orientation))
    assert image_size(file) == (48, 32)
    assert np.abs(read_image(file, (48, 32, 1))[..., 0].astype(int) - CORNERS).max() <= 2
    upright = write(tmp_path / "upright", turned(kind, 1))
    assert (
        np.abs(read_image(file, (9, 7, 3)).astype(int) - read_image(upright, (9, 7, 3))).max() <= 2
    )


def test_turned_pngs_have_the_very_pixels_of_upright_ones(tmp_path):
    upright = write(tmp_path / "upright", turned("PNG", 1))
    for orientation in AS_STORED:
        file = write(tmp_path / "image", turned("PNG", orientation))
        for shape in ((48, 32, 1), (5, 11, 4), (64, 20, 3)):
            np.testing.assert_array_equal(read_image(file, shape), read_image(upright, shape))


def test_orientation_after_the_pixels_and_damaged_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = np.pad(np.rot90(CORNERS), ((0, 0), (1, 0))).tobytes()
    file = write(
        tmp_path / "x.png", by_hand(data, bits=8, width=48, height=32, after=exif.tobytes()[6:])
    )
    np.testing.assert_array_equal(read_image(file, (48, 32, 1))[..., 0], CORNERS)
    for damaged in (b"no", b"MM\0\x2a\xff\xff\xff\xff", b"II\x2a\0\x08\0\0\0\xff\xff\x12\1"):
        write(file, by_hand(data, bits=8, width=48, height=32, after=damaged))
        np.testing.assert_array_equal(read_image(file, (32, 48, 1))[..., 0], np.rot90(CORNERS))


def test_masks_are_turned_like_their_images(tmp_path):
    for mode in ("L", "P"):
        for orientation in AS_STORED:
            file = write(tmp_path / "mask", turned("PNG", orientation, mode))
            np.testing.assert_array_equal(
                read_mask(file), np.array(Image.fromarray(CORNERS).convert(mode))
            )


# ---------------------------------------------------------------- large images


def gradient(mode: str, height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    planes = [
        rows * 255 / height,
        columns * 255 / width,
        (rows + columns) % 64,
        np.where(rows < height // 3, 255, 0),
    ]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("shape", [(9, 7, 1), (9, 7, 3), (9, 7, 4), (200, 300, 3)])
def test_large_images_are_shrunk_in_strips_to_nearly_the_same(tmp_path, monkeypatch, mode, shape):
    image = (
        Image.fromarray(np.asarray(gradient("L", 301, 207)).astype(np.uint16) * 257)
        if mode == "I;16"
        else gradient(mode, 301, 207)
    )
    kind = "TIFF" if mode == "CMYK" else "PNG"
    file = write(tmp_path / "image", image_bytes(image, kind))
    whole = read_image(file, shape).astype(int)
    monkeypatch.setattr(train.formats.images, "LARGE", 5_000)
    monkeypatch.setattr(train.formats.images, "STRIP", 1_000)
    difference = np.abs(read_image(file, shape) - whole)
    assert difference.mean() < 2
    if shape == (200, 300, 3):
        assert not difference.any(), "nothing to shrink: the same pixels"


def test_a_large_jpeg_is_decoded_at_part_of_its_size_and_turned(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = gradient("RGB", 800, 400)
    sensor = upright.transpose(Image.Transpose.ROTATE_90)
    file = write(tmp_path / "image", image_bytes(sensor, "JPEG", exif=exif, quality=95))
    whole = read_image(file, (40, 20, 3)).astype(int)
    decoded = []
    monkeypatch.setattr(train.formats.images, "LARGE", 5_000)
    original = train.formats.images._converted
    monkeypatch.setattr(
        train.formats.images,
        "_converted",
        lambda file, image, *how: decoded.append(image.size) or original(file, image, *how),
    )
    assert np.abs(read_image(file, (40, 20, 3)) - whole).mean() < 2
    assert decoded == [(200, 100)]


MEASURE = """
import pathlib, re, sys
from train.formats import read_image
image = read_image(pathlib.Path(sys.argv[1]), (28, 28, 3))
# Not ru_maxrss, which begins with that of the process that started this one.
status = pathlib.Path("/proc/self/status").read_text("utf-8")
print(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1], *image.mean(axis=(0, 1)))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_hundred_megapixels_take_less_than_a_gigabyte_without_a_word(tmp_path):
    """In a separate process, with warnings as errors: Pillow's own limit is lower."""
    red, clear = b"\0" + bytes([200, 0, 0, 255]) * 10_000, b"\0" + bytes([0, 200, 0, 0]) * 10_000
    rows = [red] * 5_000 + [clear] * 5_000
    file = write(tmp_path / "x.png", by_hand(rows, bits=8, colours=6, width=10_000, height=10_000))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURE, str(file)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, *colour = map(float, done.stdout.split())
    np.testing.assert_allclose(colour, [(200 + 255) / 2, 255 / 2, 255 / 2], atol=2)
    assert done.stderr == ""
    assert 400_000 < peak < 900_000, "kilobytes"


def test_more_pixels_than_allowed_are_refused_with_their_number(tmp_path):
    file = write(tmp_path / "x.png", by_hand(bytes(100), bits=1, width=2**14, height=2**13 + 1))
    for read in (
        lambda: read_image(file, (8, 8, 1)),
        lambda: image_size(file),
        lambda: read_mask(file),
    ):
        with pytest.raises(
            DataError, match=rf"^{file}: 16384 x 8193 pixels, allowed: 134,217,728 in all$"
        ):
            read()
    before = Image.MAX_IMAGE_PIXELS
    assert before is not None
    with pytest.raises(
        DataError, match="unreadable"
    ):  # as many as allowed: the file is asked for them
        read_image(
            write(tmp_path / "cut.png", by_hand(bytes(100), bits=1, width=2**14, height=2**13)),
            (8, 8, 1),
        )
    assert before == Image.MAX_IMAGE_PIXELS


# ---------------------------------------------------------------- warnings


def test_threads_that_read_leave_the_warnings_of_the_process_alone(tmp_path):
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(400)]
    for file in files:
        write(
            file, image_bytes(Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)), "PNG")
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        images = Images.find(tmp_path, files, (4, 4, 1))
        with concurrent.futures.ThreadPoolExecutor(16) as threads:
            for number in range(3):
                futures = [threads.submit(read_image, file, (4, 4, 1)) for file in files]
                images.digest()
                map_images(files, (4, 4, 1), tmp_path / f"cache{number}", lambda _: None)
                for future in futures:
                    future.result()
        assert warnings.filters == before
        warnings.warn("still seen", DeprecationWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["still seen"]


# ---------------------------------------------------------------- what is not an image


NOT_IMAGES = {
    "empty": b"",
    "text": b"some text\n",
    "two bytes": b"no",
    "EPS, which is a program": image_bytes(RED, "EPS"),
}


@pytest.mark.parametrize("data", NOT_IMAGES.values(), ids=NOT_IMAGES)
def test_non_images_are_refused(tmp_path, data):
    with pytest.raises(DataError, match=f"^{tmp_path}/image: not an image, or damaged$"):
        read_image(write(tmp_path / "image", data), (4, 4, 1))


def test_a_truncated_image_is_not_padded(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "BMP", "TIFF"):
        data = image_bytes(noise, kind)
        with pytest.raises(DataError, match="image: unreadable"):
            read_image(write(tmp_path / "image", data[: len(data) * 3 // 4]), (64, 64, 1))


@pytest.mark.parametrize("shape", [(0, 8, 1), (8, -1, 1), (8, 8, 2), (8, 8, 0)])
def test_image_shapes_that_do_not_exist(tmp_path, shape):
    with pytest.raises(DataError, match=r"image_shape=.*allowed"):
        read_image(write(tmp_path / "image", image_bytes(RED, "PNG")), shape)


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("?", "?"),
        ("u1", "u1"),
        ("i1", "i1"),
        (">u2", "u2"),
        (">i4", "i4"),
        ("<u4", "u4"),
        (">i8", "i4"),
        ("<u8", "i4"),
        ("f2", "f4"),
        (">f4", "f4"),
        (">f8", "f4"),
        (np.longdouble, "f4"),
    ],
)
def test_inputs_keep_their_values_in_a_type_that_devices_have(dtype, expected):
    values = np.array([[0, 1, 1], [1, 0, 0]])
    for order in ("C", "F"):
        found = check_inputs("file", "x", np.asarray(values, dtype, order=order))
        assert found.dtype == np.dtype(expected)
        assert found.dtype.isnative
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.array([[1j]]), "dtype complex128"),
        (np.array([["a"]]), "dtype <U1"),
        (np.array([["2026-01-01"]], "M8[D]"), "dtype datetime64"),
        (np.zeros((2, 2), [("a", "f4")]), "dtype"),
        (np.array([[None]]), "dtype object"),
        (np.array([[np.nan, 1.0]]), "not finite"),
        (np.array([[-np.inf]], np.float16), "not finite"),
        (np.array([[1e300]]), "not finite in float32"),
        (np.array([[2**31]]), "more than 32 bits"),
        (np.array([[-(2**31) - 1]]), "more than 32 bits"),
        (np.array([[2**63]], np.uint64), "more than 32 bits"),
        (np.zeros((0, 3)), "shape"),
        (np.zeros((3, 0), np.uint8), "shape"),
        (np.zeros(3), "shape"),
        (np.float32(3), "shape"),
    ],
)
def test_faults_of_inputs_are_named(array, fault):
    with pytest.raises(DataError, match=f"file: x .*{fault}"):
        check_inputs("file", "x", np.asarray(array))


@pytest.mark.parametrize("dtype", ["?", "u1", ">i2", ">i8", "u8"])
def test_classes_become_int32(dtype):
    found = check_targets("file", "y", np.array([0, 1, 1], dtype), 3)
    assert found.dtype == np.int32
    assert found.tolist() == [0, 1, 1]


@pytest.mark.parametrize("dtype", ["f2", ">f4", ">f8"])
def test_real_targets_become_float32(dtype):
    found = check_targets("file", "y", np.array([[0, 0.5], [-1, 2]], dtype), 2)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0.5], [-1, 2]]


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.array([0, 1]), "for 3 inputs"),
        (np.int32(3), "for 3 inputs"),
        (np.array([0, -1, 2]), "class -1, allowed: 0 to 9"),
        (np.array([0, 10, 2], np.uint8), "class 10, allowed: 0 to 9"),
        (np.array([0, 2**63, 2], np.uint64), "class 9223372036854775808"),
        (
            np.array([1.0, 2.0, 1.0]),
            "expected classes .integers. .n. or numbers .floats. .n, outputs.",
        ),
        (np.array([[0, 1], [1, 0], [0, 1]]), "expected classes"),
        (np.zeros((3, 2, 2)), "expected classes"),
        (np.zeros((3, 0)), "expected classes"),
        (np.array(["a", "b", "a"]), "expected classes"),
        (np.array([[0.0], [np.nan], [1.0]]), "not finite"),
    ],
)
def test_faults_of_targets_are_named(array, fault):
    with pytest.raises(DataError, match=f"file: y .*{fault}"):
        check_targets("file", "y", np.asarray(array), 3, classes=10)


def test_a_damaged_label_does_not_announce_a_billion_classes():
    with pytest.raises(DataError, match="class 2000000000, allowed: 0 to 1048575"):
        check_targets("file", "y", np.array([0, 2_000_000_000]), 2)
