"""Semantic segmentation: fully convolutional networks (Long, Shelhamer, Darrell 2015).

    python -m train pixels-digits             scenes of handwritten digits: background or digit 0..9
    python -m train pixels-digits-no-skips    the same from the coarsest map only
    python -m train pixels-stamps             scenes of cut-out pictures (DIR/stamps): background or
                                              one of 15 categories
    python -m train pixels-stamps-no-skips    the same from the coarsest map only
    python -m train pixels-voc                FCN-8s on VGG-16 for Pascal VOC 2012 (DIR/VOC2012) at
                                              512x512; --init-from vgg16.pth

``python -m evals RUN`` measures intersection over union; ``python -m evals segment RUN FILE``
labels images of any size.
"""

from dataclasses import replace

from train.data import masks, pixels
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo import fcn

_digits = Recipe(
    name="pixels-digits",
    about="scenes of one to three handwritten digits, FCN with skips down to single pixels (Long "
    "et al. 2015)",
    model=fcn.PRESETS["digit_scenes"],
    data=pixels.Config(),
    optimizer=Optimizer(
        name="adam", learning_rate=3e-3, schedule="cosine", decay=0.01, warmup=0.1, clip_norm=1.0
    ),
    batch_size=32,
    epochs=6,
    select_by="loss",
    targets=(
        Target(metric="test mean IoU %", at_least=85),
        Target(metric="test boundary accuracy %"),
    ),
)
_stamps = replace(
    _digits,
    name="pixels-stamps",
    about="scenes of one or two cut-out pictures, FCN with skips down to single pixels (Long et "
    "al. 2015)",
    model=fcn.PRESETS["stamps"],
    data=pixels.Config(path="stamps", count=48_000),
    epochs=5,
    eval_every=0.5,
    targets=(Target(metric="test mean IoU %"), Target(metric="test boundary accuracy %")),
)

RECIPES = (
    _digits,
    replace(
        _digits,
        name="pixels-digits-no-skips",
        about="pixels-digits from the coarsest map only",
        model=replace(_digits.model, skips=()),
        targets=(Target(metric="test mean IoU %"),),
    ),
    _stamps,
    replace(
        _stamps,
        name="pixels-stamps-no-skips",
        about="pixels-stamps from the coarsest map only",
        model=replace(_stamps.model, skips=()),
        targets=(Target(metric="test mean IoU %"),),
    ),
    Recipe(
        name="pixels-voc",
        about="FCN-8s on VGG-16 for Pascal VOC 2012 (Long et al. 2015)",
        model=fcn.PRESETS["vgg16"],
        data=masks.Config(path="VOC2012", image_shape=(512, 512, 3)),
        preprocess="imagenet",
        optimizer=Optimizer(name="sgd", learning_rate=1e-4, momentum=0.9, l2=5e-4),
        batch_size=20,
        epochs=50,
        targets=(
            Target(
                metric="test mean IoU %",
                published=62.7,
                source="Long et al. 2015, table 2: of VOC 2011, trained on more",
            ),
        ),
    ),
)
