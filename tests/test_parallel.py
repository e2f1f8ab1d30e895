"""Strategies, devices, accumulation and replicas: the same run up to rounding; reductions."""

import dataclasses
import functools
import json
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
import zoo
from evals.hlo import collectives
from tests.conftest import KINDS, THOROUGH
from tests.test_contract import MEMBERS
from train.engine.member import Member
from train.engine.parallel import Layout, Parallel
from train.engine.run_folder import RunFolder
from train.engine.step import REMAT, init_state, make_step
from zoo import convnet, mlp

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SAMPLED = [name for name, module in MEMBERS.items() if getattr(module, "SAMPLED", False)]
OTHERS = [
    Parallel(),
    Parallel(strategy="shard_map"),
    Parallel(strategy="pmap"),
    Parallel(accumulate=2),
    Parallel(strategy="shard_map", accumulate=3, devices=3),
    Parallel(remat=True, devices=4),
]
CFG = mlp.Config(sizes=(6, 8, 3), dropout=0.2)


def _pairs(names):
    """(model, way to train): all; in short runs all for the cheapest model, few for the others.

    The contract tests check the models' side: keys per example, and no effect of padding.
    """
    pairs = []
    for index, name in enumerate(
        name for name in names if THOROUGH or name in (*KINDS, "toy_sampled")
    ):
        ways = (
            len(OTHERS)
            if THOROUGH or name == "mlp"
            else 2
            if isinstance(MEMBERS[name], zoo.Recurrent)
            else 1
        )
        pairs += [
            (name, OTHERS[(index + way * len(OTHERS) // ways) % len(OTHERS)]) for way in range(ways)
        ]
    return pairs


@functools.cache
def _data(name, seed=0):
    """29 examples: three batches of 13, the last one short; no number of devices divides 13."""
    module = MEMBERS[name]
    batch = module.example_batch(module.PRESETS["tiny"], jax.random.key(seed), 29)
    return jax.tree.map(np.asarray, batch)


def _fit(name, parallel, **settings):
    module = MEMBERS[name]
    defaults: dict[str, Any] = {
        "batch_size": 13,
        "steps": 20,
        "eval_every": 1,
        "optimizer": train.Optimizer(learning_rate=0.05),
    }
    return train.fit(
        module, module.PRESETS["tiny"], _data(name), parallel=parallel, **defaults | settings
    )


@functools.cache
def _alone(name, **settings):
    return _fit(name, Parallel(devices=1), **settings)


def _assert_close(actual, expected, rtol=2e-4, atol=2e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("name", "parallel"), _pairs([name for name in MEMBERS if name not in SAMPLED])
)
def test_every_way_to_train_equals_one_device(name, parallel):
    """With dropout, momentum, indivisible and short batches: losses, parameters and carry."""
    alone, other = _alone(name), _fit(name, parallel)
    assert [line["step"] for line in other.history] == [line["step"] for line in alone.history]
    for line, expected in zip(other.history, alone.history, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    _assert_close(
        other.state._replace(step=(), control=(), nonfinite=()),
        alone.state._replace(step=(), control=(), nonfinite=()),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "parallel"), _pairs(SAMPLED))
def test_sampled_objectives_take_the_same_step(name, parallel):
    settings = {"steps": 1, "preprocess": "none"}
    _assert_close(
        _fit(name, parallel, **settings).params, _alone(name, **settings).params, rtol=1e-9
    )


def _compiled(module, cfg, parallel, batch_size=16) -> Any:
    """The compiled step of a layout, its state, and what else it takes."""
    layout = Layout(parallel)
    optimizer = train.Optimizer(learning_rate=0.05).build(10, 5)
    state = layout.place_state(
        init_state(module, cfg, optimizer, jax.random.key(0), batch_size), batch_size
    )
    batch = module.example_batch(cfg, jax.random.key(1), batch_size)

    def build(**how):
        return make_step(module, cfg, optimizer, load=lambda source: source[1], **how)

    plan = (
        layout.shard(jax.tree.map(lambda leaf: leaf[None], batch), axis=1),
        layout.replicate(np.int32(0)),
    )
    shapes = jax.eval_shape(make_step(module, cfg, optimizer), state, batch, jax.random.key(0))[1]
    zeros = layout.replicate(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    arguments = (
        zeros,
        (),
        plan,
        layout.replicate(np.int32(1)),
        layout.replicate(jax.random.key(0)),
    )
    steps: Any = layout.steps(build, False, batch_size)
    return steps.lower(state, *arguments).compile(), state, arguments


@pytest.mark.parametrize("strategy", ["jit", "shard_map", "pmap"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mlp", None),
        ("convnet", "bfloat16"),
        *([("mlp", "bfloat16"), ("convnet", None)] if THOROUGH else []),
    ],
)
def test_each_gradient_byte_is_reduced_once_and_in_float32(name, dtype, strategy):
    module = MEMBERS[name]
    cfg = dataclasses.replace(module.PRESETS["tiny"], compute_dtype=dtype)
    compiled, state, _ = _compiled(module, cfg, Parallel(strategy=strategy))
    found = collectives(compiled.as_text())
    assert {each.kind for each in found} == {"all-reduce"}, (
        "nothing but reductions travels between devices"
    )
    gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    floats = sum(each.sizes.get("f32", 0) for each in found)
    # Besides the gradients only the sums of losses and metrics, a few numbers.
    assert gradients <= floats <= gradients + 16
    assert sum(each.bytes for each in found) <= gradients + 64


@pytest.mark.parametrize("strategy", ["jit", "shard_map", "pmap"])
def test_the_state_is_donated_and_the_count_exact(strategy):
    compiled, state, arguments = _compiled(mlp, CFG, Parallel(strategy=strategy))
    new, metrics = compiled(state, *arguments)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert int(metrics["loss"][1]) == 16
    assert int(new.step) == 1


def test_a_plain_jitted_step_on_a_divided_batch_is_the_same():
    """A user's own loop, sharded by XLA's partitioner."""
    layout = Layout()
    optimizer = train.Optimizer().build(10, 5)
    step = jax.jit(make_step(mlp, CFG, optimizer))
    state = init_state(mlp, CFG, optimizer, jax.random.key(0), 16)
    batch = mlp.example_batch(CFG, jax.random.key(1), 16)
    expected, counted = step(state, batch, jax.random.key(0))
    actual, metrics = step(
        layout.place_state(state, 16), layout.shard(batch), layout.replicate(jax.random.key(0))
    )
    _assert_close(actual.params, expected.params)
    assert int(metrics["loss"][1]) == int(counted["loss"][1])


def test_run_resumes_on_other_devices_and_strategies(tmp_path, monkeypatch):
    """8 -> 4 -> 1, in the same order of data."""
    settings: dict[str, Any] = {
        "batch_size": 12,
        "steps": 30,
        "eval_every": 1,
        "validation": _data("mlp", 1),
    }
    cfg = mlp.PRESETS["tiny"]

    def fit(**more: Any) -> train.Result:
        return train.fit(mlp, cfg, _data("mlp"), **settings, **more)

    whole = fit(parallel=Parallel(devices=1))
    recorded = Member.record

    def stop_after(step):
        def record(self, line):
            recorded(self, line)
            if line["step"] >= step:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Member, "record", record)

    stop_after(8)
    assert fit(out=tmp_path / "run", parallel=Parallel()).stopped_by == "SIGTERM"
    stop_after(17)
    assert not fit(
        out=tmp_path / "run", parallel=Parallel(strategy="shard_map", devices=4)
    ).complete
    monkeypatch.undo()
    last = fit(out=tmp_path / "run", parallel=Parallel(devices=1))
    assert last.complete
    _assert_close(last.state.params, whole.state.params)
    for line, expected in zip(last.history, whole.history, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "threads"}, "parallel='threads', allowed: auto, jit, shard_map, pmap"),
        ({"accumulate": 0}, "accumulate=0, allowed: a positive integer"),
        ({"strategy": "pmap", "accumulate": 2}, "accumulate=2, allowed with parallel='pmap': 1"),
        ({"devices": 99}, "devices=99, allowed: 1 to 8"),
    ],
)
def test_wrong_settings_name_the_option(settings, message):
    with pytest.raises(ValueError, match=message):
        Layout(_unchecked(settings))


def _unchecked(settings):
    """Bypasses the tests' run-time type checker, which would raise first."""
    parallel = object.__new__(Parallel)
    for field in dataclasses.fields(Parallel):
        object.__setattr__(parallel, field.name, settings.get(field.name, field.default))
    parallel.__post_init__()
    return parallel


def test_replicas_with_pmap_are_refused():
    with pytest.raises(ValueError, match="replicas: 2, allowed with parallel='pmap': 1"):
        Layout(Parallel(strategy="pmap"), replicas=2)


def test_non_finite_steps_stop_the_run_or_are_skipped(tmp_path, capsys):
    """One example is NaN: its step is named, and changes nothing if skipped."""
    data = {"inputs": np.array(_data("mlp")["inputs"]), "targets": _data("mlp")["targets"]}
    data["inputs"][5] = np.nan
    settings: dict[str, Any] = {
        "batch_size": 4,
        "steps": 8,
        "eval_every": 0.125,
        "preprocess": "none",
        "seed": 3,
    }
    cfg = mlp.PRESETS["tiny"]
    batches = train.batches.Batches(data, 4, seed=3)
    met = next(step for step in range(8) if 5 in batches.rows(step))
    assert 0 < met < 7
    with pytest.raises(
        train.Diverged,
        match=rf"loss is nan, gradient norm nan at step {met + 1}; last good checkpoint: step "
        rf"{met}",
    ):
        train.fit(mlp, cfg, data, out=tmp_path, **settings)
    result = train.fit(mlp, cfg, data, quiet=False, on_nonfinite="skip", **settings)
    assert (
        f"loss is nan, gradient norm nan at step {met + 1}: skipped, 1 so far"
        in capsys.readouterr().out
    )
    assert int(result.state.nonfinite.count) == 1
    settings["on_nonfinite"] = "skip"
    before, after = (
        train.fit(mlp, cfg, data, **{**settings, "steps": steps}).params for steps in (met, met + 1)
    )
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


SIDE_BY_SIDE: dict[str, Any] = {
    "batch_size": 8,
    "steps": 20,
    "eval_every": 1,
    "steps_per_dispatch": 4,
}


@functools.cache
def _single(**own):
    """A separate run with the seed or the optimizer of a member."""
    return train.fit(
        mlp, mlp.PRESETS["tiny"], _data("mlp"), validation=_data("mlp", 1), **SIDE_BY_SIDE | own
    )


@pytest.mark.parametrize("devices", [1, None] if THOROUGH else [None])
def test_replicas_equal_their_own_runs(tmp_path, devices):
    fit = functools.partial(
        train.fit,
        mlp,
        mlp.PRESETS["tiny"],
        _data("mlp"),
        validation=_data("mlp", 1),
        **SIDE_BY_SIDE,
    )
    together = fit(replicas=3, seed=5, out=tmp_path, parallel=Parallel(devices=devices))
    alone = {f"seed-{seed}": _single(seed=seed) for seed in (5, 6, 7)}
    assert list(together.members) == list(alone)
    for label, member in together.members.items():
        _assert_close(member.params, alone[label].params)
        for line, expected in zip(member.history, alone[label].history, strict=True):
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        _, _, params = train.load(tmp_path / label)
        _assert_close(params, member.params, rtol=0, atol=0)
        assert RunFolder(tmp_path / label).recipe().seed == int(label[-1])
    rows = json.loads((tmp_path / "summary.json").read_text())["members"]
    lines = [line for line in together.members["seed-6"].history if line["split"] == "validation"]
    assert rows["seed-6"]["accuracy"] == max(line["accuracy"] for line in lines)
    again = fit(replicas=3, seed=5, out=tmp_path, parallel=Parallel())
    _assert_close(again.members["seed-7"].params, together.members["seed-7"].params, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("learning_rate", (0.3, 0.01)),
        ("max_norm", (3.0, 0.5)),
        ("plateau_factor", (0.1, 0.5)),
        *(
            [("momentum", (0.9, 0.0)), ("l2", (0.0, 0.01)), ("warmup", (0.0, 3.0))]
            if THOROUGH
            else []
        ),
    ],
)
def test_sweep_equals_separate_runs(field, values):
    optimizer = train.Optimizer(learning_rate=0.1, schedule="cosine")
    sweep = (f"optimizer.{field.replace('_', '-')}", *map(str, values))
    fit = functools.partial(
        train.fit,
        mlp,
        mlp.PRESETS["tiny"],
        _data("mlp"),
        validation=_data("mlp", 1),
        **SIDE_BY_SIDE,
    )
    together = fit(sweep=sweep, optimizer=optimizer)
    assert list(together.members) == [f"{field}-{value}" for value in values]
    # In short runs, only the member that differs from the common optimizer.
    for value in values if THOROUGH else values[1:]:
        alone, member = (
            _single(optimizer=dataclasses.replace(optimizer, **{field: value})),
            together.members[f"{field}-{value}"],
        )
        _assert_close(member.state.params, alone.state.params)
        _assert_close(member.state.control, alone.state.control)


def test_diverging_replica_does_not_affect_the_others(tmp_path, capsys):
    cfg = mlp.Config(sizes=(6, 8, 3), output="linear")
    data = jax.tree.map(np.asarray, mlp.example_batch(cfg, jax.random.key(0), 32))
    fit = functools.partial(
        train.fit, mlp, cfg, data, validation=data, **SIDE_BY_SIDE | {"steps": 60}
    )
    together = fit(sweep=("optimizer.learning-rate", "0.01", "1e6"), out=tmp_path, quiet=False)
    alone = fit(optimizer=train.Optimizer(learning_rate=0.01))
    _assert_close(together.members["learning_rate-0.01"].params, alone.params)
    diverged = json.loads((tmp_path / "summary.json").read_text())["members"]["learning_rate-1e6"][
        "diverged"
    ]
    assert 0 < diverged < 60
    output = capsys.readouterr().out
    assert f"at step {diverged}: this run stops here; the others continue" in output
    assert f"diverged at step {diverged}" in output
    assert "best by loss: learning_rate-0.01" in output
    assert all(
        np.isfinite(leaf).all()
        for leaf in jax.tree.leaves(together.members["learning_rate-1e6"].params)
    )


def test_replicas_resume_bit_for_bit(tmp_path, monkeypatch):
    settings = {**SIDE_BY_SIDE, "steps": 24, "replicas": 2}
    fit = functools.partial(
        train.fit, mlp, mlp.PRESETS["tiny"], _data("mlp"), validation=_data("mlp", 1), **settings
    )
    whole = fit()
    recorded = Member.record

    def record(self, line):
        recorded(self, line)
        if line["step"] >= 9:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Member, "record", record)
    assert not fit(out=tmp_path).complete
    monkeypatch.undo()
    resumed = fit(out=tmp_path)
    for label, member in resumed.members.items():
        _assert_close(member.state, whole.members[label].state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (("seed", "1", "2"), r"sweep of 'seed', allowed: optimizer.learning-rate, "),
        (("optimizer.name", "sgd", "adam"), r"sweep of 'optimizer.name', allowed: optimizer"),
        (
            ("optimizer.momentum", "0.5", "high"),
            r"sweep of optimizer.momentum: 'high', allowed: numbers",
        ),
        (("optimizer.momentum", "0.5", "1.5"), r"momentum=1.5, allowed: 0 <= momentum < 1"),
        (("optimizer.momentum", "0.5"), r"allowed: two or more different values"),
    ],
)
def test_invalid_sweeps_are_refused(sweep, message):
    with pytest.raises(ValueError, match=message):
        train.fit(mlp, CFG, _data("mlp"), sweep=sweep)


def test_gradient_accumulation_needs_less_memory():
    """Of the temporaries that the compiled step needs, read from its memory analysis."""
    cfg = convnet.Config(shape=(16, 16, 3), stages=(convnet.Stage(features=16),) * 2)

    def temporaries(accumulate):
        compiled, *_ = _compiled(
            convnet, cfg, Parallel(devices=1, accumulate=accumulate), batch_size=64
        )
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 0.5 * temporaries(1)


def test_rematerialisation_stores_block_outputs_only():
    """Residuals of the backward pass before compilation (XLA on CPU merges recomputation again)."""
    block = [convnet.Stage(features=8)] * 3 + [convnet.Stage(features=8, pool="max")]
    cfg = convnet.Config(shape=(8, 8, 3), stages=tuple(block * 2))
    params, batch = (
        convnet.init(cfg, jax.random.key(0)),
        convnet.example_batch(cfg, jax.random.key(1), 4),
    )

    def kept(**how):
        def loss(params):
            return convnet.loss(cfg, params, batch)[0]

        function = jax.checkpoint(loss, **how) if how else loss
        pullback = jax.eval_shape(lambda params: jax.vjp(function, params)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback)) - sum(
            leaf.size for leaf in jax.tree.leaves((params, batch))
        )

    # The results of two blocks: 4 x (4x4 + 2x2) x 8.
    assert kept(policy=REMAT) <= 2 * 4 * 20 * 8 < 0.1 * kept()


def test_state_placement():
    layout = Layout()
    optimizer = train.Optimizer().build(10, 5)
    state = layout.place_state(init_state(mlp, CFG, optimizer, jax.random.key(0), 16), 16)
    assert all(
        leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8
        for leaf in jax.tree.leaves(state)
    )
    batch = layout.shard(jnp.zeros((16, 2)))
    assert batch.sharding.shard_shape(batch.shape) == (2, 2)
    assert layout.local_rows(16) == slice(0, 16)


def test_a_step_needs_no_more_memory_than_flax():
    """Arguments: parameters, momentum, batch, little else; temporaries as in linen.

    In addition, a copy of the inputs with padding set to 0.
    """
    from evals.speed.contenders import programs
    from evals.speed.workloads import mlp as workload

    work = workload(batch=64, width=256)
    needed = {}
    for name, program in programs(work).items():
        state = jax.eval_shape(lambda program=program: program.start(None))
        needed[name] = (
            jax.jit(program.step, donate_argnums=0)
            .lower(state, *program.arguments)
            .compile()
            .memory_analysis()
        )
    params = jax.eval_shape(lambda: work.module.init(work.cfg, jax.random.key(0)))
    least = 2 * sum(4 * leaf.size for leaf in jax.tree.leaves(params)) + sum(
        leaf.nbytes for leaf in jax.tree.leaves(work.batch)
    )
    assert needed["zoo"].argument_size_in_bytes <= 1.02 * least
    assert (
        needed["zoo"].temp_size_in_bytes
        <= 1.1 * needed["flax"].temp_size_in_bytes + work.batch["inputs"].nbytes
    )


def test_bfloat16_trains_and_keeps_parameters_in_float32():
    cfg = dataclasses.replace(mlp.PRESETS["tiny"], dropout=0.0, compute_dtype="bfloat16")
    settings: dict[str, Any] = {
        "batch_size": 8,
        "steps": 200,
        "eval_every": 1,
        "parallel": Parallel(devices=2),
    }
    result = train.fit(
        mlp,
        cfg,
        _data("mlp"),
        optimizer=train.Optimizer(name="adam", learning_rate=0.02),
        **settings,
    )
    kinds = {leaf.dtype for leaf in jax.tree.leaves((result.state.params, result.state.opt_state))}
    assert kinds <= {jnp.dtype("float32"), jnp.dtype("int32")}
    assert result.history[-1]["loss"] < result.history[0]["loss"]
