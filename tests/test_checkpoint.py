"""Checkpoints: exact, atomic, and never silently wrong."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from train.engine.checkpoint import CheckpointError, Checkpoints, MisfitError, checksum
from zoo import mlp

# When a checkpoint file is damaged, orbax closes its event loop with reads still in progress.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STATE = {
    "params": {
        "kernel": jnp.arange(600, dtype=jnp.float32).reshape(20, 30),
        "half": jnp.ones(7, jnp.bfloat16),
    },
    "step": jnp.int32(3),
    "flags": jnp.array([True, False]),
    "empty": (),
}


def _abstract(state=STATE):
    return jax.eval_shape(lambda: state)


def _save(folder, *steps, best=None):
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            state = {**STATE, "step": jnp.int32(step)}
            checkpoints.save(state, step, best_step=best or step)


def _restore(folder, abstract=None, **options) -> tuple[Any, list[str]]:
    said = []
    with Checkpoints(folder, read_only=True) as checkpoints:
        found = checkpoints.restore(abstract or _abstract(), say=said.append, **options)
    return found, said


def _payload(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files with array data, the largest first."""
    return sorted(
        (file for file in folder.rglob("*") if file.is_file()),
        key=lambda file: -file.stat().st_size,
    )


def test_round_trip_keeps_bits_types_and_structure(tmp_path):
    _save(tmp_path, 3)
    (state, step), said = _restore(tmp_path)
    assert step == 3
    assert not said
    assert jax.tree.structure(state) == jax.tree.structure(STATE)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(STATE), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_best_and_the_two_latest_are_kept(tmp_path):
    _save(tmp_path, 1, 2, 3, 4, 5, best=2)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
    assert _restore(tmp_path)[0][1] == 5
    assert _restore(tmp_path, best=True)[0][1] == 2


@pytest.mark.parametrize(
    ("keep_every", "best", "kept"),
    [
        (3, 2, [2, 3, 6, 9, 10, 11]),
        (4, 11, [4, 8, 10, 11]),
        (100, 5, [5, 10, 11]),
    ],
)
def test_multiples_are_kept_in_addition_to_best_and_latest(tmp_path, keep_every, best, kept):
    with Checkpoints(tmp_path, keep_every=keep_every) as checkpoints:
        for step in range(1, 12):
            checkpoints.save({"step": jnp.int32(step)}, step, best_step=min(best, step))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == kept
        for step in kept:
            assert (
                int(checkpoints.load({"step": jax.ShapeDtypeStruct((), jnp.int32)}, step)["step"])
                == step
            )


def test_kept_checkpoints_stay_when_the_run_resumes(tmp_path):
    """In a new process, steps alone decide what is kept; later steps than the resumed one go."""
    for steps, best in (((2, 4, 6, 8, 10), 4), ((10, 12, 14, 16), 14)):
        with Checkpoints(tmp_path, keep_every=6) as checkpoints:
            checkpoints.drop_after(steps[0] - 1)
            for step in steps:
                checkpoints.save({"step": jnp.int32(step)}, step, best_step=min(best, step))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [6, 12, 14, 16]


@pytest.mark.parametrize("keep_every", [2, 1.6])
def test_a_run_keeps_some_of_its_evaluations_checkpoints(tmp_path, keep_every):
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {
        "inputs": rng.normal(size=(9, 2)).astype(np.float32),
        "targets": rng.integers(0, 2, 9),
    }
    settings: dict[str, Any] = {
        "batch_size": 3,
        "epochs": 8,
        "eval_every": 1,
        "keep_every": keep_every,
    }
    result = train.fit(
        mlp, mlp.Config(sizes=(2, 2)), data, validation=data, out=tmp_path, **settings
    )
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == sorted(
            {6, 12, 18, 21, 24, int(result.state.control.best_step)}
        )


def test_no_checkpoint_yet(tmp_path):
    assert _restore(tmp_path)[0] is None
    with pytest.raises(CheckpointError, match="no checkpoints here"):
        Checkpoints(tmp_path / "missing", read_only=True)


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bit_is_detected_and_the_previous_step_is_used(tmp_path, seed):
    _save(tmp_path, 1, 2)
    rng = np.random.default_rng(seed)
    files = [file for file in _payload(tmp_path / "2") if file.stat().st_size > 500]
    file = files[rng.integers(len(files))]
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(data)
    (state, step), said = _restore(tmp_path)
    assert int(state["step"]) == step  # either one is intact
    np.testing.assert_array_equal(state["params"]["kernel"], STATE["params"]["kernel"])
    if step == 1:
        assert "damaged checkpoint passed over" in said[0]
        assert str(tmp_path / "2") in said[0]


def test_truncated_and_missing_files_fall_back(tmp_path):
    _save(tmp_path, 1, 2)
    largest = _payload(tmp_path / "2")[0]
    largest.write_bytes(largest.read_bytes()[:10])
    assert _restore(tmp_path)[0][1] == 1
    _payload(tmp_path / "1")[0].unlink()
    with pytest.raises(CheckpointError, match=r"no intact checkpoint.*2.*1"):
        _restore(tmp_path)


def test_metadata_without_checksums_is_refused(tmp_path):
    _save(tmp_path, 1)
    for file in (tmp_path / "1").rglob("*METADATA*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"no intact checkpoint"):
        _restore(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": jax.ShapeDtypeStruct((), jnp.float32)}, "step: holds int32.*expects float32"),
        (
            {"flags": jax.ShapeDtypeStruct((3,), bool)},
            r"flags: holds bool\[2\], the run expects bool\[3\]",
        ),
        ({"more": jax.ShapeDtypeStruct((), jnp.int32)}, "more: holds nothing"),
    ],
)
def test_another_type_shape_or_leaf_is_an_error_not_a_cast(tmp_path, change, message):
    _save(tmp_path, 1, 2)
    said = []
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(MisfitError, match=rf"/2: {message}"),
    ):
        checkpoints.restore({**_abstract(), **change}, say=said.append)
    assert not said  # it is not damaged, and no other checkpoint would fit


@pytest.mark.parametrize("best", [True, False])
def test_another_format_is_an_error_not_damage(tmp_path, monkeypatch, best):
    _save(tmp_path, 1, 2)
    monkeypatch.setattr("train.engine.checkpoint.FORMAT", 4)
    said = []
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(MisfitError, match="format 3, this version reads 4"),
    ):
        checkpoints.restore(_abstract(), best=best, say=said.append)
    assert not said


def test_a_failed_save_names_the_step(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(STATE, 1, best_step=1)
        checkpoints.wait()

        class Failing:
            def result(self):
                raise OSError("No space left on device")

        monkeypatch.setattr(checkpoints._manager, "save_async", lambda *_, **__: Failing())
        checkpoints.save(STATE, 2, best_step=2)
        with pytest.raises(CheckpointError, match="saving step 2 failed: No space left"):
            checkpoints.wait()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint32", "bool", "int16"])
def test_every_single_bit_counts_in_the_checksum(dtype):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2 if dtype == "bool" else 256, 5 * jnp.dtype(dtype).itemsize).astype(
        np.uint8
    )

    def total(raw):
        return int(checksum(jnp.asarray(raw.view(jnp.dtype(dtype)))))

    known = total(raw)
    bits = 1 if dtype == "bool" else 8
    for index in range(len(raw)):
        for bit in range(bits):
            raw[index] ^= 1 << bit
            assert total(raw) != known
            raw[index] ^= 1 << bit
    assert total(raw) == known


def test_swapped_and_zeroed_blocks_change_the_checksum():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)
    assert checksum(leaf) != checksum(leaf[::-1])
    assert checksum(leaf) != checksum(jnp.roll(leaf, 8))
    assert checksum(leaf) != checksum(leaf.at[16:24].set(0))
    assert (
        checksum(jnp.zeros(64)) == checksum(jnp.zeros(32)) == 0
    )  # lengths are compared by their shapes


def test_the_checksum_does_not_depend_on_the_sharding():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(
        leaf, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    assert int(jax.jit(checksum)(sharded)) == int(checksum(leaf))


def test_typed_keys_have_checksums():
    assert checksum(jax.random.key(1)) != checksum(jax.random.key(2))
