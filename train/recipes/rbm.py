"""Restricted Boltzmann machines.

    python -m train rbm-digits              bundled 8x8 digits, seconds
    python -m train rbm-toolbox             784-100, CD-1, 1 epoch, of the Matlab DeepLearnToolbox
    python -m train rbm20-cd1               784-20, CD-1, with exact likelihood; also -cd3, -cd25
    python -m train rbm500-cd1              784-500, CD-1; also -cd25, -pcd (Salakhutdinov and
                                            Murray 2008)

Results: ``python -m evals.ledger``.  Likelihoods are those of MNIST's test images, binarised by
sampling each pixel once with its grey value as probability; training samples the pixels again every
time.
"""

from dataclasses import replace

from train.data import digits, mnist
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo.rbm import PRESETS

_PUBLISHED = "Salakhutdinov and Murray 2008"


def _nats(
    published: float | None, at_least: float, source: str = _PUBLISHED, exact: bool = False
) -> tuple[Target, ...]:
    """exact: the partition function can be enumerated and compared with the annealed estimate."""
    compared = (
        (Target(metric="test annealed error nats", at_least=-0.5, at_most=0.5),) if exact else ()
    )
    return (
        Target(
            metric="test log-likelihood nats", published=published, source=source, at_least=at_least
        ),
        *compared,
    )


_mnist = Recipe(
    name="rbm20-cd1",
    about="784-20, CD-1; exact log-likelihood",
    model=PRESETS["mnist20"],
    data=mnist.Config(),
    train_on="train+validation",
    optimizer=Optimizer(
        learning_rate=0.05,
        momentum=0.9,
        momentum_start=0.5,
        momentum_epochs=2,
        schedule="linear",
        decay=0.01,
    ),
    batch_size=100,
    epochs=10,
    eval_every=2,
    keep_every=2,
    select_by="reconstruction_error",
    steps_per_dispatch=100,
    targets=_nats(None, -175, "", exact=True),
)
_cd1 = replace(
    _mnist,
    name="rbm500-cd1",
    about=f"784-500, CD-1 ({_PUBLISHED}, table 1)",
    model=PRESETS["mnist500"],
    # CD-1 is best early: as weights grow, chains of one step miss other modes of the model.  With
    # ten times this learning rate it reaches -118 nats after 10 epochs but -168 after 100, or -150
    # with l2=1e-3; this low rate stops it near its best.
    optimizer=replace(_mnist.optimizer, learning_rate=0.0003, l2=1e-4),
    epochs=100,
    eval_every=10,
    keep_every=20,
    targets=_nats(-125.53, -125.53),
)
_cd5 = replace(
    _cd1,
    name="rbm500-cd25-steps-5",
    about="784-500, CD-5, after CD-1",
    model=replace(PRESETS["mnist500"], steps=5),
    optimizer=replace(_cd1.optimizer, learning_rate=0.01, schedule="constant", momentum_start=None),
    epochs=60,
    after=replace(
        _cd1,
        name="rbm500-cd25-steps-1",
        about="784-500, CD-1, the first stage",
        optimizer=replace(_cd1.optimizer, learning_rate=0.003, schedule="constant"),
        epochs=20,
        targets=(),
    ),
    targets=(),
)

RECIPES = (
    Recipe(
        name="rbm-digits",
        about="64-100, CD-1; 8x8 handwritten digits that ship with the package",
        model=PRESETS["digits"],
        data=digits.Config(),
        optimizer=Optimizer(
            learning_rate=0.05,
            momentum=0.9,
            momentum_start=0.5,
            momentum_epochs=5,
            schedule="linear",
            decay=0.01,
        ),
        batch_size=20,
        epochs=100,
        eval_every=5,
        keep_every=20,
        select_by="reconstruction_error",
        steps_per_dispatch=70,
        targets=_nats(None, -23.5, ""),
    ),
    replace(
        _mnist,
        name="rbm-toolbox",
        about="784-100, CD-1 with sampled statistics, 1 epoch (Matlab DeepLearnToolbox, "
        "test_example_DBN)",
        model=PRESETS["toolbox"],
        optimizer=Optimizer(learning_rate=1.0, momentum=0.0),
        epochs=1,
        eval_every=1,
        keep_every=None,
        targets=(Target(metric="test reconstruction_error", at_most=60.0),),
    ),
    _mnist,
    replace(
        _mnist,
        name="rbm20-cd3",
        about="784-20, CD-3; exact log-likelihood",
        model=replace(_mnist.model, steps=3),
        targets=_nats(None, -165, "", exact=True),
    ),
    replace(
        _mnist,
        name="rbm20-cd25",
        about="784-20, CD-25; exact log-likelihood",
        model=replace(_mnist.model, steps=25),
        targets=_nats(None, -150, "", exact=True),
    ),
    _cd1,
    replace(
        _cd1,
        name="rbm500-pcd",
        about="784-500, persistent CD (Tieleman 2008)",
        model=replace(_cd1.model, persistent=True),
        optimizer=replace(_cd1.optimizer, learning_rate=0.01),
        targets=_nats(None, -105.5, ""),
    ),
    replace(
        _cd1,
        name="rbm500-cd25",
        about=f"784-500, CD-1, CD-5, then CD-25 ({_PUBLISHED}, table 1)",
        model=replace(_cd1.model, steps=25),
        optimizer=replace(_cd5.optimizer, schedule="linear"),
        epochs=20,
        after=_cd5,
        targets=_nats(-86.34, -95),
    ),
)
