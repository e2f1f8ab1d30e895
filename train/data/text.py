r"""Language modelling: text as characters or words, in consecutive windows.

    topics           Python's own help topics in English (``pydoc_data.topics``), one document each
    brown            DIR/brown: the Brown corpus (Francis and Kucera 1964), 500 documents
                     ca01 ... cr09 with lines of word/tag
    tinyshakespeare  DIR/tinyshakespeare/input.txt: the char-rnn set
    text:PATH        a file; or a folder with three files, whose names contain train, valid (or val,
                     dev) and test

The tokens of a *document* are its characters; or its words, separated by white space, with "<eos>"
at the end of each line that is not blank.  Token 0 ("\n" or "<eos>") is the first input of every
document, so its first token is predicted too.  Token 1 is "<unk>", for tokens that do not occur in
the training documents.

Documents are split by the last digit of their names (Brown) or of their position in the order of
names: 0 for test, 9 for validation, as usual for Brown.  A single file is split by characters: the
last 5 % are for test, the 5 % before for validation.  With words, a cut moves to the next line end
within these 5 %, or else to the next white space.
"""

import collections
import dataclasses
import importlib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from train.data.base import Finder, Form, Source, just, missing, named, path_after
from train.dataset import SPLIT_OF, SPLITS, WORDS, Dataset
from train.formats import DataError, not_read, read_text, reading, visible
from train.places import download
from train.tasks import Language

BEGIN, UNKNOWN = 0, 1
"""Tokens of every vocabulary: the end of a line, and unknown tokens."""
Documents = dict[str, list[str]]
"""{split: texts}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """A text for language modelling."""

    kind: ClassVar[str] = "text"
    identity: ClassVar[tuple[str, ...]] = ("corpus", "path")
    counts: ClassVar[tuple[str, ...]] = ("window", "min_count")
    corpus: Literal["", "topics", "brown", "tinyshakespeare"] = ""
    """A named text; "" for a path."""
    path: str = ""
    """A file or folder."""
    tokens: Literal["characters", "words"] = "characters"
    window: int = 64
    """Tokens per window: backpropagation is truncated to it, while the carried state continues."""
    min_count: int = 1
    """Tokens that occur less often in the training documents become <unk>."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        super().__post_init__()
        self._require_one("corpus", "path")

    def __str__(self) -> str:
        return self.corpus or f"text:{self.path}"


FORMS = {
    "topics": Form("topics", "Python's help topics, embedded", just(Config(corpus="topics"))),
    "brown": Form("brown", "the Brown corpus", just(Config(corpus="brown"))),
    "tinyshakespeare": Form(
        "tinyshakespeare", "the char-rnn set", just(Config(corpus="tinyshakespeare"))
    ),
    "text": Form(
        "text:PATH", "a text, or one for each split", path_after(lambda path: Config(path=path))
    ),
}
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
SHAKESPEARE_MD5 = "6fb458f1232090904fb40fe944165e91"


def load(cfg: Config, find: Finder) -> Dataset:
    """Windows of tokens, see ``tables``."""
    task = find.task_of(Language, cfg)
    documents, notes = _documents(cfg, find)
    splits, vocabulary = tables(named(cfg), documents, cfg, task.vocabulary if task else ())
    if find.divide:
        tokens = {split: table["targets"][table["mask"]] for split, table in splits.items()}
        held_out = np.concatenate([tokens["validation"], tokens["test"]])
        unknown = 100 * (held_out == UNKNOWN).mean()
        counted = f"{len(vocabulary):,} {cfg.tokens}, {len(tokens['train']):,} tokens in training"
        notes = (f"{counted}, {unknown:.2f} % of the held-out ones unknown", *notes)
    return Dataset(str(cfg), splits, Language(vocabulary, cfg.tokens), notes=notes)


def _documents(cfg: Config, find: Finder) -> tuple[Documents, tuple[str, ...]]:
    match cfg.corpus:
        case "topics":
            return topics(), ()
        case "brown":
            folder = find.within("brown")
            if folder is None:
                files = (
                    "the 500 files ca01 ... cr09 of the Brown corpus "
                    "(nltk_data's corpora/brown.zip)"
                )
                raise missing(cfg, f"{files} into DIR/brown/")
            return brown(folder), ()
        case "tinyshakespeare":
            file = find.within("tinyshakespeare", "input.txt")
            file = file or download(cfg.corpus, "input.txt", SHAKESPEARE_MD5, (SHAKESPEARE,))
            return from_path(file, cfg, divide=find.divide)[0], ()
    return from_path(find(cfg.path), cfg, divide=find.divide)


def tables(
    source: str, documents: Documents, cfg: Config, vocabulary: tuple[str, ...] = ()
) -> tuple[dict[str, dict[str, np.ndarray]], tuple[str, ...]]:
    """Each split as windows, and the vocabulary.

    source: for error messages.  vocabulary: by default that of the training documents.
    A table has inputs, targets int32 and mask bool [windows, window], where targets are the next
    tokens, and reset bool [windows]: where a document begins.  A document's last window is padded.
    Raises DataError if a split has no tokens.
    """
    split_up = characters if cfg.tokens == "characters" else words
    tokens = {
        split: [part for part in map(split_up, texts) if part] for split, texts in documents.items()
    }
    for split, parts in tokens.items():
        if not parts:
            raise DataError(f"{source}: no {cfg.tokens} in the {split} split")
    vocabulary = vocabulary or make_vocabulary(tokens["train"], cfg)
    splits = {}
    for split, parts in tokens.items():
        pieces = [windows(encode(part, vocabulary), cfg.window) for part in parts]
        splits[split] = {
            name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]
        }
    return splits, vocabulary


def characters(text: str) -> list[str]:
    """The characters."""
    return list(text)


def words(text: str) -> list[str]:
    """The words, with "<eos>" at the end of lines."""
    return [
        word
        for line in text.split("\n")
        for word in ([*line.split(), "<eos>"] if line.strip() else [])
    ]


def make_vocabulary(documents: Sequence[Sequence[str]], cfg: Config) -> tuple[str, ...]:
    """The two special tokens, then those of the documents by frequency, ties in order."""
    special = ("\n" if cfg.tokens == "characters" else "<eos>", "<unk>")
    counts = collections.Counter(token for document in documents for token in document)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return special + tuple(
        token for token, count in ordered if count >= cfg.min_count and token not in special
    )


def encode(tokens: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    """Tokens as indices, int32 [tokens]."""
    index = {token: number for number, token in enumerate(vocabulary)}
    return np.fromiter((index.get(token, UNKNOWN) for token in tokens), np.int32, len(tokens))


def begun(text: str, vocabulary: Sequence[str]) -> list[str]:
    """Tokens of an unfinished text, characters or words depending on the vocabulary.

    The last line gets no "<eos>" unless it has a line end.
    """
    return characters(text) if vocabulary[BEGIN] == "\n" else words(f"{text} more")[:-2]


def decode(tokens: Iterable[int], vocabulary: Sequence[str]) -> str:
    """The text of tokens."""
    parts = [vocabulary[token] for token in tokens]
    if vocabulary[BEGIN] == "\n":
        return "".join(parts)
    return "".join("\n" if part == "<eos>" else f"{part} " for part in parts)


def windows(document: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Splits a document's tokens [tokens] into windows: see ``tables``."""
    rows = -(-len(document) // length)
    padded = np.full(rows * length + 1, BEGIN, np.int32)
    padded[1 : len(document) + 1] = document
    mask = np.arange(rows * length) < len(document)
    shape = (rows, length)
    columns = {
        "inputs": padded[:-1].reshape(shape),
        "targets": padded[1:].reshape(shape),
        "mask": mask.reshape(shape),
    }
    return columns | {"reset": np.arange(rows) == 0}


def topics() -> Documents:
    """Python's help topics as documents."""
    texts = importlib.import_module("pydoc_data.topics").topics
    return _every_tenth({str(number): texts[name] for number, name in enumerate(sorted(texts))})


def brown(folder: pathlib.Path) -> Documents:
    """The Brown corpus.  Raises DataError naming the missing or malformed file."""
    with reading(folder):
        files = sorted(file for file in folder.glob("c[a-r][0-9][0-9]"))
        if len(files) != 500:
            raise DataError(
                f"{folder}: {len(files)} documents ca01 ... cr09, "
                "expected the 500 of the Brown corpus"
            )
        return _every_tenth({file.name: _untagged(file) for file in files})


def _untagged(file: pathlib.Path) -> str:
    lines = []
    for line in file.read_text("latin-1").split("\n"):
        tagged = line.split()
        for word in tagged:
            if "/" not in word:
                raise DataError(f"{file}: {word!r}, expected word/tag")
        lines.append(" ".join(word.rpartition("/")[0] for word in tagged))
    return "\n".join(line for line in lines if line) + "\n"


def _every_tenth(texts: Mapping[str, str]) -> Documents:
    """Splits by the last digit of the names: 0 is for test, 9 for validation."""

    def split_of(name: str) -> str:
        return {"0": "test", "9": "validation"}.get(name[-1], "train")

    return {
        split: [text for name, text in texts.items() if split_of(name) == split] for split in SPLITS
    }


def from_path(
    path: pathlib.Path, cfg: Config, *, divide: bool = True
) -> tuple[Documents, tuple[str, ...]]:
    """Reads a file, or a folder with a file per split; returns also a note on other files.

    divide: whether to divide a single file into splits; else it is the test split.
    Raises DataError naming a file that is not UTF-8, too large, missing or named after two splits.
    """
    with reading(path):
        if not path.is_dir():
            text = read_text(path)
            if not divide:
                return {"test": [text]}, ()
            first, second = (_cut(text, percent, cfg) for percent in (90, 95))
            return {
                "train": [text[:first]],
                "validation": [text[first:second]],
                "test": [text[second:]],
            }, ()
        files: dict[str, list[pathlib.Path]] = {split: [] for split in ("", *SPLITS)}
        for file in visible(path):
            mentioned = {
                split
                for word, split in SPLIT_OF.items()
                if word in file.name.lower() and file.is_file()
            }
            if len(mentioned) > 1:
                raise DataError(
                    f"{file}: its name contains {' and '.join(sorted(mentioned))}, "
                    "expected one split"
                )
            files[mentioned.pop() if mentioned else ""].append(file)
        for split, words in WORDS.items():
            if len(files[split]) != 1:
                holds = f"{len(files[split])} files whose name contains {' or '.join(words)}"
                raise DataError(f"{path}: {holds}, expected one of each split")
        return {split: [read_text(files[split][0])] for split in SPLITS}, not_read(files[""])


def _cut(text: str, percent: int, cfg: Config) -> int:
    """Where to cut the text after this many per cent.

    With words, at the next line end, or else the next white space.
    """
    first, last = len(text) * percent // 100, len(text) * (percent + 5) // 100 - 1
    if cfg.tokens == "words":
        begin = max(first - 1, 0)
        line = text.find("\n", begin, last) + 1
        if line and text[line:last].strip():
            return line
        if space := re.compile(r"\s(?=\S)").search(text, begin, last):
            return space.end()
    return first
