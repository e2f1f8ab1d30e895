r"""Text as data: tokens, which are characters or words, in windows of which each goes on where the one before ended.

A *document* is a text of lines.  Its characters are its tokens; or its words, which white space separates, with "<eos>" at the
end of each line that has any.  Token 0 ("\n" or "<eos>") stands before every document, so that its first token is predicted too;
token 1 is "<unk>".  The vocabulary is that of the training documents; what occurs elsewhere only is "<unk>".

    topics           English text that every Python brings along: its help topics (``pydoc_data.topics``), by topic
    brown            DIR/brown: the Brown corpus (Francis and Kucera 1964), 500 documents ca01 ... cr09 of lines of word/tag
    tinyshakespeare  DIR/tinyshakespeare/input.txt: the char-rnn set
    text:PATH        a file, or a folder with one file each whose name holds train, valid (or val, dev) or test

Of documents in the order of their names (Brown: of their numbers' last digits) every tenth tests and every ninth validates, as
usual for Brown; of a single file the last 5 % of the characters test, and the 5 % before validate; words are cut at the next line
end, where there is one within these 5 %, or white space.
"""

import collections
import dataclasses
import importlib
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from train.data.base import Finder, Form, Source, just, missing, named, path_after
from train.dataset import SPLIT_OF, SPLITS, WORDS, Dataset
from train.formats import DataError, not_read, read_text, reading, visible
from train.places import download
from train.tasks import Language

BEGIN, UNKNOWN = 0, 1
"""Tokens of every vocabulary: the end of a line, and what is not in it."""
Documents = dict[str, list[str]]
"""{split: texts}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """Which text, and how it is read."""

    kind: ClassVar[str] = "text"
    identity: ClassVar[tuple[str, ...]] = ("corpus", "path")
    counts: ClassVar[tuple[str, ...]] = ("window", "min_count")
    corpus: Literal["", "topics", "brown", "tinyshakespeare"] = ""
    """A text known by name; "" for that of a path."""
    path: str = ""
    """A file or folder."""
    tokens: Literal["characters", "words"] = "characters"
    window: int = 64
    """Tokens of an example: backpropagation goes back so far, what is carried along farther."""
    min_count: int = 1
    """Tokens that occur less often in the training documents are <unk>."""

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
                files = "the 500 files ca01 ... cr09 of the Brown corpus (nltk_data's corpora/brown.zip)"
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
    """Each split as windows, and the vocabulary, which is that of the training documents unless given.

    Raises DataError, which names the source, when a split has no token.
    A table: inputs, targets int32 [windows, window], the target being the next token; mask of the same shape; reset [windows]:
    where a document begins.  A document's last window is padded.
    """
    split_up = characters if cfg.tokens == "characters" else words
    tokens = {
        split: [part for part in map(split_up, texts) if part] for split, texts in documents.items()
    }
    for split, parts in tokens.items():
        if not parts:
            raise DataError(f"{source}: no {cfg.tokens} in the {split} split")
    vocabulary = vocabulary or make_vocabulary(tokens["train"], cfg)
    made = {}
    for split, parts in tokens.items():
        pieces = [windows(encode(part, vocabulary), cfg.window) for part in parts]
        made[split] = {
            name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]
        }
    return made, vocabulary


def characters(text: str) -> list[str]:
    """Each character."""
    return list(text)


def words(text: str) -> list[str]:
    """Words and line ends."""
    return [
        word
        for line in text.split("\n")
        for word in ([*line.split(), "<eos>"] if line.strip() else [])
    ]


def make_vocabulary(documents: Sequence[Sequence[str]], cfg: Config) -> tuple[str, ...]:
    """The two special tokens, then those of the documents by frequency, ties by name."""
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
    """The tokens of a text that goes on, characters or words as a vocabulary has them: a line without an end has no "<eos>"."""
    return characters(text) if vocabulary[BEGIN] == "\n" else words(f"{text} more")[:-2]


def decode(tokens: Iterable[int], vocabulary: Sequence[str]) -> str:
    """Tokens as a text."""
    parts = [vocabulary[token] for token in tokens]
    if vocabulary[BEGIN] == "\n":
        return "".join(parts)
    return "".join("\n" if part == "<eos>" else f"{part} " for part in parts)


def windows(document: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """A document's tokens [tokens] in windows: see ``tables``."""
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
    """Python's help topics."""
    texts = importlib.import_module("pydoc_data.topics").topics
    return _every_tenth({str(number): texts[name] for number, name in enumerate(sorted(texts))})


def brown(folder: pathlib.Path) -> Documents:
    """The Brown corpus.  Raises DataError naming what is missing or is not its format."""
    with reading(folder):
        files = sorted(file for file in folder.glob("c[a-r][0-9][0-9]"))
        if len(files) != 500:
            raise DataError(
                f"{folder}: {len(files)} documents ca01 ... cr09, expected the 500 of the Brown corpus"
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
    """By the last digit of their names: 0 tests, 9 validates."""
    split_of: Callable[[str], str] = lambda name: {"0": "test", "9": "validation"}.get(
        name[-1], "train"
    )
    return {
        split: [text for name, text in texts.items() if split_of(name) == split] for split in SPLITS
    }


def from_path(
    path: pathlib.Path, cfg: Config, *, divide: bool = True
) -> tuple[Documents, tuple[str, ...]]:
    """A file, or a folder of three, and a note of its other files.

    divide: whether a file is divided into splits, or tests as a whole.
    Raises DataError naming the file that is not UTF-8, too large or missing, or whose name says two splits.
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
            said = {
                split
                for word, split in SPLIT_OF.items()
                if word in file.name.lower() and file.is_file()
            }
            if len(said) > 1:
                raise DataError(
                    f"{file}: its name says {' and '.join(sorted(said))}, expected one split"
                )
            files[said.pop() if said else ""].append(file)
        for split, words in WORDS.items():
            if len(files[split]) != 1:
                holds = f"{len(files[split])} files whose name holds {' or '.join(words)}"
                raise DataError(f"{path}: {holds}, expected one of each split")
        return {split: [read_text(files[split][0])] for split in SPLITS}, not_read(files[""])


def _cut(text: str, percent: int, cfg: Config) -> int:
    """Where the first so many per cent end: not within a line, or at least not within a word, where words are tokens."""
    first, last = len(text) * percent // 100, len(text) * (percent + 5) // 100 - 1
    if cfg.tokens == "words":
        begin = max(first - 1, 0)
        line = text.find("\n", begin, last) + 1
        if line and text[line:last].strip():
            return line
        if found := re.compile(r"\s(?=\S)").search(text, begin, last):
            return found.end()
    return first
