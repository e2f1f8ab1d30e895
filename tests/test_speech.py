"""Corpora of speech as data sets: labels, speakers of each split, and bad recordings."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest
import soundfile

from tests.test_utterances import librispeech, sound, timit, tone
from train import tasks
from train.data import DataError, load_data, parse
from train.data import timit as timit_kind
from train.dataset import Dataset
from train.utterances import PHONES_61

RATE = 16_000


def task_of(data: Dataset) -> tasks.Transcription:
    assert isinstance(data.task, tasks.Transcription)
    return data.task


def corpus(folder: pathlib.Path, texts: dict[str, list[str]], name: str = "all.tsv"):
    """A TSV file; texts: {speaker: sentences}."""
    lines = ["path\tspeaker\ttext\n"]
    for speaker, sentences in texts.items():
        for index, text in enumerate(sentences):
            file = f"{name[:-4]}-{speaker}-{index}.wav"
            (folder / file).write_bytes(sound(tone(seconds=0.4 + 0.1 * index)))
            lines.append(f"{file}\t{speaker}\t{text}\n")
    (folder / name).write_text("".join(lines))
    return folder / name


MANY = {f"s{number:02}": ["a bad cab", "dab"] for number in range(20)}


def test_a_manifest_alone_is_divided_by_speaker(tmp_path):
    data = load_data(f"speech:{corpus(tmp_path, MANY)}")
    speakers = {split: set(table.extras["speakers"]) for split, table in data.splits.items()}
    assert {split: len(each) for split, each in speakers.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    assert not speakers["train"] & speakers["test"]
    assert not speakers["validation"] & (speakers["train"] | speakers["test"])
    assert task_of(data).vocabulary == ("", " ", "a", "b", "c", "d")
    recordings = data.splits["test"].extras["recordings"]
    assert recordings[0] == "all-s00-0.wav", "the name does not say where the corpus is"
    assert recordings.read(0).shape == (round(0.4 * RATE),)


def test_a_folder_has_its_own_splits(tmp_path):
    corpus(tmp_path, {"ann": ["ab"], "bob": ["ba"]}, "train.tsv")
    corpus(tmp_path, {"eve": ["a"]}, "dev.tsv")
    corpus(tmp_path, {"ann": ["b"]}, "test.tsv")
    data = load_data(f"speech:{tmp_path}")
    assert {split: table.size for split, table in data.splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    assert "test: 1 of its speakers are also in training" in data.notes


def test_the_model_of_one_corpus_is_measured_on_another(tmp_path):
    train, other = tmp_path / "train", tmp_path / "other"
    train.mkdir()
    other.mkdir()
    task = load_data(f"speech:{corpus(train, MANY)}", bands=10).task
    data = load_data(f"speech:{corpus(other, {'zoe': ['cab', 'bad']})}", task=task)
    assert list(data.splits) == ["test"]
    assert data.task == task
    assert data.splits["test"]["inputs"]["frames"].shape[-1] == 10


def test_words_and_phones(tmp_path):
    file = corpus(tmp_path, MANY)
    assert task_of(load_data(f"speech:{file}", units="words")).vocabulary == (
        "",
        "a",
        "bad",
        "cab",
        "dab",
    )
    dictionary = tmp_path / "words.dic"
    dictionary.write_text("a  AH\nbad  B AE D\ncab  K AE B\ncab(2)  S AE B\n")
    with pytest.raises(DataError, match=r"words that the dictionary lacks \(dab\): .*on_bad=skip"):
        load_data(f"speech:{file}", units="phones", dictionary=str(dictionary))
    data = load_data(f"speech:{file}", units="phones", dictionary=str(dictionary), on_bad="skip")
    assert data.notes[0] == "left out: 20 recordings, words that the dictionary lacks (dab)"
    table = data.splits["train"]
    first = [task_of(data).vocabulary[label] for label in table["targets"][0] if label]
    assert first == ["AH", "B", "AE", "D", "K", "AE", "B"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not a sound file", "not an audio file, or damaged"),
        (sound(np.zeros(8000)), "silent: all samples are equal"),
        (sound(tone())[:-1000], "truncated"),
    ],
)
def test_bad_recordings_are_one_line_or_left_out(tmp_path, content, message):
    file = corpus(tmp_path, MANY)
    (tmp_path / "all-s05-1.wav").write_bytes(content)
    with pytest.raises(DataError) as error:
        load_data(f"speech:{file}")
    text = str(error.value)
    assert message in text
    assert "all-s05-1.wav" in text
    assert "\n" not in text
    assert text.endswith("data.on_bad=skip leaves them out")
    data = load_data(f"speech:{file}", on_bad="skip")
    assert sum(table.size for table in data.splits.values()) == 39


def test_recordings_of_other_formats(tmp_path):
    file = corpus(tmp_path, MANY)
    expected = load_data(f"speech:{file}").splits["train"]["inputs"]
    stereo = np.stack([tone(44_100, 0.4)] * 2, axis=1)
    soundfile.write(tmp_path / "all-s03-0.wav", stereo, 44_100, subtype="PCM_24")
    found = load_data(f"speech:{file}").splits["train"]["inputs"]
    np.testing.assert_array_equal(found["lengths"], expected["lengths"])


def test_librispeech_and_timit(tmp_path):
    books = tmp_path / "LibriSpeech"
    texts = ["HELLO", "ON A HILL"]
    for number, subset in enumerate(("train-clean-100", "dev-clean", "test-clean")):
        for speaker in (f"{10 + number}", f"{20 + number}"):
            librispeech(books, subset, speaker, "7", texts)
    data = load_data(f"librispeech:{books}")
    assert {split: table.size for split, table in data.splits.items()} == {
        "train": 4,
        "validation": 4,
        "test": 4,
    }
    assert data.splits["test"].extras["texts"] == (*texts, *texts)


def test_timit_has_61_phones_of_which_39_count(tmp_path):
    timit(tmp_path)
    data = load_data(f"timit:{tmp_path}", on_bad="skip")
    assert set(task_of(data).vocabulary[1:]) <= set(PHONES_61)
    counted = dict(zip(task_of(data).vocabulary, task_of(data).scored, strict=True))
    assert counted["h#"] == "sil"
    assert counted[""] == ""
    assert task_of(data).units == "phones"


@pytest.mark.parametrize(
    ("form", "fields", "message"),
    [
        ("an4x", {}, "no such set; did you mean 'an4'"),
        ("an4:", {}, "expected an4 or an4:DIR"),
        ("speech", {}, "expected speech:PATH"),
        ("speech:a", {"units": "phones"}, "data.dictionary='', allowed here: a file, which units"),
        ("an4", {"dictionary": "a"}, "data.dictionary='a', allowed here: ''"),
        ("timit:a", {"units": "words"}, "data.units='words', allowed: 'phones'"),
        ("speech:nowhere", {}, "nowhere"),
    ],
)
def test_invalid_forms_and_options_are_named(form, fields, message):
    with pytest.raises(ValueError, match=message):
        load_data(form, **fields)


def test_settings_carry_over_to_another_corpus():
    source = dataclasses.replace(parse("an4"), units="phones", bands=30)
    other = parse("timit:x", like=source)
    assert other == timit_kind.Config(path="x", bands=30)


@pytest.mark.skipif(
    not (pathlib.Path(os.environ.get("ZOO_DATA_DIR", "")) / "an4").is_dir(),
    reason="needs ZOO_DATA_DIR with an4",
)
def test_an4_as_published():
    data = load_data("an4", units="phones")
    assert {split: table.size for split, table in data.splits.items()} == {
        "train": 850,
        "validation": 98,
        "test": 130,
    }
    assert len(task_of(data).vocabulary) == 34
    assert data.splits["test"]["mask"].sum() == 2018
    assert len(task_of(data).words) == 101
    characters = load_data("an4")
    assert characters.splits["test"]["mask"].sum() == 2565


def test_a_missing_an4_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_DATA_DIR", raising=False)
    for name in ("an4", "states:an4"):
        with pytest.raises(DataError, match=r"data 'an4': not found\.  Put an4/ with train\.tsv"):
            load_data(name, tmp_path)
