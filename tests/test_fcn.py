"""The fully convolutional network: the classifier slid over the image, aligned outputs."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import zoo
from zoo import convnet, fcn
from zoo.convnet import Stage
from zoo.fcn import PRESETS, Config
from zoo.parts.parameters import restore_matching, shared

KEY = jax.random.key(0)
init, apply, trace = (jax.jit(function) for function in (fcn.init, fcn.apply, fcn.trace))
init_classifier, classify = jax.jit(convnet.init), jax.jit(convnet.apply)
CHANNELS = 2

VALID = {
    "image": convnet.Config(
        shape=(12, 13, CHANNELS),
        stages=(
            Stage(features=3, kernel=(4, 3), stride=(2, 1), padding="valid", activation="tanh"),
            Stage(
                features=4,
                kernel=(2,),
                padding="valid",
                pool="max",
                pool_size=(2,),
                pool_stride=(1, 2),
            ),
        ),
        dense=(5,),
        classes=3,
    ),
    "global": convnet.Config(
        shape=(8, 10, CHANNELS),
        stages=(Stage(features=4, padding="valid", pool="mean"),),
        global_pool="max",
        dense=(5, 4),
        classes=3,
    ),
    "signal": convnet.Config(
        shape=(12, CHANNELS),
        stages=(Stage(features=4, padding="valid", pool="max"),),
        global_pool="mean",
        classes=3,
    ),
    "volume": convnet.Config(
        shape=(4, 5, 6, CHANNELS),
        stages=(Stage(features=3, kernel=(2,), padding="valid", stride=(1, 2, 1)),),
        classes=3,
    ),
}
"""Classifiers without padding, whose last window covers all inputs."""


def _params(trunk):
    """With biases that are not zero."""
    return jax.tree.map(
        lambda leaf: (
            leaf + 0.1 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)
        ),
        init_classifier(trunk, KEY),
    )


@pytest.mark.parametrize("kind", VALID)
def test_fcn_with_the_classifiers_weights_is_a_sliding_classifier(kind):
    trunk = VALID[kind]
    window = trunk.shape[:-1]
    space = tuple(size + extra for size, extra in zip(window, (7, 4, 3), strict=False))
    cfg = Config(shape=(*space, CHANNELS), trunk=trunk, classes=3, padding="valid")
    params = _params(trunk)
    x = jax.random.uniform(KEY, (2, *space, CHANNELS))
    _, seen = trace(cfg, params, x)
    strides = [1] * len(window)
    for stage in trunk.stages:
        at = stage.geometry(window)
        steps = zip(strides, at.strides, at.pool_strides if stage.pool else strides, strict=True)
        strides = [old * new * (pooled if stage.pool else 1) for old, new, pooled in steps]
    counts = seen["scores"].shape[1:-1]
    assert counts == tuple(
        (size - part) // stride + 1
        for size, part, stride in zip(space, window, strides, strict=True)
    )
    assert np.prod(counts) > 1
    places = list(itertools.product(*map(range, counts)))
    crops = []
    for place in places:
        starts = [index * stride for index, stride in zip(place, strides, strict=True)]
        crops.append(
            x[
                (
                    slice(None),
                    *(
                        slice(start, start + part)
                        for start, part in zip(starts, window, strict=True)
                    ),
                )
            ]
        )
    expected = classify(trunk, params, jnp.concatenate(crops)).reshape(len(places), 2, 3)
    actual = np.stack([seen["scores"][(slice(None), *place)] for place in places])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


PADDED = convnet.Config(
    shape=(8, 8, CHANNELS),
    stages=(Stage(features=4, pool="max"), Stage(features=5, pool="mean")),
    dense=(6,),
    classes=3,
)
"""A classifier whose convolutions add zeros around the image."""


def test_padded_classifier_agrees_on_one_window_and_shifts_with_the_image():
    """With "same" convolutions the image is padded, not each crop, so results differ."""
    cfg, params = (
        Config(shape=PADDED.shape, trunk=PADDED, classes=3, padding="valid"),
        _params(PADDED),
    )
    x = jax.random.uniform(KEY, (2, 32, 36, CHANNELS))
    apply = jax.jit(fcn.trace)
    _, one = apply(cfg, params, x[:, :8, :8])
    np.testing.assert_allclose(
        one["scores"][:, 0, 0], classify(PADDED, params, x[:, :8, :8]), rtol=1e-5, atol=1e-5
    )
    _, seen = apply(cfg, params, x)
    _, moved = apply(cfg, params, x[:, 4:, 8:])
    assert seen["scores"].shape == (2, 7, 8, 3)
    np.testing.assert_allclose(
        moved["scores"][:, 2:-2, 2:-2], seen["scores"][:, 3:-2, 4:-2], rtol=1e-5, atol=1e-5
    )
    # Repeating the border of the last map adds positions and changes none.
    _, same = apply(dataclasses.replace(cfg, padding="same"), params, x)
    assert same["scores"].shape == (*same["pool_1"].shape[:-1], 3)
    np.testing.assert_allclose(same["scores"][:, :-1, :-1], seen["scores"], rtol=1e-5, atol=1e-5)


def test_classifier_parameters_initialise_the_trunk():
    trunk = PRESETS["digit_scenes"].trunk
    cfg = dataclasses.replace(PRESETS["digit_scenes"], classes=trunk.classes)
    fresh, earlier = init(cfg, KEY), init_classifier(trunk, jax.random.key(1))
    taken = restore_matching(earlier, fresh)
    assert [
        name for name, leaf in taken.items() if leaf is not fresh[name] and name in earlier
    ] == list(earlier)
    left = {path.partition(".")[0] for path, takes in shared(earlier, fresh).items() if not takes}
    assert left == {"skip_pool_1", "skip_pool_0", "skip_conv_0", "double_0", "double_1", "double_2"}
    # With other classes all layers except the last.
    other = shared(earlier, init(PRESETS["digit_scenes"], KEY))
    assert not other["dense_1.kernel"]
    assert other["dense_0.kernel"]


@pytest.mark.parametrize("preset", convnet.PRESETS)
def test_every_preset_labels_images_of_other_sizes(preset):
    trunk = convnet.PRESETS[preset]
    whole = Config(shape=trunk.shape, trunk=trunk, classes=trunk.classes, skips=("conv_0",))
    for extra, changed in (
        (0, {}),
        (5, {"skips": ()}),
        (9, {"padding": "valid", "upsampling": "fixed"}),
    ):
        shape = (*(size + extra for size in trunk.shape[:-1]), trunk.shape[-1])
        cfg = dataclasses.replace(whole, shape=shape, **changed)
        params, x = jax.eval_shape(lambda cfg=cfg: (fcn.init(cfg, KEY), jnp.zeros((3, *cfg.shape))))
        classifier = jax.eval_shape(lambda: convnet.init(trunk, KEY))
        assert classifier.items() <= params.items()
        logits = jax.eval_shape(lambda params, x, cfg=cfg: fcn.apply(cfg, params, x), params, x)
        assert logits.shape == (3, *shape[:-1], trunk.classes)


def test_the_published_network_has_its_number_of_parameters():
    """FCN-8s: VGG-16 without its last layer, 21 scores on 3 maps, 2 transposed convolutions."""
    count = sum(
        leaf.size
        for leaf in jax.tree.leaves(jax.eval_shape(lambda: fcn.init(PRESETS["vgg16"], KEY)))
    )
    vgg16 = 138_357_544 - 1000 * 4097
    assert count == vgg16 + 21 * (4097 + 513 + 257) + 2 * 16 * 21**2


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("space", "stages", "window"),
    [
        ((60, 57), (Stage(features=1, pool="mean"), Stage(features=1, pool="mean")), (8, 12)),
        (
            (61, 66),
            (
                Stage(
                    features=1,
                    kernel=(5,),
                    stride=(2,),
                    padding="valid",
                    pool="mean",
                    pool_size=(3,),
                ),
            ),
            (18, 31),
        ),
        (
            (65, 59),
            (
                Stage(features=1, kernel=(4,), stride=(3,)),
                Stage(features=1, padding="2", pool="mean"),
            ),
            (12, 13),
        ),
    ],
)
def test_scores_are_aligned_with_their_windows(padding, space, stages, window):
    """If aligned, interpolated window means of a linear ramp are the ramp, except near borders."""
    trunk = convnet.Config(
        shape=(*window, 1), stages=stages, global_pool="mean", classes=1, activation="linear"
    )
    for skips, upsampling in (((), "fixed"), (("conv_0",), "learned"), (("conv_0",), "fixed")):
        cfg = Config(shape=(*space, 1), trunk=trunk, classes=1)
        cfg = dataclasses.replace(cfg, padding=padding, skips=skips, upsampling=upsampling)
        params = init(cfg, KEY)
        for name in params:
            if name.startswith(("conv", "dense")):
                params[name]["kernel"] = (
                    jnp.ones_like(params[name]["kernel"]) / params[name]["kernel"].size
                )
        rows, columns = np.mgrid[: space[0], : space[1]]
        ramp = (3 * rows + columns)[None, ..., None] / 100
        logits = apply(cfg, params, jnp.asarray(ramp, jnp.float32))
        middle = (slice(None), slice(20, -20), slice(20, -20))
        np.testing.assert_allclose(logits[middle], ramp[middle], atol=1e-4)


def _scattered(x, kernel):
    """Transposed convolution by definition, tap by tap; x [height, width, in], border repeated."""
    height, width, _ = x.shape
    around = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
    result = np.zeros((2 * height + 6, 2 * width + 6, kernel.shape[-1]))
    for row, column, i, j in itertools.product(
        range(height + 2), range(width + 2), range(4), range(4)
    ):
        result[2 * row + i, 2 * column + j] += around[row, column] @ kernel[i, j]
    return result[3 : 3 + 2 * height, 3 : 3 + 2 * width]


@pytest.mark.usefixtures("x64")
def test_upsampling_equals_transposed_convolution_with_gradient():
    x, kernel = jax.random.normal(KEY, (2, 3, 5, 3)), jax.random.normal(KEY, (4, 4, 3, 2))
    np.testing.assert_allclose(
        fcn.double(kernel, x)[0], _scattered(np.asarray(x[0]), np.asarray(kernel)), rtol=1e-10
    )

    def library(kernel, x):
        around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        # A correlation of dilated inputs, so the kernel is reversed.
        whole = lax.conv_transpose(
            around,
            jnp.flip(kernel, (0, 1)),
            (2, 2),
            [(3, 3), (3, 3)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return whole[:, 3:-3, 3:-3]

    weights = jax.random.normal(jax.random.key(1), library(kernel, x).shape)
    found, expected = (
        jax.value_and_grad(lambda kernel, x, f=f: jnp.sum(weights * f(kernel, x)), (0, 1))(
            kernel, x
        )
        for f in (fcn.double, library)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected
    )


def test_upsampling_is_initialised_as_bilinear():
    for axes in (1, 2, 3):
        x = jax.random.normal(KEY, (2, *(3, 4, 2)[:axes], 3))
        expected = jax.image.resize(x, (2, *(2 * size for size in x.shape[1:-1]), 3), "bilinear")
        np.testing.assert_allclose(
            fcn.double(fcn.bilinear(axes, 3), x), expected, rtol=1e-5, atol=1e-6
        )


def test_final_upsampling_is_bilinear():
    """For maps that fill the image, as in every library."""
    trunk = convnet.Config(
        shape=(8, 8, 1),
        stages=(Stage(features=3, kernel=(8,), stride=(8,), padding="valid"),),
        classes=3,
    )
    cfg = Config(shape=(24, 40, 1), trunk=trunk, classes=3)
    logits, seen = trace(cfg, init(cfg, KEY), jax.random.normal(KEY, (2, 24, 40, 1)))
    np.testing.assert_allclose(
        logits, jax.image.resize(seen["scores"], logits.shape, "bilinear"), rtol=1e-5, atol=1e-6
    )


def test_skips_add_their_scores():
    cfg = PRESETS["tiny"]
    params = init(cfg, KEY)
    x = fcn.example_batch(cfg, KEY, 2)["inputs"]
    before, seen = trace(cfg, params, x)
    np.testing.assert_array_equal(seen["with_conv_0"], before)
    layer = params["skip_conv_0"] = {
        "kernel": jax.random.normal(KEY, (4, 3)),
        "bias": jnp.array([1.0, 2, 3]),
    }
    after = apply(cfg, params, x)
    expected = np.asarray(seen["conv_0"]) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    np.testing.assert_allclose(after - before, expected, rtol=1e-4, atol=1e-5)


def test_loss_ignores_unlabelled_pixels():
    cfg = PRESETS["tiny"]
    params, batch = init(cfg, KEY), fcn.example_batch(cfg, KEY, 3)
    batch["targets"] = jnp.where(batch["mask"], batch["targets"], 250).astype(jnp.uint8)
    probabilities = np.asarray(trace(cfg, params, batch["inputs"])[1]["outputs"])
    total, right, count = 0.0, 0, 0
    for place in np.ndindex(*batch["mask"].shape):
        if batch["mask"][place]:
            label = int(batch["targets"][place])
            total -= np.log(probabilities[place][label])
            right += probabilities[place].argmax() == label
            count += 1
    loss, aux = fcn.loss(cfg, params, batch)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    assert (float(aux.count), float(aux.metrics["accuracy"][0])) == (count, right)
    assert 0 < count < batch["mask"].size


def test_mismatched_configs_are_named():
    cfg = PRESETS["tiny"]
    for skips in (("pool_0", "pool_0"), ("conv_0", "pool_0"), ("pool_7",), ("scores",)):
        with pytest.raises(
            ValueError,
            match=r"skips=.*allowed: some of pool_1, conv_1, pool_0, conv_0, in this order",
        ):
            dataclasses.replace(cfg, skips=skips)
    with pytest.raises(
        ValueError,
        match=r"shape=\(7, 6, 3\).*allowed: as many axes and channels as the trunk's \(6, 6, 2\)",
    ):
        dataclasses.replace(cfg, shape=(7, 6, 3))
    with pytest.raises(
        ValueError,
        match=r"shape=\(5, 6, 2\).*allowed: sizes that the trunk does not shrink below 1",
    ):
        dataclasses.replace(cfg, shape=(5, 6, 2))
    params = fcn.init(cfg, KEY)
    with pytest.raises(
        ValueError,
        match=r"inputs: shape \(1, 6, 5, 2\), expected sizes that the trunk does not shrink below "
        r"1",
    ):
        fcn.apply(cfg, params, jnp.zeros((1, 6, 5, 2)))
    assert fcn.apply(cfg, params, jnp.zeros((1, 60, 17, 2))).shape == (1, 60, 17, 3)


def test_fcn_is_registered():
    assert zoo.create("fcn/vgg16", classes=3)[1].classes == 3
