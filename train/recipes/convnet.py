"""Convolutional networks.

    python -m train convnet-digits         the default: bundled 8x8 digits, seconds
    python -m train convnet-toolbox        6c5-2s-12c5-2s of the Matlab DeepLearnToolbox, 1 epoch;
                                           convnet-toolbox-100: 100 epochs
    python -m train convnet-lenet5         LeNet-5 (LeCun et al. 1998) with ReLU, max pooling and
                                           dropout
    python -m train convnet-lenet5-deform  the same, trained on deformed digits
    python -m train convnet-tdnn           1-D: spoken digits (FSDD), the authors' split
    python -m train convnet-tdnn-without-theo   the same, tested on a speaker not heard in training;
                                           one recipe per speaker
    python -m train convnet-video          3-D: clips of a moving bundled digit, which way it moves
    python -m train convnet-alexnet        one epoch on generated data of ImageNet's shape, to show
                                           that it runs; also convnet-vgg16

Results: ``python -m evals.ledger``.  MNIST recipes train on all 60,000 images; their settings were
selected on the last 5,000 of them (``--train-on train``).
"""

from dataclasses import replace
from typing import Any

from train.augment import Augment
from train.data import digits, fsdd, mnist, moving_digits, synthetic
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo.convnet import PRESETS

_toolbox = Recipe(
    name="convnet-toolbox",
    about="6c5-2s-12c5-2s, logistic, mean pooling, squared error, 1 epoch (Matlab "
    "DeepLearnToolbox, test_example_CNN)",
    model=PRESETS["toolbox_cnn"],
    data=mnist.Config(),
    train_on="train+validation",
    optimizer=Optimizer(learning_rate=1.0, momentum=0.0),
    batch_size=50,
    epochs=1,
    steps_per_dispatch=100,
    targets=(
        Target(
            metric="test error %",
            published=12.0,
            published_kind="bound",
            source="DeepLearnToolbox",
            at_most=12.0,
        ),
    ),
)

_lenet5 = Recipe(
    name="convnet-lenet5",
    about="LeNet-5: 6 and 16 maps of 5x5, 120, 84; ReLU, max pooling (LeCun et al. 1998)",
    model=replace(PRESETS["lenet5"], dropout=0.25),
    data=mnist.Config(),
    train_on="train+validation",
    optimizer=Optimizer(learning_rate=0.05, momentum=0.9, schedule="cosine", decay=0.0, l2=5e-4),
    batch_size=128,
    epochs=30,
    eval_every=5,
    targets=(
        Target(metric="test error %", published=0.95, source="LeCun et al. 1998", at_most=0.85),
    ),
)

_digits = Recipe(
    name="convnet-digits",
    about="32-64-64 maps of 3x3 kernels, slightly deformed 8x8 handwritten digits that ship with "
    "the package",
    model=PRESETS["digits"],
    data=digits.Config(),
    augment=Augment(rotate=8, scale=0.1, shear=5, shift=0.5),
    optimizer=Optimizer(learning_rate=0.05, momentum=0.9, schedule="cosine", decay=0.0, l2=5e-4),
    batch_size=64,
    epochs=80,
    eval_every=4,
    # With 100 examples, accuracy is too coarse and soon reaches its best value by chance.
    select_by="loss",
    targets=(Target(metric="test error %", at_most=2.0),),
)

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
"""Speakers of the Free Spoken Digit Dataset."""

_tdnn = Recipe(
    name="convnet-tdnn",
    about="windows over time on 40 mel bands, spoken digits (Free Spoken Digit Dataset); after "
    "Waibel et al. 1989",
    model=PRESETS["tdnn"],
    data=fsdd.Config(path="fsdd"),
    preprocess="standardize",
    augment=Augment(crop=8, scale=0.15),
    optimizer=Optimizer(
        learning_rate=0.02, momentum=0.9, schedule="cosine", decay=0.0, warmup=2, l2=5e-4
    ),
    batch_size=64,
    epochs=40,
    eval_every=4,
    select_by="loss",
    targets=(Target(metric="test accuracy %", at_least=97.0),),
)


def _sized(preset: str, batch_size: int) -> Recipe[Any, Any]:
    return Recipe(
        name=f"convnet-{preset}",
        about=f"{preset} on generated data of ImageNet's shape, 10 classes, one epoch, to show "
        "that it trains and how much memory it takes",
        model=PRESETS[preset],
        data=synthetic.Config(form="160x224x224x3/10"),
        augment=Augment(crop=16, flip_horizontal=True),
        optimizer=Optimizer(learning_rate=0.01, momentum=0.9, l2=5e-4),
        batch_size=batch_size,
        epochs=1,
        targets=(Target(metric="test error %"),),
    )


RECIPES = (
    _digits,
    _toolbox,
    replace(
        _toolbox,
        name="convnet-toolbox-100",
        about="convnet-toolbox, 100 epochs",
        epochs=100,
        eval_every=10,
        targets=(
            Target(
                metric="test error %",
                published=1.2,
                source='DeepLearnToolbox: "about 1.2"',
                at_most=1.3,
            ),
        ),
    ),
    _lenet5,
    replace(
        _lenet5,
        name="convnet-lenet5-deform",
        about="convnet-lenet5 trained on affinely and elastically deformed digits (LeCun et al. "
        "1998; Simard et al. 2003)",
        augment=Augment(rotate=10, scale=0.1, shear=5, shift=1.5, elastic=0.8),
        # With deformations no input repeats, so a network of this size no longer overfits and
        # needs no dropout.
        model=PRESETS["lenet5"],
        optimizer=replace(_lenet5.optimizer, l2=1e-4),
        epochs=40,
        eval_every=10,
        targets=(
            Target(
                metric="test error %",
                published=0.8,
                source="LeCun et al. 1998, with distortions",
                at_most=0.6,
            ),
        ),
    ),
    _tdnn,
    *(
        replace(
            _tdnn,
            name=f"convnet-tdnn-without-{speaker}",
            about=f"convnet-tdnn, trained on the other speakers and tested on {speaker}",
            data=fsdd.Config(path="fsdd", speaker=speaker),
            targets=(Target(metric="test accuracy %"),),
        )
        for speaker in SPEAKERS
    ),
    Recipe(
        name="convnet-video",
        about="3x3x3 kernels on noisy clips of 8 frames made from the package's digits: the "
        "direction in which a digit moves",
        model=PRESETS["conv3d"],
        data=moving_digits.Config(),
        optimizer=Optimizer(
            learning_rate=0.02, momentum=0.9, schedule="cosine", decay=0.0, l2=1e-4
        ),
        batch_size=64,
        epochs=20,
        eval_every=2,
        select_by="loss",
        targets=(Target(metric="test accuracy %", at_least=97.0),),
    ),
    _sized("alexnet", 32),
    _sized("vgg16", 16),
)
