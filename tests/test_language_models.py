"""Language models against numpy loops, the softmax by hand, and sampling frequencies."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from evals.tasks.language import read_prompt
from train.tasks import Language
from zoo import nnlm, rnn, rnnlm
from zoo.parts import language

VOCABULARY = 11
MODELS = {
    "nnlm": nnlm.Config(vocabulary=VOCABULARY, context=3, features=4, hidden=5, direct=True),
    "rnnlm": rnnlm.Config(vocabulary=VOCABULARY, features=4, units=(6, 4), tied=True, cell="gru"),
}


jitted = functools.cache(jax.jit)
"""One compiled function for all tests, which compiles faster than its operations one by one."""


def initial(module, cfg):
    params = jitted(module.init)(cfg, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases too


def setup(name, rows=3, time=9):
    module, cfg = zoo.MODELS[name], MODELS[name]
    assert isinstance(module, zoo.Recurrent)
    params = initial(module, cfg)
    tokens = jax.random.randint(jax.random.key(1), (rows, time), 0, VOCABULARY)
    return module, cfg, params, tokens


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("context", [1, 2, 4])
def test_nnlm_is_equation_1_at_every_position(context, direct):
    cfg = nnlm.Config(vocabulary=VOCABULARY, context=context, features=4, hidden=5, direct=direct)
    params = initial(nnlm, cfg)
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (2, 7), 0, VOCABULARY))
    before = np.asarray(jax.random.randint(jax.random.key(2), (2, context - 1), 0, VOCABULARY))
    carry, logits = jitted(nnlm.unroll)(cfg, params, jnp.asarray(before), jnp.asarray(tokens))
    logits, params = np.asarray(logits), jax.tree.map(np.asarray, params)
    C, H, d = params["embedding"]["embedding"], params["hidden"]["kernel"], params["hidden"]["bias"]
    U, b = params["output"]["kernel"], params["output"]["bias"]
    history = np.concatenate([before, tokens], axis=1)
    for row in range(2):
        for time in range(7):
            x = np.concatenate([C[token] for token in history[row, time : time + context]])
            y = b + np.tanh(d + x @ H) @ U + (x @ params["direct"]["kernel"] if direct else 0)
            np.testing.assert_allclose(logits[row, time], y, rtol=1e-9)
    np.testing.assert_array_equal(carry, history[:, 7:])


def test_rnnlm_is_the_recurrent_net_on_vectors_and_tied_ones_are_the_softmax_too():
    module, cfg, params, tokens = setup("rnnlm")
    table = params["embedding"]["embedding"]
    assert "kernel" not in params["output"]
    whole = params | {"output": {"kernel": table.T, "bias": params["output"]["bias"]}}
    expected = jitted(rnn.apply)(cfg.layers, whole, table[tokens])
    np.testing.assert_allclose(
        jitted(module.apply)(cfg, params, tokens), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_minus_log_p_of_the_targets(name):
    module, cfg, params, tokens = setup(name)
    mask = jnp.arange(8)[None] < jnp.array([[8], [5], [0]])
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "mask": mask}
    total, aux = jitted(module.loss)(cfg, params, batch)
    logits = np.asarray(jitted(module.apply)(cfg, params, batch["inputs"]), np.float64)
    chosen = np.take_along_axis(
        log_softmax(logits), np.asarray(batch["targets"])[..., None], axis=-1
    )[..., 0]
    np.testing.assert_allclose(total, -(chosen * mask).sum(), rtol=1e-5)
    assert aux.count == 13


@pytest.mark.parametrize("name", MODELS)
def test_text_in_pieces_equals_the_whole(name):
    """Windows in which some rows have fewer or no tokens; those rows keep their carry."""
    module, cfg, params, tokens = setup(name)
    unroll = jitted(module.unroll)
    expected = np.asarray(unroll(cfg, params, module.initial_carry(cfg, params, 3), tokens)[1])
    carry, seen = module.initial_carry(cfg, params, 3), [[], [], []]
    place = np.zeros(3, int)
    for lengths in ((4, 2, 0), (0, 3, 4), (5, 1, 4), (0, 3, 1)):
        window = np.full((3, 5), VOCABULARY - 1, np.int32)
        mask = np.arange(5)[None] < np.array(lengths)[:, None]
        for row, length in enumerate(lengths):
            window[row, :length] = tokens[row, place[row] : place[row] + length]
        carry, logits = unroll(cfg, params, carry, jnp.asarray(window), mask=jnp.asarray(mask))
        for row, length in enumerate(lengths):
            seen[row] += list(np.asarray(logits)[row, :length])
        place += lengths
    for row in range(3):
        np.testing.assert_allclose(
            np.stack(seen[row]), expected[row, : place[row]], rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_causal(name):
    module = zoo.MODELS[name]
    cfg = (
        MODELS[name]
        if name == "nnlm"
        else rnnlm.Config(vocabulary=VOCABULARY, features=4, units=(4,))
    )
    params = jitted(module.init)(cfg, jax.random.key(0))

    @jax.jit
    def logits_at_3(table):
        return module.apply(cfg, params | {"embedding": {"embedding": table}}, jnp.arange(8)[None])[
            0, 3
        ].sum()

    gradient = jax.grad(logits_at_3)(params["embedding"]["embedding"])
    assert np.abs(gradient[1:4]).max(axis=1).min() > 0, "tokens 1 to 3 stand at positions 1 to 3"
    assert not gradient[4:8].any()


@pytest.mark.parametrize("name", MODELS)
def test_greedy_generation_equals_a_loop(name):
    module, cfg, params, tokens = setup(name)
    keys = jax.random.split(jax.random.key(3), 3)
    written = language.generate(module, cfg, params, tokens[:, :4], 6, keys, temperature=0)
    text = np.zeros((3, 10), np.int32)  # what comes later changes nothing
    text[:, :4] = tokens[:, :4]
    for time in range(4, 10):
        text[:, time] = jitted(module.apply)(cfg, params, text)[:, time - 1].argmax(axis=-1)
    np.testing.assert_array_equal(written, text[:, 4:])


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (1.0, 3)])
def test_tokens_are_drawn_from_the_models_distribution(temperature, top_k):
    module, cfg, params, tokens = setup("rnnlm", rows=1)
    count = 4000
    prompt = jnp.repeat(tokens[:, :5], count, axis=0)
    drawn = language.generate(
        module,
        cfg,
        params,
        prompt,
        2,
        jax.random.split(jax.random.key(5), count),
        temperature=temperature,
        top_k=top_k,
    )
    logits = (
        np.asarray(jitted(module.apply)(cfg, params, tokens[:, :5])[0, -1], np.float64)
        / temperature
    )
    if top_k:
        logits[np.argsort(logits)[:-top_k]] = -np.inf
    expected = np.exp(log_softmax(logits))
    share = np.bincount(np.asarray(drawn[:, 0]), minlength=VOCABULARY) / count
    np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(0.25 / count))


def test_generation_depends_on_row_keys_only():
    module, cfg, params, tokens = setup("rnnlm")
    prompt, keys = jnp.repeat(tokens[:1, :3], 3, axis=0), jax.random.split(jax.random.key(1), 3)
    written = language.generate(module, cfg, params, prompt, 20, keys)
    np.testing.assert_array_equal(
        language.generate(module, cfg, params, prompt[1:2], 20, keys[1:2])[0], written[1]
    )
    assert len(np.unique(written, axis=0)) == 3


def test_uniform_initialisation_fills_its_range():
    cfg = rnnlm.Config(vocabulary=500, features=20, units=(20,), init_scale=0.1)
    leaves = jax.tree.leaves(jitted(rnnlm.init)(cfg, jax.random.key(0)))
    everything = np.concatenate([leaf.ravel() for leaf in leaves])
    assert np.abs(everything).max() <= 0.1
    assert everything.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.02)


def test_tying_needs_vectors_as_wide_as_the_last_layer():
    with pytest.raises(ValueError, match="tied=True, allowed: False unless features, 4, is units"):
        rnnlm.Config(vocabulary=5, features=4, units=(4, 6), tied=True)


def test_invalid_tokens_are_refused():
    module, cfg, params, tokens = setup("rnnlm")
    with pytest.raises(ValueError, match=r"inputs: float32, expected tokens"):
        module.apply(cfg, params, tokens.astype(jnp.float32))


def test_presets_are_rows_of_the_papers_table():
    rows = {"mlp1": (4, 50, 60, True), "mlp5": (4, 50, 30, True), "mlp9": (4, 100, 30, False)}
    found = {
        name: (cfg.context, cfg.hidden, cfg.features, cfg.direct)
        for name, cfg in nnlm.PRESETS.items()
        if name != "tiny"
    }
    assert found == rows


@pytest.mark.parametrize("name", MODELS)
def test_row_mask_suffices_for_equal_lengths(name):
    module, cfg = zoo.MODELS[name], MODELS[name]
    batch = module.example_batch(cfg, jax.random.key(1), 3)
    rows = jnp.array([True, False, True])
    whole = batch | {"mask": jnp.broadcast_to(rows[:, None], batch["targets"].shape)}
    params = initial(module, cfg)
    losses = [jitted(module.loss)(cfg, params, each) for each in (batch | {"mask": rows}, whole)]
    jax.tree.map(np.testing.assert_array_equal, *losses)


def test_prompt_is_encoded_like_training_text():
    run: Any = types.SimpleNamespace(task=Language(("<eos>", "<unk>", "the", "cat"), "words"))
    prompt, unknown = read_prompt(run, "the cat\n\nthe dog")
    assert prompt.tolist() == [0, 2, 3, 0, 2, 1]
    assert unknown == ["dog"]
