"""The ConvNet against the Matlab toolbox, parameter counts of published networks, bad Configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo import convnet
from zoo.convnet import PRESETS, Config, Stage
from zoo.parts import layers

KEY = jax.random.key(0)


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _convn_valid(x, kernel):
    rows, columns = (m - n + 1 for m, n in zip(x.shape, kernel.shape, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape)
    assert windows.shape[:2] == (rows, columns)
    return np.einsum("ijkl,kl->ij", windows, kernel[::-1, ::-1])


@pytest.mark.usefixtures("x64")
def test_toolbox_network_equals_the_matlab_code():
    """cnnff.m for one image: convn with 'valid', logistic, 2x2 means; then the output layer."""
    cfg = PRESETS["toolbox_cnn"]
    params = convnet.init(cfg, KEY)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape), params)
    image = np.random.default_rng(0).uniform(size=(28, 28))
    maps = [image]
    for index in range(2):
        kernel, bias = (np.asarray(params[f"conv_{index}"][name]) for name in ("kernel", "bias"))
        matlab = np.asarray(layers.flip(jnp.asarray(kernel)))
        maps = [
            _sigmoid(
                sum(_convn_valid(each, matlab[:, :, i, j]) for i, each in enumerate(maps)) + bias[j]
            )
            for j in range(len(bias))
        ]
        maps = [each.reshape(len(each) // 2, 2, -1, 2).mean((1, 3)) for each in maps]
    features = np.stack(maps, axis=-1).reshape(-1)
    expected = _sigmoid(
        features @ np.asarray(params["dense_0"]["kernel"]) + np.asarray(params["dense_0"]["bias"])
    )
    _, seen = jax.jit(convnet.trace)(cfg, params, jnp.asarray(image)[None, :, :, None])
    np.testing.assert_allclose(seen["outputs"][0], expected, rtol=1e-10)
    np.testing.assert_allclose(seen["pool_1"][0], np.stack(maps, axis=-1), rtol=1e-10)

    target = np.eye(10)[3]
    batch = {
        "inputs": jnp.asarray(image)[None, :, :, None],
        "targets": jnp.array([3]),
        "mask": jnp.ones(1, bool),
    }
    total, _ = jax.jit(convnet.loss)(cfg, params, batch)
    np.testing.assert_allclose(total, 0.5 * np.sum((expected - target) ** 2), rtol=1e-10)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        # torchvision's counts.
        ("alexnet", 61_100_840),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        # LeCun et al. 1998 with a fully connected second layer: 156 + 2,416 + 48,120 + 10,164 +
        # 850.
        ("lenet5", 61_706),
        # 6 (25 + 1) + 12 (6 25 + 1) + 10 (192 + 1).
        ("toolbox_cnn", 156 + 1_812 + 1_930),
    ],
)
def test_published_networks_have_their_number_of_parameters(preset, parameters):
    shapes = jax.eval_shape(lambda: convnet.init(PRESETS[preset], KEY))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_alexnet_has_the_published_sizes():
    assert PRESETS["alexnet"].spaces() == [(27, 27), (13, 13), (13, 13), (13, 13), (6, 6)]
    assert PRESETS["vgg16"].spaces()[-1] == (7, 7)
    assert PRESETS["lenet5"].spaces() == [(14, 14), (5, 5)]


@pytest.mark.parametrize("preset", ["lenet5", "toolbox_cnn", "tdnn", "conv3d", "digits", "vgg19"])
def test_trace_shows_every_map(preset):
    cfg = PRESETS[preset]
    seen = {}

    def trace():  # shapes only; a dict returned by eval_shape would have sorted names
        logits, maps = convnet.trace(
            cfg, convnet.init(cfg, KEY), convnet.example_batch(cfg, KEY, 2)["inputs"]
        )
        seen.update({name: leaf.shape for name, leaf in maps.items()})
        return logits

    assert jax.eval_shape(trace).shape == (2, cfg.classes)
    names = [
        name
        for index, stage in enumerate(cfg.stages)
        for name in (f"conv_{index}", *([f"pool_{index}"] if stage.pool else []))
    ]
    assert list(seen) == [
        *names,
        *(f"hidden_{index}" for index in range(len(cfg.dense))),
        "logits",
        "outputs",
    ]
    for index, (stage, space) in enumerate(zip(cfg.stages, cfg.spaces(), strict=True)):
        assert seen[f"pool_{index}" if stage.pool else f"conv_{index}"] == (
            2,
            *space,
            stage.features,
        )


def test_global_pooling_is_shift_invariant():
    """A convolutional network with a global maximum is invariant to shifts of an object."""
    cfg = Config(
        shape=(12, 12, 1),
        stages=(Stage(features=4, kernel=(3,)), Stage(features=5, kernel=(3,))),
        global_pool="max",
        classes=3,
    )
    params = convnet.init(cfg, KEY)
    image = jnp.zeros((1, 12, 12, 1)).at[:, 4:7, 4:7].set(jax.random.normal(KEY, (1, 3, 3, 1)))
    apply = jax.jit(convnet.apply)
    expected = apply(cfg, params, image)
    for shift in ((1, 0), (0, -1), (1, 1)):
        np.testing.assert_allclose(
            apply(cfg, params, jnp.roll(image, shift, (1, 2))), expected, rtol=1e-5, atol=1e-6
        )
    flat = dataclasses.replace(cfg, global_pool=None)
    params = convnet.init(flat, KEY)
    moved = [apply(flat, params, jnp.roll(image, shift, 1)) for shift in (0, 1)]
    assert not np.allclose(*moved, atol=1e-2)


def test_scalar_sizes_apply_to_every_axis():
    square = Config(shape=(9, 8, 1), stages=(Stage(features=2, kernel=(3,), stride=(2,)),))
    spelled = Config(shape=(9, 8, 1), stages=(Stage(features=2, kernel=(3, 3), stride=(2, 2)),))
    assert square.spaces() == spelled.spaces() == [(5, 4)]


def test_bad_configurations_say_what_is_allowed():
    good = PRESETS["lenet5"]
    for field, value, said in [
        ("features", 0, "positive"),
        ("kernel", (0,), "positive integers"),
        ("padding", "some", "'valid', 'same'"),
        ("padding", "-1", "'valid', 'same'"),
        ("pool", "sum", "'max', 'mean'"),
        ("pool_stride", (), "positive integers"),
        ("dropout", 1.0, "probability"),
    ]:
        stage = object.__new__(Stage)
        for other in dataclasses.fields(Stage):
            object.__setattr__(
                stage,
                other.name,
                value if other.name == field else getattr(good.stages[0], other.name),
            )
        with pytest.raises(ValueError, match=rf"zoo\.convnet\.Stage: {field}=.*allowed: .*{said}"):
            stage.__post_init__()
    with pytest.raises(
        ValueError,
        match=r"kernel=\(3, 3, 3\), allowed: one number, or one for each of the 2 spatial axes",
    ):
        dataclasses.replace(good, stages=(Stage(features=2, kernel=(3, 3, 3)),))
    with pytest.raises(
        ValueError,
        match=r"shape=\(4, 4, 1\), allowed: sizes that stages 0 to 1 do not shrink below 1",
    ):
        dataclasses.replace(good, shape=(4, 4, 1))
    with pytest.raises(ValueError, match="stages"):
        dataclasses.replace(good, stages=())


def test_preset_with_another_number_of_classes():
    module, cfg = zoo.create("convnet/lenet5", classes=26)
    params = module.init(cfg, KEY)
    assert module.apply(cfg, params, jnp.zeros((2, 28, 28, 1))).shape == (2, 26)
