"""Conversions to flax, safetensors and ``jax.export``, used without this package."""

import copy
import functools
import json
import pickle
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import hypothesis
import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors
import safetensors.numpy
from flax import linen, nnx
from flax.core import freeze
from flax.training.train_state import TrainState
from hypothesis import strategies as st

from tests.conftest import KINDS, THOROUGH
from zoo import MODELS, interop
from zoo.parts.layers import dense

MEMBERS = dict(MODELS)
if not THOROUGH:  # nothing here depends on more than the kind of model: one of each
    MEMBERS = {name: MEMBERS[name] for name in KINDS}
MLP = MODELS["mlp"]
BATCH = 5
SIZES = (1, 3)  # batch sizes for exported models: neither is the traced one


@functools.cache
class Case:
    """A model, its tiny preset, parameters and a batch."""

    def __init__(self, name):
        self.name = name
        self.module = MEMBERS[name]
        self.cfg = self.module.PRESETS["tiny"]
        self.jitted = jax.jit(self.module.apply)
        self.params = self.module.init(self.cfg, jax.random.key(1))
        self.batch = self.module.example_batch(self.cfg, jax.random.key(2), BATCH)
        self.inputs = self.batch["inputs"]

    def first(self, rows):
        return jax.tree.map(lambda leaf: leaf[:rows], self.inputs)

    def apply(self, params=None, inputs=None, key=None):
        params = self.params if params is None else params
        return self.jitted(self.cfg, params, self.inputs if inputs is None else inputs, key=key)

    def loss(self, params):
        carry = self.module.init_carry(self.cfg, params, BATCH, key=jax.random.key(3))
        total, aux = self.module.loss(self.cfg, params, self.batch, carry=carry)
        return total / aux.count


@pytest.fixture(params=MEMBERS, scope="module")
def case(request):
    return Case(request.param)


class Keys(linen.Module):
    """The keys of linen for a root module, which ``LinenModel`` must use."""

    @linen.compact
    def __call__(self, name):
        return self.make_rng(name)


def flat_init(cfg, key):
    return {
        "scale": jax.random.normal(key, (4,)),
        "out": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},
    }


def flat_apply(cfg, params, inputs, *, key=None):
    return dense(params["out"], inputs["x"]) * params["scale"][inputs["index"]][:, None]


def flat_batch(cfg, key, batch_size):
    return {
        "inputs": {
            "x": jax.random.normal(key, (batch_size, 3)),
            "index": jnp.arange(batch_size) % 4,
        }
    }


def assert_equal(actual, expected):
    """Same structure, types and values."""
    assert_close(actual, expected, 0)


def assert_close(actual, expected, tolerance=1e-5):
    """Same structure and types, and values up to rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(
            np.asarray(left), np.asarray(right), rtol=tolerance, atol=tolerance
        )


def sum_of_squares(outputs):
    leaves = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)


def descend(loss, params, optimizer, steps):
    """Plain gradient descent, which every flax variant must match."""

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def row_keys(key):
    return jnp.stack([jax.random.fold_in(key, row) for row in range(BATCH)])


# linen


def test_linen_apply_equals_the_models_apply(case):
    net = interop.to_linen(case.module, case.cfg)
    assert_close(jax.jit(net.apply)({"params": case.params}, case.inputs), case.apply())


def test_linen_init_equals_the_models_init(case):
    variables = interop.to_linen(case.module, case.cfg).init(jax.random.key(4), case.inputs)
    key = Keys().apply({}, "params", rngs={"params": jax.random.key(4)})
    assert_close(variables, {"params": case.module.init(case.cfg, key)})


def test_linen_training_uses_a_key_per_example(case):
    net = interop.to_linen(case.module, case.cfg)
    actual = net.apply(
        {"params": case.params},
        case.inputs,
        deterministic=False,
        rngs={"dropout": jax.random.key(5)},
    )
    key = Keys().apply({}, "dropout", rngs={"dropout": jax.random.key(5)})
    assert_close(actual, case.apply(key=row_keys(key)))


def test_linen_takes_raw_keys_and_frozen_parameters():
    case = Case("mlp")
    net = interop.to_linen(case.module, case.cfg)
    results = []
    for make in (jax.random.PRNGKey, jax.random.key):
        variables = net.init(make(4), case.inputs)
        outputs = net.apply(
            freeze(variables), case.inputs, deterministic=False, rngs={"dropout": make(5)}
        )
        results.append((variables, outputs))
    assert_equal(*results)


def test_linen_trains_in_a_train_state(case):
    net, optimizer = interop.to_linen(case.module, case.cfg), optax.adam(1e-2)
    state = TrainState.create(apply_fn=net.apply, params=case.params, tx=optimizer)

    @jax.jit
    def step(state):
        grads = jax.grad(
            lambda params: sum_of_squares(state.apply_fn({"params": params}, case.inputs))
        )(state.params)
        return state.apply_gradients(grads=grads)

    for _ in range(3):
        state = step(state)
    expected = descend(lambda params: sum_of_squares(case.apply(params)), case.params, optimizer, 3)
    assert_close(state.params, expected, 1e-4)


def test_linen_mlp_trains_on_optax_loss_like_the_zoos():
    case = Case("mlp")
    net, optimizer = interop.to_linen(case.module, case.cfg), optax.sgd(0.5)

    def loss(params):
        logits: Any = net.apply({"params": params}, case.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, case.batch["targets"]).mean()

    assert_close(
        descend(loss, case.params, optimizer, 3),
        descend(case.loss, case.params, optimizer, 3),
        1e-4,
    )


def test_linen_module_works_inside_another():
    class Two(linen.Module):
        @linen.compact
        def __call__(self, inputs):
            net = interop.to_linen(MLP, case.cfg)
            return net(inputs) + net(inputs) + interop.to_linen(MLP, case.cfg)(inputs)

    case = Case("mlp")
    params: Any = Two().init(jax.random.key(0), case.inputs)["params"]
    first, second = params["LinenModel_0"], params["LinenModel_1"]
    assert (
        jax.tree.structure(first) == jax.tree.structure(second) == jax.tree.structure(case.params)
    )
    assert not np.array_equal(first["layer_0"]["kernel"], second["layer_0"]["kernel"])
    assert_close(
        Two().apply({"params": params}, case.inputs), 2 * case.apply(first) + case.apply(second)
    )


def test_linen_module_copies_pickles_and_compares(case):
    net = interop.to_linen(case.module, case.cfg)
    assert (
        net
        == copy.deepcopy(net)
        == pickle.loads(pickle.dumps(net))
        == interop.to_linen(case.module, case.cfg)
    )


def test_linen_refuses_parameters_that_do_not_fit():
    case = Case("mlp")
    net = interop.to_linen(case.module, case.cfg)
    layers = {
        "layer_0": {"kernel": case.params["layer_2"]["kernel"]},
        "extra": {"bias": jnp.ones(1)},
    }
    message = (
        r"^params: layer_0\.bias is missing; extra\.bias is unknown; layer_0\.kernel has shape "
        r"\(5, 3\), expected \(6, 5\)"
    )
    with pytest.raises(ValueError, match=message):
        net.apply({"params": case.params | layers}, case.inputs)
    with pytest.raises(ValueError, match=r"layer_0\.kernel is missing"):
        net.apply({}, case.inputs)


# nnx


def test_nnx_parameters_equal_the_models(case):
    net = interop.to_nnx(case.module, case.cfg, params=case.params)
    assert_equal(net.to_params(), case.params)
    assert_equal(nnx.to_pure_dict(nnx.state(net, nnx.Param))["params"], case.params)


def test_nnx_init_equals_the_models_init(case):
    net = interop.to_nnx(case.module, case.cfg, rngs=nnx.Rngs(6))
    assert_equal(net.to_params(), case.module.init(case.cfg, nnx.Rngs(6).params()))


def test_nnx_splits_merges_and_copies(case):
    net = interop.to_nnx(case.module, case.cfg, params=case.params, rngs=nnx.Rngs(0))
    graph, state = nnx.split(copy.deepcopy(net))
    other = jax.tree.map(lambda leaf: leaf + 1, case.params)
    nnx.update(net, {"params": other})  # the copy stays as it was
    assert_close(
        jax.jit(lambda state, inputs: nnx.merge(graph, state)(inputs))(state, case.inputs),
        case.apply(),
    )
    assert_equal(net.to_params(), other)


def test_nnx_trains_on_the_zoos_loss_with_its_optimizer(case):
    net = interop.to_nnx(case.module, case.cfg, params=case.params, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer):
        optimizer.update(net, nnx.grad(lambda net: case.loss(net.to_params()))(net))

    for _ in range(3):
        step(net, optimizer)
    assert_close(net.to_params(), descend(case.loss, case.params, optax.adam(1e-2), 3), 1e-4)


def test_nnx_train_and_eval(case):
    net = interop.to_nnx(case.module, case.cfg, params=case.params, rngs=nnx.Rngs(dropout=7))
    stream = nnx.Rngs(dropout=7).dropout.fork()
    assert_close(net(case.inputs), case.apply())
    net.train()
    assert_close(net(case.inputs), case.apply(key=row_keys(stream())))
    net.eval()
    assert_close(net(case.inputs), case.apply())


def test_nnx_call_overrides_the_mode_and_the_stream():
    case = Case("mlp")
    net = interop.to_nnx(case.module, case.cfg, params=case.params, rngs=nnx.Rngs(dropout=7))
    expected = case.apply(key=row_keys(nnx.Rngs(8).dropout()))
    assert_close(net(case.inputs, deterministic=False, rngs=nnx.Rngs(8)), expected)
    net.train()
    assert_close(net(case.inputs, rngs=nnx.Rngs(8)), expected)
    assert_close(net(case.inputs, deterministic=True), case.apply())


def test_nnx_takes_gradients_of_a_loss_of_its_outputs():
    case = Case("mlp")
    net = interop.to_nnx(case.module, case.cfg, params=case.params, rngs=nnx.Rngs(9))
    stream = nnx.Rngs(9).dropout.fork()
    grad = nnx.jit(nnx.grad(lambda net: sum_of_squares(net(case.inputs))))
    net.train()
    for _ in range(2):  # the stream outlives the transformation
        key = row_keys(stream())
        expected = jax.grad(lambda params, key=key: sum_of_squares(case.apply(params, key=key)))(
            case.params
        )
        assert_close(nnx.to_pure_dict(grad(net))["params"], expected, 1e-4)


def test_nnx_errors():
    case = Case("mlp")
    with pytest.raises(ValueError, match=r"params=None and rngs=None"):
        interop.to_nnx(case.module, case.cfg)
    with pytest.raises(ValueError, match=r"params: .*layer_1\.kernel is missing"):
        interop.to_nnx(case.module, case.cfg, params={"layer_0": case.params["layer_0"]})
    for net in (
        interop.to_nnx(case.module, case.cfg, params=case.params),
        interop.to_nnx(case.module, case.cfg, rngs=nnx.Rngs(params=0)),
    ):
        net.train()
        with pytest.raises(ValueError, match=r"rngs=None, allowed when not deterministic"):
            net(case.inputs)


# safetensors


def test_safetensors_round_trip_and_names(case, tmp_path):
    path = tmp_path / "model.safetensors"
    interop.save_safetensors(path, case.params, case.cfg if case.name in MODELS else None)
    loaded = interop.load_safetensors(path, like=jax.eval_shape(lambda: case.params))
    assert_equal(loaded, case.params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    others = safetensors.numpy.load_file(path)
    flat = {
        jax.tree_util.keystr(keys, simple=True, separator="."): leaf
        for keys, leaf in jax.tree.leaves_with_path(case.params)
    }
    assert others.keys() == flat.keys()
    for name, value in others.items():
        np.testing.assert_array_equal(value, flat[name])


@pytest.mark.parametrize(
    "name", [f"{model}/{preset}" for model, module in MODELS.items() for preset in module.PRESETS]
)
def test_safetensors_keep_the_config(name, tmp_path, monkeypatch):
    model, preset = name.split("/")
    module, cfg = MODELS[model], MODELS[model].PRESETS[preset]
    monkeypatch.setattr(
        module, "init", lambda cfg, key: {"bias": jnp.ones(2)}
    )  # the parameters do not matter and may be large
    interop.save_safetensors(tmp_path / "file", {"bias": jnp.ones(2)}, cfg)
    loaded = interop.load_config(tmp_path / "file")
    assert loaded == (module, cfg)
    assert repr(loaded[1]) == repr(cfg)  # 4 == 4.0, so compare types as well


@pytest.mark.parametrize("dtype", interop.DTYPES)
def test_safetensors_keep_every_type_exactly(dtype, tmp_path):
    bits = np.random.default_rng(0).integers(
        0, 2 if dtype == "bool" else 256, size=(6, 16), dtype=np.uint8
    )
    values = bits.view(np.dtype(dtype)).reshape(6, -1)
    with jax.enable_x64(True):
        for array in (
            values,
            values.T,
            values[0, 0],
            values[:0],
            values[::2],
        ):  # not contiguous, without axes, empty
            interop.save_safetensors(tmp_path / "file", {"leaf": array})
            loaded = interop.load_safetensors(tmp_path / "file", like={"leaf": array})["leaf"]
            assert loaded.dtype == array.dtype
            assert loaded.shape == array.shape
            assert np.asarray(loaded).tobytes() == array.tobytes()  # NaNs and all


names = st.text(min_size=1).filter(
    lambda name: "." not in name and name != "__metadata__" and name.isprintable()
)
trees = st.recursive(
    st.integers(0, 3).map(lambda n: np.arange(n, dtype=np.int32)),
    lambda nodes: st.dictionaries(names, nodes, min_size=1, max_size=3),
    max_leaves=6,
)


@hypothesis.settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(params=st.dictionaries(names, trees, max_size=3))
def test_safetensors_keep_any_nesting(params, tmp_path):
    interop.save_safetensors(tmp_path / "file", params)
    assert_equal(interop.load_safetensors(tmp_path / "file", like=params), params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"layer.0": {"bias": np.ones(1)}},
            r"name \('layer\.0', 'bias'\), allowed: a path of strings, not empty, without dots",
        ),
        ({"": np.ones(1)}, r"name \('',\)"),
        ({0: np.ones(1)}, r"name \(0,\)"),
        ({"__metadata__": np.ones(1)}, r"name \('__metadata__',\)"),
        (np.ones(1), r"name \(\)"),
        ({"pool": {}}, r"params: pool is \{\}, allowed: arrays"),
        ({"layers": [np.ones(1)]}, r"params: layers is \[array"),
        ({"rate": 0.5}, r"params: rate is 0\.5"),
        ({"bias": None}, r"params: bias is None"),
        ({"a": {"z": np.ones(1, complex)}}, r"params: a\.z is complex128, allowed: .*bfloat16"),
        ({"float8": np.ones(1, ml_dtypes.float8_e5m2)}, r"params: float8 is float8_e5m2"),
        ({"key": jax.random.key(0)}, r"params: key is key<fry>"),
    ],
)
def test_safetensors_refuse_values_that_do_not_round_trip(params, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        interop.save_safetensors(tmp_path / "file", params)
    assert not (tmp_path / "file").exists()


def test_safetensors_of_another_shape_than_the_config_are_refused(tmp_path):
    case = Case("mlp")
    with pytest.raises(
        ValueError, match=r"params: .*layer_0\.kernel has shape \(6, 5\), expected \(64, 512\)"
    ):
        interop.save_safetensors(tmp_path / "file", case.params, MLP.PRESETS["digits"])
    with pytest.raises(ValueError, match=r"cfg='tiny', allowed: the Config of one of "):
        interop.save_safetensors(tmp_path / "file", case.params, "tiny")


def test_safetensors_like_names_every_fault(tmp_path):
    path = tmp_path / "file"
    interop.save_safetensors(
        path,
        {"a": {"x": np.ones(2, np.float32), "y": np.ones(3, np.int32)}, "b": np.ones(1, np.int32)},
    )
    good = {"a": {"x": jnp.ones(2), "y": jnp.ones(3, int)}, "b": jnp.ones(1, int)}
    interop.load_safetensors(path, like=good)
    for like, message in [
        (good | {"c": {"z": jnp.ones(1)}}, "c.z is missing"),
        ({"a": good["a"]}, "b is unknown"),
        (good | {"b": jnp.ones((1, 1), int)}, "b has shape (1,), expected (1, 1)"),
        (good | {"b": jnp.ones(1)}, "b has dtype int32, expected float32"),
        ({"a": good["b"], "b": good["b"]}, "a is missing; a.x is unknown; a.y is unknown"),
    ]:
        with pytest.raises(ValueError, match=re.escape(f"{path}: {message}") + "$"):
            interop.load_safetensors(path, like=like)
    with pytest.raises(ValueError, match=r"n9 is missing; and 15 more$"):
        interop.load_safetensors(
            path, like=good | {f"n{index}": jnp.ones(1) for index in range(25)}
        )


def test_safetensors_that_are_damaged_or_foreign_are_refused_by_name(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        interop.load_safetensors(path)
    whole = safetensors.numpy.save({"a": np.ones((4, 4), np.float32)})
    for data in (b"", b"not a file of ours", whole[:-1], whole[:20]):
        path.write_bytes(data)
        for read in (interop.load_safetensors, interop.load_config):
            with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file: "):
                read(path)
    for tensors, message in [
        (
            {"a": np.ones(1, np.float32), "a.b": np.ones(1, np.float32)},
            r"model\.safetensors: a is an array, and a dict in a\.b",
        ),
        (
            {"b": {"a": 0}, "f": np.ones(1, np.float64)},
            r"model\.safetensors: f has type float64, which needs jax_enable_x64",
        ),
        (
            {"n": np.ones(1, np.int64)},
            r"model\.safetensors: n has type int64, which needs jax_enable_x64",
        ),
        (
            {"e": np.ones(1, ml_dtypes.float8_e5m2)},
            r"model\.safetensors: e: unreadable: .*types allowed: bool, int8",
        ),
    ]:
        arrays = {name: value for name, value in tensors.items() if isinstance(value, np.ndarray)}
        safetensors.numpy.save_file(arrays, path)
        with pytest.raises(ValueError, match=message):
            interop.load_safetensors(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, r"model None in its metadata, allowed: one of "),
        ({"model": "os", "config": "{}"}, r"model 'os' in its metadata"),
        ({"model": "mlp"}, r"config in its metadata: KeyError"),
        ({"model": "mlp", "config": "{"}, r"config in its metadata: JSONDecodeError"),
        (
            {"model": "mlp", "config": json.dumps({"sizes": [3], "unknown": 1})},
            r"config in its metadata: .*unknown",
        ),
        (
            {"model": "mlp", "config": json.dumps({"sizes": [3]})},
            r"config in its metadata: ValueError: .*sizes=\(3,\), allowed",
        ),
    ],
)
def test_safetensors_without_a_config_of_ours(metadata, message, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.ones(1, np.float32)}, path, metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors: " + message):
        interop.load_config(path)


# jax.export

OUTSIDE = """
import pathlib, sys
sys.modules["zoo"] = None
try:
    import zoo
except ImportError:
    pass
else:
    raise SystemExit("zoo can be imported")
import jax, jax.export, numpy
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.jax")):
    run = jax.export.deserialize(bytearray(file.read_bytes()))
    for arguments in sorted(file.parent.glob(file.stem + ".*.in.npz")):
        arrays = numpy.load(arguments)
        leaves = [arrays[f"arr_{index}"] for index in range(len(arrays))]
        args, kwargs = jax.tree.unflatten(run.in_tree, leaves)
        outputs = jax.tree.leaves(run.call(*args, **kwargs))
        numpy.savez(str(arguments).replace(".in.", ".out."), *outputs)
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Folder of outputs of all exported models, computed in a process without zoo."""
    folder = tmp_path_factory.mktemp("exported")
    for name in MEMBERS:
        case = Case(name)
        for kind, exported in (
            (
                "baked",
                interop.export(case.module, case.cfg, params=case.params, platforms=("cpu",)),
            ),
            ("free", interop.export(case.module, case.cfg)),
        ):
            (folder / f"{name}-{kind}.jax").write_bytes(exported.serialize())
            for size in SIZES:
                inputs = case.first(size)
                leaves = jax.tree.leaves(inputs if kind == "baked" else (case.params, inputs))
                np.savez(folder / f"{name}-{kind}.{size}.in.npz", *leaves)
    subprocess.run(
        [sys.executable, "-I", "-c", OUTSIDE, str(folder)], check=True, timeout=120, cwd=folder
    )
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["baked", "free"])
def test_exported_model_runs_without_this_package(case, kind, size, outside):
    inputs = case.first(size)
    expected = jax.tree.leaves(case.apply(inputs=inputs))
    with np.load(outside / f"{case.name}-{kind}.{size}.out.npz") as outputs:
        assert_close([outputs[f"arr_{index}"] for index in range(len(outputs))], expected)


def test_exported_model_has_a_symbolic_batch_axis_only(case, outside):
    exported = jax.export.deserialize(bytearray((outside / f"{case.name}-free.jax").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    params, inputs = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
    assert jax.tree.map(lambda aval: (aval.shape[1:], aval.dtype), inputs) == jax.tree.map(
        lambda leaf: (leaf.shape[1:], leaf.dtype), case.inputs
    )
    assert {str(aval.shape[0]) for aval in jax.tree.leaves(inputs)} == {"batch"}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, case.params)


def test_export_takes_parameters_from_many_devices_and_of_another_type():
    case = Case("mlp")
    mesh = jax.make_mesh(
        (jax.device_count(),), ("device",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), case.params)
    exported = interop.export(
        case.module, case.cfg, params=jax.device_put(params, everywhere), platforms=("cpu",)
    )
    assert exported.nr_devices == 1
    assert_close(exported.call(case.inputs), case.apply(params), 1e-2)


@pytest.mark.parametrize("platforms", ["cpu", (), ("gpu",), ("cpu", "cudo")])
def test_export_refuses_unknown_platforms(platforms):
    with pytest.raises(
        ValueError, match=r"platforms=.*, allowed: a tuple of 'cpu', 'cuda', 'rocm', 'tpu'"
    ):
        interop.export(MLP, MLP.PRESETS["tiny"], platforms=platforms)


def test_export_refuses_parameters_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"params: .*layer_0\.kernel has shape \(6, 5\), expected \(64, 512\)"
    ):
        interop.export(MLP, MLP.PRESETS["digits"], params=Case("mlp").params)


# Models to come


def test_top_level_leaves_and_dict_inputs_are_supported(tmp_path):
    module: Any = SimpleNamespace(init=flat_init, apply=flat_apply, example_batch=flat_batch)
    params, inputs = (
        flat_init(None, jax.random.key(0)),
        flat_batch(None, jax.random.key(1), BATCH)["inputs"],
    )
    expected = flat_apply(None, params, inputs)
    net = interop.to_linen(module, None)
    assert jax.tree.structure(net.init(jax.random.key(0), inputs)["params"]) == jax.tree.structure(
        params
    )
    assert_equal(net.apply({"params": params}, inputs), expected)
    assert_equal(interop.to_nnx(module, None, params=params)(inputs), expected)
    interop.save_safetensors(tmp_path / "file", params)
    assert_equal(interop.load_safetensors(tmp_path / "file"), params)
    exported = interop.export(module, None, params=jax.device_get(params))
    assert_close(jax.export.deserialize(exported.serialize()).call(inputs), expected)
