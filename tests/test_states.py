"""Frames with states of phones: alignment, relabelling by a network, and decoding."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import evals
import evals.__main__
import train
from evals import hybrid
from evals.hybrid import Weights
from evals.report import utterances
from evals.tasks.states import Decoded
from tests.helpers import tones
from tests.test_utterances import timit
from train import alignment
from train.data import load_data, parse, states
from train.dataset import Dataset, Table
from train.engine.optimizer import Optimizer
from train.engine.run_folder import RunFolder
from train.recipe import Recipe
from train.tasks import States, Transcription
from zoo import dbn, mlp
from zoo.parts import acoustics, hmm

needs_jiwer = pytest.mark.skipif(importlib.util.find_spec("jiwer") is None, reason="needs jiwer")
SETTINGS: dict[str, Any] = {"rate": tones.RATE, "bands": 12, "coefficients": 8, "context": 5}
COUNTS = {"train": 60, "dev": 8, "test": 12}
SPLITS = ("train", "validation", "test")


LETTER, SILENCE = 12, 10
"""Frames of a letter, and of the silence between words and at both ends."""


def sentence(text: str, speaker: str, seed: int) -> np.ndarray:
    """Samples of words spelled in tones without pauses, see ``tones``."""
    random = np.random.default_rng(seed)
    pitch = 1 + 0.15 * tones.SPEAKERS.index(speaker)
    parts = []
    for letter in f" {text} ":
        time = np.arange((SILENCE if letter == " " else LETTER) * 80) / tones.RATE
        hertz = tones.PITCH.get(letter, 0) * pitch
        parts.append(0.1 * np.sin(2 * np.pi * hertz * time))
    samples = np.concatenate(parts)
    return (samples + random.normal(0, 0.05, len(samples))).astype(np.float32)


def corpus(folder: pathlib.Path) -> pathlib.Path:
    """A folder of recordings of letters, with a dictionary that spells their words."""
    for seed, (split, count) in enumerate(COUNTS.items()):
        lines = ["path\tspeaker\ttext\n"]
        for row, each in enumerate(tones.spoken(count, seed, "words")):
            samples = sentence(each.text, each.speaker, 1000 * seed + row)
            soundfile.write(folder / f"{each.name}.wav", samples, tones.RATE)
            lines.append(f"{each.name}.wav\t{each.speaker}\t{each.text}\n")
        (folder / f"{split}.tsv").write_text("".join(lines))
    (folder / "words.dic").write_text("".join(f"{w} {' '.join(w)}\n" for w in tones.WORDS))
    return folder


@pytest.fixture(scope="module", name="config")
def _config(tmp_path_factory):
    folder = corpus(tmp_path_factory.mktemp("letters"))
    dictionary = str(folder / "words.dic")
    return states.Config(corpus=f"speech:{folder}", dictionary=dictionary, **SETTINGS)


@pytest.fixture(scope="module", name="data")
def _data(config):
    return load_data(config)


def task_of(data: Dataset) -> States:
    assert isinstance(data.task, States)
    return data.task


def spelled(table: Table) -> list[alignment.Words]:
    """The phones of the words of each recording."""
    return [
        [[["abcd".index(letter) for letter in word]] for word in text.split()]
        for text in table.extras["texts"]
    ]


# ---------------------------------------------------------------- alignment


def test_the_alignment_finds_the_letters(data):
    """The frames of letters and silence are known, except at their ends."""
    task = task_of(data)
    assert task.phones == ("a", "b", "c", "d", "SIL")
    table = data.splits["test"]
    paths = hybrid.by_recording(table["targets"], table.parts)
    right = total = 0
    for path, text in zip(paths, table.extras["texts"], strict=True):
        start = 0
        for letter in f" {text} ":
            length = SILENCE if letter == " " else LETTER
            phone = "SIL" if letter == " " else letter
            inside = [task.phones[state // 3] for state in path[start + 2 : start + length - 4]]
            right += inside.count(phone)
            total += len(inside)
            start += length
    assert right / total > 0.95


def test_transitions_by_hand():
    found = alignment.transitions([np.array([0, 0, 0, 1, 2, 2])], phones=3, states=1)
    added = alignment.ADDED
    expected = [
        (2 + added) / (3 + 2 * added),
        added / (1 + 2 * added),
        (1 + added) / (2 + 2 * added),
    ]
    np.testing.assert_allclose(np.exp(found.log_stay[:, 0]), expected)
    counts = np.full((4, 4), added)
    counts[3, 3] = 0
    for before, after in ((3, 0), (0, 1), (1, 2), (2, 3)):
        counts[before, after] += 1
    np.testing.assert_allclose(
        np.exp(found.log_bigram), counts / counts.sum(axis=1, keepdims=True), atol=1e-12
    )
    np.testing.assert_allclose(
        np.exp(found.log_prior), (np.array([3, 1, 2]) + added) / (6 + 3 * added)
    )


def test_the_gaussians_are_those_of_scipy():
    from scipy import stats

    random = np.random.default_rng(0)
    gaussians = alignment.Gaussians(random.normal(size=(4, 3)), random.uniform(0.5, 2, (4, 3)))
    frames = random.normal(size=(6, 3)).astype(np.float32)
    deviation = np.sqrt(gaussians.variance)[:, None]
    expected = stats.norm.logpdf(frames[None], gaussians.mean[:, None], deviation).sum(axis=2)
    found = gaussians.log_p([frames[:2], frames[2:]])
    assert [len(each) for each in found] == [2, 4]
    np.testing.assert_allclose(np.concatenate(found), expected.T, rtol=1e-4, atol=1e-4)


def test_viterbi_training_does_not_make_the_data_less_likely(data):
    """Each round raises the likelihood of the best path (Juang and Rabiner 1990)."""
    table = data.splits["train"]
    middle = np.asarray(table["inputs"][:, 2])
    frames = hybrid.by_recording(middle, table.parts)
    words = spelled(table)
    stay = np.full((5, 3), np.log(0.5))
    align = alignment.aligner(words, list(map(len, frames)), stay, silence=4)
    totals = []
    for rounds in (1, 2, 4, 8):
        gaussians = alignment.flat_start(
            frames, words, phones=5, states=3, silence=4, rounds=rounds
        )
        scores = gaussians.log_p(frames)
        paths = align(scores)
        totals.append(
            sum(s[np.arange(len(s)), p].sum() for s, p in zip(scores, paths, strict=True))
        )
    assert totals == sorted(totals)


def test_recordings_of_one_batch_are_aligned_as_alone(data):
    table, task = data.splits["test"], task_of(data)
    gaussians = alignment.Gaussians(np.array(task.means), np.array(task.variances))
    frames = hybrid.by_recording(np.asarray(table["inputs"][:, 2]), table.parts)
    words = spelled(table)
    stay = np.array(task.log_stay)
    scores = gaussians.log_p(frames)
    together = alignment.aligner(words, list(map(len, frames)), stay, silence=4)(scores)
    for row in (0, 5):
        alone = alignment.aligner([words[row]], [len(frames[row])], stay, silence=4)([scores[row]])
        np.testing.assert_array_equal(alone[0], together[row])
        np.testing.assert_array_equal(
            together[row], hybrid.by_recording(table["targets"], table.parts)[row]
        )


# ---------------------------------------------------------------- data


def test_windows_repeat_the_frames_at_the_ends(data):
    table = data.splits["test"]
    assert table["inputs"].shape[1:] == (5, 8 * 3)
    first = table["inputs"][: table.parts[0]]
    np.testing.assert_array_equal(first[0, 0], first[0, 2])
    np.testing.assert_array_equal(first[0, 3], first[1, 2])
    np.testing.assert_array_equal(first[-1, 4], first[-1, 2])
    assert sum(table.parts) == table.size == len(table["targets"])
    assert table.extras["phones"][0] == [c for c in table.extras["texts"][0] if c != " "]


def test_a_share_is_of_all_speakers_and_keeps_other_splits(config, data):
    part = load_data(dataclasses.replace(config, labelled=0.25))
    assert len(part.splits["train"].extras["texts"]) == COUNTS["train"] // 4
    for split in ("validation", "test"):
        np.testing.assert_array_equal(part.splits[split]["inputs"], data.splits[split]["inputs"])
    assert part.fingerprint != data.fingerprint


def test_labels_do_not_identify_the_data(data):
    changed = dataclasses.replace(
        data,
        splits={
            split: table.having(targets=np.zeros_like(table["targets"]))
            for split, table in data.tables.items()
        },
    )
    assert changed.fingerprint == data.fingerprint


def test_a_model_measures_other_recordings_with_its_own_gaussians(config, data, tmp_path):
    other = dataclasses.replace(config, corpus=f"speech:{corpus(tmp_path)}/test.tsv")
    found = load_data(other, task=data.task)
    assert list(found.splits) == ["test"]
    assert found.task == data.task
    np.testing.assert_array_equal(found.splits["test"]["targets"], data.splits["test"]["targets"])


def test_unknown_phones_and_short_recordings_are_named(config, data, tmp_path):
    folder = corpus(tmp_path)
    (folder / "more.dic").write_text((folder / "words.dic").read_text() + "zoo z oo\n")
    text = "".join(np.repeat(["bad "], 40)).strip()
    (folder / "test.tsv").write_text(
        f"path\tspeaker\ttext\n2-0.wav\tann\tzoo\n2-1.wav\tbob\t{text}\n"
    )
    other = dataclasses.replace(
        config, corpus=f"speech:{folder}/test.tsv", dictionary=str(folder / "more.dic")
    )
    with pytest.raises(train.DataError, match=r"fewer frames than its labels need: 2-1\.wav"):
        load_data(other, task=data.task)
    (folder / "test.tsv").write_text("path\tspeaker\ttext\n2-0.wav\tann\tzoo\n")
    with pytest.raises(
        train.DataError, match=r"phones that are not in training \('oo', 'z'\): 2-0\.wav"
    ):
        load_data(other, task=data.task)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"context": 4}, ("data.context=4", "an odd number")),
        ({"labelled": 0.0}, ("data.labelled=0.0", "above 0, at most 1")),
        ({"units": "words"}, ("data.units='words'", "'phones'")),
        ({"corpus": "mnist"}, ("data.corpus='mnist'", "an4", "timit:DIR")),
        ({"corpus": "speech:a"}, ("data.dictionary=''", "a file")),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=r".*") as caught:
        states.Config(**settings)
    assert all(word in str(caught.value) for word in words)


def test_timit_names_its_own_silence(tmp_path):
    timit(tmp_path)
    data = load_data(states.Config(corpus=f"timit:{tmp_path}", states=1, context=3))
    task = task_of(data)
    assert task.silence is None
    assert "h#" in task.phones
    assert task.scored[task.phones.index("h#")] == "sil"


# ---------------------------------------------------------------- a recipe with relabelling


def recipe_of(config: states.Config) -> Recipe:
    machine = Recipe(
        name="letters-machine",
        model=dbn.Config(sizes=(120, 24), visible_units="gaussian"),
        data=config,
        preprocess="none",
        select_by="reconstruction_error",
        optimizer=Optimizer(learning_rate=0.002, momentum=0.9),
        batch_size=64,
        epochs=1,
    )
    first = dataclasses.replace(
        machine,
        name="letters-first",
        model=mlp.Config(sizes=(120, 24, 15), activation="logistic"),
        optimizer=Optimizer(learning_rate=0.3, momentum=0.9),
        epochs=4,
        select_by="loss",
        after=machine,
    )
    return dataclasses.replace(first, name="letters", epochs=2, after=first, relabel=True)


@pytest.fixture(scope="module", name="folder")
def _folder(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid") / "run"
    train.run(recipe_of(config), folder, quiet=True)
    return folder


def test_a_stage_learns_what_the_one_before_assigns(config, data, folder):
    """Its labels are the best paths by the earlier network, computed here from its run folder."""
    module, cfg, params = train.load(folder / "stage-2")
    before, after = (RunFolder.open(path).data().task for path in (folder / "stage-2", folder))
    assert isinstance(before, States)
    assert isinstance(after, States)
    assert (before.log_prior, before.log_stay) != (after.log_prior, after.log_stay)
    table = data.splits["train"]
    log_p = np.asarray(jax.nn.log_softmax(module.apply(cfg, params, jnp.asarray(table["inputs"]))))
    scores = hybrid.by_recording(log_p - np.array(before.log_prior), table.parts)
    words = spelled(table)
    align = alignment.aligner(words, table.parts, np.array(before.log_stay), silence=4)
    paths = align(scores)
    found = alignment.transitions(paths, phones=5, states=3)
    np.testing.assert_allclose(found.log_prior, after.log_prior, atol=1e-3)
    assert np.mean(np.concatenate(paths) != table["targets"]) > 0.005, "some frames move"
    for path in (folder / "stage-2", folder):
        recorded = json.loads((path / "config.json").read_text())["data_fingerprint"]
        assert recorded == data.fingerprint


def test_an_interrupted_stage_resumes_on_the_same_labels(config, folder, tmp_path):
    """Bit for bit, although its labels are computed again."""
    stopped = tmp_path / "run"
    shutil.copytree(folder, stopped)
    (stopped / "summary.json").unlink()
    checkpoints = sorted(map(int, (each.name for each in (stopped / "checkpoints").iterdir())))
    assert len(checkpoints) > 1
    shutil.rmtree(stopped / "checkpoints" / str(checkpoints[-1]))
    train.run(recipe_of(config), stopped, quiet=True)
    left, right = (train.load(path)[2] for path in (stopped, folder))
    jax.tree.map(np.testing.assert_array_equal, left, right)


@needs_jiwer
def test_the_network_is_measured_beside_the_gaussians(folder):
    evaluation = evals.evaluate(folder)
    metrics = evaluation.metrics
    assert metrics["test PER %"] < 15
    assert metrics["test PER % of the Gaussian model"] < 40
    assert 60 < metrics["test frame accuracy %"] <= 100
    assert "chosen on the validation split" in evaluation.note
    assert "Gaussian model: PER: " in evaluation.note
    low, high = evaluation.intervals["test PER %"]
    assert low <= metrics["test PER %"] <= high
    assert evals.__main__.main([str(folder)]) == 0
    assert "Worst transcripts" in (folder / "report.html").read_text()


def test_recordings_are_transcribed_as_in_the_evaluation(folder, data):
    evaluation = evals.evaluate(folder)
    measured, table = evaluation.measured, data.splits["test"]
    assert isinstance(measured, Decoded)
    recordings = table.extras["recordings"]
    found = hybrid.transcribe(
        evaluation.run,
        [recordings.read(row) for row in range(len(recordings))],
        speakers=table.extras["speakers"],
        weights=measured.weights,
    )
    assert found == measured.transcripts
    assert hybrid.transcribe(evaluation.run, []) == []


def test_the_picture_shows_the_transcript_and_the_alignment(folder, data):
    evaluation = evals.evaluate(folder)
    measured, table = evaluation.measured, data.splits["test"]
    assert isinstance(measured, Decoded)
    rows = [3, 0]
    names = measured.pictures.names
    for row, heard in zip(rows, measured.pictures.hear(table, rows), strict=True):
        length = table.parts[row]
        assert heard.frames.shape == (length, 8)
        assert heard.outputs.shape == (length, 5)
        np.testing.assert_allclose(heard.outputs.sum(axis=1), 1, rtol=1e-4)
        assert tuple(names[spike.label] for spike in heard.found) == measured.transcripts[row]
        assert [names[label] for label in heard.reference] == table.extras["phones"][row]
        assert heard.places is not None
        targets = hybrid.by_recording(table["targets"], table.parts)[row]
        for place, target in zip(heard.places, targets, strict=True):
            silent = names[target // 3] == "SIL"
            assert (place < 0) == silent
            assert silent or heard.reference[place] == target // 3
    if importlib.util.find_spec("matplotlib") is not None:
        assert "middle of its frames" in str(utterances.example_utterance(evaluation))


def test_an_example_is_a_recording(folder):
    with pytest.raises(ValueError, match=f"example={COUNTS['test']}, allowed: 0 to 11"):
        evals.evaluate(folder, example=COUNTS["test"])


def test_splits_are_joined_with_their_recordings(data):
    joined = data.joined("train", "validation")
    assert joined.examples == COUNTS["train"] + COUNTS["dev"] == len(joined.extras["texts"])
    assert sum(joined.parts) == joined.size


def test_the_verb_prints_phones(folder, config, capsys):
    place = pathlib.Path(config.corpus.partition(":")[2])
    file = str(place / "2-0.wav")
    text = (place / "test.tsv").read_text().splitlines()[1].split("\t")[2]
    assert evals.__main__.main(["transcribe", str(folder), file]) == 0
    name, phones = capsys.readouterr().out.rstrip("\n").split("\t")
    assert name == file
    assert set(phones.split()) <= set(text)
    assert evals.__main__.main(["transcribe", str(folder), file, "--beam", "3"]) == 1
    assert "--beam and --lexicon are for models of zoo.ctc" in capsys.readouterr().err


def test_decoding_divides_by_the_prior_and_weighs_the_bigram():
    """By hand: three frames, two phones of one state."""
    task = States(
        phones=("a", "b"),
        silence=None,
        states=1,
        features=acoustics.Config(kind="mfcc"),
        normalise="utterance",
        context=1,
        means=(),
        variances=(),
        log_stay=((np.log(0.5),),) * 2,
        log_bigram=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0)),
        log_prior=(float(np.log(0.9)), float(np.log(0.1))),
    )
    log_p = [np.log(np.full((3, 2), [0.7, 0.3], np.float32))]

    def found(bigram: float, prior: float) -> list[tuple[str, ...]]:
        return hybrid.transcripts(task, log_p, Weights(bigram, prior))

    assert found(0.1, 0.0) == [("a",)], "more probable in each frame"
    assert found(0.1, 1.0) == [("b",)], "0.3 / 0.1 is more than 0.7 / 0.9"
    # Only starting with a costs anything; that outweighs one frame of log 7/3, less than 1.
    assert found(4.0, 0.0) == [("b", "a")]


@needs_jiwer
def test_weights_are_chosen_inside_the_range_that_is_tried():
    references = [("a",)] * 10

    def transcripts(weights: Weights) -> list[tuple[str, ...]]:
        wrong = abs(np.log2(weights.bigram) - 6.4) + (weights.prior != 0.5)
        return [("a",)] * (10 - round(min(wrong, 10))) + [("b",)] * round(min(wrong, 10))

    best = hybrid.chosen(transcripts, references)
    assert best.prior == 0.5
    assert 2**5.5 < best.bigram < 2**7


def test_only_data_with_such_labels_are_relabelled(tmp_path):
    first = Recipe(name="first", model=mlp.PRESETS["digits"])
    with pytest.raises(ValueError, match="relabel=True, allowed without an earlier stage"):
        dataclasses.replace(first, relabel=True)
    second = dataclasses.replace(first, name="second", after=first, relabel=True)
    with pytest.raises(ValueError, match="relabel=True, allowed for data digits: False"):
        train.run(second, tmp_path / "run", quiet=True)


def test_forms_of_corpora():
    assert str(parse("states:an4")) == "states:an4"
    assert parse("states:an4") == states.Config()
    assert hmm.IMPOSSIBLE < 0
    assert not isinstance(states.Config(), Transcription)
