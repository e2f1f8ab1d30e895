"""Autoencoders: deep, stacked and denoising, convolutional.

    python -m train autoencoder-digits        64-128-16; 8x8 digits that ship with the package, seconds
    python -m train conv-autoencoder-digits   a convolutional one of the same
    python -m train autoencoder-deep          784-1000-500-250-30 (Hinton and Salakhutdinov 2006)
    python -m train sae-toolbox               784-100-10, pre-trained as a denoising autoencoder (Matlab DeepLearnToolbox)

What they reach: ``python -m evals.ledger``.  "reconstruction_error" is the squared error of an image, summed over its pixels.
"""

from dataclasses import replace

from train.optimizer import Optimizer
from train.recipe import Recipe, Target
from train.recipes.dbn import greedy
from zoo import autoencoder, conv_autoencoder, dbn, mlp

_digits = Recipe(
    name="autoencoder-digits",
    about="64-128-16, ReLU, linear code; 8x8 handwritten digits that ship with the package",
    model=autoencoder.PRESETS["digits"],
    data="digits",
    optimizer=Optimizer(name="adam", learning_rate=0.002, schedule="cosine", decay=0.0),
    batch_size=32,
    epochs=150,
    eval_every=5,
    select_by="reconstruction_error",
    select_mode="min",
    steps_per_dispatch=44,
    targets=(Target(metric="test reconstruction_error", at_most=0.75),),
)
_machines = Recipe(
    name="autoencoder-deep-machine",
    model=dbn.PRESETS["deep_autoencoder"],
    data="mnist",
    train_on="train+validation",
    batch_size=100,
    epochs=10,
    eval_every=5,
    select_by="reconstruction_error",
    select_mode="min",
    steps_per_dispatch=100,
)
_rising = Optimizer(learning_rate=0.1, momentum=0.9, momentum_start=0.5, momentum_epochs=5, l2=2e-4)
# Units without bounds learn at a hundredth of the others' rate (Hinton and Salakhutdinov 2006, supporting material).
_machines = greedy(_machines, (_rising, _rising, _rising, replace(_rising, learning_rate=0.001)))
_toolbox = Recipe(
    name="sae-toolbox-autoencoder",
    about="784-100, half of the inputs masked, 1 epoch",
    model=autoencoder.PRESETS["toolbox"],
    data="mnist",
    train_on="train+validation",
    optimizer=Optimizer(learning_rate=1.0, momentum=0.5),
    batch_size=100,
    epochs=1,
    select_by="reconstruction_error",
    select_mode="min",
    steps_per_dispatch=100,
)

RECIPES = (
    _digits,
    replace(
        _digits,
        name="conv-autoencoder-digits",
        about="two convolutions and their mirror image, denoising; 8x8 handwritten digits that ship with the package",
        model=conv_autoencoder.PRESETS["digits"],
        optimizer=replace(_digits.optimizer, learning_rate=0.001),
        epochs=15,
        eval_every=1,
        steps_per_dispatch=1,
        targets=(Target(metric="test reconstruction_error", at_most=1.0),),
    ),
    replace(
        _machines,
        name="autoencoder-deep",
        about="784-1000-500-250-30, unrolled from a deep belief net (Hinton and Salakhutdinov 2006)",
        model=autoencoder.PRESETS["deep"],
        optimizer=Optimizer(name="adam", learning_rate=0.001, schedule="cosine", decay=0.0),
        epochs=30,
        eval_every=5,
        transfer="unroll",
        after=_machines,
        targets=(Target(metric="test reconstruction_error", published=3.0, source="Hinton and Salakhutdinov 2006", at_most=5.0),),
    ),
    replace(
        _toolbox,
        name="sae-toolbox",
        about="784-100-10, pre-trained as a denoising autoencoder, 1 epoch each (Matlab DeepLearnToolbox, test_example_SAE)",
        model=mlp.Config(sizes=(784, 100, 10), activation="logistic", output="logistic", objective="squared_error", gain=4.0),
        select_by="accuracy",
        select_mode="max",
        after=_toolbox,
        targets=(Target(metric="test error %", published=16.0, source="DeepLearnToolbox asserts less", at_most=10.0),),
    ),
)
