"""The next-token loss with its custom gradient, against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import test_util

from zoo.parts.language import next_token_loss

BATCH, TIME, VOCABULARY = 3, 5, 7
MASK = jnp.asarray(np.arange(TIME)[None] < np.array([[5], [2], [4]]))


def _setup():
    keys = jax.random.split(jax.random.key(0), 2)
    logits = 3 * jax.random.normal(keys[0], (BATCH, TIME, VOCABULARY))
    return logits, {
        "targets": jax.random.randint(keys[1], (BATCH, TIME), 0, VOCABULARY),
        "mask": MASK,
    }


def _loss(batch):
    return lambda logits: next_token_loss(logits, batch, ())[0]


def _plain(batch):
    def loss(logits):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return jnp.sum(jnp.where(batch["mask"], losses, 0))

    return loss


@pytest.mark.usefixtures("x64")
def test_loss_and_gradient_equal_optax():
    logits, batch = _setup()
    ours, theirs = (jax.jit(jax.value_and_grad(make(batch)))(logits) for make in (_loss, _plain))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        _loss(batch)(logits), ours[0], rtol=1e-12
    )  # computed another way without a gradient
    test_util.check_grads(
        jax.jit(_loss(batch)), (logits,), order=2, modes=("fwd", "rev"), rtol=1e-4
    )


def test_impossible_tokens_have_no_gradient():
    logits, batch = _setup()
    targets = batch["targets"] % (VOCABULARY - 1)
    for value in (-np.inf, np.finfo(np.float32).min):
        loss, gradient = jax.jit(jax.value_and_grad(_loss(batch | {"targets": targets})))(
            logits.at[..., -1].set(value)
        )
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        assert not gradient[..., -1].any()


def test_padding_content_has_no_effect():
    logits, batch = _setup()
    expected = jax.jit(jax.value_and_grad(_loss(batch)))(logits)
    actual = jax.jit(jax.value_and_grad(_loss(batch)))(jnp.where(MASK[..., None], logits, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert not actual[1][~np.asarray(MASK)].any()
