"""Recipes by name, one module per model family.  Each module's docstring lists its commands."""

from typing import Any

from train.recipe import Recipe
from train.recipes import (
    autoencoder,
    captions,
    convnet,
    dbn,
    dbn_hmm,
    language,
    mlp,
    pixels,
    rbm,
    rnn,
    speech,
    translation,
)

FAMILIES = (
    mlp, convnet, rbm, dbn, autoencoder, rnn, language, translation, captions, pixels, speech,
    dbn_hmm,
)  # fmt: skip
RECIPES: dict[str, Recipe[Any, Any]] = {
    recipe.name: recipe for family in FAMILIES for recipe in family.RECIPES
}
DEFAULT = "convnet-digits"
