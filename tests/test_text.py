"""Text as data: every token is predicted once from its predecessors; batches are contiguous."""

import gzip
import os
import pathlib

import numpy as np
import pytest

from train.data import load_data, text
from train.dataset import Dataset
from train.formats import DataError
from train.tasks import Language

ROOT = pathlib.Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere").absolute()
LINES = "the cat sat\n\non the mat\nthe end\n"


def folder(path: pathlib.Path, **texts: str) -> pathlib.Path:
    path.mkdir(exist_ok=True)
    for name, content in texts.items():
        (path / f"{name}.txt").write_text(content)
    return path


def vocabulary_of(dataset: Dataset) -> tuple[str, ...]:
    assert isinstance(dataset.task, Language)
    return dataset.task.vocabulary


def test_words_are_split_by_white_space_and_lines_end():
    assert text.words(LINES) == [
        "the",
        "cat",
        "sat",
        "<eos>",
        "on",
        "the",
        "mat",
        "<eos>",
        "the",
        "end",
        "<eos>",
    ]
    assert text.characters("a b\n") == ["a", " ", "b", "\n"]


def test_the_vocabulary_is_of_training_by_frequency_and_rare_words_are_unknown():
    words = text.Config(tokens="words", min_count=2)
    vocabulary = text.make_vocabulary([text.words(LINES), ["cat"]], words)
    assert vocabulary == ("<eos>", "<unk>", "the", "cat")
    assert text.encode(["the", "dog", "<eos>", "sat"], vocabulary).tolist() == [2, 1, 0, 1]
    assert text.decode([2, 3, 0], vocabulary) == "the cat \n"


def test_prompts_are_encoded_like_training_text_without_the_last_eos():
    vocabulary = ("<eos>", "<unk>", "the")
    assert text.begun("the cat", vocabulary) == ["the", "cat"]
    assert text.begun("", vocabulary) == []
    assert text.begun(LINES, vocabulary) == text.words(LINES)
    assert text.begun("ab\n", ("\n", "<unk>", "a", "b")) == ["a", "b", "\n"]


@pytest.mark.parametrize("length", [1, 3, 7, 8, 20])
def test_windows_predict_every_token_once(length):
    document = np.arange(2, 9, dtype=np.int32)
    table = text.windows(document, length)
    mask = table["mask"]
    np.testing.assert_array_equal(table["targets"][mask], document)
    np.testing.assert_array_equal(table["inputs"][mask], [text.BEGIN, *document[:-1]])
    assert table["reset"].tolist() == [True] + [False] * (len(mask) - 1)


def test_a_folder_has_a_file_for_each_split(tmp_path):
    path = folder(tmp_path / "mine", train="a b a\n" * 5, valid="b c\n", test="a\n")
    dataset = load_data(f"text:{path}", tokens="words", window=4)
    assert dataset.task == Language(("<eos>", "<unk>", "a", "b"), "words")
    assert {name: int(table["mask"].sum()) for name, table in dataset.splits.items()} == {
        "train": 20,
        "validation": 3,
        "test": 2,
    }
    assert dataset.splits["validation"]["targets"][0, :3].tolist() == [3, 1, 0]
    (path / "another-test.txt").write_text("x")
    with pytest.raises(DataError, match=r"2 files whose name contains test"):
        load_data(f"text:{path}")
    (path / "another-test.txt").unlink()
    (path / "README").write_text("x")
    assert load_data(f"text:{path}", tokens="words", window=4).notes[1:] == (
        f"not read: {path / 'README'}",
    )
    (path / "test.txt").rename(path / "latest-train.txt")
    with pytest.raises(
        DataError, match=r"latest-train.txt: its name contains test and train, expected one split"
    ):
        load_data(f"text:{path}")


def test_a_file_is_split_by_position(tmp_path):
    (tmp_path / "book.txt").write_text("".join(chr(97 + index % 26) for index in range(1000)))
    dataset = load_data(f"text:{tmp_path / 'book.txt'}")
    assert {name: int(table["mask"].sum()) for name, table in dataset.splits.items()} == {
        "train": 900,
        "validation": 50,
        "test": 50,
    }


@pytest.mark.parametrize("space", ["\n", " "])
def test_a_file_of_words_is_cut_between_lines_or_at_least_words(tmp_path, space):
    names = [f"w{index:03}" for index in range(400)]
    lines = [" ".join(names[first : first + 7]) for first in range(0, 400, 7)]
    (tmp_path / "book.txt").write_text(
        space.join(lines) + "\n\n"
    )  # after which there is nothing to cut
    documents, _ = text.from_path(tmp_path / "book.txt", text.Config(tokens="words"))
    parts = [part for (part,) in documents.values()]
    assert [word for part in parts for word in part.split()] == names
    assert all(part.endswith(space) for part in parts[:2])
    assert [len(part.split()) for part in parts[1:]] == pytest.approx([20, 20], abs=7)


def test_blank_lines_and_one_long_line_take_linear_time(tmp_path):
    """In quadratic time these would take hours."""
    file = tmp_path / "book.txt"
    for content in (
        "word\n" * 10 + "\n" * 20_000_000 + "end",
        "word " + " " * 20_000_000 + "end",
        "x" * 20_000_000,
    ):
        file.write_text(content)
        documents, _ = text.from_path(file, text.Config(tokens="words"))
        parts = [part for (part,) in documents.values()]
        assert "".join(parts) == content


def test_byte_order_marks_and_line_endings_are_normalised(tmp_path):
    content = "".join(f"line {number % 7}\n" for number in range(300))
    plain = None
    for end in ("\n", "\r\n", "\r"):
        for mark in (b"", b"\xef\xbb\xbf"):
            (tmp_path / "book.txt").write_bytes(mark + content.replace("\n", end).encode())
            (tmp_path / "book.TXT.GZ").write_bytes(
                gzip.compress((tmp_path / "book.txt").read_bytes())
            )
            for name in ("book.txt", "book.TXT.GZ"):
                dataset = load_data(f"text:{tmp_path / name}")
                plain = plain or dataset
                assert (dataset.task, dataset.fingerprint) == (plain.task, plain.fingerprint)


def test_only_a_line_feed_ends_a_line_of_words():
    assert text.words("one\x0btwo\x0cthree\u2028four\x85five\r\n\x1c\nsix") == [
        "one", "two", "three", "four", "five", "<eos>", "six", "<eos>",
    ]  # fmt: skip


def test_notes_report_token_counts_and_unknown_held_out_tokens(tmp_path):
    path = folder(tmp_path / "mine", train="a b a\n" * 5, valid="b c\n", test="a\n")
    (note,) = load_data(f"text:{path}", tokens="words").notes
    assert note == "4 words, 20 tokens in training, 20.00 % of the held-out ones unknown"


def test_the_embedded_topics_are_english_and_split_by_topic():
    dataset = load_data("topics")
    tokens = {name: int(table["mask"].sum()) for name, table in dataset.splits.items()}
    assert tokens["train"] > 200_000
    assert min(tokens.values()) > 5_000
    assert {" ", "e", "\n"} <= set(vocabulary_of(dataset))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\n\xff\n", "not UTF-8"),
        ("one\ntwo".encode("utf-16"), "UTF-16; expected text in UTF-8"),
        ("one\ntwo".encode("utf-16-le"), "a NUL character after 1 bytes, as in UTF-16"),
        (b"one\0two", "a NUL character after 3 bytes"),
        (b"", "no characters in the train split"),
        (None, "no such file"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    file = tmp_path / "bad.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.txt.*{message}|{message}.*bad\.txt"):
        load_data(f"text:{file}")


@pytest.mark.parametrize(
    ("field", "value"), [("tokens", "syllables"), ("window", 0), ("min_count", 1.5)]
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}, allowed"):
        text.Config(**{field: value})


# ---------------------------------------------------------------- data sets of their own


@pytest.mark.skipif(
    not (ROOT / "brown").is_dir(), reason="needs the Brown corpus in $ZOO_DATA_DIR/brown"
)
def test_brown_has_its_words_documents_and_splits(monkeypatch):
    monkeypatch.setenv("ZOO_DATA_DIR", str(ROOT))
    documents = text.brown(ROOT / "brown")
    assert {split: len(texts) for split, texts in documents.items()} == {
        "train": 414,
        "validation": 45,
        "test": 41,
    }
    words = sum(len(part.split()) for texts in documents.values() for part in texts)
    assert words == 1_161_192, "as its manual says"
    assert documents["train"][0].startswith(
        "The Fulton County Grand Jury said Friday an investigation of Atlanta's"
    )
    dataset = load_data("brown", tokens="words", window=35, min_count=4)
    tokens = {split: int(table["mask"].sum()) for split, table in dataset.splits.items()}
    assert tokens == {"train": 1_009_324, "validation": 109_690, "test": 99_518}
    assert len(vocabulary_of(dataset)) == 15_882


@pytest.mark.skipif(
    not (ROOT / "tinyshakespeare").is_dir(), reason="needs $ZOO_DATA_DIR/tinyshakespeare/input.txt"
)
def test_tinyshakespeare_is_split_by_position(monkeypatch):
    monkeypatch.setenv("ZOO_DATA_DIR", str(ROOT))
    dataset = load_data("tinyshakespeare")
    tokens = {split: int(table["mask"].sum()) for split, table in dataset.splits.items()}
    assert tokens == {"train": 1_003_854, "validation": 55_770, "test": 55_770}
    assert len(vocabulary_of(dataset)) == 66, "65 characters and <unk>"


def test_missing_corpus_error_names_the_location(monkeypatch):
    monkeypatch.delenv("ZOO_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=r"ca01 .* cr09 .*DIR/brown/ .*ZOO_DATA_DIR"):
        load_data("brown")
