"""Data sets by name: splits, locations of files, downloads, and error messages."""

import gzip
import hashlib
import http.server
import os
import pathlib
import re
import struct
import threading
from collections.abc import Iterator

import jax
import numpy as np
import pooch
import pytest
import requests
from PIL import Image
from sklearn.datasets import load_digits

from train.assets import make_digits
from train.batches import Batches
from train.data import DataError, digits, load_data
from train.data import mnist as mnist_module
from train.dataset import Dataset, stratified_split
from train.formats import read_npz
from train.places import cache
from train.programs import keep_programs

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path) -> None:
    """No data directory, an empty cache, and no network."""

    def refuse(*_, **__):
        raise requests.exceptions.ConnectionError("no network in tests")

    monkeypatch.delenv("ZOO_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(pooch, "retrieve", refuse)


def no_home_new(_):
    raise RuntimeError("could not determine the home directory")


def no_home_old(project):
    return pathlib.Path("~/.cache") / project


@pytest.mark.parametrize(
    "os_cache", [no_home_new, no_home_old, lambda project: pathlib.Path("/proc/cache") / project]
)
def test_without_a_cache_downloads_name_the_alternatives(os_cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pooch, "os_cache", os_cache)
    if os_cache not in (no_home_new, no_home_old):  # a folder that even root cannot write to
        monkeypatch.setattr(os, "access", lambda place, mode: not str(place).startswith("/proc"))
    assert cache("mnist") is None
    with pytest.raises(
        DataError,
        match="no writable home folder; set XDG_CACHE_HOME to another folder",
    ):
        load_data("mnist")
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        keep_programs()
        assert jax.config.jax_compilation_cache_dir is None  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not list(tmp_path.iterdir())


def rows(table) -> list[bytes]:
    """Every example as bytes, input and target."""
    return [
        x.tobytes() + y.tobytes() for x, y in zip(table["inputs"], table["targets"], strict=True)
    ]


def same(a: Dataset, b: Dataset) -> bool:
    return (
        a.fingerprint == b.fingerprint
        and a.task.labels == b.task.labels
        and a.input_range == b.input_range
    )


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(100, (80, 10, 10)), (1797, (1397, 100, 300)), (11, (9, 1, 1)), (10, (10,))],
)
def test_a_split_is_disjoint_complete_and_fixed(count, sizes):
    targets = np.random.default_rng(0).integers(0, 7, count)
    parts = stratified_split(targets, sizes)
    assert tuple(map(len, parts)) == sizes
    assert sorted(np.concatenate(parts)) == list(range(count))
    for a, b in zip(parts, stratified_split(targets, sizes), strict=True):
        np.testing.assert_array_equal(a, b)
    if count > 50:
        assert not np.array_equal(parts[0], stratified_split(targets, sizes, seed=1)[0])


def test_a_split_spreads_every_class_evenly():
    targets = np.repeat(np.arange(5), [400, 200, 100, 50, 50])
    for part in stratified_split(targets, (600, 120, 80)):
        expected = np.bincount(targets) * len(part) / len(targets)
        assert np.abs(np.bincount(targets[part], minlength=5) - expected).max() <= 1


def test_examples_of_a_class_do_not_lie_together():
    part = stratified_split(np.repeat([0, 1], 500), (800, 200))[0]
    labels = part >= 500
    assert 300 < np.count_nonzero(labels[1:] != labels[:-1]) < 500


# ---------------------------------------------------------------- digits


def test_digits_are_those_of_scikit_learn():
    images, targets = load_digits(return_X_y=True)
    dataset = load_data("digits")
    table = dataset.joined("train", "validation", "test")
    ours = sorted(
        zip(table["inputs"].reshape(-1, 64).tolist(), table["targets"].tolist(), strict=True)
    )
    assert ours == sorted(zip(images.astype(int).tolist(), targets.tolist(), strict=True))
    assert (dataset.task.labels, dataset.input_range) == (tuple("0123456789"), (0.0, 16.0))


def test_the_splits_of_digits_are_the_documented_ones():
    found = re.search(
        r"([\d,]+) train, (\d+) validation and (\d+) test examples, strat", digits.__doc__ or ""
    )
    assert found
    images, targets = load_digits(return_X_y=True)
    for (split, table), size in zip(
        load_data("digits").splits.items(), found.groups(), strict=True
    ):
        count = int(size.replace(",", ""))
        assert (table["inputs"].shape, table["inputs"].dtype) == ((count, 8, 8, 1), np.uint8), split
        assert (table["targets"].shape, table["targets"].dtype) == ((count,), np.int32), split
        assert (
            np.abs(np.bincount(table["targets"]) - np.bincount(targets) * count / len(images)).max()
            <= 1.5
        ), "stratified"


def test_embedded_digits_equal_their_scripts_output(tmp_path, monkeypatch):
    embedded = read_npz(pathlib.Path(make_digits.__file__).parent / "digits.npz")
    monkeypatch.setattr(make_digits, "__file__", str(tmp_path / "make_digits.py"))
    make_digits.main()
    written = read_npz(tmp_path / "digits.npz")
    assert written.keys() == embedded.keys()
    for name, array in embedded.items():
        np.testing.assert_array_equal(written[name], array)


# ---------------------------------------------------------------- idx sets


@pytest.fixture
def small(monkeypatch) -> None:
    """A set in MNIST's format with fewer examples."""
    monkeypatch.setattr(mnist_module, "_SIZES", {"train": 12, "test": 4})
    monkeypatch.setattr(mnist_module, "_VALIDATION", 3)


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def small_set(seed: int = 0) -> dict[str, bytes]:
    """The four files' contents."""
    rng = np.random.default_rng(seed)
    shapes = {FILES[0]: (12, 28, 28), FILES[1]: (12,), FILES[2]: (4, 28, 28), FILES[3]: (4,)}
    return {file: idx(rng.integers(0, 10, shape)) for file, shape in shapes.items()}


def put(root: pathlib.Path, files: dict[str, bytes], name: str = "mnist") -> pathlib.Path:
    (root / name).mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (root / name / file).write_bytes(data)
    return root


def zipped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {file + ".gz": gzip.compress(data, mtime=0) for file, data in files.items()}


MNIST = pathlib.Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere").absolute()


@pytest.mark.skipif(
    not (MNIST / "mnist").is_dir(),
    reason="needs MNIST's four files in $ZOO_DATA_DIR/mnist; ZOO_DATA_DIR is not set, or has none",
)
def test_mnist_has_its_sizes_and_the_last_5000_validate(monkeypatch):
    monkeypatch.setenv("ZOO_DATA_DIR", str(MNIST))
    dataset = load_data("mnist")
    assert {split: table["inputs"].shape for split, table in dataset.splits.items()} == {
        "train": (55_000, 28, 28, 1), "validation": (5_000, 28, 28, 1), "test": (10_000, 28, 28, 1),
    }  # fmt: skip
    (file,) = MNIST.glob(f"mnist/{FILES[1]}*")
    labels = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes())[8:]
    assert list(labels[-5_000:]) == dataset.splits["validation"]["targets"].tolist()
    assert list(labels[:-5_000]) == dataset.splits["train"]["targets"].tolist()
    assert np.bincount(dataset.splits["test"]["targets"]).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert list(labels[:8]) == [5, 0, 4, 1, 9, 2, 1, 3], "the well-known first digits"
    assert abs(dataset.joined("train", "validation")["inputs"].mean() / 255 - 0.1307) < 1e-4, (
        "the well-known mean"
    )
    assert (dataset.task.labels, dataset.input_range) == (tuple("0123456789"), (0.0, 255.0))


def test_idx_files_plain_or_gzipped_from_either_directory(small, tmp_path, monkeypatch):
    files = small_set()
    plain = load_data("mnist", put(tmp_path / "plain", files))
    assert same(load_data("mnist", put(tmp_path / "zipped", zipped(files))), plain)
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "zipped"))
    assert same(load_data("mnist"), plain)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("plain", "~/plain", pathlib.Path("plain")):
        assert same(load_data("mnist", relative), plain)
    images = np.frombuffer(files[FILES[0]], np.uint8, offset=16).reshape(12, 28, 28, 1)
    np.testing.assert_array_equal(plain.splits["train"]["inputs"], images[:9])
    np.testing.assert_array_equal(plain.splits["validation"]["inputs"], images[9:])
    assert plain.splits["test"]["targets"].tolist() == list(files[FILES[3]][8:])


def test_data_dir_argument_precedes_the_variable_and_may_be_empty(small, tmp_path, monkeypatch):
    first, second = put(tmp_path / "1", small_set(1)), put(tmp_path / "2", small_set(2))
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("ZOO_DATA_DIR", str(second))
    assert same(load_data("mnist", tmp_path / "empty"), load_data("mnist", second))
    assert same(load_data("mnist", first), load_data("mnist", first))
    assert not same(load_data("mnist", first), load_data("mnist", second))


def test_data_set_is_never_mixed_from_two_directories(small, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA_DIR", str(put(tmp_path / "whole", small_set(1))))
    part = put(
        tmp_path / "part", {file: data for file, data in small_set(2).items() if file != FILES[3]}
    )
    with pytest.raises(
        DataError, match=f"{part}/mnist: the set is not complete, missing: {FILES[3]}.gz$"
    ):
        load_data("mnist", part)


FAULTS = {
    "images and labels swapped": (
        {FILES[0]: FILES[1], FILES[1]: FILES[0]},
        FILES[0],
        r"holds uint8 \[12\], expected inputs: uint8 \[12, 28, 28\]",
    ),
    "training and test images swapped": (
        {FILES[0]: FILES[2], FILES[2]: FILES[0]},
        FILES[0],
        r"holds uint8 \[4, 28, 28\]",
    ),
    "training and test labels swapped": (
        {FILES[1]: FILES[3], FILES[3]: FILES[1]},
        FILES[1],
        r"holds uint8 \[4\], expected",
    ),
    "a class too many": (
        {FILES[3]: idx(np.array([0, 1, 10, 2]))},
        FILES[3],
        "class 10, allowed: 0 to 9",
    ),
    "one label too few": ({FILES[3]: idx(np.arange(3))}, FILES[3], r"holds uint8 \[3\], expected"),
    "another size of image": (
        {FILES[2]: idx(np.zeros((4, 27, 28)))},
        FILES[2],
        r"\[4, 27, 28\], expected",
    ),
    "another type": ({FILES[3]: b"\0\0\x09\x01\0\0\0\4\0\1\2\3"}, FILES[3], "holds int8"),
    "truncated": ({FILES[2]: idx(np.zeros((4, 28, 28)))[:-1]}, FILES[2], "truncated"),
    "empty": ({FILES[1]: b""}, FILES[1], "not an idx file"),
}


@pytest.mark.parametrize(("changes", "file", "fault"), FAULTS.values(), ids=FAULTS)
def test_faults_of_idx_sets_are_named(small, tmp_path, changes, file, fault):
    files = small_set()
    root = put(
        tmp_path,
        files
        | {name: files[data] if isinstance(data, str) else data for name, data in changes.items()},
    )
    with pytest.raises(DataError, match=f"^{root}/mnist/{file}: .*{fault}"):
        load_data("mnist", root)


def test_a_directory_in_place_of_a_file(small, tmp_path):
    root = put(tmp_path, {file: data for file, data in small_set().items() if file != FILES[1]})
    (root / "mnist" / FILES[1]).mkdir()
    with pytest.raises(DataError, match=f"{FILES[1]}: not a file"):
        load_data("mnist", root)


def test_data_directories_that_do_not_exist(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=f"--data-dir {tmp_path}/x: no such directory"):
        load_data("mnist", tmp_path / "x")
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "y"))
    with pytest.raises(DataError, match=f"ZOO_DATA_DIR {tmp_path}/y: no such directory"):
        load_data("mnist")
    with pytest.raises(DataError, match="--data-dir ~nobody-of-that-name"):
        load_data("mnist", "~nobody-of-that-name/data")
    assert load_data("digits", tmp_path / "x").name == "digits", "what is embedded needs none"


# ---------------------------------------------------------------- downloads


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_offline_error_names_files_and_folders(name, monkeypatch):
    tried = []

    def retrieve(url, *_, **__):
        tried.append(url)
        raise requests.exceptions.ConnectionError(f"no route to {url}")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError) as caught:
        load_data(name)
    message = str(caught.value)
    assert all(f"{file}.gz" in message for file in FILES)
    assert all(
        part in message
        for part in (
            repr(name),
            f"DIR/{name}/",
            "--data-dir DIR",
            "ZOO_DATA_DIR=DIR",
            "ConnectionError",
        )
    )
    mirrors = mnist_module._SETS[name]["mirrors"]
    assert len(mirrors) > 1
    assert tried == [f"{mirror}{FILES[0]}.gz" for mirror in mirrors], (
        "every mirror once and in order; then it is given up"
    )
    assert all(mirror in message for mirror in mirrors)


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A local HTTP server: its address, {path: content}, and the requested paths."""
    served: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            data = served.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header(
                "Content-Length", str(len(data or b"") + 100 * self.path.startswith("/broken/"))
            )
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, format, *args):
            pass

    monkeypatch.undo()
    monkeypatch.delenv("ZOO_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(mnist_module, "_SIZES", {"train": 12, "test": 4})
    monkeypatch.setattr(mnist_module, "_VALIDATION", 3)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", served, asked
        running.shutdown()
        thread.join()


def mirrored(monkeypatch, files: dict[str, bytes], *mirrors: str) -> None:
    md5 = tuple(hashlib.md5(data).hexdigest() for data in files.values())
    spec = {**mnist_module._SETS["mnist"], "mirrors": mirrors, "md5": md5}
    monkeypatch.setattr(mnist_module, "_SETS", {"mnist": spec})


def test_downloads_are_verified_cached_and_read(server, monkeypatch, tmp_path, capfd):
    address, served, asked = server
    files = zipped(small_set())
    mirrored(monkeypatch, files, address + "good/")
    served.update({f"/good/{file}": data for file, data in files.items()})
    direct = load_data("mnist", put(tmp_path / "direct", files))
    assert not asked
    assert same(load_data("mnist"), direct)
    assert asked == [f"/good/{file}" for file in files]
    served.clear()
    assert same(load_data("mnist"), direct)
    assert len(asked) == 4, "the second time nothing is asked of the network"
    out, err = capfd.readouterr()
    assert not out + err, "where there is no terminal, there is no bar"


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, monkeypatch, tmp_path):
    address, served, asked = server
    files = zipped(small_set())
    mirrored(monkeypatch, files, address + "good/")
    served.update({f"/good/{file}": data for file, data in files.items()})
    first = load_data("mnist")
    (tmp_path / "cache" / "purezoo" / "mnist" / f"{FILES[2]}.gz").write_bytes(b"damaged")
    assert same(load_data("mnist"), first)
    assert asked[4:] == [f"/good/{FILES[2]}.gz"]


def test_failing_mirrors_are_skipped(server, monkeypatch):
    address, served, asked = server
    files = zipped(small_set())
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        nobody = f"http://127.0.0.1:{other.server_port}/"  # closed again, so nothing listens there
    mirrored(
        monkeypatch,
        files,
        nobody,
        address + "gone/",
        address + "wrong/",
        address + "broken/",
        address + "good/",
    )
    for file, data in files.items():
        served.update(
            {f"/wrong/{file}": data[:-1] + b"?", f"/broken/{file}": data, f"/good/{file}": data}
        )
    dataset = load_data("mnist")
    assert [path.split("/")[1] for path in asked] == ["gone", "wrong", "broken", "good"] * 4
    assert dataset.splits["test"]["targets"].tolist() == list(small_set()[FILES[3]][8:])


def test_when_every_mirror_fails_each_reason_is_given(server, monkeypatch, tmp_path):
    address, served, _ = server
    files = zipped(small_set())
    mirrored(monkeypatch, files, address + "gone/", address + "wrong/")
    served.update({f"/wrong/{file}": data + b"?" for file, data in files.items()})
    with pytest.raises(DataError, match=r"gone/: HTTPError: 404 .*wrong/: ValueError: MD5 hash"):
        load_data("mnist")
    assert not list((tmp_path / "cache").rglob("*.gz")), "nothing wrong is kept"


def test_terminal_shows_a_transient_download_bar(server, monkeypatch, capsys):
    address, served, _ = server
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats its stream as a terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    files = zipped(small_set())
    mirrored(monkeypatch, files, address + "broken/", address + "good/")
    for file, data in files.items():
        served.update({f"/broken/{file}": data, f"/good/{file}": data})
    threads = threading.active_count()
    load_data("mnist")
    out, err = capsys.readouterr()
    assert not out
    assert all(err.count(f"{file}.gz") >= 2 for file in FILES), (
        "one bar at the broken mirror, one at the good one"
    )
    assert "100%" not in err
    assert "bytes" in err
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h") > 0, (
        "the cursor is shown again as often as it is hidden"
    )
    assert threading.active_count() <= threads + 1
    load_data("mnist")
    assert not capsys.readouterr().err, "nothing to download, nothing to show"


# ---------------------------------------------------------------- npz


def npz(file: pathlib.Path, **arrays) -> str:
    with open(file, "wb") as stream:
        np.savez(stream, **arrays)
    return f"npz:{file}"


X, Y = np.arange(60.0).reshape(30, 2), np.arange(30) % 3


def test_arrays_without_splits_are_split_80_10_10_by_a_fixed_seed(tmp_path):
    name = npz(tmp_path / "a.npz", inputs=X, targets=Y)
    dataset = load_data(name)
    assert dataset.name == name
    assert {split: len(table["inputs"]) for split, table in dataset.splits.items()} == {
        "train": 24,
        "validation": 3,
        "test": 3,
    }
    assert all(np.ptp(np.bincount(table["targets"])) == 0 for table in dataset.splits.values()), (
        "stratified"
    )
    assert sorted(rows(dataset.joined("train", "validation", "test"))) == sorted(
        rows({"inputs": X.astype(np.float32), "targets": Y.astype(np.int32)})
    )
    assert same(load_data(name), dataset)
    assert dataset.task.labels == ("0", "1", "2")
    assert dataset.input_range == (
        dataset.splits["train"]["inputs"].min(),
        dataset.splits["train"]["inputs"].max(),
    )


@pytest.mark.parametrize("words", [("x_{}", "y_{}"), ("X_{}", "y_{}"), ("{}_inputs", "{}_targets")])
@pytest.mark.parametrize("validation", ["val", "validation", "valid", "dev", "Val"])
def test_arrays_with_splits_keep_them(tmp_path, words, validation):
    sizes = {"train": 15, validation: 5, "test": 10}
    arrays, start = {}, 0
    for split, size in sizes.items():
        arrays |= {
            words[0].format(split): X[start : start + size],
            words[1].format(split): Y[start : start + size],
        }
        start += size
    dataset = load_data(npz(tmp_path / "a.npz", **arrays))
    np.testing.assert_array_equal(dataset.splits["train"]["inputs"], X[:15])
    np.testing.assert_array_equal(dataset.splits["validation"]["inputs"], X[15:20])
    np.testing.assert_array_equal(dataset.splits["test"]["targets"], Y[20:])


def test_missing_validation_split_is_a_tenth_of_training(tmp_path):
    dataset = load_data(
        npz(tmp_path / "a.npz", x_train=X[:20], y_train=Y[:20], x_test=X[20:], y_test=Y[20:])
    )
    assert {split: len(table["inputs"]) for split, table in dataset.splits.items()} == {
        "train": 18,
        "validation": 2,
        "test": 10,
    }
    np.testing.assert_array_equal(dataset.splits["test"]["inputs"], X[20:])
    joined = dataset.joined("train", "validation")
    assert sorted(rows(joined)) == sorted(
        rows({"inputs": X[:20].astype(np.float32), "targets": Y[:20].astype(np.int32)})
    )


def test_images_keep_their_bytes_and_their_range(tmp_path):
    images = np.random.default_rng(0).integers(0, 17, (30, 4, 4), dtype=np.uint8)
    dataset = load_data(npz(tmp_path / "a.npz", inputs=images, targets=Y))
    assert dataset.splits["train"]["inputs"].dtype == np.uint8
    assert dataset.input_range == (0.0, 255.0)


def test_real_targets_have_no_classes(tmp_path):
    dataset = load_data(npz(tmp_path / "a.npz", inputs=X, targets=X[:, :1]))
    assert dataset.task.labels == ()
    assert dataset.splits["train"]["targets"].dtype == np.float32


NPZ_FAULTS = {
    "other names": ({"a": X, "b": Y}, "holds a, which is not read; expected inputs and targets"),
    "no training split": ({"x_test": X, "y_test": Y}, "holds x_test, y_test; expected"),
    "no targets": ({"inputs": X}, "inputs without targets"),
    "no test targets": (
        {"x_train": X, "y_train": Y, "x_test": X},
        "x_test without targets of the test split",
    ),
    "two training splits": (
        {"x_train": X, "y_train": Y, "train_inputs": X, "train_targets": Y},
        "train_inputs and x_train are both inputs of one split, expected one of them",
    ),
    "two validation splits": (
        {"x_train": X, "y_train": Y, "x_val": X, "y_val": Y, "x_dev": X, "y_dev": Y},
        "x_dev and x_val are both inputs of one split",
    ),
    "all and a split": (
        {"inputs": X, "targets": Y, "x_test": X, "y_test": Y},
        "holds inputs, targets, x_test, y_test; expected",
    ),
    "an unknown split": (
        {"x_train": X, "y_train": Y, "x_extra": X, "y_extra": Y},
        "holds x_extra, which is not read; expected",
    ),
    "weights": (
        {"inputs": X, "targets": Y, "sample_weight": Y},
        "holds sample_weight, which is not read",
    ),
    "a mask": ({"inputs": X, "targets": Y, "mask": Y > 0}, "holds mask, which is not read"),
    "no inputs": (
        {"x_train": X, "y_train": Y, "y_valid": Y},
        "y_valid without inputs of the validation split",
    ),
    "fewer targets": ({"inputs": X, "targets": Y[:-1]}, r"targets has shape \(29,\) for 30 inputs"),
    "float classes": ({"inputs": X, "targets": Y + 1.0}, "expected classes"),
    "not a number": (
        {"inputs": np.where(X == 3, np.nan, X), "targets": Y},
        "inputs holds values that are not finite",
    ),
    "a billion classes": ({"inputs": X, "targets": Y * 2**29}, "targets holds class 1073741824"),
    "too few": ({"inputs": X[:9], "targets": Y[:9]}, "9 examples, expected at least 10 to split"),
    "none": ({"inputs": X[:0], "targets": Y[:0]}, "inputs has shape"),
    "splits of two shapes": (
        {"x_train": X, "y_train": Y, "x_test": X[:, :1], "y_test": Y},
        "differ between the splits",
    ),
    "splits of two types": (
        {"x_train": (X / 2).astype(np.uint8), "y_train": Y, "x_test": X, "y_test": Y},
        "differ between",
    ),
    "splits of two kinds": (
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": X},
        "differ between the splits",
    ),
}


@pytest.mark.parametrize(("arrays", "fault"), NPZ_FAULTS.values(), ids=NPZ_FAULTS)
def test_faults_of_npz_sets_are_named(tmp_path, arrays, fault):
    with pytest.raises(DataError, match=f"^{tmp_path}/a.npz: .*{fault}"):
        load_data(npz(tmp_path / "a.npz", **arrays))


DTYPES = (
    "?",
    "u1",
    "i1",
    ">i2",
    "<i4",
    ">i4",
    "<i8",
    ">u8",
    "f2",
    ">f4",
    "<f8",
    "g",
    "c8",
    "S3",
    "U2",
    "M8[s]",
    "m8[s]",
    "u1,f4",
)


def random_array(rng: np.random.Generator, count: int, rank: int) -> np.ndarray:
    """Arrays of random type, order and values, mostly of the right length and rank."""
    shape = tuple(rng.integers(1, 4, rank - 1))
    shape = (
        (count, *shape) if rng.random() < 0.9 else tuple(rng.integers(0, 13, rng.integers(0, 4)))
    )
    dtype = np.dtype(DTYPES[rng.integers(12 if rng.random() < 0.9 else len(DTYPES))])
    values = rng.integers(0, 3, shape)
    if rng.random() < 0.1 and values.size:
        values.flat[rng.integers(values.size)] = rng.choice(
            [-1, 127, 255, 2**31 - 1, 2**31, 2**53, 2**62]
        )
    with np.errstate(all="ignore"):
        array = np.asarray(values.astype(dtype, order="F" if rng.random() < 0.5 else "C"))
    if dtype.kind == "f" and rng.random() < 0.1 and array.size:
        array.flat[0] = rng.choice([np.nan, np.inf, -np.inf])
    return array


def test_random_arrays_are_accepted_or_refused_by_name(tmp_path):
    rng = np.random.default_rng(0)
    layouts = (
        ("inputs", "targets"),
        ("x_train", "y_train"),
        ("x_train", "y_train", "x_test", "y_test"),
    )
    outcomes = []
    for _ in range(600):
        counts = rng.integers(8, 13, 2)
        names = layouts[rng.integers(len(layouts))]
        arrays = {
            name: random_array(rng, counts[index // 2], 1 + (index + 1) % 2)
            for index, name in enumerate(names)
        }
        try:
            dataset = load_data(npz(tmp_path / "a.npz", **arrays))
        except DataError as error:
            outcomes.append(str(error).startswith(f"{tmp_path}/a.npz: "))
            continue
        for table in dataset.splits.values():
            on_device, _ = Batches(table, 4).arrays(0)
            for key, array in table.items():
                np.testing.assert_array_equal(on_device[key], array)
            assert np.isfinite(table["inputs"]).all()
            assert len(table["targets"]) == len(table["inputs"]) > 0
            assert table["targets"].dtype == (np.int32 if dataset.task.labels else np.float32)
            if dataset.task.labels:
                assert (
                    0
                    <= table["targets"].min()
                    <= table["targets"].max()
                    < len(dataset.task.labels)
                    <= 2**20
                )
    assert all(outcomes)
    assert 100 < len(outcomes) < 500, "both happen often"


# ---------------------------------------------------------------- folders


def picture(value: int, mode: str = "L") -> Image.Image:
    return Image.new("L", (6, 6), value).convert(mode)


def folder(
    root: pathlib.Path, labels=("cat", "dog"), count: int = 10, start: int = 0
) -> pathlib.Path:
    """One sub-folder per class; an image's grey value encodes its class and number."""
    for label, name in enumerate(labels):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(100 * label + start + number).save(root / name / f"{number}.png")
    return root


def test_a_folder_of_folders_is_split_80_10_10_with_its_labels(tmp_path):
    name = f"folder:{folder(tmp_path / 'pets')}"
    dataset = load_data(name, image_shape=(4, 5, 1))
    assert (dataset.name, dataset.task.labels, dataset.input_range) == (
        name,
        ("cat", "dog"),
        (0.0, 255.0),
    )
    assert {split: table["inputs"].shape for split, table in dataset.splits.items()} == {
        "train": (16, 4, 5, 1), "validation": (2, 4, 5, 1), "test": (2, 4, 5, 1),
    }  # fmt: skip
    everything = dataset.joined("train", "validation", "test")
    assert everything["inputs"].dtype == np.uint8
    values = everything["inputs"][:, 0, 0, 0]
    assert sorted(values) == [*range(10), *range(100, 110)]
    np.testing.assert_array_equal(everything["targets"], values >= 100)
    assert all(
        table["targets"].tolist().count(0) == len(table["targets"]) / 2
        for table in dataset.splits.values()
    )
    assert same(load_data(name, image_shape=(4, 5, 1)), dataset)


@pytest.mark.parametrize("validation", ["val", "validation", "valid", "dev", "VAL"])
def test_folders_of_splits_keep_them(tmp_path, validation):
    for number, split in enumerate(
        ("Train" if validation == "VAL" else "train", validation, "test")
    ):
        folder(tmp_path / split, count=3, start=10 * number)
    dataset = load_data(f"folder:{tmp_path}", image_shape=(2, 2, 1))
    for number, split in enumerate(("train", "validation", "test")):
        table = dataset.splits[split]
        assert table["inputs"][:, 0, 0, 0].tolist() == [
            label + 10 * number + i for label in (0, 100) for i in range(3)
        ]
        assert table["targets"].tolist() == [0, 0, 0, 1, 1, 1]


def test_folders_of_training_and_test_make_their_own_validation_split(tmp_path):
    folder(tmp_path / "train")
    folder(tmp_path / "test", count=1, start=50)
    dataset = load_data(f"folder:{tmp_path}", image_shape=(2, 2, 1))
    assert {split: len(table["inputs"]) for split, table in dataset.splits.items()} == {
        "train": 18,
        "validation": 2,
        "test": 2,
    }
    assert dataset.splits["test"]["inputs"][:, 0, 0, 0].tolist() == [50, 150]


def test_classes_may_be_called_like_splits(tmp_path):
    dataset = load_data(f"folder:{folder(tmp_path, ('car', 'train'))}")
    assert dataset.task.labels == ("car", "train")


def test_every_kind_of_image_and_no_hidden_file(tmp_path):
    root = folder(tmp_path / "x", count=3)
    for mode in ("1", "P", "RGB", "RGBA", "LA"):
        picture(255, mode).save(root / "cat" / f"{mode}.png")
    picture(255, "CMYK").save(root / "cat" / "CMYK.jpg")
    picture(255).save(
        root / "cat" / "animated.gif", save_all=True, append_images=[picture(0), picture(9)]
    )
    for hidden in (
        ".DS_Store",
        "cat/.hidden",
        ".git/x",
        "cat/Thumbs.db",
        "dog/desktop.ini",
        "__MACOSX/x",
    ):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"not an image")
    (root / "README.txt").write_text("a file beside the classes")
    for channels in (1, 3, 4):
        dataset = load_data(f"folder:{root}", image_shape=(3, 3, channels))
        assert dataset.task.labels == ("cat", "dog")
        assert dataset.notes == (f"not read: {root / 'README.txt'}",)
        everything = dataset.joined("train", "validation", "test")
        assert everything["inputs"].shape == (12, 3, 3, channels)
        assert (everything["inputs"][:, 0, 0, 0] > 250).sum() == 7, (
            "each of the white ones is white"
        )


def test_a_broken_image_is_named(tmp_path):
    root = folder(tmp_path)
    data = (root / "dog" / "3.png").read_bytes()
    for broken in (b"", b"text", data[:40], data[:45] + bytes([data[45] ^ 1]) + data[46:]):
        (root / "dog" / "3.png").write_bytes(broken)
        with pytest.raises(DataError, match=f"^{root}/dog/3.png: (not an image|unreadable)"):
            load_data(f"folder:{root}")


def test_faults_of_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError,
        match=f"{tmp_path}/empty: 0 sub-folders, expected one for each of two or more classes",
    ):
        load_data(f"folder:{tmp_path}/empty")
    with pytest.raises(DataError, match="one: 1 sub-folders"):
        load_data(f"folder:{folder(tmp_path / 'one', ('cat',))}")
    with pytest.raises(DataError, match="few: 4 examples, expected at least 10"):
        load_data(f"folder:{folder(tmp_path / 'few', count=2)}")
    (folder(tmp_path / "gap") / "fox").mkdir()
    with pytest.raises(DataError, match="gap/fox: no images of this class"):
        load_data(f"folder:{tmp_path}/gap")
    folder(tmp_path / "unlike" / "train")
    folder(tmp_path / "unlike" / "test", ("cat", "fox"), count=1)
    with pytest.raises(DataError, match=r"unlike/(train/fox|test/dog): no images of this class"):
        load_data(f"folder:{tmp_path}/unlike")
    folder(tmp_path / "words" / "train")
    folder(tmp_path / "words" / "held-out", count=1)
    with pytest.raises(
        DataError, match=r"words/held-out/cat: a folder among the images.*train, .*val, dev, test"
    ):
        load_data(f"folder:{tmp_path}/words")
    for split in ("train", "val", "validation"):
        folder(tmp_path / "twice" / split)
    with pytest.raises(
        DataError,
        match=r"twice: val and validation are both the validation split, expected one of them",
    ):
        load_data(f"folder:{tmp_path}/twice")
    with pytest.raises(DataError, match=r"README: unreadable: .*Not a directory"):
        load_data(f"folder:{write(tmp_path / 'README')}")
    with pytest.raises(DataError, match="image_shape"):
        load_data(f"folder:{tmp_path}/gap", image_shape=(28, 28, 2))


def write(file: pathlib.Path) -> pathlib.Path:
    file.write_bytes(b"text")
    return file


# ---------------------------------------------------------------- names


def test_relative_paths_are_looked_up_here_then_in_the_data_directories(tmp_path, monkeypatch):
    for number, place in enumerate(("here", "there", "everywhere"), 1):
        (tmp_path / place / "sub").mkdir(parents=True)
        npz(tmp_path / place / "sub" / "a.npz", inputs=X * number, targets=Y)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "everywhere"))
    for place in ("here", "there", "everywhere"):
        found = load_data("npz:sub/a.npz", tmp_path / "there")
        assert same(found, load_data(f"npz:{tmp_path}/{place}/sub/a.npz"))
        assert found.name == "npz:sub/a.npz"
        (tmp_path / place / "sub" / "a.npz").unlink()
    with pytest.raises(DataError) as caught:
        load_data("npz:sub/a.npz", tmp_path / "there")
    assert all(
        f"{tmp_path}/{place}/sub/a.npz" in str(caught.value)
        for place in ("here", "there", "everywhere")
    )


def test_an_absolute_path_does_not_depend_on_the_directories(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "missing"))
    assert len(load_data(npz(tmp_path / "a.npz", inputs=X, targets=Y)).splits) == 3


def test_home_is_expanded_and_the_name_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    npz(tmp_path / "a.npz", inputs=X, targets=Y)
    folder(tmp_path / "pets")
    for name in ("npz:~/a.npz", "folder:~/pets"):
        assert load_data(name).name == name


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("mnits", "did you mean 'mnist'"),
        ("Digits", "did you mean 'digits'"),
        ("fashion-mnist", "did you mean 'fashion_mnist'"),
        ("npz", "expected npz:PATH$"),
        ("", "known: digits, mnist, fashion_mnist, npz:PATH, folder:PATH"),
        ("csv:data.csv", "no such set"),
        ("npz:", "a path must follow the colon"),
        ("folder:", "a path must follow the colon"),
        ("npz:/no/where.npz", "no such file or folder: /no/where.npz$"),
        ("folder:/no/where", "no such file or folder: /no/where$"),
        ("npz:~nobody-of-that-name/x.npz", "~nobody-of-that-name"),
        ("npz:nul\0", "nul"),
        ("npz:" + "x" * 5000, "xxx"),
    ],
)
def test_faults_of_names_are_explained(name, fault):
    with pytest.raises(DataError, match=fault):
        load_data(name)


# ---------------------------------------------------------------- Dataset


def test_a_fingerprint_changes_with_anything_in_the_content():
    def dataset(change=None, name="arrays"):
        splits = {
            "train": {"inputs": X.copy(), "targets": Y.copy()},
            "test": {"inputs": X[:5].copy(), "targets": Y[:5].copy()},
        }
        if change:
            change(splits)
        return Dataset(name, splits)

    def swap(splits):
        splits["train"], splits["test"] = splits["test"], splits["train"]

    changes = [
        lambda splits: splits["test"]["inputs"].__setitem__((4, 1), 0.5),
        lambda splits: splits["train"]["targets"].__setitem__(0, 2),
        lambda splits: splits["train"].update(inputs=X.astype(np.float32)),
        lambda splits: splits["train"].update(inputs=X.reshape(30, 2, 1)),
        lambda splits: splits["train"].update(inputs=X[::-1]),
        lambda splits: splits["train"].update(extra=Y),
        lambda splits: splits["test"].update(targets=Y[4::-1]),
        lambda splits: splits.pop("test"),
        lambda splits: splits.update(validation=splits.pop("test")),
        swap,
    ]
    prints = [dataset().fingerprint, *(dataset(change).fingerprint for change in changes)]
    assert len(set(prints)) == len(prints)
    assert dataset(name="another").fingerprint == dataset().fingerprint
    assert (
        dataset(lambda splits: splits["train"].update(inputs=np.asfortranarray(X))).fingerprint
        == dataset().fingerprint
    )


def test_inputs_of_several_arrays_are_joined_and_told_apart():
    def dataset(last=1):
        sizes = {"train": 3, "test": 2}
        return Dataset(
            "arrays",
            {
                s: {"inputs": {"a": np.full((n, 2), n), "b": np.arange(n) * last}}
                for s, n in sizes.items()
            },
        )

    joined = dataset().joined("train", "test")
    assert joined["inputs"]["b"].tolist() == [0, 1, 2, 0, 1]
    assert joined["inputs"]["a"].tolist() == [[3, 3]] * 3 + [[2, 2]] * 2
    assert dataset().fingerprint == dataset().fingerprint != dataset(2).fingerprint


def test_joining_one_split_is_that_split():
    dataset = load_data("digits")
    assert rows(dataset.joined("test")) == rows(dataset.splits["test"])
    joined = dataset.joined("validation", "train")
    assert rows(joined) == rows(dataset.splits["validation"]) + rows(dataset.splits["train"])
