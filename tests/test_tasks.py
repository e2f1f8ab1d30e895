"""Every task follows the protocol of ``evals.base``."""

import inspect
import types

import pytest

from evals import verbs
from evals.base import Evaluation, Measured, Subject
from evals.tasks import TASKS, module_of
from train import tasks, tokens
from train.recipe import module_of as model_of
from train.recipes import RECIPES
from zoo.base import Outputs
from zoo.parts import acoustics

WORDS = tokens.fit("words", ["a b", "b c"], size=0, min_count=1)
SUBWORDS = tokens.fit("subwords", ["a b c", "b c d"], size=20, min_count=1)
EXAMPLES = {
    "classification": tasks.Classification(("cat", "dog")),
    "regression": tasks.Regression(),
    "segmentation": tasks.Segmentation(("ground", "cat")),
    "reconstruction": tasks.Reconstruction(("cat", "dog")),
    "density": tasks.Density(),
    "language": tasks.Language(("\n", "<unk>", "a"), "characters"),
    "algorithm": tasks.Algorithm(("0", "1")),
    "translation": tasks.Translation(SUBWORDS, WORDS),
    "captioning": tasks.Captioning(WORDS, 7),
    "transcription": tasks.Transcription(
        ("", "AH", "N", "SIL"),
        "phones",
        acoustics.Config(bands=20),
        "global",
        moments=((0.5,) * 20, (2.0,) * 20),
        scored=("", "AH", "N", ""),
    ),
    "states": tasks.States(
        phones=("AH", "SIL"),
        silence=1,
        states=1,
        features=acoustics.Config(kind="mfcc", coefficients=2),
        normalise="speaker",
        context=3,
        means=((0.0, 1.0), (2.0, 3.0)),
        variances=((1.0, 1.0), (2.0, 0.5)),
        log_stay=((-0.5,), (-0.25,)),
        log_bigram=((-1.0,) * 3,) * 3,
        log_prior=(-0.5, -1.0),
    ),
}
"""A value of every task."""


def test_every_task_has_a_module_of_its_name():
    assert list(tasks.TASKS) == list(EXAMPLES)
    modules = {task.name: vars(module)["__name__"] for task, module in TASKS.items()}
    assert modules == {name: f"evals.tasks.{name}" for name in tasks.TASKS}


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_module_has_the_names_of_the_protocol(name):
    module = module_of(EXAMPLES[name])
    assert isinstance(module, types.ModuleType)
    assert module.TASK is tasks.TASKS[name]
    (parameter,) = inspect.signature(module.measure).parameters.values()
    assert parameter.annotation in (Subject, "Subject")
    assert issubclass(inspect.signature(module.measure).return_annotation, Measured)
    for section in module.SECTIONS:
        first, *others = inspect.signature(section).parameters.values()
        assert first.annotation is Evaluation
        assert all(other.default is not inspect.Parameter.empty for other in others)
        assert section.__doc__
    assert len(set(module.SECTIONS)) == len(module.SECTIONS)
    assert set(module.VERBS) <= set(verbs.VERBS)
    for verb, function in module.VERBS.items():
        run, options = inspect.signature(function).parameters.values()
        assert run.name == "run"
        assert options.annotation is verbs.VERBS[verb]


def test_every_verb_belongs_to_a_task():
    used = {verb for module in TASKS.values() for verb in module.VERBS}
    assert used == set(verbs.VERBS)
    assert {usage.split()[0] for usage in verbs.FORMER.values()} <= used


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_is_written_and_read_again(name):
    task = EXAMPLES[name]
    again = tasks.from_dict(tasks.to_dict(task))
    assert type(again) is type(task)
    assert tasks.to_dict(again) == tasks.to_dict(task)
    assert str(again) == str(task)
    assert str(task).startswith(name)
    assert again.sizes == task.sizes


@pytest.mark.parametrize(
    "fields", [{}, {"name": "dance"}, {"name": "language"}, {"name": "regression", "classes": []}]
)
def test_unknown_tasks_are_refused(fields):
    with pytest.raises((KeyError, TypeError)):
        tasks.from_dict(fields)


def test_unsupervised_models_ignore_the_task_of_the_data():
    labelled, pixels = EXAMPLES["classification"], EXAMPLES["segmentation"]
    assert tasks.learned(Outputs("targets"), labelled) == labelled
    assert tasks.learned(Outputs("inputs"), labelled) == tasks.Reconstruction(("cat", "dog"))
    assert tasks.learned(Outputs("hidden"), labelled) == tasks.Reconstruction(("cat", "dog"))
    assert tasks.learned(Outputs("density"), labelled) == tasks.Density(("cat", "dog"))
    assert tasks.learned(Outputs("inputs"), pixels) == tasks.Reconstruction()


def test_recipes_of_a_task_have_models_of_its_sizes():
    for recipe in RECIPES.values():
        cfg = recipe.model
        assert model_of(cfg).Config is type(cfg)
        assert isinstance(cfg.outputs, Outputs)
