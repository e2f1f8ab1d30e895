"""Captions of images, with attention (Xu et al. 2015) and without (Vinyals et al. 2014).

    python -m train captions-digits         scenes of handwritten digits, soft attention
    python -m train captions-digits-none    the same without attention
    python -m train captions-digits-hard    the same, looking at one place at a time

``python -m evals RUN`` measures captions and whether the model looks at what it names; ``--caption FILE`` captions images.
"""

from dataclasses import replace

from train.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo import captioner, hard_captioner

_soft = Recipe(
    name="captions-digits",
    about="scenes of one to three handwritten digits, ConvNet and LSTM with soft attention (Xu et al. 2015)",
    model=captioner.PRESETS["digit_scenes"],
    data="digit_scenes",
    optimizer=Optimizer(name="adam", learning_rate=2e-3, schedule="cosine", decay=0.02, warmup=0.2, clip_norm=1.0),
    batch_size=64,
    epochs=12,
    select_by="loss",
    select_mode="min",
    targets=(Target(metric="test exact %"), Target(metric="test pointing %")),
)

RECIPES = (
    _soft,
    replace(
        _soft,
        name="captions-digits-none",
        about="the same without attention (Vinyals et al. 2014)",
        model=replace(_soft.model, attention="none", coverage=0.0),
        targets=(Target(metric="test exact %"),),
    ),
    replace(
        _soft,
        name="captions-digits-hard",
        about="the same, looking at one place at a time (Xu et al. 2015, section 4.1)",
        model=hard_captioner.PRESETS["digit_scenes"],
        targets=(Target(metric="test exact %"), Target(metric="test pointing %")),
    ),
)
