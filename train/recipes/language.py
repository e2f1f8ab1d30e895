"""Language models of characters and words.  See docs/language.md.

    python -m train rnnlm-topics           characters of Python's built-in help texts; under a
                                           minute
    python -m train rnnlm-shakespeare      characters of tinyshakespeare, LSTM with dropout; 15
                                           minutes on two cores
    python -m train nnlm-brown             words of the Brown corpus from the previous four (Bengio
                                           et al. 2003)
    python -m train rnnlm-brown            the same words, LSTM (Zaremba et al. 2014)
    python -m train rnnlm-ptb              Penn Treebank, as in that paper; not measured here, as
                                           the text is not free

    python -m train rnnlm-shakespeare --data text:FILE      characters of any text
    python -m train rnnlm-brown --data text:FOLDER          words; FOLDER contains one file each for
                                                            train, valid and test

``python -m evals RUN`` measures the perplexities of the model, of Kneser-Ney n-grams of the same
text, and of both combined; ``python -m evals sample RUN --prompt "..."`` continues a text.
"""

from dataclasses import replace

from train.data import text
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo import nnlm, rnnlm

_characters = Recipe(
    name="rnnlm-shakespeare",
    about="characters of tinyshakespeare, LSTM 512 with dropout",
    model=rnnlm.PRESETS["characters"],
    data=text.Config(corpus="tinyshakespeare", window=64),
    preprocess="none",
    optimizer=Optimizer(
        name="adam", learning_rate=3e-3, schedule="cosine", decay=0.02, warmup=0.1, clip_norm=1.0
    ),
    batch_size=32,
    epochs=10,
    select_by="loss",
    targets=(
        Target(
            metric="validation loss nats", published=1.4, source="char-rnn, about", at_most=1.45
        ),
        Target(metric="test loss nats", at_most=1.6),
    ),
)

_brown = Recipe(
    name="rnnlm-brown",
    about="words of the Brown corpus, LSTM 256 with dropout and tied embeddings (Zaremba et al. "
    "2014; Press and Wolf 2016)",
    model=rnnlm.Config(vocabulary=15_882, features=256, units=(256,), tied=True, dropout=0.4),
    data=text.Config(corpus="brown", tokens="words", window=35, min_count=4),
    preprocess="none",
    optimizer=Optimizer(
        name="adam", learning_rate=3e-3, schedule="cosine", decay=0.02, warmup=0.1, clip_norm=1.0
    ),
    batch_size=20,
    epochs=4,
    select_by="loss",
    targets=(Target(metric="test perplexity", at_most=135.0),),
)

RECIPES = (
    replace(
        _characters,
        name="rnnlm-topics",
        about="characters of Python's built-in help texts, LSTM 128",
        model=replace(rnnlm.PRESETS["characters"], features=32, units=(128,), dropout=0.0),
        data=text.Config(corpus="topics"),
        epochs=5,
        targets=(Target(metric="test loss nats", at_most=2.1),),
    ),
    _characters,
    replace(
        _brown,
        name="nnlm-brown",
        about="words of the Brown corpus from the previous four, 100 tanh units (Bengio et al. "
        "2003)",
        model=nnlm.Config(vocabulary=15_882, context=4, features=60, hidden=100, dropout=0.2),
        optimizer=replace(_brown.optimizer, learning_rate=1e-3),
        epochs=3,
        targets=(
            Target(metric="test perplexity", at_most=200.0),
            Target(metric="test perplexity with 5-grams", at_most=165.0),
        ),
    ),
    _brown,
    # The paper sums losses over a window of 20 steps; here they are averaged.  Hence 20 times its
    # learning rate of 1, and 1/20 of its clipping norm of 5.
    Recipe(
        name="rnnlm-ptb",
        about="words of the Penn Treebank (not included), LSTM 2x200, not regularised (Zaremba et "
        "al. 2014)",
        model=rnnlm.PRESETS["zaremba_small"],
        data=text.Config(path="ptb", tokens="words", window=20),
        preprocess="none",
        optimizer=Optimizer(learning_rate=20.0, momentum=0.0, clip_norm=0.25, plateau_factor=0.5),
        batch_size=20,
        epochs=13,
        select_by="loss",
        targets=(Target(metric="test perplexity", published=114.5, source="Zaremba et al. 2014"),),
    ),
)
