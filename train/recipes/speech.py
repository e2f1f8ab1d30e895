"""Speech: LSTM and CTC from acoustics to labels (Graves, Mohamed, Hinton 2013).

    python -m train ctc-digits           strings of spoken digits that ship with the package; under
                                         a minute
    python -m train ctc-an4              AN4, spoken letters, numbers and dates: characters
    python -m train ctc-an4-phones       phones
    python -m train ctc-an4-phones-1     the same with one layer instead of three
    python -m train ctc-an4-phones-forward    with layers that read forwards only

    python -m train ctc-an4 --data speech:FILE.tsv    recordings of your own

``python -m evals RUN`` measures error rates; ``python -m evals transcribe RUN FILE.wav``
transcribes.  See docs/speech.md.
"""

from dataclasses import replace

from train.augment import Augment
from train.data import speech, spoken_digits
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo import ctc

_an4 = Recipe(
    name="ctc-an4",
    about="characters of spoken letters, numbers and dates, bidirectional LSTM 3x128 and CTC "
    "(Graves et al. 2013)",
    model=ctc.PRESETS["an4"],
    data=speech.Config(layout="an4", path="an4"),
    preprocess="none",
    train_on="train+validation",
    augment=Augment(scale=0.12, shift_bands=1.5, mask_bands=6, mask_frames=20),
    optimizer=Optimizer(
        name="adam", learning_rate=2e-3, schedule="cosine", decay=0.01, warmup=1, clip_norm=1.0
    ),
    batch_size=16,
    epochs=100,
    eval_every=10,
    targets=(
        Target(metric="test CER %", published=12.6, source="ESPnet 1, CTC only, AN4", at_most=6.0),
        Target(metric="test WER %"),
        Target(metric="test WER % with lexicon", at_most=10.0),
    ),
)
_phones = replace(
    _an4,
    name="ctc-an4-phones",
    about="ctc-an4 with 33 phones as labels",
    data=replace(_an4.data, units="phones"),
    targets=(Target(metric="test PER %", at_most=5.0),),
)

RECIPES = (
    Recipe(
        name="ctc-digits",
        about="strings of spoken digits that ship with the package, bidirectional LSTM 64 and CTC",
        model=ctc.Config(features=40, vocabulary=11, units=(64,), stack=4, dropout=0.2),
        data=spoken_digits.Config(buckets=2),
        preprocess="none",
        augment=Augment(scale=0.15, shift_bands=1.5, mask_bands=4, mask_frames=10),
        optimizer=replace(_an4.optimizer, learning_rate=5e-3),
        batch_size=32,
        epochs=10,
        eval_every=2,
        select_by="label_error",
        targets=(Target(metric="test WER %", at_most=10.0),),
    ),
    _an4,
    _phones,
    replace(
        _phones,
        name="ctc-an4-phones-1",
        about="ctc-an4-phones with one layer",
        model=replace(_phones.model, units=(128,)),
        targets=(Target(metric="test PER %"),),
    ),
    replace(
        _phones,
        name="ctc-an4-phones-forward",
        about="ctc-an4-phones with layers that read forwards only, as many weights",
        model=replace(_phones.model, bidirectional=False, units=(217,) * 3),
        targets=(Target(metric="test PER %"),),
    ),
)
