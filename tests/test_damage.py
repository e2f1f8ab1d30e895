"""Damaged files of a run and full disks: every fault is named or harmless."""

import contextlib
import functools
import json
import pathlib
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from tests.conftest import THOROUGH
from train.engine.checkpoint import CheckpointError, Checkpoints, checksums
from train.engine.parallel import Layout, Parallel
from train.engine.run_folder import RunError, RunFolder
from zoo import mlp

# When a checkpoint file is damaged, orbax closes its event loop with reads still in progress.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CFG = mlp.Config(sizes=(6, 8, 3), dropout=0.2)
LARGE = {"kernel": jnp.arange(100_000, dtype=jnp.float32)}
PARTS, DAMAGES = 2, 110 if THOROUGH else 12  # of concurrent workers, and per worker


def _data(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, 40)
    inputs = rng.normal(size=(40, 6)).astype(np.float32)
    inputs[np.arange(40), targets] += 3
    return {"inputs": inputs, "targets": targets}


def _fit(out: pathlib.Path) -> train.Result:
    settings: dict[str, Any] = {
        "batch_size": 16,
        "steps": 12,
        "eval_every": 2,
        "steps_per_dispatch": 4,
    }
    return train.fit(
        mlp, CFG, _data(0), validation=_data(1), out=out, parallel=Parallel(devices=1), **settings
    )


def _bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, train.Result]:
    """A complete run, kept intact, with its latest two checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = _fit(folder)
    for step in Checkpoints(folder / "checkpoints", read_only=True).steps()[:-2]:
        shutil.rmtree(folder / "checkpoints" / str(step))
    return folder, result


@pytest.fixture
def run(whole: tuple[pathlib.Path, train.Result], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the complete run."""
    return shutil.copytree(whole[0], tmp_path / "run")


@functools.cache
def _layout(devices: int) -> Layout:
    return Layout(Parallel(devices=devices))


def _damage(file: pathlib.Path, chance: random.Random) -> str:
    """Damages a file in one of many ways; returns a description."""
    data = bytearray(file.read_bytes())
    kind = chance.choice(["flip", "flip", "flip", "truncate", "delete", "zero", "zero all"])
    at = chance.randrange(len(data))
    if kind == "delete":
        file.unlink()
        return f"{file} deleted"
    if kind == "flip":
        data[at] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del data[at:]
    elif kind == "zero":
        length = chance.randint(1, 64)
        data[at : at + length] = bytes(len(data[at : at + length]))
    else:
        data = bytearray(len(data))
    file.write_bytes(data)
    return f"{file}: {kind} at {at}"


@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_checkpoint_is_named_and_passed_over_or_harmless(whole, run, part):
    """Never loads a state that differs from the saved one, also after sharding over devices."""
    chance = random.Random(part)
    abstract = jax.eval_shape(lambda: whole[1].state)
    store = Checkpoints(run / "checkpoints", read_only=True)
    earlier, newest = store.steps()
    expected = {step: store.load(abstract, step) for step in (earlier, newest)}
    assert _bits(expected[newest]) == _bits(whole[1].state) != _bits(expected[earlier])
    sums = {step: jax.device_get(checksums(state)) for step, state in expected.items()}
    bits = {step: _bits(state) for step, state in expected.items()}
    folder, intact = store.folder / str(newest), whole[0] / "checkpoints" / str(newest)
    found = dict.fromkeys((earlier, newest), 0)
    for number in range(DAMAGES):
        paths = sorted(folder.rglob("*"))
        if number % 11 == 0:
            doomed = chance.choice([path for path in paths if path.is_dir()])
            shutil.rmtree(doomed)
            what = f"{doomed} deleted"
        else:
            what = _damage(chance.choice([path for path in paths if path.is_file()]), chance)
        said: list[str] = []
        restored = store.restore(abstract, say=said.append)
        assert restored is not None
        state, step = restored
        assert _bits(state) == bits[step], what
        assert len(said) == (step == earlier), what
        assert all(
            line.startswith(f"damaged checkpoint passed over: {folder}: ") and "\n" not in line
            for line in said
        ), said
        spread = _layout(chance.choice((4, 8))).place_state(state, 16)
        np.testing.assert_array_equal(checksums(spread), sums[step], what)
        found[step] += 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(intact, folder)
    assert found[earlier] > DAMAGES / 4
    assert found[newest] > 0, "nothing was harmless: the damages are too much alike"


def test_a_flipped_bit_of_the_metadata_never_makes_another_checkpoint_the_best(whole, run):
    store = Checkpoints(run / "checkpoints", read_only=True)
    abstract = jax.eval_shape(lambda: whole[1].state)
    file = store.folder / str(store.steps()[-1]) / "_CHECKPOINT_METADATA"
    text = file.read_bytes()
    at = text.index(b",", text.index(b'"best_step": ')) - 1
    for bit in range(3):  # other digits
        data = bytearray(text)
        data[at] ^= 1 << bit
        file.write_bytes(data)
        said: list[str] = []
        store.restore(abstract, best=True, say=said.append)
        assert (
            f"damaged checkpoint passed over: {file.parent}: checksum differs in the metadata"
            in said
        )


@pytest.mark.parametrize("name", ["config.json", "data.json", "metrics.jsonl"])
def test_a_damaged_small_file_is_one_error_or_harmless(whole, run, name):
    """Reading gives what was written or a RunError with the file; damaged log lines may be lost."""
    chance = random.Random(name)
    intact = RunFolder(whole[0])
    recipe, fingerprint = intact.recipe(), intact.config()["data_fingerprint"]
    lines = [json.dumps(line) for line in intact.history()]
    errors: list[str] = []
    for _ in range(100):
        what = _damage(run / name, chance)
        folder = RunFolder(run)
        try:
            if name == "metrics.jsonl":
                kept = folder.truncate_history(12)
                assert folder.history() == kept, what
                assert len(kept) == len(lines) or len(
                    [line for line in kept if json.dumps(line) in lines]
                ) < len(lines), what
            elif name == "data.json":
                assert folder.data() == intact.data(), what
            else:
                assert folder.recipe() == recipe, what
                RunFolder.check(run, recipe, fingerprint)
        except RunError as error:
            errors.append(str(error))
        shutil.copy(whole[0] / name, run / name)
    assert all(name in error and "\n" not in error for error in errors), errors
    assert name == "metrics.jsonl" or len(errors) > 50


def test_a_run_with_a_damaged_log_or_data_json_resumes_bit_for_bit(whole, run):
    shutil.rmtree(run / "checkpoints" / "12")
    (run / "data.json").write_bytes(b"\x00" * 20)
    text = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(text[:30] + b"\xff\x00" + text[32:])
    assert _bits(_fit(run).state) == _bits(whole[1].state)
    assert RunFolder(run).data() == RunFolder(whole[0]).data()


@contextlib.contextmanager
def _filled(disk: pathlib.Path) -> Iterator[None]:
    """A disk without a free byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    yield
    filler.unlink()


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Limits file sizes to those of a checkpoint's small files."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["disk", "limit"])
def full(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> tuple[pathlib.Path, Callable[[], Any], str]:
    """A folder, a context in which writing to it fails, and the system's reason."""
    if request.param == "limit":
        return tmp_path, _limited, "File too large"
    folder = request.getfixturevalue("disk")
    return folder / "run", functools.partial(_filled, folder), "No space left on device"


def _save(store: Checkpoints, step: int) -> None:
    store.save({**LARGE, "step": jnp.int32(step)}, step, best_step=step)


def _save_and_wait(store: Checkpoints, step: int) -> None:
    _save(store, step)
    store.wait()


def test_failed_save_is_named_and_other_checkpoints_stay(full):
    folder, obstacle, reason = full
    abstract = jax.eval_shape(lambda: {**LARGE, "step": jnp.int32(0)})
    failed = rf"/3: saving step 3 failed: {reason}; the newest checkpoint is that of step 2$"
    with Checkpoints(folder / "checkpoints") as store:
        _save(store, 1)
        _save_and_wait(store, 2)
        with obstacle(), pytest.raises(CheckpointError, match=failed):
            _save_and_wait(store, 3)
        assert store.steps() == [1, 2]  # orbax may still hold a temporary folder, on a slow machine
        _save_and_wait(store, 4)
        with obstacle():
            with pytest.raises(CheckpointError, match="saving step 5 failed"):
                _save_and_wait(store, 5)
            restored = Checkpoints(store.folder, read_only=True).restore(abstract)
    assert restored is not None
    state, step = restored
    assert step == int(state["step"]) == 4
    np.testing.assert_array_equal(state["kernel"], LARGE["kernel"])


def test_missing_best_checkpoint_is_reported(tmp_path):
    """For example because its save failed."""
    with Checkpoints(tmp_path) as store:
        for step in (1, 2):
            store.save({"step": jnp.int32(step)}, step, best_step=1)
    shutil.rmtree(tmp_path / "1")
    said: list[str] = []
    restored = store.restore(
        jax.eval_shape(lambda: {"step": jnp.int32(0)}), best=True, say=said.append
    )
    assert restored is not None
    assert restored[1] == 2
    assert "the best checkpoint, of step 1, is not there" in said[0]


def test_run_can_continue_after_failed_saves(full):
    folder, obstacle, reason = full
    failures: list[str] = []
    with Checkpoints(
        folder / "checkpoints", on_failure=lambda failure: failures.append(str(failure))
    ) as store:
        _save_and_wait(store, 1)
        with obstacle():
            for step in (2, 3):
                _save(store, step)
            store.wait()
        _save(store, 4)
    assert [
        f"saving step {step} failed: {reason}" in line
        for step, line in zip((2, 3), failures, strict=True)
    ] == [True] * 2
    assert Checkpoints(store.folder, read_only=True).steps() == [1, 4]


def test_metadata_that_could_not_be_written_is_a_failed_save(tmp_path, monkeypatch):
    """orbax only logs the failure and finishes a checkpoint without checksums."""
    with Checkpoints(tmp_path) as store:
        _save_and_wait(store, 1)
        _save(store, 2)
        response = store._pending[1]

        class Response:
            def result(self):
                response.result()
                (tmp_path / "2" / "_CHECKPOINT_METADATA").write_bytes(b"")

        store._pending = (2, Response())
        with pytest.raises(CheckpointError, match="saving step 2 failed"):
            store.wait()
        assert store.steps() == [1]
        _save(store, 2)
    assert store.steps() == [1, 2]


def test_a_run_on_a_full_disk_stops_with_an_error_and_resumes_bit_for_bit(whole, disk):
    with _filled(disk), pytest.raises(OSError, match="No space left on device"):
        _fit(disk / "run")
    (disk / "filler").write_bytes(bytes(4 * 2**20 - 60_000))  # about enough for one checkpoint
    with pytest.raises((CheckpointError, OSError), match="No space left on device"):
        _fit(disk / "run")
    (disk / "filler").unlink()
    assert _bits(_fit(disk / "run").state) == _bits(whole[1].state)


def test_log_lines_are_never_partially_written(disk):
    folder = RunFolder(disk)
    line = {"step": 1, "split": "train", "seconds": 0.0, "note": "x" * 3000}
    folder.append_history(line)
    with _filled(disk):
        for _ in range(3):
            with pytest.raises(OSError, match=r"No space left on device.*metrics\.jsonl"):
                folder.append_history(line)
    folder.append_history({**line, "step": 2})
    assert [line["step"] for line in folder.history()] == [1, 2]
