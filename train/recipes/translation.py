"""Translation: encoder and decoder with attention (Bahdanau et al. 2014).

    python -m train numbers-en-fr               English number words into French; under three
                                                minutes
    python -m train multi30k-en-fr              captions of pictures, with attention
    python -m train multi30k-en-fr-vector       the same without attention, through the encoder's
                                                last state (Cho et al. 2014)
    python -m train multi30k-en-fr-vector-reversed      the same with the source reversed (Sutskever
                                                et al. 2014)

    python -m train multi30k-en-fr --data pairs:FILE,FILE   any two files with a sentence per line

``python -m evals RUN`` measures BLEU; ``python -m evals translate RUN "..."`` translates.
See docs/translation.md.
"""

from dataclasses import replace

from train.data import pairs
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo import seq2seq

_multi30k = Recipe(
    name="multi30k-en-fr",
    about="captions of pictures, bidirectional GRU 256, additive attention (Bahdanau et al. 2014)",
    model=seq2seq.PRESETS["multi30k"],
    data=pairs.Config(corpus="multi30k-en-fr", subwords=6000),
    preprocess="none",
    optimizer=Optimizer(
        name="adam", learning_rate=2e-3, schedule="cosine", decay=0.02, warmup=0.1, clip_norm=1.0
    ),
    batch_size=64,
    epochs=12,
    select_by="loss",
    targets=(Target(metric="test BLEU", at_least=57.0),),
)
_vector = replace(_multi30k.model, encoder="forward", attention="none")

RECIPES = (
    replace(
        _multi30k,
        name="numbers-en-fr",
        about="English number words into French, GRU 128 with attention",
        model=seq2seq.PRESETS["numbers"],
        data=pairs.Config(corpus="numbers-en-fr", tokens="words", buckets=3),
        optimizer=replace(_multi30k.optimizer, learning_rate=3e-3),
        epochs=8,
        targets=(Target(metric="test exact %", at_least=99.0),),
    ),
    _multi30k,
    replace(
        _multi30k,
        name="multi30k-en-fr-vector",
        about="multi30k-en-fr without attention, through the encoder's last state (Cho et al. "
        "2014)",
        model=_vector,
        targets=(Target(metric="test BLEU"),),
    ),
    replace(
        _multi30k,
        name="multi30k-en-fr-vector-reversed",
        about="multi30k-en-fr-vector with the source reversed (Sutskever et al. 2014)",
        model=replace(_vector, encoder="backward"),
        targets=(Target(metric="test BLEU"),),
    ),
)
