"""Building blocks whose promises no model's own test states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from zoo.parts.layers import add_gradient

X = np.array([0.5, -2.0, 3.0], np.float32)


def _value(x):
    return jnp.square(x)


def _surrogate(x):
    return 1e30 * x


def _both(x):
    return add_gradient(_value(x), _surrogate(x))


TRANSFORMS = {
    "eager": lambda function: function,
    "jit": jax.jit,
    "vmap": jax.vmap,
    "checkpoint": jax.checkpoint,
    "shard_map": lambda function: jax.shard_map(
        function,
        mesh=jax.make_mesh((3,), ("data",), (jax.sharding.AxisType.Auto,)),
        in_specs=P("data"),
        out_specs=P("data"),
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_value_is_bit_identical_with_another_gradient(transform):
    function = TRANSFORMS[transform](_both)
    np.testing.assert_array_equal(function(jnp.asarray(X)), _value(X))
    slope = 2 * X + np.float32(1e30)
    result, backward = jax.vjp(function, jnp.asarray(X))
    np.testing.assert_array_equal(result, _value(X))
    np.testing.assert_array_equal(backward(jnp.ones(3))[0], slope)
    np.testing.assert_array_equal(jax.jvp(function, (jnp.asarray(X),), (jnp.ones(3),))[1], slope)


@pytest.mark.parametrize("size", [np.inf, np.nan])
def test_value_survives_nonfinite_gradients(size):
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(add_gradient(_value(x), size * x)))(
        jnp.asarray(X)
    )
    np.testing.assert_array_equal(value, np.sum(_value(X)))
    assert not np.isfinite(gradient).any()  # which is how a run that diverges is noticed
