"""Multilayer perceptrons.

    python -m train mlp-digits          bundled 8x8 digits, seconds
    python -m train mlp-toolbox         784-100-10 of the Matlab DeepLearnToolbox; also -l2,
                                        -dropout, -logistic, -softmax
    python -m train mlp-tanh500         784-500-10 of the LISA deep learning tutorials
    python -m train mlp-dropout         784-1024x3-10, dropout and max-norm (Srivastava et al. 2014,
                                        table 2)

Results: ``python -m evals.ledger``.  MNIST recipes train on all 60,000 images; their settings were
selected on the last 5,000 of them (``--train-on train``).
"""

from dataclasses import replace

from train.data import digits, mnist
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo.mlp import PRESETS


def _asserted(bound: float) -> tuple[Target, ...]:
    source = "DeepLearnToolbox"
    return (
        Target(
            metric="test error %",
            published=bound,
            published_kind="bound",
            source=source,
            at_most=bound,
        ),
    )


_toolbox = Recipe(
    name="mlp-toolbox",
    about="784-100-10, 1.7159 tanh(2x/3), squared error, 1 epoch (Matlab DeepLearnToolbox, "
    "test_example_NN)",
    model=PRESETS["toolbox"],
    data=mnist.Config(),
    preprocess="zscore",
    train_on="train+validation",
    # The toolbox adds the new gradient to half of the last update: momentum 0.5, learning rate 2.
    optimizer=Optimizer(learning_rate=2.0, momentum=0.5),
    batch_size=100,
    epochs=1,
    steps_per_dispatch=100,
    targets=_asserted(8.0),
)


RECIPES = (
    Recipe(
        name="mlp-digits",
        about="64-512-512-10, ReLU, dropout; 8x8 handwritten digits that ship with the package",
        model=PRESETS["digits"],
        data=digits.Config(),
        preprocess="unit",
        optimizer=Optimizer(
            learning_rate=0.1, momentum=0.9, schedule="cosine", decay=0.0, max_norm=2.0
        ),
        batch_size=64,
        epochs=150,
        eval_every=3,
        # With 100 examples, accuracy is too coarse and soon reaches its best value by chance.
        select_by="loss",
        steps_per_dispatch=21,
        targets=(Target(metric="test error %", at_most=2.0),),
    ),
    _toolbox,
    replace(
        _toolbox,
        name="mlp-toolbox-l2",
        about="mlp-toolbox with an L2 penalty of 1e-4",
        optimizer=replace(_toolbox.optimizer, l2=1e-4),
        targets=_asserted(10),
    ),
    replace(
        _toolbox,
        name="mlp-toolbox-dropout",
        about="mlp-toolbox with half of the hidden units dropped",
        model=PRESETS["toolbox_dropout"],
        targets=_asserted(10),
    ),
    replace(
        _toolbox,
        name="mlp-toolbox-logistic",
        about="mlp-toolbox with logistic hidden units and learning rate 1",
        model=PRESETS["toolbox_logistic"],
        optimizer=replace(_toolbox.optimizer, learning_rate=1.0),
        targets=_asserted(10),
    ),
    replace(
        _toolbox,
        name="mlp-toolbox-softmax",
        about="784-20-10 with softmax outputs, 5 epochs, batch size 1,000 (Matlab "
        "DeepLearnToolbox)",
        model=PRESETS["toolbox_softmax"],
        batch_size=1000,
        epochs=5,
        steps_per_dispatch=60,
        targets=_asserted(10),
    ),
    Recipe(
        name="mlp-tanh500",
        about="784-500-10, tanh, L2 (LISA deep learning tutorials, MLP)",
        model=PRESETS["tanh500"],
        data=mnist.Config(),
        preprocess="unit",
        train_on="train+validation",
        optimizer=Optimizer(learning_rate=0.1, momentum=0.9, schedule="cosine", decay=0.0, l2=1e-4),
        batch_size=100,
        epochs=60,
        eval_every=5,
        steps_per_dispatch=100,
        targets=(
            Target(metric="test error %", published=1.65, source="LISA tutorials", at_most=1.7),
        ),
    ),
    Recipe(
        name="mlp-dropout",
        about="784-1024-1024-1024-10, ReLU, dropout 0.2/0.5, max-norm (Srivastava et al. 2014, "
        "table 2)",
        model=PRESETS["dropout1024x3"],
        data=mnist.Config(),
        preprocess="unit",
        train_on="train+validation",
        optimizer=Optimizer(
            learning_rate=0.05, momentum=0.95, schedule="linear", decay=0.01, max_norm=2.0
        ),
        batch_size=128,
        epochs=120,
        eval_every=5,
        steps_per_dispatch=100,
        targets=(
            Target(
                metric="test error %",
                published=1.06,
                source="Srivastava et al. 2014, table 2",
                at_most=1.25,
            ),
        ),
    ),
)
