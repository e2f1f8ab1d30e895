"""Image captioning with attention (Xu et al. 2015) and without (Vinyals et al. 2014).

    python -m train captions-digits         scenes of handwritten digits, soft attention
    python -m train captions-digits-none    the same without attention
    python -m train captions-digits-hard    the same with hard attention
    python -m train captions-stamps         scenes of cut-out pictures (captions-stamps-none:
                                            without attention)
    python -m train captions-stamps-fr      the same with French captions (captions-stamps-fr-none)
    python -m train captions-flickr8k       photographs, VGG-16 (load its weights with --init-from)

``python -m evals RUN`` measures caption quality and whether the model attends to the objects that
it names; ``python -m evals caption RUN FILE`` captions images.
"""

from dataclasses import replace
from typing import Any

from train.data import captions, scenes
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from zoo import captioner, hard_captioner

_digits = Recipe(
    name="captions-digits",
    about="scenes of one to three handwritten digits, ConvNet and LSTM with soft attention (Xu et "
    "al. 2015)",
    model=captioner.PRESETS["digit_scenes"],
    data=scenes.Config(count=60_000),
    preprocess="standardize",
    optimizer=Optimizer(
        name="adam", learning_rate=2e-3, schedule="cosine", decay=0.02, warmup=0.1, clip_norm=1.0
    ),
    batch_size=32,
    epochs=4,
    eval_every=0.5,
    select_by="loss",
    targets=(
        Target(metric="test exact %", at_least=93.0),
        Target(metric="test pointing %", at_least=80.0),
    ),
)

_stamps = Recipe(
    name="captions-stamps",
    about="scenes of one or two cut-out pictures of 361 kinds, ConvNet and LSTM with soft "
    "attention (Xu et al. 2015)",
    model=captioner.PRESETS["stamp_scenes"],
    data=scenes.Config(path="stamps", count=48_000),
    optimizer=Optimizer(
        name="adam", learning_rate=4e-3, schedule="cosine", decay=0.02, warmup=0.125, clip_norm=1.0
    ),
    batch_size=64,
    epochs=5,
    eval_every=0.5,
    select_by="loss",
    targets=(
        Target(metric="test BLEU-4"),
        Target(metric="test objects %"),
        Target(metric="test pointing %"),
    ),
)

_flickr = Recipe(
    name="captions-flickr8k",
    about="photographs with five captions each, frozen VGG-16 and LSTM with soft attention (Xu et "
    "al. 2015)",
    model=captioner.PRESETS["vgg16"],
    data=captions.Config(
        path="flickr8k/dataset.json",
        image_shape=(224, 224, 3),
        tokens="words",
        min_count=5,
        max_length=50,
        on_bad="skip",
    ),
    preprocess="imagenet",
    optimizer=Optimizer(name="adam", learning_rate=4e-4, clip_norm=5.0, only=("!conv_*",)),
    batch_size=64,
    epochs=30,
    select_by="loss",
    patience=5,
    targets=(Target(metric="test BLEU-4", published=19.5, source="Xu et al. 2015, soft"),),
)


def _without_attention(recipe: Recipe[Any, Any]) -> Recipe[Any, Any]:
    return replace(
        recipe,
        name=f"{recipe.name}-none",
        about=f"{recipe.name} without attention (Vinyals et al. 2014)",
        model=replace(recipe.model, attention="none", coverage=0.0),
        targets=tuple(
            Target(metric=target.metric.replace("pointing", "saliency pointing"))
            for target in recipe.targets
        ),
    )


_french = replace(
    _stamps,
    name="captions-stamps-fr",
    about="scenes of 353 kinds, captions in French",
    data=scenes.Config(path="stamps", language="fr", count=48_000),
)

RECIPES = (
    _digits,
    _without_attention(_digits),
    replace(
        _digits,
        name="captions-digits-hard",
        about="captions-digits with hard attention (Xu et al. 2015, section 4.1)",
        model=hard_captioner.PRESETS["digit_scenes"],
        preprocess="unit",
        batch_size=64,  # smaller batches make the sampled gradient too noisy
        targets=(Target(metric="test exact %"), Target(metric="test pointing %")),
    ),
    _stamps,
    _without_attention(_stamps),
    _french,
    _without_attention(_french),
    _flickr,
)
