"""Recurrent networks on tests of long-term memory.  See docs/language.md.

    python -m train rnn-digits         8x8 digits row by row, LSTM; seconds
    python -m train adding-lstm        the adding problem over 100 steps; adding-rnn: tanh units,
                                       which do not learn it
    python -m train adding400-lstm     over 400 steps; adding400-gru
    python -m train copy-gru           repeat ten symbols after 100 steps; copy-lstm, copy-rnn

Results: ``python -m evals.ledger``.
"""

from dataclasses import replace

from train.data import digits, sequences
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo import rnn, rnnlm

_ADDING = "Hochreiter and Schmidhuber 1997, section 5.4"

_adding = Recipe(
    name="adding-lstm",
    about=f"the sum of two marked numbers among 100, LSTM 64 ({_ADDING})",
    model=rnn.PRESETS["adding_lstm"],
    data=sequences.Config(problem="adding", steps=100),
    preprocess="none",
    optimizer=Optimizer(name="adam", learning_rate=2e-3, clip_norm=1.0),
    batch_size=50,
    steps=4000,
    eval_every=0.25,
    select_by="squared_error",
    # Always predicting 1 has a squared error of 1/6.
    targets=(Target(metric="test squared_error", at_most=0.002),),
)

_copy = Recipe(
    name="copy-lstm",
    about="ten symbols, repeated after 100 steps, LSTM 128 (Hochreiter and Schmidhuber 1997; "
    "Arjovsky et al. 2016)",
    model=rnnlm.Config(vocabulary=10, features=10, units=(128,)),
    data=sequences.Config(problem="copy", steps=100),
    preprocess="none",
    # The learning rate matters: 2e-3 gives a test loss of 0.151 nats after 4,000 steps, 5e-3 a
    # validation loss of 0.133 after 3,250.
    optimizer=Optimizer(
        name="adam", learning_rate=5e-3, schedule="cosine", decay=0.0, clip_norm=1.0
    ),
    batch_size=50,
    steps=6000,
    eval_every=0.5,
    select_by="loss",
    # A model without memory of the symbols has a loss of 10 log 8 / 120 = 0.173.
    targets=(Target(metric="test loss nats"),),
)

RECIPES = (
    Recipe(
        name="rnn-digits",
        about="8x8 handwritten digits that ship with the package, read row by row, LSTM 128",
        model=rnn.PRESETS["digits"],
        data=digits.Config(),
        optimizer=Optimizer(name="adam", learning_rate=3e-3, schedule="cosine", decay=0.0),
        batch_size=64,
        epochs=40,
        eval_every=4,
        select_by="loss",
        targets=(Target(metric="test error %", at_most=5.0),),
    ),
    _adding,
    replace(
        _adding,
        name="adding-rnn",
        about="adding-lstm with tanh units, which cannot learn to store information for 100 steps",
        model=rnn.PRESETS["adding_rnn"],
        targets=(Target(metric="test squared_error", at_least=0.1),),
    ),
    *(
        replace(
            _adding,
            name=f"adding400-{cell}",
            about=f"the adding problem over 400 steps, {cell.upper()} 64",
            model=rnn.PRESETS[f"adding_{cell}"],
            data=sequences.Config(problem="adding", steps=400),
            steps=6000,
            eval_every=0.5,
        )
        for cell in ("lstm", "gru")
    ),
    _copy,
    replace(
        _copy,
        name="copy-gru",
        about="copy-lstm with a GRU, which learns it faster",
        model=replace(_copy.model, cell="gru"),
        targets=(Target(metric="test loss nats", at_most=0.05),),
    ),
    replace(
        _copy,
        name="copy-rnn",
        about="copy-lstm with tanh units, which do not learn it",
        model=replace(_copy.model, cell="rnn"),
        targets=(Target(metric="test loss nats", at_least=0.17),),
    ),
)
