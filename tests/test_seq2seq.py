"""Encoder-decoder networks and attention against loops over their equations; invariances."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from tests.conftest import THOROUGH
from zoo import seq2seq
from zoo.interop import recurrent_weights
from zoo.parts import attention, decode
from zoo.parts.language import next_token_loss
from zoo.seq2seq import Config

BATCH, PLACES, TIME = 3, 5, 4
LENGTHS = np.array([5, 2, 3])
THERE = np.arange(PLACES)[None] < LENGTHS[:, None]
END = 1
SEARCH = Config(
    source_vocabulary=7, vocabulary=6, features=3, encoder_units=(2,), decoder_units=(5,)
)
LUONG = dataclasses.replace(
    SEARCH,
    encoder_units=(3, 4),
    decoder_units=(5, 4),
    cell="lstm",
    encoder="backward",
    attention="general",
    input_feeding=False,
    tied=True,
)
CHO = dataclasses.replace(
    SEARCH, encoder_units=(4,), decoder_units=(5, 3), encoder="forward", attention="none"
)
SUTSKEVER = dataclasses.replace(CHO, cell="lstm", encoder="backward", input_feeding=False)
DEEP_SEARCH = dataclasses.replace(
    SEARCH, encoder_units=(3, 2), decoder_units=(4, 5), cell="lstm", attention="dot"
)


def _params(cfg, scale=0.6):
    """Normal numbers, biases too."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: seq2seq.init(cfg, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype), shapes
    )


def _inputs():
    rng = np.random.default_rng(1)
    tokens = {
        "source": rng.integers(0, 7, (BATCH, PLACES)),
        "lengths": LENGTHS,
        "target": rng.integers(0, 6, (BATCH, TIME)),
    }
    return {name: jnp.asarray(leaf) for name, leaf in tokens.items()}


def _close(actual, expected, tolerance=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


# Loops in numpy, of one example, over the equations in the docstrings.


def _logistic(x):
    return 1 / (1 + np.exp(-x))


def _cell(cell, params, carry, x):
    """The carry after a step, and h."""
    units = params["recurrent"]["kernel"].shape[0]
    u, w = (
        x @ params["input"]["kernel"] + params["input"]["bias"],
        carry[:units] @ params["recurrent"]["kernel"],
    )
    if cell == "lstm":
        i, f, g, o = np.split(u + w, 4)
        c = _logistic(f) * carry[units:] + _logistic(i) * np.tanh(g)
        h = _logistic(o) * np.tanh(c)
        return np.concatenate([h, c]), h
    (r, z), n = (
        (_logistic(gate) for gate in np.split((u + w)[: 2 * units], 2)),
        slice(2 * units, None),
    )
    h = (1 - z) * np.tanh(u[n] + r * (w[n] + params["recurrent"]["bias"])) + z * carry
    return h, h


def _read(cfg, params, xs, backward):
    """A layer's outputs at each position, and its final state."""
    units = params["recurrent"]["kernel"].shape[0]
    carry, outputs, last = (
        np.zeros(units * (2 if cfg.cell == "lstm" else 1)),
        np.zeros((len(xs), units)),
        np.zeros(0),
    )
    for place in range(len(xs))[:: -1 if backward else 1]:
        carry, last = _cell(cfg.cell, params, carry, xs[place])
        outputs[place] = last
    return outputs, last


def _attend(score, params, query, annotations):
    """Context and weights."""
    scores = []
    for h in annotations:
        if score == "additive":
            u = h @ params["key"]["kernel"] + params["key"]["bias"]
            scores.append(
                params["score"]["kernel"] @ np.tanh(query @ params["query"]["kernel"] + u)
            )
        else:
            scores.append(query @ h if score == "dot" else query @ (h @ params["key"]["kernel"]))
    weights = np.exp(scores) / np.sum(np.exp(scores))
    return sum(weight * h for weight, h in zip(weights, annotations, strict=True)), weights


def _model(cfg, params, source, target):
    """Logits of each step and the weights of its attention."""
    xs, last = params["source"]["embedding"][source], np.zeros(0)
    for index in range(len(cfg.encoder_units)):
        layer = params["encoder"][f"layer_{index}"]
        if cfg.encoder == "both":
            ways = [
                _read(cfg, layer["forward"], xs, False),
                _read(cfg, layer["backward"], xs, True),
            ]
            xs, last = (np.concatenate(parts, axis=-1) for parts in zip(*ways, strict=True))
        else:
            xs, last = _read(cfg, layer, xs, cfg.encoder == "backward")
    bridges = [params["bridge"][f"layer_{index}"] for index in range(len(cfg.decoder_units))]
    carry = [np.tanh(last @ bridge["kernel"] + bridge["bias"]) for bridge in bridges]
    output = params["target"]["embedding"].T if cfg.tied else params["output"]["kernel"]
    logits, looked = [], []

    def look(query):
        return (
            (last, [])
            if cfg.attention == "none"
            else _attend(cfg.attention, params.get("attention"), query, xs)
        )

    for token in target:
        y = params["target"]["embedding"][token]
        s, context, weights = y, last, []
        if cfg.input_feeding:
            context, weights = look(carry[0][: cfg.decoder_units[0]])
            s = np.concatenate([y, context])
        for index in range(len(carry)):
            carry[index], s = _cell(cfg.cell, params["decoder"][f"layer_{index}"], carry[index], s)
        if not cfg.input_feeding:
            context, weights = look(s)
        t = np.tanh(
            np.concatenate([s, context, y]) @ params["readout"]["kernel"]
            + params["readout"]["bias"]
        )
        logits.append(t @ output + params["output"]["bias"])
        looked.append(weights)
    return np.stack(logits), np.stack(looked)


@functools.cache
def _looker(score):
    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def look(params, annotations, queries, mask):
        contexts, weights = attention.attend(
            score, params, attention.precompute_keys(score, params, annotations, mask), queries
        )
        return jnp.sum(contexts**2), (contexts, weights)

    return look


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("score", attention.SCORES)
def test_attention_equals_a_loop_over_masked_positions(score):
    rng, query, features = np.random.default_rng(0), 4, 4 if score == "dot" else 3
    shapes = jax.eval_shape(lambda: attention.init(score, jax.random.key(0), query, features))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    lengths, annotations, queries = (
        (5, 2, 0),
        rng.normal(size=(3, 5, features)),
        rng.normal(size=(3, 2, query)),
    )
    mask = np.arange(5)[None] < np.array(lengths)[:, None]
    annotations[~mask] = np.nan
    (_, (contexts, weights)), gradients = _looker(score)(params, annotations, queries, mask)
    for row, length in enumerate(lengths[:2]):
        for index in range(2):
            expected = _attend(
                score,
                jax.tree.map(np.asarray, params),
                queries[row, index],
                annotations[row, :length],
            )
            _close((contexts[row, index], weights[row, index, :length]), expected, 1e-12)
    np.testing.assert_allclose(weights[:2].sum(axis=2), 1, rtol=1e-12)
    assert (weights[np.broadcast_to(~mask[:, None], weights.shape)] == 0).all()
    assert (contexts[2] == 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert (gradients[1][~mask] == 0).all()


def test_attention_weights_are_finite_for_large_scores():
    mask = jnp.array([[True, True, False]])
    for scores in ([1e4, 0, 1e5], [-1e4, -2e4, 0]):
        np.testing.assert_array_equal(
            attention.masked_softmax(jnp.array([scores]), mask), [[1, 0, 0]]
        )


def test_queries_that_do_not_fit_are_named():
    memory = attention.precompute_keys("dot", {}, jnp.zeros((1, 2, 3)), jnp.ones((1, 2), bool))
    with pytest.raises(ValueError, match=r"queries: shape \(1, 1, 4\), expected"):
        attention.attend("dot", {}, memory, jnp.zeros((1, 1, 4)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "cfg",
    [SEARCH, LUONG, CHO, SUTSKEVER, DEEP_SEARCH],
    ids=["gru", "luong", "cho", "sutskever", "dot"],
)
def test_network_equals_a_loop_over_its_equations(cfg):
    params, inputs = _params(cfg), _inputs()
    logits, seen = jax.jit(seq2seq.trace)(cfg, params, inputs)
    assert logits.dtype == jnp.float64
    assert ("attention" in seen) == (cfg.attention != "none")
    for row, length in enumerate(LENGTHS):
        source, target = (
            np.asarray(inputs["source"][row, :length]),
            np.asarray(inputs["target"][row]),
        )
        expected, weights = _model(cfg, jax.tree.map(np.asarray, params), source, target)
        _close(logits[row], expected, 1e-11)
        if cfg.attention != "none":
            _close(seen["attention"][row, :, :length], weights, 1e-11)
            assert (seen["attention"][row, :, length:] == 0).all()
            np.testing.assert_allclose(seen["attention"][row].sum(axis=1), 1, rtol=1e-12)


@jax.jit
def _steps(cfg, params, inputs):
    """Logits of each step, and of all at once."""
    memory, carry = seq2seq.encode(cfg, params, inputs)

    def body(carry, tokens):
        return seq2seq.decode_step(cfg, params, carry, tokens, memory)

    _, logits = jax.lax.scan(body, carry, inputs["target"].T)
    return jnp.swapaxes(logits, 0, 1), seq2seq.apply(cfg, params, inputs)


WAYS = list(
    itertools.product(
        ("none", *attention.SCORES), (True, False), ("gru", "lstm"), ("forward", "backward", "both")
    )
)
LESS = [
    ways for index, ways in enumerate(WAYS) if index % 3 == index // 3 % 3
]  # any two choices together


@pytest.mark.parametrize(("score", "fed", "cell", "encoder"), WAYS if THOROUGH else LESS)
def test_decode_steps_equal_causal_apply(score, fed, cell, encoder):
    cfg = dataclasses.replace(
        SEARCH,
        encoder_units=(2 if encoder == "both" else 4,),
        decoder_units=(4, 4),
        encoder=encoder,
    )
    cfg = dataclasses.replace(cfg, attention=score, input_feeding=fed, cell=cell)
    params, inputs = _params(cfg), _inputs()
    logits, expected = _steps(cfg, params, inputs)
    _close(logits, expected)
    others = inputs | {"target": inputs["target"].at[:, 2:].add(1) % 6}
    _, changed = _steps(cfg, params, others)
    np.testing.assert_array_equal(changed[:, :2], expected[:, :2])
    assert not np.allclose(changed[:, 2:], expected[:, 2:])


@pytest.mark.parametrize("cfg", [SEARCH, LUONG, CHO], ids=["gru", "luong", "cho"])
def test_beam_scores_equal_apply(cfg):
    """Three targets per source at once, against one source per target."""
    width, length = 3, 5

    @jax.jit
    def search(params, inputs):
        memory, carry = seq2seq.encode(cfg, params, inputs)
        first = inputs["target"][:, 0]
        step = functools.partial(seq2seq.decode_step, cfg, params, memory=memory)
        found = decode.beam_search(step, carry, first, length, end=END, width=width)
        each = {name: jnp.repeat(inputs[name], width, axis=0) for name in ("source", "lengths")}
        flat = found.tokens.reshape(-1, length)
        target = jnp.concatenate([jnp.repeat(first, width)[:, None], flat[:, :-1]], axis=1)
        log_p = jax.nn.log_softmax(seq2seq.apply(cfg, params, each | {"target": target}))
        gains = jnp.take_along_axis(log_p, flat[:, :, None], axis=2)[:, :, 0].reshape(
            found.tokens.shape
        )
        return found, jnp.sum(
            jnp.where(jnp.arange(length)[None, None] < found.lengths[:, :, None], gains, 0), axis=2
        )

    params = _params(cfg, 1.5)
    params["output"]["bias"] *= 0  # or one token is the most probable everywhere
    found, expected = search(params, _inputs())
    there = np.isfinite(found.scores)
    assert there.sum() > BATCH
    np.testing.assert_allclose(found.scores[there], expected[there], rtol=1e-5)
    assert len(np.unique(np.asarray(found.tokens).reshape(-1, length), axis=0)) > 3


@jax.jit
def _gradients(cfg, params, batch):
    """Loss, logits, and gradients."""

    def loss(params):
        return seq2seq.loss(cfg, params, batch)[0], seq2seq.apply(cfg, params, batch["inputs"])

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize(("cfg", "more"), [(SEARCH, 2), (LUONG, 0)], ids=["gru", "luong"])
def test_padding_of_sources_and_targets_changes_nothing(cfg, more):
    """Nor does more of it."""
    params, inputs = _params(cfg), _inputs()
    mask = jnp.asarray(np.arange(TIME)[None] < np.array([4, 1, 3])[:, None])
    batch = {"inputs": inputs, "targets": jnp.roll(inputs["target"], -1, axis=1), "mask": mask}
    (total, logits), gradients = _gradients(cfg, params, batch)
    source = jnp.concatenate(
        [jnp.where(jnp.asarray(THERE), inputs["source"], 99), jnp.full((BATCH, more), -1)], axis=1
    )
    after = jnp.concatenate([jnp.ones((BATCH, 1), bool), mask[:, :-1]], axis=1)
    garbage = inputs | {"source": source, "target": jnp.where(after & mask, inputs["target"], 5)}
    padded = batch | {"inputs": garbage, "targets": jnp.where(mask, batch["targets"], 99)}
    (padded_total, padded_logits), padded_gradients = _gradients(cfg, params, padded)
    _close((padded_total, padded_gradients), (total, gradients), 1e-6)
    _close(padded_logits[mask], logits[mask], 1e-6)
    assert gradients["source"]["embedding"].any()


def test_backward_encoder_equals_forward_on_reversed_sources():
    backward = dataclasses.replace(LUONG, cell="gru")
    forward = dataclasses.replace(backward, encoder="forward")
    params, inputs = _params(forward), _inputs()
    places = np.where(
        THERE, LENGTHS[:, None] - 1 - np.arange(PLACES)[None], np.arange(PLACES)[None]
    )
    reverse = inputs | {
        "source": jnp.take_along_axis(inputs["source"], jnp.asarray(places), axis=1)
    }
    logits, seen = jax.jit(seq2seq.trace)(backward, params, inputs)
    expected, expected_seen = jax.jit(seq2seq.trace)(forward, params, reverse)
    _close(logits, expected)
    _close(seen["summary"], expected_seen["summary"])
    _close(
        np.take_along_axis(seen["attention"], places[:, None], axis=2), expected_seen["attention"]
    )
    assert not np.allclose(seen["attention"], expected_seen["attention"])


def test_labels_are_smoothed_while_training_only():
    cfg = dataclasses.replace(SUTSKEVER, label_smoothing=0.3)
    params, inputs = _params(cfg), _inputs()
    batch = {
        "inputs": inputs,
        "targets": jnp.roll(inputs["target"], -1, axis=1),
        "mask": jnp.asarray(THERE[:, :TIME]),
    }
    log_p = np.asarray(
        jax.nn.log_softmax(jax.jit(seq2seq.apply)(cfg, params, batch["inputs"])), float
    )
    nll = -np.take_along_axis(log_p, np.asarray(batch["targets"])[:, :, None], axis=2)[:, :, 0]
    smooth = 0.7 * nll + 0.3 * -log_p.mean(axis=2)
    for key, expected in ((None, nll), (jax.random.split(jax.random.key(1), BATCH), smooth)):
        total, aux = jax.jit(seq2seq.loss)(cfg, params, batch, key=key)
        np.testing.assert_allclose(total, expected[batch["mask"]].sum(), rtol=1e-5)
        assert aux.count == batch["mask"].sum()


@pytest.mark.usefixtures("x64")
def test_gradients_of_smoothed_losses_agree_with_finite_differences():
    rng = np.random.default_rng(0)
    logits, targets = (
        jnp.asarray(rng.normal(0, 2, (2, 3, 5))),
        jnp.asarray(rng.integers(0, 5, (2, 3))),
    )
    batch = {"targets": targets, "mask": jnp.array([[True, True, False], [True, False, False]])}

    @jax.jit
    def loss(logits):
        return next_token_loss(logits, batch, (), 0.3)[0]

    test_util.check_grads(loss, (logits,), order=1, modes=("fwd", "rev"), atol=1e-7, rtol=1e-7)
    gradient = jax.grad(loss)(logits)
    assert (gradient[~batch["mask"]] == 0).all()
    np.testing.assert_allclose(jax.jvp(loss, (logits,), (logits,))[0], loss(logits), rtol=1e-12)


def test_encoder_equals_torch():
    torch = pytest.importorskip("torch")
    cfg = dataclasses.replace(SEARCH, encoder_units=(3, 2))
    params, inputs = _params(cfg), _inputs()
    x = torch.tensor(np.asarray(params["source"]["embedding"])[np.asarray(inputs["source"])])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, LENGTHS.tolist(), batch_first=True, enforce_sorted=False
    )
    last = x
    for index, units in enumerate(cfg.encoder_units):
        layer = torch.nn.GRU(packed.data.shape[1], units, batch_first=True, bidirectional=True)
        for direction, own in params["encoder"][f"layer_{index}"].items():
            tensors = recurrent_weights.to_torch("gru", own, reverse=direction == "backward")
            layer.load_state_dict(
                {name: torch.tensor(leaf) for name, leaf in tensors.items()}, strict=False
            )
        packed, last = layer(packed)
    expected = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0].detach().numpy()
    _, seen = jax.jit(seq2seq.trace)(cfg, params, inputs)
    _close(seen["annotations"], expected)
    _close(seen["summary"], np.concatenate(last.detach().numpy(), axis=1))


def test_a_dot_product_of_different_sizes_names_the_field():
    with pytest.raises(
        ValueError, match=r"attention='dot', allowed: .*annotations and queries.*4 and 5"
    ):
        dataclasses.replace(SEARCH, attention="dot")
