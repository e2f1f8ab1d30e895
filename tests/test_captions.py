"""Captions, measured and shown, of a model that has only begun to learn."""

import dataclasses
import re
import types
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import evals
import evals.__main__
import evals.report.document
import train
from evals.base import Measured
from evals.generation import Generated
from evals.metrics import format_metric
from evals.tasks import captioning as captions
from train.data import scenes
from train.dataset import Table
from train.formats import DataError
from train.tasks import Captioning, Classification
from train.tokens import END
from zoo import captioner, convnet, hard_captioner

STAGES = (convnet.Stage(features=4, kernel=(8,), stride=(8,), padding="valid"),)


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    encoder = dataclasses.replace(captioner.PRESETS["digit_scenes"].encoder, stages=STAGES)
    cfg = captioner.Config(encoder=encoder, vocabulary=2, features=8, units=12, coverage=0.01)
    recipe = train.Recipe(
        name="tiny-captions",
        model=cfg,
        data=scenes.Config(
            count=120, max_length=20
        ),  # an almost untrained model rarely writes the end token
        optimizer=train.Optimizer(name="adam", learning_rate=0.02),
        batch_size=30,
        steps=40,
        select_by="loss",
        select_mode="min",
    )
    folder = tmp_path_factory.mktemp("captions") / "run"
    train.run(recipe, folder, quiet=True)
    return folder


@pytest.fixture(scope="module", name="evaluation")
def _evaluation(folder):
    return evals.evaluate(folder, "validation")


def test_images_are_scaled_and_the_vocabulary_is_that_of_the_captions(evaluation):
    task = evaluation.run.task
    assert isinstance(task, Captioning)
    assert evaluation.run.recipe.model.vocabulary == len(task.target.vocabulary) > 10
    assert task.max_length == 20
    assert evaluation.run.data.input_shape == (48, 48, 1)
    assert evaluation.metrics["validation loss nats"] < np.log(
        evaluation.run.recipe.model.vocabulary
    )
    assert {f"validation BLEU-{order}" for order in (1, 2, 3, 4)} < evaluation.metrics.keys()


def test_exact_metric_counts_captions_equal_to_a_reference(evaluation):
    sentences = evaluation.table.extras["sentences"]
    written = evaluation.measured.captions
    same = [found.text == target for found, (_, target) in zip(written, sentences, strict=True)]
    assert evaluation.metrics["validation exact %"] == pytest.approx(100 * np.mean(same))


@pytest.mark.parametrize(("shift", "hit"), [(0, 100), (24, 0)])
def test_pointing_counts_peaks_within_the_boxes_of_words(evaluation, monkeypatch, shift, hit):
    """Two models: at articles, one attends to the object's centre, one half an image away."""
    table = evaluation.table
    boxes, words = (table.extras[name] for name in ("boxes", "words"))
    weights = np.zeros((*table["targets"].shape, 6, 6), np.float32)
    for row, scene in enumerate(zip(boxes, words, strict=True)):
        for (top, left, bottom, right), word in zip(*scene, strict=True):
            if word >= 0:
                weights[
                    row,
                    word - 1,
                    ((top + bottom) // 2 + shift) % 48 // 8,
                    ((left + right) // 2 + shift) % 48 // 8,
                ] = 1
    position = iter(range(0, len(weights), captions.ROWS))

    def looked(run, images, before):
        first = next(position)
        return weights[first : first + len(images)]

    monkeypatch.setattr(captions, "attention", looked)
    found = captions.pointing(evaluation.run, table, np.ones(len(weights), bool))
    assert found is not None
    assert found.objects == (words >= 0).sum()
    assert found.hit == pytest.approx(hit, abs=8)
    assert found.noun < 30  # with uniform weights the first location counts as the peak
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) / 48**2
    assert found.chance == pytest.approx(100 * area[words >= 0].mean(), rel=0.1)
    assert captions.pointing(evaluation.run, table, np.zeros(len(weights), bool)) is None


def test_attention_overlay_shows_the_weights():
    weights = np.zeros((2, 2))
    weights[0, 1] = 1
    lit = captions.lighten(np.full((8, 8, 1), 100, np.uint8), weights)
    assert lit.shape == (8, 8, 3)
    assert lit[0, 7, 0] > 100 > lit[7, 0, 0]


def test_report_shows_words_and_attention(evaluation):
    assert captions.captioned in evals.report.document.sections_of(evaluation)
    shown = captions.captioned(evaluation)
    assert shown is not None
    assert evaluation.table.extras["sentences"][0][1] in shown
    assert shown.count("<img") > 6
    written = evaluation.measured.captions
    count = len(written)
    references = [["another", each.text] for each in written]
    several = dataclasses.replace(
        evaluation, measured=dataclasses.replace(evaluation.measured, references=references)
    )
    assert f"{count:,} of {count:,} captions equal a reference" in (
        captions.captioned(several) or ""
    )


def test_other_tasks_have_no_caption_section(evaluation):
    run = evaluation.run._replace(data=evaluation.run.data._replace(task=Classification()))
    other = dataclasses.replace(
        evaluation, subject=evaluation.subject._replace(run=run), measured=Measured(metrics={})
    )
    assert captions.captioned not in evals.report.document.sections_of(other)


def test_the_command_captions_files(folder, tmp_path, capsys):
    files = [str(tmp_path / f"{name}.png") for name in "ab"]
    for file in files:
        Image.fromarray(np.full((30, 40), 90, np.uint8)).save(file)
    assert evals.__main__.main(["caption", str(folder), *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == files
    assert (folder / "captions.html").read_text().count("<section>") == 2
    page = (folder / "captions.html").read_text()
    negative = str(tmp_path / "negative.png")
    Image.fromarray(np.full((30, 40), 255 - 90, np.uint8)).save(negative)
    assert evals.__main__.main(["caption", str(folder), negative, negative, "--invert"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split("  ")[1] == lines[0].split("  ")[1]
    assert re.findall('base64,[^"]*', (folder / "captions.html").read_text()) == re.findall(
        'base64,[^"]*', page
    )
    assert evals.__main__.main(["predict", str(folder), negative]) == 1
    assert "predict is not for a model of captioning; its verbs: caption" in capsys.readouterr().err
    (folder / "captions.html").unlink()
    none = str(tmp_path / "none.png")
    assert evals.__main__.main(["caption", str(folder), none]) == 1
    assert none in capsys.readouterr().err
    assert not (folder / "captions.html").exists()
    assert evals.__main__.main(["caption", str(folder), none, files[1]]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {none}: ")
    assert captured.out.startswith(f"{files[1]}  {lines[1].split('  ')[1]}\n")
    assert evals.__main__.main(["translate", str(folder), "a"]) == 1
    assert (
        "translate is not for a model of captioning; its verbs: caption" in capsys.readouterr().err
    )


def test_captions_of_all_lengths_share_one_program(evaluation, monkeypatch):
    run, images = evaluation.run, evaluation.table["inputs"]["image"]
    looked, original = [], captions.attention
    monkeypatch.setattr(
        captions, "attention", lambda *given: looked.append(original(*given)) or looked[-1]
    )
    whole, image = evaluation.measured.captions[0], images[0]
    written = [whole._replace(tokens=whole.tokens[:length]) for length in (1, 2, 5)]
    programs, trace = [], cast(Any, captions._trace)
    for each in written:
        captions.overlays(run, image, each)
        programs.append(trace._cache_size())
    assert len(set(programs)) == 1
    for each, padded in zip(written, looked, strict=True):
        before = np.concatenate([[END], each.tokens[:-1]]).astype(np.int32)
        alone = original(run, image[None], before[None])
        assert alone is not None
        np.testing.assert_allclose(padded[:, : len(before)], alone, atol=1e-6)


def test_a_caption_may_be_as_long_as_in_training_and_end(evaluation, monkeypatch):
    lengths, original = [], captions.search
    monkeypatch.setattr(
        captions, "search", lambda *given: lengths.append(given[4]) or original(*given)
    )
    captions.caption(evaluation.run, evaluation.table["inputs"]["image"][:1])
    assert lengths == [20 + 1]


def test_scores_report_their_maximum():
    assert format_metric("test BLEU-4", 81.25, 1000) == ("test BLEU-4", "81.25", "of 100")
    assert format_metric("test CIDEr-D", 772.0, 1000) == ("test CIDEr-D", "772.00", "of 1000")


def test_model_without_captions_is_refused(evaluation):
    other = evaluation.run._replace(data=evaluation.run.data._replace(task=Classification()))
    with pytest.raises(
        DataError, match=f"{other.folder.path}: caption is not for a model of classification"
    ):
        captions.caption(other, evaluation.table["inputs"]["image"][:1])
    with pytest.raises(ValueError, match="beam=0"):
        captions.caption(evaluation.run, evaluation.table["inputs"]["image"][:1], beam=0)


def test_a_caption_does_not_depend_on_the_other_images(evaluation):
    images = evaluation.table["inputs"]["image"][:3]
    (alone,) = captions.caption(evaluation.run, images[1:2])
    together = captions.caption(evaluation.run, images)[1]
    assert isinstance(alone, Generated)
    assert together.text == alone.text
    assert together.score == pytest.approx(alone.score, abs=1e-3)


def test_hard_attention_uses_the_most_likely_location_and_step_equals_apply():

    cfg = hard_captioner.PRESETS["tiny"]
    params = hard_captioner.init(cfg, jax.random.key(0))
    inputs = hard_captioner.example_batch(cfg, jax.random.key(1), 3)["inputs"]
    logits, seen = jax.jit(hard_captioner.trace)(cfg, params, inputs)
    looked, weights = (np.asarray(seen[name]).reshape(3, -1, 4) for name in ("looked", "attention"))
    np.testing.assert_array_equal(looked.argmax(axis=2), weights.argmax(axis=2))
    np.testing.assert_array_equal(looked.sum(axis=2), 1)
    memory, carry = jax.jit(hard_captioner.encode)(cfg, params, inputs)
    step = jax.jit(hard_captioner.decode_step)
    for time in range(logits.shape[1]):
        carry, each = step(cfg, params, carry, inputs["target"][:, time], memory)
        np.testing.assert_allclose(each, logits[:, time], rtol=1e-4, atol=1e-5)


def test_saliency_is_the_gradient_of_the_written_token(evaluation):
    """A model whose second token depends on one pixel, and nothing else does."""

    def apply(cfg, params, inputs):
        seen = (
            jnp.zeros((len(inputs["image"]), 2, 3)).at[:, 1, 2].set(inputs["image"][:, 10, 33, 0])
        )
        return jnp.where(jnp.isfinite(inputs["target"][:, :, None]), seen, 0)

    module: Any = types.ModuleType("reads_a_pixel")
    module.apply = apply
    run = evaluation.run._replace(module=module)
    image, tokens = evaluation.table["inputs"]["image"][:2], np.ones((2, 2), np.int32)
    said = np.array([[[True, False], [True, True], [False, False]]] * 2)
    found = captions.saliency(run, image, tokens, tokens, said)
    assert found.shape == (2, 3, 6, 6)
    assert (found > 0).sum() == 2
    assert (found[:, 1, 10 // 8, 33 // 8] > 0).all()


def test_pointing_uses_saliency_without_attention(evaluation):
    run, table = evaluation.run, evaluation.table
    cfg = dataclasses.replace(run.recipe.model, attention="none", coverage=0.0)
    params = captioner.init(cfg, jax.random.key(0))
    found = captions.pointing(
        run._replace(recipe=dataclasses.replace(run.recipe, model=cfg), params=params),
        table,
        np.arange(60) < 60,
    )
    assert found is not None
    assert np.isnan(found.noun)
    assert 0 <= found.hit <= 100


def test_objects_are_matched_to_their_names():
    """ "a one": 1 2; "a two": 1 3; "above": 4."""
    targets = np.array([[1, 2, 4, 1, 2, 0], [1, 3, 4, 1, 2, 0]])
    phrases = np.array([[[0, 2], [3, 5], [0, 0]]] * 2)
    written = [np.array([1, 2, 4, 1, 3]), np.array([1, 2, 4, 1, 3])]
    assert (
        captions.named_objects(Table({"targets": targets}, extras={"phrases": phrases}), written)
        == 3 / 4
    )
    # "a one of two", 1 2 5 3, is another kind, so it does not name "a one".
    targets[1], phrases[1] = [1, 2, 5, 3, 0, 0], [[0, 4], [0, 0], [0, 0]]
    written = [np.array([1, 2, 5, 3, 4, 1, 2]), np.array([1, 2, 5, 3])]
    assert (
        captions.named_objects(Table({"targets": targets}, extras={"phrases": phrases}), written)
        == 2 / 3
    )
