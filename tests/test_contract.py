"""The contract of all models, tested on the "tiny" preset of every registered model.

A toy model covers the hard case, a sampled objective.  Registered models are tested automatically;
one with SAMPLED = True also needs its enumerated expectation in EXPECTATIONS.
"""

import dataclasses
import functools
import inspect
import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import train
import zoo
from tests.conftest import KINDS, THOROUGH
from tests.toys import sampled
from train.engine.checkpoint import Checkpoints
from train.engine.step import example_keys, init_state, make_step
from zoo.base import CONTRACT, Outputs, Targets

MEMBERS = {**zoo.MODELS, "toy_sampled": sampled}
BATCH = 4


def _enumerated_toy_sampled(cfg, params, batch):
    """Sum over all 2^hidden states of the units: probability times cost."""
    total = 0.0
    probability = jax.nn.sigmoid(
        batch["inputs"] @ params["stochastic"]["kernel"] + params["stochastic"]["bias"][None]
    )
    for state in itertools.product((0.0, 1.0), repeat=cfg.hidden):
        h = jnp.asarray(state)[None]
        weight = jnp.prod(jnp.where(h == 1, probability, 1 - probability), axis=-1)
        outputs = h @ params["output"]["kernel"] + params["output"]["bias"][None]
        total += jnp.sum(weight * 0.5 * jnp.sum(jnp.square(outputs - batch["targets"]), axis=-1))
    return total


def _binary(units):
    """All states [2^units, units]."""
    return jnp.asarray(list(itertools.product((0.0, 1.0), repeat=units)))


def _log_bernoulli(probability, state):
    return jnp.sum(jnp.where(state == 1, jnp.log(probability), jnp.log1p(-probability)), axis=-1)


def _enumerated_rbm(cfg, params, batch):
    """Expected free-energy difference of CD-1 over all hidden and visible states of the step."""
    fixed = jax.lax.stop_gradient(params)
    hidden, visible = _binary(cfg.hidden), _binary(cfg.visible)
    total = 0.0
    for v in batch["inputs"]:
        hidden_log = _log_bernoulli(
            jax.nn.sigmoid(v @ fixed["kernel"] + fixed["bias"])[None], hidden
        )
        means = jax.nn.sigmoid(hidden @ fixed["kernel"].T + fixed["visible_bias"][None])
        visible_log = (
            visible @ jnp.log(means).T + (1 - visible) @ jnp.log1p(-means).T
        )  # [visible states, hidden states]
        chance = jnp.exp(visible_log) @ jnp.exp(hidden_log)
        total += zoo.rbm.free_energy(cfg, params, v[None])[0] - chance @ zoo.rbm.free_energy(
            cfg, params, visible
        )
    return total


def _enumerated_dbn(cfg, params, batch):
    """The same for each RBM, on the means of the one below."""
    total, seen = 0.0, batch["inputs"]
    for index, machine in enumerate(cfg.machines):
        layer = params[f"layer_{index}"]
        total += _enumerated_rbm(machine, layer, {"inputs": jax.lax.stop_gradient(seen)})
        seen = jax.nn.sigmoid(seen @ layer["kernel"] + layer["bias"][None])
    return total


def _enumerated_hard_captioner(cfg, params, batch):
    """Over all locations of hard attention step by step, mixed with soft attention."""
    time, places = batch["mask"].shape[1], math.prod(cfg.grid)
    looked = jax.nn.one_hot(
        jnp.asarray(list(itertools.product(range(places), repeat=time))), places
    )

    def log_p(logits, targets, mask):
        of_targets = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[
            ..., 0
        ]
        return jnp.sum(jnp.where(mask, of_targets, 0), axis=1)

    total = 0.0
    for row in range(len(batch["mask"])):
        one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], batch)
        many = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(looked), *leaf.shape[1:])), one
        )
        logits, seen = zoo.captioner.forward(
            cfg.softly, params, many["inputs"], None, lambda weights, step: looked[:, step]
        )
        log_weights = jnp.log(seen["attention"])
        chance = jnp.exp(jnp.sum(log_weights * looked, axis=(1, 2)))
        entropy = -jnp.sum(
            jnp.where(many["mask"], jnp.sum(seen["attention"] * log_weights, axis=2), 0), axis=1
        )
        hard = jnp.sum(chance * log_p(logits, many["targets"], many["mask"]))
        hard += cfg.entropy * jnp.sum(jax.lax.stop_gradient(chance) * entropy)
        logits, _ = zoo.captioner.forward(cfg.softly, params, one["inputs"], None)
        total -= (1 - cfg.soft) * hard + cfg.soft * log_p(logits, one["targets"], one["mask"])[0]
    return total


EXPECTATIONS = {
    "hard_captioner": _enumerated_hard_captioner,
    "toy_sampled": _enumerated_toy_sampled,
    "rbm": _enumerated_rbm,
    "dbn": _enumerated_dbn,
}


def test_no_key_is_used_twice(member):
    """Neither by ``init``, ``init_carry`` and ``example_batch``, nor by the loss of one row."""
    _, module, cfg = member

    def all_of_it(key):
        first, second, third, fourth = jax.random.split(key, 4)
        params = module.init(cfg, first)
        carry = module.init_carry(cfg, params, 1, key=second)
        batch = module.example_batch(cfg, third, 1)
        return module.loss(cfg, params, batch, key=fourth[None], carry=carry)[0]

    with jax.debug_key_reuse(True):
        jax.jit(all_of_it)(jax.random.key(0))


@pytest.fixture(params=MEMBERS, name="member")
def _member(request):
    module = MEMBERS[request.param]
    return request.param, module, module.PRESETS["tiny"]


def _example(module):
    """Shapes of a batch of the tiny preset, and of the carry."""
    cfg = module.PRESETS["tiny"]

    def build(key):
        batch = module.example_batch(cfg, key, BATCH)
        return batch, module.init_carry(cfg, module.init(cfg, key), BATCH, key=key)

    return jax.eval_shape(build, jax.random.key(0))


EXAMPLES = {name: _example(module) for name, module in MEMBERS.items()}
OF_SEQUENCES = [name for name, (batch, _) in EXAMPLES.items() if batch["mask"].ndim == 2]
CARRYING = [name for name, (_, carry) in EXAMPLES.items() if jax.tree.leaves(carry)]
CONTINUED = [name for name in OF_SEQUENCES if "reset" in EXAMPLES[name][0]]
SAMPLED = [name for name, module in MEMBERS.items() if getattr(module, "SAMPLED", False)]


@pytest.fixture(params=MEMBERS if THOROUGH else KINDS, name="kind")
def _kind(request):
    """For slow tests that depend only on the kind of the model."""
    module = MEMBERS[request.param]
    return request.param, module, module.PRESETS["tiny"]


# Compiled programs that tests share to save time, in float32 on batches of BATCH.


@functools.cache
def _jitted(function, *static):
    return jax.jit(function, static_argnums=static)


@functools.cache
def _gradient(module):
    """Of the loss with respect to the parameters: ((total, aux), gradient)."""
    return jax.jit(jax.value_and_grad(module.loss, argnums=1, has_aux=True))


@functools.cache
def _evaluation(module):
    """(cfg, params, batch, carry) -> outputs, (total, aux) and ``trace``, all without a key."""

    def evaluate(cfg, params, batch, carry):
        outputs, traced = (
            function(cfg, params, batch["inputs"]) for function in (module.apply, module.trace)
        )
        return outputs, module.loss(cfg, params, batch, carry=carry), traced

    return jax.jit(evaluate)


@functools.cache
def _drawn(module, cfg, seed):
    batch = _jitted(module.example_batch, 2)(cfg, jax.random.key(seed + 1), BATCH)
    params = _jitted(module.init)(cfg, jax.random.key(seed))
    return (
        params,
        batch,
        _jitted(module.init_carry, 2)(cfg, params, BATCH, key=jax.random.key(seed + 2)),
    )


def _setup(module, cfg, seed=0):
    """Parameters, a batch (tests may replace its entries), and a carry."""
    params, batch, carry = _drawn(module, cfg, seed)
    return params, dict(batch), carry


def _in_float64(tree):
    with jax.enable_x64(True):
        return jax.tree.map(
            lambda leaf: (
                jnp.asarray(np.asarray(leaf, np.float64)) if leaf.dtype == np.float32 else leaf
            ),
            tree,
        )


@functools.cache
def _keys(rows=BATCH, seed=7):
    return _example_keys(jax.random.key(seed), 0, rows)


_example_keys = jax.jit(example_keys, static_argnums=2)


def _assert_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def _mean_loss(module, cfg, params, batch, key, carry):
    total, aux = module.loss(cfg, params, batch, key=key, carry=carry)
    return total / aux.count


def test_names_and_order_of_parameters(member):
    _, module, _ = member
    for name, expected in CONTRACT.items():
        parameters = inspect.signature(getattr(module, name)).parameters
        assert tuple(parameters) == expected, name
        for keyword in {"key", "carry"} & set(expected):
            if name != "init":
                required = (
                    inspect.Parameter.POSITIONAL_OR_KEYWORD
                    if name == "example_batch"
                    else inspect.Parameter.KEYWORD_ONLY
                )
                assert parameters[keyword].kind == required, f"{name}: {keyword}"
        assert getattr(module, name).__doc__, f"{name} has no docstring"
    assert "tiny" in module.PRESETS
    assert module.Config.__doc__


def test_config_is_a_static_hashable_value(member):
    _, module, cfg = member
    for preset in module.PRESETS.values():
        assert jax.tree.leaves(preset) == []
        assert hash(preset) == hash(dataclasses.replace(preset))
    field = dataclasses.fields(cfg)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cfg, field, None)
    for field in dataclasses.fields(cfg):
        assert field.name in module.Config.__doc__ + "compute_dtype", (
            f"Config.__doc__ does not explain {field.name}"
        )


def _scalars_of(library: Any, value: Any) -> Any:
    """A Config's value with its numbers as those of numpy or JAX."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return zoo.parts.config.replace(
            value, **{name: _scalars_of(library, each) for name, each in fields.items()}
        )
    if isinstance(value, list | tuple):
        return tuple(_scalars_of(library, each) for each in value)
    if value is None or isinstance(value, str):
        return value
    exact = float(np.float32(value)) == value  # JAX has no float64 by default
    return (library if exact else np).asarray(value)[()]


@pytest.mark.parametrize("library", [np, jnp])
def test_numpy_and_jax_scalars_are_accepted_in_configs(member, library):
    _, module, _ = member
    for preset in module.PRESETS.values():
        other = _scalars_of(library, preset)
        assert other == preset
        assert hash(other) == hash(preset)
        assert json.dumps(dataclasses.asdict(other)) == json.dumps(dataclasses.asdict(preset))


def test_plain_scalars_are_exact_and_other_values_unchanged():
    values = [
        np.float32(0.1),
        np.longdouble(0.5),
        np.array(3),
        jnp.int8(3),
        jnp.bfloat16(0.5),
        np.bool_(True),
        jnp.bool_(False),
    ]
    expected = [0.10000000149011612, 0.5, 3, 3, 0.5, True, False]
    for value, plain in zip(values, expected, strict=True):
        assert zoo.parts.checking.plain(value) == plain
        assert type(zoo.parts.checking.plain(value)) is type(plain)
    nested = zoo.parts.checking.plain(([np.int64(1)], (np.str_("a"), None)))
    assert nested == ([1], ("a", None))
    assert type(nested[0][0]) is int
    for same in (np.arange(3), jax.random.key(0), {"a": 1}, None, object()):
        assert zoo.parts.checking.plain(same) is same


def test_configs_refuse_non_scalars():
    cfg = zoo.mlp.Config(sizes=(4, 3))
    for wrong in (4.0, np.float32(4.0), True, np.bool_(True)):
        with pytest.raises(
            ValueError, match=r"zoo.mlp.Config: sizes=.*allowed: 2 or more positive integers"
        ):
            zoo.parts.config.replace(cfg, sizes=(wrong, np.int64(3)))
    with pytest.raises(
        ValueError, match=r"zoo.mlp.Config: sizes is an array of shape \(2,\), allowed: .* tuple"
    ):
        zoo.parts.config.replace(cfg, sizes=np.array([4, 3]))
    with pytest.raises(ValueError, match=r"zoo.mlp.Config: dropout.* traced, allowed: concrete"):
        jax.jit(lambda rate: zoo.mlp.Config(sizes=(4, 3), dropout=rate) and rate)(0.5)


def test_wrong_config_values_name_the_field(member):
    _, module, cfg = member
    for field in dataclasses.fields(cfg):
        for wrong in ("no such value", -1.5, math.nan):
            # Not through __init__, where the tests' run-time type checker would raise first.
            config = object.__new__(module.Config)
            for other in dataclasses.fields(cfg):
                object.__setattr__(
                    config, other.name, wrong if other is field else getattr(cfg, other.name)
                )
            with pytest.raises(ValueError, match=f"{field.name}.*allowed"):
                config.__post_init__()


def test_initialisation_is_finite_and_decided_by_the_key(member):
    _, module, cfg = member
    params, again, other = (_jitted(module.init)(cfg, jax.random.key(seed)) for seed in (0, 0, 1))
    assert all(
        leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)
    )
    _assert_close(again, params, rtol=0)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.parametrize("training", [False, True])
def test_jit_equals_eager(kind, training):
    _, module, cfg = kind
    params, batch, carry = _setup(module, cfg)
    key = _keys() if training else None
    expected = (
        module.apply(cfg, params, batch["inputs"], key=key),
        module.loss(cfg, params, batch, key=key, carry=carry),
    )
    actual = (
        _jitted(module.apply)(cfg, params, batch["inputs"], key=key),
        _jitted(module.loss)(cfg, params, batch, key=key, carry=carry),
    )
    _assert_close(actual, expected, rtol=2e-5, atol=1e-6)


def test_equal_configs_share_one_trace_and_steps_never_recompile(kind):
    _, module, cfg = kind
    params, batch, carry = _setup(module, cfg)
    traces = []

    @jax.jit
    def loss(cfg, params, batch, key, carry):
        traces.append(cfg)
        return module.loss(cfg, params, batch, key=key, carry=carry)

    optimizer = train.Optimizer(momentum=0.5).build(10, 5)

    @jax.jit
    def step(state, batch, key):
        traces.append("step")
        return make_step(module, cfg, optimizer)(state, batch, key)

    for _ in range(3):
        loss(dataclasses.replace(cfg), params, batch, _keys(), carry)
    assert len(traces) == 1
    state = init_state(module, cfg, optimizer, jax.random.key(0), BATCH)
    for index in range(3):
        state, _ = step(
            state, module.example_batch(cfg, jax.random.key(index), BATCH), jax.random.key(0)
        )
    assert traces.count("step") == 1
    assert int(state.step) == 3


def test_vmap_over_seeds_equals_a_loop(kind):
    _, module, cfg = kind
    _, batch, _ = _setup(module, cfg)
    optimizer = train.Optimizer().build(10, 5)
    step = make_step(module, cfg, optimizer)

    def two_steps(key):
        state = init_state(module, cfg, optimizer, key, BATCH)
        state, metrics = jax.lax.scan(lambda state, _: step(state, batch, key), state, length=2)
        return state.params, metrics

    keys = jax.random.split(jax.random.key(0), 2)
    together, two_steps = jax.jit(jax.vmap(two_steps))(keys), jax.jit(two_steps)
    for index, key in enumerate(keys):
        _assert_close(
            jax.tree.map(lambda leaf, index=index: leaf[index], together),
            two_steps(key),
            rtol=1e-4,
            atol=1e-6,
        )


PADDED = {
    **{name: (name, {}) for name in MEMBERS},
    "mlp, real targets": ("mlp", {"output": "linear"}),
    "convnet, real targets": ("convnet", {"output": "logistic", "objective": "squared_error"}),
    "rnn, real targets of steps": ("rnn", {"output": "linear"}),
    "rnn, both directions": ("rnn", {"bidirectional": True, "cell": "gru"}),
    "rbm, persistent": ("rbm", {"persistent": True, "sparsity_target": 0.1}),
    "rbm, gaussian": (
        "rbm",
        {"persistent": True, "visible_units": "gaussian", "positive_phase": "sampled"},
    ),
    "dbn, persistent": ("dbn", {"persistent": True, "trains": "top", "top_units": "gaussian"}),
    "autoencoder, greedy": ("autoencoder", {"greedy": True, "tied": True}),
    "autoencoder, gaussian": ("autoencoder", {"output": "linear", "noise": "gaussian"}),
}
"""Names of losses and metrics that padding rows may change."""


CASES = PADDED | {
    "mlp, logistic": ("mlp", {"output": "logistic"}),
    "mlp, squared error": ("mlp", {"objective": "squared_error"}),
    "mlp, explicit cross-entropy": ("mlp", {"objective": "cross_entropy"}),
    "convnet, squared error": ("convnet", {"objective": "squared_error"}),
    "rnn, squared error": ("rnn", {"objective": "squared_error"}),
}
"""Values that outputs may declare."""
PROTOCOLS = {
    zoo.Recurrent: {"rnn", "nnlm", "rnnlm", "ctc"},
    zoo.Conditional: {"seq2seq", "captioner", "hard_captioner"},
    zoo.Autoencoder: {"autoencoder", "conv_autoencoder"},
    zoo.EnergyModel: {"rbm"},
    zoo.Generative: {"rbm", "dbn"},
}
"""Optional methods of models."""


@pytest.mark.parametrize("name", MEMBERS)
def test_every_preset_declares_its_outputs_and_inputs(name):
    for cfg in MEMBERS[name].PRESETS.values():
        assert type(cfg.outputs) is Outputs
        assert cfg.outputs.of in ("targets", "inputs", "hidden", "density")
        assert type(cfg.outputs.likelihood) is bool
        assert cfg.outputs.likelihood <= (cfg.outputs.of == "targets")
        assert isinstance(cfg.outputs.targets, Targets) == (cfg.outputs.of == "targets")
        ranges = cfg.input_range
        for values in ranges.values() if isinstance(ranges, dict) else [ranges]:
            assert values is None or (type(values) is tuple and values[0] < values[1])


def _config(case):
    name, fields = CASES[case]
    return MEMBERS[name], dataclasses.replace(MEMBERS[name].PRESETS["tiny"], **fields)


def _outputs_of(case):
    module, cfg = _config(case)
    params, batch, carry = _setup(module, cfg)
    batch["mask"] = jnp.ones_like(batch["mask"])
    return cfg, batch, _evaluation(module)(cfg, params, batch, carry)


SUPERVISED = [case for case in CASES if _config(case)[1].outputs.of == "targets"]


@pytest.mark.parametrize("case", [case for case in CASES if case not in SUPERVISED])
def test_unsupervised_models_reconstruct_their_inputs(case):
    cfg, batch, (_, _, (_, seen)) = _outputs_of(case)
    assert "targets" not in batch
    assert cfg.outputs.targets is None
    assert seen["reconstruction"].shape[0] == BATCH
    assert seen["reconstruction"].size == batch["inputs"].size


@pytest.mark.parametrize("case", SUPERVISED)
def test_output_shape_matches_the_config(case):
    cfg, batch, (outputs, _, (_, seen)) = _outputs_of(case)
    units = cfg.outputs.targets.units
    assert seen.get("outputs", outputs).shape[-1] == units
    numbers = jnp.issubdtype(batch["targets"].dtype, jnp.inexact)
    assert not numbers or (batch["targets"].shape[-1] == units and not cfg.outputs.likelihood)


def _has_classes(case):
    module, cfg = _config(case)
    batch = jax.eval_shape(lambda key: module.example_batch(cfg, key, BATCH), jax.random.key(0))
    return jnp.issubdtype(batch["targets"].dtype, jnp.integer)


@pytest.mark.parametrize("case", [case for case in SUPERVISED if _has_classes(case)])
def test_loss_is_a_likelihood_if_declared(case):
    cfg, batch, (outputs, (total, _), (_, seen)) = _outputs_of(case)
    targets = batch["targets"]
    probabilities = seen["outputs"] if "outputs" in seen else jax.nn.softmax(outputs)
    if cfg.outputs.aligned:
        of_targets = jnp.take_along_axis(probabilities, targets[..., None], axis=-1)[..., 0]
    else:
        steps = _config(case)[0].steps_of(cfg, batch["inputs"]["lengths"])
        of_targets = _of_labellings(np.asarray(probabilities), np.asarray(targets), steps.tolist())
    nats = -np.log(of_targets).sum()
    assert cfg.outputs.likelihood == np.isclose(total, nats, rtol=1e-5)
    assert cfg.outputs.likelihood or not np.isclose(total, nats, rtol=1e-2)


def _of_labellings(probabilities, labels, steps):
    """The probability of each row's labelling: the sum over the paths that it is the labelling of.

    steps: valid steps of each row.
    """
    totals = np.zeros(len(steps))
    for row, count in enumerate(steps):
        for path in itertools.product(range(probabilities.shape[2]), repeat=count):
            if [label for label, _ in itertools.groupby(path) if label] == list(labels[row]):
                totals[row] += np.prod(probabilities[row, range(count), path])
    return totals


def test_a_greedy_autoencoder_reconstructs_hidden_units_above_its_first_pair():
    for sizes, expected in (((6, 5), Outputs("inputs")), ((6, 5, 4), Outputs("hidden"))):
        assert zoo.autoencoder.Config(sizes=sizes, greedy=True).outputs == expected
        assert zoo.autoencoder.Config(sizes=sizes).outputs == Outputs("inputs")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_optional_methods_follow_their_protocols(protocol):
    assert {name for name, module in MEMBERS.items() if isinstance(module, protocol)} == PROTOCOLS[
        protocol
    ]
    offered = {
        name: each
        for name, each in vars(protocol).items()
        if inspect.isfunction(each) and name[0] != "_"
    }
    assert offered
    for model, (name, declared) in itertools.product(PROTOCOLS[protocol], offered.items()):
        _, *expected = inspect.signature(declared).parameters
        function = getattr(MEMBERS[model], name)
        assert list(inspect.signature(function).parameters) == expected, f"{model}.{name}"
        assert function.__doc__, f"{model}.{name} has no docstring"


def _garbage(shape, dtype, seed=0):
    """Values that would corrupt every result that depends on them."""
    if jnp.issubdtype(dtype, jnp.floating):
        bounds = (np.nan, np.inf, -np.inf, 3e38)
    else:
        bounds = (
            (np.iinfo(dtype).max, np.iinfo(dtype).min, -1)
            if jnp.issubdtype(dtype, jnp.integer)
            else (True,)
        )
    return np.random.default_rng(seed).choice(np.asarray(bounds, dtype), shape)


@pytest.mark.parametrize(
    ("case", "training"),
    [(case, True) for case in PADDED]
    + [(case, False) for case in PADDED if THOROUGH or case in KINDS],
)
def test_padding_changes_nothing(case, training):
    """Loss, count, metrics, gradients and carry do not depend on padded rows.

    The content of padding never matters.
    """
    name, fields = PADDED[case]
    module = MEMBERS[name]
    cfg = dataclasses.replace(module.PRESETS["tiny"], **fields)
    params, batch, carry = _setup(module, cfg)

    def pad(leaf):
        return np.concatenate([leaf, _garbage((2, *leaf.shape[1:]), leaf.dtype)])

    padded = jax.tree.map(pad, batch)
    mask = padded["mask"]
    mask[BATCH:] = False

    def hide(leaf):
        """Garbage in masked steps or pixels, too."""
        if leaf.shape[: mask.ndim] != mask.shape:  # has separate steps
            return leaf
        return np.where(
            mask.reshape(*mask.shape, *[1] * (leaf.ndim - mask.ndim)),
            leaf,
            _garbage(leaf.shape, leaf.dtype),
        )

    # Only whole images: outputs at labelled pixels depend on the others.
    hidden = [
        name
        for name in ("inputs", "targets")
        if name in batch and (mask.ndim < 3 or name == "targets")
    ]
    padded |= {name: jax.tree.map(hide, padded[name]) for name in hidden}
    long_carry = jax.tree.map(pad, carry)

    gradient, keys = _gradient(module), _keys(BATCH + 2)
    (total, aux), gradients = gradient(
        cfg, params, batch, key=keys[:BATCH] if training else None, carry=carry
    )
    (padded_total, padded_aux), padded_gradients = gradient(
        cfg, params, padded, key=keys if training else None, carry=long_carry
    )
    assert float(aux.count) == int(batch["mask"].sum()) == float(padded_aux.count)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((total, aux.metrics, gradients)))
    _assert_close(padded_total, total, rtol=1e-6)
    _assert_close(padded_aux.metrics, aux.metrics, rtol=1e-6)
    _assert_close(padded_gradients, gradients, rtol=1e-5, atol=1e-7)
    _assert_close(
        jax.tree.map(lambda leaf: leaf[:BATCH], padded_aux.carry), aux.carry, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numeric_masks_equal_boolean_masks(kind, dtype):
    _, module, cfg = kind
    params, batch, carry = _setup(module, cfg)
    loss = _jitted(module.loss)
    expected = loss(cfg, params, batch, carry=carry)
    _assert_close(
        loss(cfg, params, {**batch, "mask": batch["mask"].astype(dtype)}, carry=carry),
        expected,
        rtol=1e-6,
    )


def test_a_batch_of_padding_has_zero_loss_and_finite_zero_gradients(member):
    _, module, cfg = member
    params, batch, carry = _setup(module, cfg)
    batch["mask"] = jnp.zeros_like(batch["mask"])
    for replace in (False, True):
        if replace:
            for name in {"inputs", "targets"} & batch.keys():
                batch[name] = jax.tree.map(
                    lambda leaf: jnp.asarray(_garbage(leaf.shape, leaf.dtype)), batch[name]
                )
        (total, aux), gradients = _gradient(module)(cfg, params, batch, key=_keys(), carry=carry)
        assert float(total) == float(aux.count) == 0
        assert all(not leaf.any() for leaf in jax.tree.leaves(gradients))


def test_examples_depend_on_their_own_keys_only(member):
    """Each example alone, the others masked with other keys and carries; together the batch."""
    _, module, cfg = member
    params, batch, carry = _setup(module, cfg)
    gradient, keys, others = _gradient(module), _keys(), _keys(seed=8)
    (total, aux), gradients = gradient(cfg, params, batch, key=keys, carry=carry)
    parts = []
    for row in range(BATCH):
        alone = np.arange(BATCH) == row
        mask = batch["mask"] & _along(batch["mask"], alone)
        mixed = jax.tree.map(
            lambda leaf, alone=alone: np.where(_along(leaf, alone), leaf, np.roll(leaf, 1, 0)),
            carry,
        )
        keys_of_row = jnp.where(alone, keys, others)
        parts.append(gradient(cfg, params, {**batch, "mask": mask}, key=keys_of_row, carry=mixed))
    _assert_close(sum(float(part) for (part, _), _ in parts), total, rtol=1e-5)
    _assert_close(sum(float(part.count) for (_, part), _ in parts), aux.count, rtol=0)
    summed = jax.tree.map(
        lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves),
        *(each for _, each in parts),
    )
    _assert_close(summed, gradients, rtol=1e-4, atol=1e-6)


def _along(leaf, rows):
    """A mask of rows that fits a leaf."""
    return rows.reshape(-1, *[1] * (leaf.ndim - 1))


@pytest.mark.parametrize("member", OF_SEQUENCES, indirect=True)
def test_row_mask_equals_a_mask_of_all_steps(member):
    """As in batches without a mask of steps."""
    _, module, cfg = member
    params, batch, carry = _setup(module, cfg)
    rows = jnp.arange(BATCH) % 3 > 0
    loss = _jitted(module.loss, 0)
    for key in (None, _keys()):
        masks = (rows, jnp.broadcast_to(rows[:, None], batch["mask"].shape))
        one, other = (
            loss(cfg, params, {**batch, "mask": mask}, key=key, carry=carry) for mask in masks
        )
        _assert_close(one, other, rtol=1e-6)


def test_every_parameter_receives_gradient(member):
    _, module, cfg = member
    params, _, _ = _setup(module, cfg)
    batches = [
        (batch, carry) for _, batch, carry in (_setup(module, cfg, seed) for seed in range(4))
    ]
    gradients = [
        _gradient(module)(cfg, params, batch, key=_keys(), carry=carry)[1]
        for batch, carry in batches
    ]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *gradients)
    for path, leaf in jax.tree_util.tree_leaves_with_path(together):
        assert np.any(leaf), jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("member", "training"),
    [(name, True) for name in MEMBERS if name not in SAMPLED]
    + [(name, False) for name in MEMBERS if name in SAMPLED or THOROUGH or name in KINDS],
    indirect=["member"],
)
def test_gradients_agree_with_finite_differences(member, training):
    """Where the objective samples inside, its gradient at a key is an estimate: see the next test.

    Variants of a model are only checked in training, the harder case.
    """
    _, module, cfg = member
    params, batch, carry = _in_float64(_setup(module, cfg))
    key = _keys() if training else None
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    with jax.enable_x64(True):
        assert all(
            leaf.dtype == jnp.float64
            for leaf in jax.tree.leaves(jax.eval_shape(module.init, cfg, jax.random.key(0)))
        )
        gradient = jax.jit(jax.value_and_grad(functools.partial(_mean_loss, module, cfg)))
        slope = sum(
            jax.tree.leaves(
                jax.tree.map(np.vdot, gradient(params, batch, key, carry)[1], direction)
            )
        )
        ahead, behind = (
            gradient(
                jax.tree.map(lambda leaf, change, far=far: leaf + far * change, params, direction),
                batch,
                key,
                carry,
            )[0]
            for far in (1e-5, -1e-5)
        )
    np.testing.assert_allclose((float(ahead) - float(behind)) / 2e-5, slope, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_gradients_agree_with_the_enumerated_expectation(name):
    module, cfg = MEMBERS[name], MEMBERS[name].PRESETS["tiny"]
    params, batch, carry = _in_float64(_setup(module, cfg))
    draws = 12_288

    @jax.jit
    @jax.vmap
    def sample(step):
        keys = example_keys(jax.random.key(7), step, BATCH)
        return jax.grad(lambda params: module.loss(cfg, params, batch, key=keys, carry=carry)[0])(
            params
        )

    with jax.enable_x64(True):
        expected = jax.device_get(
            jax.jit(jax.grad(lambda params: EXPECTATIONS[name](cfg, params, batch)))(params)
        )
        samples = jax.device_get(sample(jnp.arange(draws)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(samples):
        want = dict(jax.tree_util.tree_leaves_with_path(expected))[path]
        error = np.std(leaf, axis=0) / math.sqrt(draws)
        assert np.all(error < 0.1 * np.abs(want).max()), "too few draws to tell"
        np.testing.assert_array_less(
            np.abs(np.mean(leaf, axis=0) - want),
            5 * error + 1e-9,
            err_msg=jax.tree_util.keystr(path),
        )


def test_bfloat16_stays_near_float32(member):
    _, module, cfg = member
    params, batch, carry = _setup(module, cfg)
    half = dataclasses.replace(cfg, compute_dtype="bfloat16")
    outputs, (total, _), _ = _evaluation(module)(cfg, params, batch, carry)
    half_outputs, (half_total, _), _ = _evaluation(module)(half, params, batch, carry)
    assert half_total.dtype == total.dtype == jnp.float32
    _assert_close(half_total, total, rtol=2e-2)
    _assert_close(half_outputs, outputs, atol=5e-2, rtol=5e-2)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(half_outputs), jax.tree.leaves(outputs), strict=True)
    ), "compute_dtype does nothing"


def test_trace_returns_apply_and_intermediates(member):
    _, module, cfg = member
    outputs, _, (traced, seen) = _evaluation(module)(cfg, *_setup(module, cfg))
    _assert_close(traced, outputs, rtol=1e-5, atol=1e-6)
    assert seen
    assert all(isinstance(name, str) and leaf.shape[0] == BATCH for name, leaf in seen.items())


def test_only_models_with_a_carry_have_resets_in_their_batches():
    assert {name for name, (batch, _) in EXAMPLES.items() if "reset" in batch} <= set(CARRYING)


@pytest.mark.parametrize("member", CARRYING, indirect=True)
def test_reset_restarts_the_carry(member):
    _, module, cfg = member
    params, batch, carry = _setup(module, cfg)
    assert all(leaf.shape[0] == BATCH for leaf in jax.tree.leaves(carry))
    batch["reset"] = jnp.array([True, False, True, False])
    other = jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), carry)

    def row_loss(row, carry):
        alone, alone_carry = (
            jax.tree.map(lambda leaf: leaf[row : row + 1], tree) for tree in (batch, carry)
        )
        return _jitted(module.loss)(cfg, params, alone, carry=alone_carry)[0]

    sampled = getattr(
        module, "SAMPLED", False
    )  # at key=None a sampling model may not need its carry
    for row, reset in enumerate(batch["reset"]):
        same = row_loss(row, carry) == row_loss(row, other)
        assert same == reset or (sampled and same)


@pytest.mark.parametrize("member", CONTINUED, indirect=True)
def test_the_carry_continues_a_sequence(member):
    """Two batches that split the time axis, with the carry between them, equal the whole."""
    _, module, cfg = member
    params, batch, carry = _setup(module, cfg)
    loss = _jitted(module.loss)
    total, aux = loss(cfg, params, batch, carry=carry)
    reset = batch["reset"]
    sum_of_parts = 0.0
    for part in (slice(0, 3), slice(3, None)):
        piece = {name: leaf[:, part] for name, leaf in batch.items() if name != "reset"}
        partial_total, partial_aux = loss(cfg, params, {**piece, "reset": reset}, carry=carry)
        sum_of_parts, carry, reset = (
            sum_of_parts + partial_total,
            partial_aux.carry,
            jnp.zeros_like(reset),
        )
    _assert_close(sum_of_parts, total, rtol=1e-5)
    _assert_close(carry, aux.carry, rtol=1e-5)


def _batch_to_overfit(module, cfg):
    _, batch, _ = _setup(module, cfg, seed=3)
    return batch | ({"reset": jnp.ones_like(batch["reset"])} if "reset" in batch else {})


def _is_overfitted(module, first, last, accuracy):
    return accuracy >= 0.99 and last < (0.5 if getattr(module, "SAMPLED", False) else 0.2) * first


def test_one_batch_is_overfitted(member):
    """By Adam (Kingma, Ba 2014, algorithm 1), in numpy."""
    _, module, cfg = member
    batch, (params, _, carry) = _batch_to_overfit(module, cfg), _setup(module, cfg, seed=3)
    leaves, structure = jax.tree.flatten(params)
    params, first, second = np.concatenate([np.ravel(leaf) for leaf in leaves]), 0.0, 0.0
    cuts, at_first, evaluated = np.cumsum([leaf.size for leaf in leaves])[:-1], None, (math.nan, 0)
    for step in range(1, 1501):
        parts = zip(np.split(params, cuts), leaves, strict=True)
        tree = jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in parts])
        if step % 200 == 1:  # few models need this many
            _, (total, aux), _ = _evaluation(module)(cfg, tree, batch, carry)
            evaluated = float(total / aux.count), np.divide(*aux.metrics.get("accuracy", (1, 1)))
            at_first = evaluated[0] if at_first is None else at_first
            if _is_overfitted(module, at_first, *evaluated):
                return
        (_, aux), gradients = _gradient(module)(cfg, tree, batch, key=_keys(seed=step), carry=carry)
        carry, gradient = (
            aux.carry,
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients)]) / aux.count,
        )
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * np.square(gradient)
        params = params - 0.02 * (first / (1 - 0.9**step)) / (
            np.sqrt(second / (1 - 0.999**step)) + 1e-8
        )
    pytest.fail(f"from {at_first} to {evaluated}")


def test_one_batch_is_overfitted_through_the_trainer(kind):
    _, module, cfg = kind
    batch = _batch_to_overfit(module, cfg)
    optimizer = train.Optimizer(name="adam", learning_rate=0.02)
    settings = {
        "optimizer": optimizer,
        "batch_size": BATCH,
        "steps": 1500,
        "eval_every": 1500,
        "steps_per_dispatch": 100,
    }
    result = train.fit(module, cfg, batch, validation=batch, **settings)
    first, last = (
        next(line for line in result.history if line["split"] == "train"),
        result.history[-1],
    )
    assert last["split"] == "validation"
    assert _is_overfitted(module, first["loss"], last["loss"], last.get("accuracy", 1)), (
        first,
        last,
    )


def test_checkpoint_round_trip_is_exact(kind, tmp_path):
    _, module, cfg = kind
    optimizer = train.Optimizer(name="adam").build(10, 5)
    state = jax.jit(lambda key: init_state(module, cfg, optimizer, key, BATCH))(jax.random.key(0))
    _, batch, _ = _setup(module, cfg)
    state, _ = jax.jit(make_step(module, cfg, optimizer))(state, batch, jax.random.key(0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 1, best_step=1)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        found = checkpoints.restore(jax.eval_shape(lambda: state))
    assert found is not None
    restored, step = found
    assert step == 1
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_apply_and_gradients_lower_for_every_platform(kind):
    _, module, cfg = kind
    params, batch, carry = _setup(module, cfg)

    def gradients(params, batch, key_data, carry):
        keys = jax.random.wrap_key_data(key_data)
        return jax.grad(lambda params: module.loss(cfg, params, batch, key=keys, carry=carry)[0])(
            params
        )

    platforms = ("cpu", "cuda", "tpu")
    for function, arguments in (
        (lambda params, inputs: module.apply(cfg, params, inputs), (params, batch["inputs"])),
        (gradients, (params, batch, jax.random.key_data(_keys()), carry)),
    ):
        exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
        assert exported.platforms == platforms


def test_wrong_shapes_are_named(member):
    _, module, cfg = member
    params, batch, carry = _setup(module, cfg)

    def longer(leaf, axis):
        return jnp.asarray(np.concatenate([leaf, np.take(leaf, [0], axis=axis)], axis=axis))

    for name in ("inputs", "targets", "mask"):
        if name not in batch or not isinstance(batch[name], jax.Array):
            continue
        wrong = {**batch, name: longer(batch[name], batch[name].ndim - 1)}
        if name == "inputs":
            if jnp.issubdtype(batch[name].dtype, jnp.integer):  # any number of tokens is valid
                wrong[name] = batch[name][..., None]
            with pytest.raises(ValueError, match=r"inputs.*expected"):
                jax.eval_shape(functools.partial(module.apply, cfg), params, wrong["inputs"])
        with pytest.raises(ValueError, match=f"{name}.*expected"):
            jax.eval_shape(functools.partial(module.loss, cfg), params, wrong, carry=carry)


def test_parameters_are_plain_nested_dicts_with_usual_names(member):
    _, module, cfg = member
    params, _, _ = _setup(module, cfg)

    def walk(tree):
        assert type(tree) is dict
        for name, value in tree.items():
            assert isinstance(name, str)
            assert "." not in name
            if not isinstance(value, jax.Array):
                walk(value)

    walk(params)
    optax.sgd(0.1).init(params)  # works on any optax transformation
