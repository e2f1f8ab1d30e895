"""Hybrids of a deep network and a hidden Markov model (Mohamed, Dahl and Hinton 2012).

    python -m train dbn-hmm-an4       pre-trained as a deep belief net
    python -m train dnn-hmm-an4       the same network, drawn at random
    python -m train dbn-hmm-an4 --data.context 15       wider windows

dbn-hmm-an4-quarter and dnn-hmm-an4-quarter know the words of a quarter of the recordings;
dbn-hmm-an4-1, dbn-hmm-an4-2, dbn-hmm-an4-4 and dbn-hmm-an4-5 have as many hidden layers.

A Gaussian hidden Markov model aligns the recordings (``train.data.states``).  A deep belief net
learns windows of frames, layer by layer; with a softmax layer on top, it learns the states of the
alignment, aligns the recordings itself, and learns these states.  The first layer has Gaussian
visible units, which need a smaller learning rate.

Results: ``python -m evals.ledger`` and docs/speech.md.
"""

from dataclasses import replace
from typing import Any

from train.data import states
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from train.recipes.dbn import greedy
from zoo import dbn, mlp

STATES = 102
"""34 phones with silence, 3 states each."""
VALUES = 39
"""MFCC with deltas and their deltas."""
_data = states.Config()
_gaussian = Optimizer(learning_rate=0.004, momentum=0.9, l2=2e-4)
_bernoulli = Optimizer(learning_rate=0.04, momentum=0.9, l2=2e-4)
_fine = Optimizer(learning_rate=0.1, momentum=0.9, schedule="cosine", decay=0.0)


def hybrid(
    name: str,
    about: str,
    *,
    layers: int = 3,
    pretrained: bool = True,
    labelled: float = 1.0,
    targets: tuple[Target, ...] = (Target(metric="test PER %"),),
) -> Recipe[Any, Any]:
    """The stages of a hybrid with this many hidden layers of 512 units.

    labelled: share of the recordings whose words are known; pre-training uses all.
    """
    sizes = (_data.context * VALUES, *[512] * layers)
    recipe = Recipe(
        name=name,
        about=about,
        model=dbn.Config(sizes=sizes, visible_units="gaussian"),
        data=_data,
        preprocess="none",
        batch_size=128,
        epochs=4,
        select_by="reconstruction_error",
        steps_per_dispatch=100,
    )
    before = None
    if pretrained:
        before = greedy(
            replace(recipe, name=f"{name}-machine"), (_gaussian, *[_bernoulli] * (layers - 1))
        )
    model = mlp.Config(sizes=(*sizes, STATES), activation="logistic")
    first = replace(
        recipe,
        name=f"{name}-first",
        model=model,
        data=replace(_data, labelled=labelled),
        select_by="loss",
        optimizer=_fine,
        epochs=8,
        after=before,
    )
    return replace(
        first,
        name=name,
        optimizer=replace(_fine, learning_rate=0.05),
        epochs=4,
        after=first,
        relabel=True,
        targets=targets,
    )


RECIPES = (
    hybrid(
        "dbn-hmm-an4",
        "deep belief net 3x512 and hidden Markov model, 33 phones of AN4 (Mohamed et al. 2012)",
        targets=(Target(metric="test PER %", at_most=10.5),),
    ),
    hybrid("dnn-hmm-an4", "dbn-hmm-an4 without pre-training", pretrained=False),
    hybrid(
        "dbn-hmm-an4-quarter",
        "dbn-hmm-an4 with the words of a quarter of the recordings, pre-trained on all",
        labelled=0.25,
    ),
    hybrid(
        "dnn-hmm-an4-quarter",
        "dbn-hmm-an4-quarter without pre-training",
        pretrained=False,
        labelled=0.25,
    ),
    *(
        hybrid(f"dbn-hmm-an4-{layers}", f"dbn-hmm-an4 with {layers} hidden layers", layers=layers)
        for layers in (1, 2, 4, 5)
    ),
)
