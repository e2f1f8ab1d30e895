"""JAX's switches: a run is the same under each, or an error names the switch that matters."""

import contextlib
import dataclasses
import pathlib
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import evals.__main__
import train
import zoo
from train.engine.checkpoint import CheckpointError
from train.engine.parallel import Parallel
from train.engine.run_folder import RunError, RunFolder, jax_settings, read_json, write_json
from train.engine.step import decide, init_control, init_state, make_evaluate, make_step, root_key
from train.recipes import RECIPES
from zoo import mlp, rbm

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
CFG = mlp.Config(sizes=(6, 8, 3), dropout=0.5)
MACHINE = rbm.Config(visible=6, hidden=5, persistent=True)


@contextlib.contextmanager
def _x64(on):
    """As the environment variable sets it; ``jax.enable_x64`` is for one thread only."""
    before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def _data(binary=False) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 6)).astype(np.float32)
    return (
        {"inputs": (inputs > 0).astype(np.float32)}
        if binary
        else {"inputs": inputs, "targets": rng.integers(0, 3, 40)}
    )


def _fit(out=None, module: Any = mlp, cfg: Any = CFG, steps=6, **more):
    data = _data(binary=module is rbm)
    return train.fit(
        module,
        cfg,
        data,
        validation=data,
        out=out,
        batch_size=8,
        steps=steps,
        eval_every=0.4,
        **more,
    )


def _losses(result):
    return [line["loss"] for line in result.history]


def _bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


# Generators of random numbers.


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize(("module", "cfg"), [(mlp, CFG), (rbm, MACHINE)])
def test_random_numbers_do_not_depend_on_the_default_prng(module, cfg, generator):
    """So that random numbers do not depend on the number of devices, as with rbg."""
    expected = _fit(module=module, cfg=cfg)
    with jax.default_prng_impl(generator):
        assert str(jax.random.key_impl(jax.random.key(0))) == generator
        result, spread = (
            _fit(module=module, cfg=cfg, parallel=Parallel(devices=devices)) for devices in (1, 2)
        )
    assert _bits(result.state) == _bits(expected.state)
    np.testing.assert_allclose(_losses(spread), _losses(expected), rtol=1e-5)


def test_keys_are_created_in_one_place():
    """Except in speed measurements, whose results are not used, and in examples of docstrings."""
    files = [
        file
        for package in ("train", "evals")
        for file in (ROOT / package).rglob("*.py")
        if file.parent.name != "speed"
    ]
    made = re.compile(r"random\.(key|PRNGKey)\(|import key\b")
    found = [
        f"{file.name}: {line.strip()}"
        for file in files
        for line in file.read_text().splitlines()
        if made.search(line) and not line.strip().startswith(">>> ")
    ]
    assert found == ["step.py: return jax.random.key(seed, impl=PRNG)"]


def test_step_accepts_keys_of_any_prng():
    optimizer = train.Optimizer().build(10, 5)
    batch = mlp.example_batch(CFG, jax.random.key(1), 4)
    losses = []
    for key in (root_key(0), jax.random.key(0, impl="rbg")):
        state = init_state(mlp, CFG, optimizer, key, 4)
        _, metrics = jax.jit(make_step(mlp, CFG, optimizer))(state, batch, key)
        losses.append(float(metrics["loss"][0]))
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


# What a run depends on is recorded.


SWITCHES = {
    "JAX_ENABLE_X64 was 0 when the run was begun, and is 1 here": lambda: _x64(True),
    "JAX_THREEFRY_PARTITIONABLE was 1 when the run was begun, and is 0 here": lambda: (
        jax.threefry_partitionable(False)
    ),
    "JAX_DEFAULT_MATMUL_PRECISION was not set when the run was begun, and is highest here": (
        lambda: jax.default_matmul_precision("highest")
    ),
}


@pytest.mark.parametrize("message", SWITCHES)
def test_resuming_requires_the_same_jax_settings(tmp_path, message):
    _fit(tmp_path / "run", steps=3)
    assert RunFolder(tmp_path / "run").config()["jax"] == jax_settings()
    (tmp_path / "run" / "summary.json").unlink()
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with SWITCHES[message](), pytest.raises(RunError, match=message):
        _fit(tmp_path / "run", steps=3)
    assert {
        file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()
    } == before


@pytest.mark.parametrize("here", [True, False])
def test_run_of_another_precision_is_not_reported_as_damaged(tmp_path, here):
    """Also a run of an earlier version, which recorded no settings."""
    with _x64(not here):
        _fit(tmp_path / "run", steps=3)
    wanted = (
        rf"JAX_ENABLE_X64 was {1 - here:d} when the run was begun, and is {here:d} here; set it "
        rf"as it was$"
    )
    with _x64(here), pytest.raises(RunError, match=wanted):
        train.load(tmp_path / "run")
    config = read_json(tmp_path / "run" / "config.json")
    del config["jax"]
    write_json(tmp_path / "run" / "config.json", config)
    holds = (
        r"holds float64\[.*\], the run expects float32"
        if not here
        else r"holds float32\[.*\], the run expects float64"
    )
    # A warning would be an error here, and is how a damaged checkpoint is named.
    with (
        _x64(here),
        pytest.raises(CheckpointError, match=f"(?s){holds}.*more leaves differ; {wanted}"),
    ):
        train.load(tmp_path / "run")
    with (
        _x64(here),
        pytest.raises(CheckpointError, match=f"(?s){holds}.*more leaves differ; {wanted}"),
    ):
        _fit(tmp_path / "run", steps=3)
    with _x64(not here):
        assert _fit(tmp_path / "run", steps=3).complete


def test_irrelevant_jax_settings_do_not_prevent_reading(tmp_path):
    result = _fit(tmp_path / "run", steps=3)
    with jax.threefry_partitionable(False), jax.default_matmul_precision("highest"):
        assert _bits(train.load(tmp_path / "run")[2]) == _bits(result.params)


@pytest.mark.parametrize(("module", "cfg"), [(mlp, CFG), (rbm, MACHINE)])
def test_a_run_in_double_precision_resumes_bit_for_bit(tmp_path, module, cfg):
    with _x64(True):
        whole = _fit(tmp_path, module, cfg)
        assert {leaf.dtype for leaf in jax.tree.leaves(whole.params)} == {jnp.dtype("float64")}
        shutil.rmtree(tmp_path / "checkpoints" / "6")
        assert _bits(_fit(tmp_path, module, cfg).state) == _bits(whole.state)
    with (
        jax.enable_x64(True),
        pytest.raises(CheckpointError, match="does not reach the threads that read"),
    ):
        train.load(tmp_path)


# Switches that change no number do not prevent resuming.


@contextlib.contextmanager
def _checked(strict=False):
    """Under all of JAX's checks at once, each of which raises on an unhealthy run."""
    with (
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.debug_key_reuse(True),
        contextlib.ExitStack() as stack,
    ):
        if strict:
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
        yield


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (FloatingPointError, lambda: jnp.log(-jnp.ones(2))),
        (FloatingPointError, lambda: jnp.log(jnp.zeros(2))),
        (
            jax.errors.KeyReuseError,
            lambda: [jax.random.bits(key) + jax.random.bits(key) for key in [root_key(0)]],
        ),
        (jax.dtypes.TypePromotionError, lambda: jnp.ones(2) + jnp.ones(2, int)),
    ],
)
def test_jax_checks_are_enabled(error, fault):
    with _checked(strict=True), pytest.raises(error):
        fault()


@pytest.mark.parametrize("name", zoo.MODELS)
def test_models_pass_all_jax_checks(name):
    """Full batches, partly padded ones and pure padding; two steps with one root key."""
    module, cfg = zoo.MODELS[name], zoo.MODELS[name].PRESETS["tiny"]
    optimizer = train.Optimizer().build(10, 5)
    with _checked(strict=True):
        batch = jax.jit(module.example_batch, static_argnums=2)(cfg, jax.random.key(1), 4)
        key = root_key(0)
        state = jax.jit(init_state, static_argnums=(0, 2, 4))(module, cfg, optimizer, key, 4)
        step, evaluate = (
            jax.jit(make_step(module, cfg, optimizer)),
            jax.jit(make_evaluate(module, cfg)),
        )
        for kept in (4, 2, 0):
            rows = np.arange(4).reshape(4, *[1] * (batch["mask"].ndim - 1)) < kept
            padded = {**batch, "mask": batch["mask"] & rows}
            state, metrics = step(state, padded, key)
            evaluate(state.params, state.carry, padded)
            assert float(metrics["loss"][1]) == float(np.sum(padded["mask"]))
        jax.jit(module.trace)(cfg, state.params, batch["inputs"])


@pytest.mark.parametrize("name", ["captioner", "hard_captioner"])
def test_captioner_parameters_have_separate_keys(name):
    """Without jit JAX sees in each call which keys were used before."""
    cfg = zoo.MODELS[name].PRESETS["tiny"]
    assert cfg.places
    assert cfg.attention != "none"
    with jax.debug_key_reuse(True):
        zoo.MODELS[name].init(cfg, jax.random.key(0))


@pytest.mark.parametrize(
    ("recipe", "switch"),
    [
        ("mlp-digits", _checked),
        ("mlp-digits", lambda: _x64(True)),
        ("rbm-digits", lambda: _x64(True)),
    ],
    ids=["mlp-digits checked", "mlp-digits in x64", "rbm-digits in x64"],
)
def test_a_run_is_trained_resumed_and_evaluated_under_a_switch(
    tmp_path, capsys, monkeypatch, recipe, switch
):
    monkeypatch.setattr("evals.tasks.density.TEMPERATURES", 20)
    recipe = dataclasses.replace(RECIPES[recipe], steps=6, eval_every=0.03, batch_size=50)
    with switch():
        whole = train.run(recipe, tmp_path, quiet=True)
        shutil.rmtree(tmp_path / "checkpoints" / "6")
        resumed = train.run(recipe, tmp_path, quiet=True)
        assert _bits(resumed.state) == _bits(whole.state)
        assert evals.__main__.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists()
    assert not capsys.readouterr().err
    if switch is _checked:
        assert _bits(whole.params) == _bits(train.run(recipe, quiet=True).params)


@pytest.mark.parametrize("name", ["mlp", "rbm"])
def test_a_run_without_jit_differs_by_rounding(name):
    module, cfg = {"mlp": (mlp, CFG), "rbm": (rbm, MACHINE)}[name]
    expected = _losses(_fit(module=module, cfg=cfg, steps=2))
    with jax.disable_jit():
        assert _losses(_fit(module=module, cfg=cfg, steps=2)) == pytest.approx(expected, rel=1e-5)


def test_run_of_a_version_with_nan_best_value_resumes():
    """Checkpoints of such versions hold it until something is evaluated."""
    before = init_control()._replace(best=jnp.float32(jnp.nan))
    after = decide(before, 0.5, 3, "max")
    assert (float(after.best), int(after.best_step)) == (0.5, 3)
