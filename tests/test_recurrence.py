"""The fast unroll against numpy, a plain scan, finite differences, flax and torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import linen
from jax import lax, test_util

from tests.conftest import THOROUGH
from zoo.interop import recurrent_weights
from zoo.parts import recurrence
from zoo.parts.recurrence import (
    CELLS,
    GATES,
    carry_size,
    definition,
    initial_carry,
    output_of,
    step,
    unroll,
)

FEATURES, UNITS, BATCH, TIME = (
    3,
    4,
    3,
    7,
)  # 7 steps are not a multiple of the 3 per recomputed chunk
MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 1, 0]], bool)
gated_cell = pytest.mark.parametrize("cell", ["lstm", "gru"])
every_cell = pytest.mark.parametrize("cell", CELLS if THOROUGH else ("tanh", "lstm", "gru"))
x64 = pytest.mark.usefixtures("x64")


def _setup(cell):
    """Params with nonzero biases, carry, inputs."""
    return _draw(cell, jax.config.read("jax_enable_x64"))


@functools.cache
def _draw(cell, x64):
    return jax.jit(_drawn, static_argnums=0)(cell)


def _drawn(cell):
    keys = jax.random.split(jax.random.key(0), 4)
    params = recurrence.init(cell, keys[0], FEATURES, UNITS)
    leaves, tree = jax.tree.flatten(params)
    noise = jax.random.split(keys[1], len(leaves))
    params = tree.unflatten(
        [
            leaf + 0.2 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, noise, strict=True)
        ]
    )
    carry = 0.5 * jax.random.normal(keys[2], (BATCH, carry_size(cell, UNITS)))
    return params, carry, jax.random.normal(keys[3], (BATCH, TIME, FEATURES))


def _close(actual, expected, tolerance=1e-11):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


def _loop(cell, params, carry, inputs, mask, reverse):
    """The equations, element by element."""
    U, b, W = (
        np.asarray(params[part][leaf])
        for part, leaf in (("input", "kernel"), ("input", "bias"), ("recurrent", "kernel"))
    )
    carry, outputs = np.array(carry), np.zeros((*inputs.shape[:2], UNITS))

    def logistic(x):
        return 1 / (1 + np.exp(-x))

    def gate(index, n, t, h):
        columns = slice(index * UNITS, (index + 1) * UNITS)
        return inputs[n, t] @ U[:, columns] + b[columns], h @ W[:, columns]

    for n in range(inputs.shape[0]):
        for t in reversed(range(inputs.shape[1])) if reverse else range(inputs.shape[1]):
            if not mask[n, t]:
                continue
            h = carry[n, :UNITS]
            if cell == "lstm":
                i, f, g, o = (sum(gate(index, n, t, h)) for index in range(4))
                carry[n, UNITS:] = logistic(f) * carry[n, UNITS:] + logistic(i) * np.tanh(g)
                carry[n, :UNITS] = logistic(o) * np.tanh(carry[n, UNITS:])
            elif cell == "gru":
                r, z = (logistic(sum(gate(index, n, t, h))) for index in range(2))
                below, before = gate(2, n, t, h)
                carry[n] = (1 - z) * np.tanh(
                    below + r * (before + np.asarray(params["recurrent"]["bias"]))
                ) + z * h
            else:
                carry[n] = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}[cell](
                    sum(gate(0, n, t, h))
                )
            outputs[n, t] = carry[n, :UNITS]
    return carry, outputs


def _scan(cell, params, carry, inputs, mask, reverse):
    """The same as a plain scan that jax differentiates itself."""
    U, b, W = params["input"]["kernel"], params["input"]["bias"], params["recurrent"]["kernel"]
    units = len(W)

    def body(carry, at):
        x, valid = at
        h = carry[:, :units]
        below, before = (
            jnp.split(x @ U + b[None], len(GATES[cell]), 1),
            jnp.split(h @ W, len(GATES[cell]), 1),
        )
        if cell == "lstm":
            i, f, g, o = (p + q for p, q in zip(below, before, strict=True))
            c = jax.nn.sigmoid(f) * carry[:, units:] + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            new = jnp.concatenate([h, c], 1)
        elif cell == "gru":
            r, z = (jax.nn.sigmoid(p + q) for p, q in zip(below[:2], before[:2], strict=True))
            n = jnp.tanh(below[2] + r * (before[2] + params["recurrent"]["bias"][None]))
            new = h = (1 - z) * n + z * h
        else:
            new = h = {"tanh": jnp.tanh, "relu": jax.nn.relu}[cell](below[0] + before[0])
        return jnp.where(valid[:, None], new, carry), jnp.where(valid[:, None], h, 0)

    carry, outputs = lax.scan(
        body, carry, (inputs.swapaxes(0, 1), jnp.asarray(mask).T), reverse=reverse
    )
    return carry, outputs.swapaxes(0, 1)


def _objective(function):
    """A function of both results with a different weight for every element."""

    def objective(*arguments):
        carry, outputs = function(*arguments)
        weights = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)
        return jnp.sum(jnp.sin(2 * carry)) + jnp.sum(weights * jnp.square(outputs + weights))

    return objective


@x64
@every_cell
@pytest.mark.parametrize(
    ("masked", "reverse", "remat"),
    [(False, False, False), (True, True, False), (True, False, True)],
)
def test_equals_a_loop_in_numpy(cell, masked, reverse, remat):
    params, carry, inputs = _setup(cell)
    mask = MASK if masked else np.ones_like(MASK)
    expected = _loop(cell, params, carry, inputs, mask, reverse)
    _close(
        unroll(
            cell,
            params,
            carry,
            inputs,
            jnp.asarray(mask) if masked else None,
            reverse=reverse,
            remat=remat,
        ),
        expected,
    )


@x64
@every_cell
@pytest.mark.parametrize(
    ("masked", "reverse", "remat"),
    [(False, False, False), (True, True, False), (False, True, True)],
)
def test_gradients_equal_those_of_a_plain_scan(cell, masked, reverse, remat):
    params, carry, inputs = _setup(cell)
    mask = MASK if masked else np.ones_like(MASK)
    fast = functools.partial(
        unroll, cell, mask=jnp.asarray(mask) if masked else None, reverse=reverse, remat=remat
    )
    plain = functools.partial(_scan, cell, mask=mask, reverse=reverse)
    actual, expected = (
        jax.jit(jax.value_and_grad(_objective(function), (0, 1, 2))) for function in (fast, plain)
    )
    _close(actual(params, carry, inputs), expected(params, carry, inputs))


@x64
def test_products_of_large_kernels_are_equal_in_either_layout():
    """On a CPU: in the loop, and in gradients of kernels whose rows collide in the cache."""
    units = 128
    assert 4 * units**2 >= recurrence.LARGE
    assert 4 * units % recurrence.COLLIDING == 0
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.jit(lambda key: recurrence.init("lstm", key, FEATURES, units))(keys[0])
    carry, inputs = (
        jax.random.normal(keys[1], (BATCH, 2 * units)),
        jax.random.normal(keys[2], (BATCH, TIME, FEATURES)),
    )
    fast, plain = (
        functools.partial(unroll, "lstm"),
        functools.partial(_scan, "lstm", mask=np.ones_like(MASK), reverse=False),
    )
    actual, expected = (
        jax.jit(jax.value_and_grad(_objective(function), (0, 1, 2))) for function in (fast, plain)
    )
    _close(actual(params, carry, inputs), expected(params, carry, inputs))
    for platform, barriers in (("cpu", 4), ("tpu", 0), ("cuda", 0)):
        text = actual.trace(params, carry, inputs).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("optimization_barrier") == barriers


@x64
@every_cell
def test_gradients_agree_with_finite_differences(cell):
    objective = jax.jit(_objective(functools.partial(unroll, cell, mask=jnp.asarray(MASK))))
    test_util.check_grads(objective, _setup(cell), order=1, modes=("rev",), atol=1e-6, rtol=1e-6)


@x64
@gated_cell
def test_second_derivatives_equal_those_of_a_plain_scan(cell):
    params, carry, inputs = _setup(cell)
    products = []
    for function in (
        functools.partial(unroll, mask=jnp.asarray(MASK)),
        functools.partial(_scan, mask=MASK, reverse=False),
    ):
        gradient = jax.grad(_objective(functools.partial(function, cell)))
        products.append(
            jax.jit(
                lambda params, gradient=gradient: jax.jvp(
                    gradient, (params, carry, inputs), (params, carry, inputs)
                )
            )
        )
    _close(products[0](params), products[1](params))


def test_first_derivatives_are_by_reverse_mode_only():
    params, carry, inputs = _setup("lstm")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda inputs: unroll("lstm", params, carry, inputs), (inputs,), (inputs,))


@every_cell
def test_an_output_depends_on_no_later_input(cell):
    params, carry, inputs = _setup(cell)
    reverse = cell == "gru"  # time is reversed in the same way for all cells
    jacobian = jax.jit(
        jax.jacrev(lambda x: unroll(cell, params, carry[:1], x, reverse=reverse)[1][0])
    )(inputs[:1])
    depends = np.abs(jacobian[:, :, 0]).max(axis=(1, 3)) > 0
    full = np.ones((TIME, TIME), bool)
    np.testing.assert_array_equal(depends, np.triu(full) if reverse else np.tril(full))


@every_cell
@pytest.mark.parametrize(("reverse", "remat"), [(False, False), (True, True)])
def test_padding_content_has_no_effect(cell, reverse, remat):
    """NaN in padded steps, padded rows, and errors of padded outputs."""
    params, carry, inputs = _setup(cell)
    length = 4

    def value_and_gradients(carry, inputs, mask):
        def function(params, carry, inputs):
            after, outputs = unroll(cell, params, carry, inputs, mask, reverse=reverse, remat=remat)
            garbage = (
                jnp.sqrt(jnp.where(mask[:, :, None], 1.0, -1.0)) if mask is not None else 1.0
            )  # NaN where padded
            return jnp.sum(jnp.square(after[:BATCH])) + jnp.sum(
                (jnp.sin(outputs) * garbage)[:BATCH, :length]
            ), (after, outputs)

        return jax.jit(jax.value_and_grad(function, (0, 1, 2), has_aux=True))(params, carry, inputs)

    (value, (after, outputs)), gradients = value_and_gradients(carry, inputs[:, :length], None)
    padded = (
        jnp.full((BATCH + 1, TIME, FEATURES), jnp.nan).at[:BATCH, :length].set(inputs[:, :length])
    )
    rows = jnp.concatenate([carry, jnp.full_like(carry[:1], jnp.nan)])
    mask = jnp.zeros((BATCH + 1, TIME), bool).at[:BATCH, :length].set(True)
    (padded_value, (padded_after, padded_outputs)), padded_gradients = value_and_gradients(
        rows, padded, mask
    )
    _close(
        (padded_value, padded_after[:BATCH], padded_outputs[:BATCH, :length]),
        (value, after, outputs),
        1e-6,
    )
    assert not padded_outputs[BATCH:].any()
    assert not padded_outputs[:, length:].any()
    (of_params, of_carry, of_inputs), expected = padded_gradients, gradients
    _close((of_params, of_carry[:BATCH], of_inputs[:BATCH, :length]), expected, 1e-5)
    assert not of_inputs[:, length:].any()
    assert not of_inputs[BATCH:].any()


@every_cell
@pytest.mark.parametrize("compute_dtype", [None, "bfloat16"])
def test_step_equals_one_unrolled_step(cell, compute_dtype):
    params, carry, inputs = _setup(cell)
    after, outputs = unroll(cell, params, carry, inputs, compute_dtype=compute_dtype)
    state, one = carry, jax.jit(functools.partial(step, cell, compute_dtype=compute_dtype))
    for t in range(TIME):
        state, y = one(params, state, inputs[:, t])
        _close(y, outputs[:, t], 1e-6)
        _close(output_of(cell, state), y, 0)
    _close(state, after, 1e-6)


@every_cell
def test_the_carry_continues_a_sequence(cell):
    params, carry, inputs = _setup(cell)
    after, outputs = unroll(cell, params, carry, inputs, jnp.asarray(MASK))
    middle, first = unroll(cell, params, carry, inputs[:, :3], jnp.asarray(MASK[:, :3]))
    last, second = unroll(cell, params, middle, inputs[:, 3:], jnp.asarray(MASK[:, 3:]))
    _close((last, jnp.concatenate([first, second], axis=1)), (after, outputs), 1e-6)
    np.testing.assert_allclose(
        output_of(cell, after)[1], outputs[1, 3], rtol=1e-6
    )  # that of the last unmasked step


@gated_cell
def test_half_precision_applies_to_products_only(cell):
    params, carry, inputs = _setup(cell)
    half = functools.partial(unroll, cell, compute_dtype="bfloat16")
    results = jax.jit(half)(params, carry, inputs)
    assert all(leaf.dtype == jnp.float32 for leaf in results)
    _close(results, unroll(cell, params, carry, inputs), 0.05)
    gradients = jax.jit(jax.grad(_objective(half), (0, 1, 2)))(params, carry, inputs)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))
    full = jax.jit(jax.grad(_objective(functools.partial(unroll, cell)), (0, 1, 2)))(
        params, carry, inputs
    )
    for actual, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(full), strict=True):
        assert np.linalg.norm(actual - expected) < 0.05 * np.linalg.norm(expected)
    small = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    for remat in (False, True):
        gradients = jax.eval_shape(
            jax.grad(_objective(functools.partial(unroll, cell, remat=remat))), small, carry, inputs
        )
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(gradients))


@every_cell
def test_rematerialisation_stores_chunk_carries_only(cell):
    params, _, _ = _setup(cell)
    time = 100
    arguments = (
        params,
        jnp.zeros((BATCH, carry_size(cell, UNITS))),
        jnp.zeros((BATCH, time, FEATURES)),
    )

    def kept(remat):
        saved = jax.eval_shape(
            lambda *arguments: jax.vjp(functools.partial(unroll, cell, remat=remat), *arguments)[1],
            *arguments,
        )
        return sum(leaf.size for leaf in jax.tree.leaves(saved)) - sum(
            leaf.size for leaf in jax.tree.leaves((params, arguments[2]))
        )

    assert kept(True) == 10 * BATCH * carry_size(cell, UNITS)
    assert kept(False) >= time * BATCH * UNITS


@every_cell
def test_shapes_that_do_not_fit_are_named(cell):
    params, carry, inputs = _setup(cell)
    with pytest.raises(ValueError, match=r"inputs: shape .*expected"):
        unroll(cell, params, carry, inputs[:, :, :2])
    with pytest.raises(ValueError, match=r"carry: shape .*expected"):
        unroll(cell, params, carry[:, :-1], inputs)
    with pytest.raises(ValueError, match=r"recurrent kernel: shape .*expected"):
        unroll("gru" if cell == "lstm" else "lstm", params, carry, inputs)


def test_initial_parameters():
    params = jax.jit(lambda key: recurrence.init("lstm", key, FEATURES, UNITS, forget_bias=1.5))(
        jax.random.key(0)
    )
    np.testing.assert_array_equal(params["input"]["bias"], np.repeat([0, 1.5, 0, 0], UNITS))
    kernels = np.split(np.asarray(params["recurrent"]["kernel"]), 4, axis=1)
    for kernel in kernels:
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(UNITS), atol=1e-5)
    assert not np.allclose(kernels[0], kernels[1])


@pytest.mark.parametrize("reverse", [False, True])
def test_intermediates_explain_the_outputs(reverse):
    params, carry, inputs = _setup("lstm")
    _, outputs = unroll("lstm", params, carry, inputs, reverse=reverse)
    seen = recurrence.inspect("lstm", params, carry, inputs, reverse=reverse)
    cells = seen["cell"][:, ::-1] if reverse else seen["cell"]
    before = jnp.concatenate([carry[:, None, UNITS:], cells[:, :-1]], axis=1)
    before = before[:, ::-1] if reverse else before
    _close(seen["forget"] * before + seen["input"] * seen["candidate"], seen["cell"], 1e-6)
    _close(seen["output"] * jnp.tanh(seen["cell"]), outputs, 1e-6)
    params, carry, inputs = _setup("gru")
    seen, outputs = (
        recurrence.inspect("gru", params, carry, inputs),
        unroll("gru", params, carry, inputs)[1],
    )
    before = jnp.concatenate([carry[:, None], outputs[:, :-1]], axis=1)
    _close((1 - seen["update"]) * seen["candidate"] + seen["update"] * before, outputs, 1e-6)
    assert set(seen) == {"reset", "update", "candidate"}
    assert recurrence.inspect("tanh", *_setup("tanh")) == {}


# flax and torch


def _flax_cell(cell):
    if cell == "lstm":
        return linen.OptimizedLSTMCell(UNITS)
    return (
        linen.GRUCell(UNITS)
        if cell == "gru"
        else linen.SimpleCell(UNITS, activation_fn=getattr(jax.nn, cell))
    )


@x64
@every_cell
def test_equals_flax_with_the_same_weights(cell):
    params, carry, inputs = _setup(cell)
    net: linen.RNNCellBase = _flax_cell(cell)
    variables = recurrent_weights.to_flax(cell, params)

    def flax(variables, carry, inputs):
        state = (carry[:, UNITS:], carry[:, :UNITS]) if cell == "lstm" else carry
        outputs = []
        for t in range(TIME):
            state, y = net.apply({"params": variables}, state, inputs[:, t])  # pyright: ignore[reportGeneralTypeIssues]
            outputs.append(y)
        return (jnp.concatenate(state[::-1], 1) if cell == "lstm" else state), jnp.stack(outputs, 1)

    expected, theirs = jax.jit(jax.value_and_grad(_objective(flax), (0, 1, 2)))(
        variables, carry, inputs
    )
    actual, ours = jax.jit(
        jax.value_and_grad(_objective(functools.partial(unroll, cell)), (0, 1, 2))
    )(params, carry, inputs)
    _close(actual, expected)
    _close(recurrent_weights.to_flax(cell, ours[0]), dict(theirs[0]))
    _close(ours[1:], theirs[1:])
    _close(recurrent_weights.from_flax(cell, variables), params, 0)
    with pytest.raises(ValueError, match=r"variables: .*expected"):
        recurrent_weights.from_flax("gru" if cell == "lstm" else "lstm", variables)


@x64
@every_cell
def test_equals_torch_with_the_same_weights(cell):
    torch = pytest.importorskip("torch")
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(cell) or functools.partial(
        torch.nn.RNN, nonlinearity=cell
    )
    torch.manual_seed(0)
    net = layer(FEATURES, UNITS, num_layers=2, bidirectional=True, batch_first=True).double()
    tensors = net.state_dict()
    params = [
        [recurrent_weights.from_torch(cell, tensors, index, reverse=end) for end in (False, True)]
        for index in range(2)
    ]
    _, _, inputs = _setup(cell)

    def ours(params, inputs):
        carry, x = initial_carry(cell, params[0][0], BATCH), inputs
        for layer in params:
            x = jnp.concatenate(
                [
                    unroll(cell, own, carry, x, reverse=end)[1]
                    for own, end in zip(layer, (False, True), strict=True)
                ],
                2,
            )
        return jnp.sum(jnp.sin(x) * jnp.arange(x.size).reshape(x.shape)), x

    x = torch.tensor(np.asarray(inputs), requires_grad=True)
    outputs, _ = net(x)
    (torch.sin(outputs) * torch.arange(outputs.numel()).reshape(outputs.shape)).sum().backward()
    (_, actual), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(params, inputs)
    _close(actual, outputs.detach().numpy())
    _close(gradients[1], x.grad.numpy())
    for index, end in np.ndindex(2, 2):
        for name, gradient in recurrent_weights.to_torch(
            cell, gradients[0][index][end], index, reverse=bool(end)
        ).items():
            if not name.startswith("bias_hh"):
                _close(gradient, dict(net.named_parameters())[name].grad.numpy(), 1e-10)
        again = recurrent_weights.to_torch(cell, params[index][end], index, reverse=bool(end))
        _close(
            recurrent_weights.from_torch(cell, again, index, reverse=bool(end)),
            params[index][end],
            0,
        )
        assert {name: tensor.shape for name, tensor in again.items()}.items() <= {
            n: tuple(t.shape) for n, t in tensors.items()
        }.items()


def test_torch_weights_without_bias_and_of_another_cell():
    rng = np.random.default_rng(0)
    tensors = {"weight_ih_l0": rng.normal(size=(12, 3)), "weight_hh_l0": rng.normal(size=(12, 4))}
    params = recurrent_weights.from_torch("gru", tensors)
    assert not params["input"]["bias"].any()
    assert not params["recurrent"]["bias"].any()
    with pytest.raises(ValueError, match=r"weight_hh_l0: shape \(12, 4\), expected \[4 \* units"):
        recurrent_weights.from_torch("lstm", tensors)
    with pytest.raises(ValueError, match="expected weight_ih_l1"):
        recurrent_weights.from_torch("gru", tensors, 1)


def _torch_cell(cell, tensors, x, state):
    """One step by the equations of torch's documentation of LSTMCell, GRUCell and RNNCell."""
    sigmoid = scipy.special.expit
    from_x, from_h = (tensors[f"weight_{side}"] for side in ("ih", "hh"))
    a, b = x @ from_x.T + tensors["bias_ih"], state[0] @ from_h.T + tensors["bias_hh"]
    parts = list(
        zip(np.split(a, len(a[0]) // UNITS, 1), np.split(b, len(b[0]) // UNITS, 1), strict=True)
    )
    if cell == "lstm":
        i, f, g, o = (
            each(p + q)
            for each, (p, q) in zip((sigmoid, sigmoid, np.tanh, sigmoid), parts, strict=True)
        )
        c = f * state[1] + i * g
        return o * np.tanh(c), c
    if cell == "gru":
        r, z = (sigmoid(p + q) for p, q in parts[:2])
        n = np.tanh(parts[2][0] + r * parts[2][1])
        return ((1 - z) * n + z * state[0],)
    return ({"tanh": np.tanh, "relu": lambda v: np.maximum(v, 0)}[cell](a + b),)


@x64
@every_cell
def test_torch_cell_names_have_no_layer_index(cell):
    rng, rows = np.random.default_rng(0), recurrence.carry_size(cell, UNITS) // UNITS
    size = len(recurrence.GATES[cell]) * UNITS
    shapes = {
        "weight_ih": (size, FEATURES),
        "weight_hh": (size, UNITS),
        "bias_ih": (size,),
        "bias_hh": (size,),
    }
    tensors = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    params = recurrent_weights.from_torch(cell, tensors)
    x, state = rng.normal(size=(BATCH, FEATURES)), tuple(rng.normal(size=(rows, BATCH, UNITS)))
    carry, outputs = recurrence.step(cell, params, jnp.concatenate(state, axis=1), jnp.asarray(x))
    expected = _torch_cell(cell, tensors, x, state)
    _close(outputs, expected[0])
    _close(carry, np.concatenate(expected, axis=1))
    again = recurrent_weights.to_torch(cell, params, None)
    assert {name: each.shape for name, each in again.items()} == shapes
    _close(recurrent_weights.from_torch(cell, again, None), params, 0)
    of_layer = {f"{name}_l0": each for name, each in tensors.items()}
    _close(recurrent_weights.from_torch(cell, of_layer), params, 0)
    for layer, reverse in ((1, False), (0, True)):
        with pytest.raises(ValueError, match=r"tensors: weight_ih.*expected weight_ih_l"):
            recurrent_weights.from_torch(cell, tensors, layer, reverse=reverse)
    with pytest.raises(ValueError, match=r"expected weight_ih and weight_hh"):
        recurrent_weights.from_torch(cell, of_layer, None)


@x64
@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_equals_torchs_cells(cell):
    torch = pytest.importorskip("torch")
    net = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "tanh": torch.nn.RNNCell}[cell](
        FEATURES, UNITS
    ).double()
    _, carry, inputs = _setup(cell)
    state = [
        torch.tensor(np.array(each))
        for each in np.split(np.asarray(carry), 1 + (cell == "lstm"), axis=1)
    ]
    found = net(torch.tensor(np.array(inputs[:, 0])), tuple(state) if cell == "lstm" else state[0])
    after, outputs = recurrence.step(
        cell, recurrent_weights.from_torch(cell, net.state_dict()), carry, inputs[:, 0]
    )
    _close(outputs, (found[0] if cell == "lstm" else found).detach().numpy())
    _close(after, torch.cat(found if cell == "lstm" else [found], dim=1).detach().numpy())


@pytest.mark.parametrize("cell", CELLS)
def test_the_fast_form_and_its_gradient_equal_the_definition(cell, x64):
    params, carry, inputs = _setup(cell)
    mask = jnp.arange(inputs.shape[1])[None] < jnp.arange(1, len(inputs) + 1)[:, None]

    def total(unroll, params, carry, inputs):
        last, outputs = unroll(cell, params, carry, inputs, mask, reverse=True)
        return jnp.sum(jnp.sin(last)) + jnp.sum(jnp.cos(outputs))

    plain, fast = (
        jax.value_and_grad(functools.partial(total, each), (0, 1, 2))(params, carry, inputs)
        for each in (definition.unroll, unroll)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), fast, plain)
