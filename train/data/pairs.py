r"""Translation: pairs of a source and a target sentence, in batches of similar length.

    numbers-en-fr      numbers from 0 to 999,999 in English and French words, or any two languages
                       of ``num2words``: 10,000 train, 1,000 validation and 1,000 test pairs, all
                       different
    multi30k-en-fr     DIR/multi30k: captions of pictures; test_2016_flickr is the test split
    pairs:SRC,TGT      two files with the same number of lines, one sentence per line; or
                       pairs:FILE.tsv, one file with both sentences separated by a tab.  UTF-8,
                       plain or gzipped.  "{split}" in the names stands for train; validation,
                       valid, val or dev; and test.  Without it, the last 5 % of the lines are for
                       test, the 5 % before for validation

``train.tokens`` is fitted to the training sentences; the tokenizers are stored with the run.

A table has inputs: {"source": int32 [n, source time], "lengths": [n], "target": [n, time]}, and
targets and mask [n, time].  Sentences end with token 0, "</s>"; "lengths" of sources include it.
"target" are the decoder inputs: the targets shifted by one, starting with "</s>".  The sampler
groups sentences into length buckets and pads all sentences of a batch to their bucket's length.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from train.data.base import Finder, Form, Sentences, missing, named, path_after
from train.dataset import WORDS, Bad, Columns, Dataset, Table
from train.formats import DataError, read_byte_lines
from train.samplers import Bucketed, bucket_edges, bucket_of
from train.tasks import Translation
from train.tokens import UNKNOWN, packed, teacher_forcing
from train.tokens import fit as fit_tokenizer

NAMES = WORDS | {"test": (*WORDS["test"], "test_2016_flickr")}
"""Words that "{split}" stands for."""
NUMBERS = {"train": 10_000, "validation": 1_000, "test": 1_000}
SIDES = ("source", "target")
CORPUS = "numbers-[^-]+-[^-]+|multi30k-en-fr"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sentences):
    """Pairs of sentences."""

    kind: ClassVar[str] = "pairs"
    identity: ClassVar[tuple[str, ...]] = ("corpus", "source", "target")
    counts: ClassVar[tuple[str, ...]] = (*Sentences.counts, "buckets")
    corpus: str = ""
    """numbers-en-fr (or any two languages of num2words) or multi30k-en-fr; "" for files."""
    source: str = ""
    """A file of source sentences, or a TSV with both sentences."""
    target: str = ""
    """A file of target sentences; "" for a TSV."""
    buckets: int = 6
    """Number of length buckets: fewer compile faster, more need less padding."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        super().__post_init__()
        if self.corpus and not re.fullmatch(CORPUS, self.corpus):
            raise ValueError(
                f"data.corpus={self.corpus!r}, allowed: numbers-en-fr and the like, multi30k-en-fr"
            )
        self._require_one("corpus", "source", "target")

    def __str__(self) -> str:
        files = f"{self.source},{self.target}" if self.target else self.source
        return self.corpus or f"pairs:{files}"


def _files(rest: str) -> Config:
    source, _, target = rest.partition(",")
    return Config(source=source, target=target)


def _languages(rest: str) -> Config:
    if not re.fullmatch("-[^-]+-[^-]+", rest):
        raise ValueError("expected numbers-LANGUAGE-LANGUAGE, such as numbers-en-fr")
    return Config(corpus=f"numbers{rest}")


def _multi30k(rest: str) -> Config:
    if rest != "-en-fr":
        raise ValueError("expected multi30k-en-fr")
    return Config(corpus="multi30k-en-fr")


FORMS = {
    "numbers": Form("numbers-en-fr", "numbers in words of two languages", _languages),
    "multi30k": Form("multi30k-en-fr", "captions of pictures", _multi30k),
    "pairs": Form("pairs:SRC,TGT", "two files of sentences, or a TSV", path_after(_files)),
}
MULTI30K = ("multi30k/{split}.en.gz", "multi30k/{split}.fr.gz")


def load(cfg: Config, find: Finder) -> Dataset:
    """Tokens of source and target sentences, see the module."""
    bad, name, known = Bad(), str(cfg), find.task_of(Translation, cfg)
    if cfg.corpus.startswith("numbers-"):
        splits = numbers(name, cfg.corpus.split("-")[1:])
    else:
        source, target = cfg.source, cfg.target
        if cfg.corpus:
            source, target = MULTI30K
            if find.within("multi30k") is None:
                files = "train, val and test_2016_flickr of the WMT multimodal task"
                raise missing(
                    cfg, f"{files}, such as train.en.gz and train.fr.gz, into DIR/multi30k/"
                )
        splits = from_files(name, source, target or None, find, bad, divide=find.divide)
    tables, task, notes = encode(named(cfg), splits, cfg, bad, known)
    return Dataset(name, tables, task, notes=notes)


class Line(NamedTuple):
    """A pair of sentences.  places: FILE:LINE of the source and the target."""

    places: tuple[str, str]
    source: str
    target: str


class Encoded(NamedTuple):
    """Encoded pairs.  Extras of each table: "sentences", ((source, target), ...).

    notes: for the user.
    """

    tables: dict[str, Table]
    task: Translation
    notes: tuple[str, ...]


def encode(
    name: str, splits: dict[str, list[Line]], cfg: Config, bad: Bad, task: Translation | None = None
) -> Encoded:
    """Encodes sentences as tables.

    bad: collects unusable lines.  task: has the tokenizers; by default, they are fitted to the
    training sentences.  Raises DataError for unusable lines and for splits without usable ones.
    """
    kept: dict[str, list[Line]] = {}
    for split, lines in splits.items():
        kept[split] = []
        for line in lines:
            empty = [not side.strip() for side in (line.source, line.target)]
            if any(empty):
                bad.add("a sentence is empty", line.places[empty.index(True)])
            else:
                kept[split].append(line)
    bad.check(name, cfg)
    _require_some(name, kept)
    if task is None:
        options = {"size": cfg.subwords, "min_count": cfg.min_count}
        lines = kept["train"]
        source = fit_tokenizer(cfg.tokens, [line.source for line in lines], **options)
        target = fit_tokenizer(cfg.tokens, [line.target for line in lines], **options)
        task = Translation(source, target)
    fitted = (task.source, task.target)
    coded: dict[str, list[tuple[list[int], list[int]]]] = {split: [] for split in kept}
    texts: dict[str, list[tuple[str, str]]] = {split: [] for split in kept}
    for split, lines in kept.items():
        for line in lines:
            source, target = fitted[0].encode(line.source), fitted[1].encode(line.target)
            long = [len(side) > cfg.max_length for side in (source, target)]
            if any(long):
                bad.add(
                    f"more than max_length={cfg.max_length} tokens", line.places[long.index(True)]
                )
            else:
                coded[split].append((source, target))
                texts[split].append((line.source, line.target))
    bad.check(name, cfg)
    _require_some(name, coded)
    lengths = {
        split: np.array([[len(side) + 1 for side in pair] for pair in pairs])
        for split, pairs in coded.items()
    }
    most = np.max([sides.max(axis=0) for sides in lengths.values()], axis=0)
    edges = bucket_edges(next(iter(lengths.values())), most, cfg.buckets)
    tables = {split: _table(coded[split], lengths[split], edges) for split in coded}
    buckets = {split: bucket_of(lengths[split], edges) for split in coded}
    widths = {"inputs.source": edges[0]} | dict.fromkeys(
        ("inputs.target", "targets", "mask"), edges[1]
    )
    notes = [f"left out: {len(places):,} lines, {what}" for what, places in bad.places.items()]
    for index, side in enumerate(SIDES if "train" in coded else ()):
        held_out = [
            token
            for split in coded
            if split != "train"
            for pair in coded[split]
            for token in pair[index]
        ]
        unknown = 100 * held_out.count(UNKNOWN) / len(held_out)
        count = int(lengths["train"][:, index].sum())
        size = f"{len(fitted[index].vocabulary):,} {cfg.tokens}, {count:,} tokens in training"
        notes.append(f"{side}: {size}, {unknown:.2f} % of the held-out ones unknown")
    shapes = ", ".join(f"{source}/{target}" for source, target in zip(*edges, strict=True))
    first = next(iter(tables))
    part = 100 * padding(tables[first], buckets[first], widths)
    notes.append(f"filled up to {shapes} tokens: {part:.1f} % of the places are padding")
    sampled = {
        split: Table(table, Bucketed(buckets[split], widths), {"sentences": tuple(texts[split])})
        for split, table in tables.items()
    }
    return Encoded(sampled, task, tuple(notes))


def _require_some(name: str, splits: dict[str, Any]) -> None:
    if not all(splits.values()):
        without = ", ".join(split for split, lines in splits.items() if not lines)
        raise DataError(f"{name}: no pair of sentences in {without}")


def padding(table: Columns, bucket: np.ndarray, widths: dict[str, tuple[int, ...]]) -> float:
    """The fraction of source and target positions that are padding.  bucket: of each row."""
    places = sum(
        int(np.asarray(widths[path])[bucket].sum()) for path in ("inputs.source", "targets")
    )
    return 1 - (int(table["inputs"]["lengths"].sum()) + int(table["mask"].sum())) / places


def _table(
    pairs: Sequence[Any], lengths: np.ndarray, edges: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    source = packed([source for source, _ in pairs], edges[0][-1])
    decoder_inputs, targets, mask = teacher_forcing([target for _, target in pairs], edges[1][-1])
    inputs = {"source": source, "lengths": lengths[:, 0].astype(np.int32), "target": decoder_inputs}
    return {"inputs": inputs, "targets": targets, "mask": mask}


def numbers(name: str, languages: Sequence[str]) -> dict[str, list[Line]]:
    """Numbers in words of two languages.  Raises DataError if num2words lacks one or fails."""
    import num2words

    for language in languages:
        if language not in num2words.CONVERTER_CLASSES:
            known = ", ".join(sorted(num2words.CONVERTER_CLASSES))
            raise DataError(f"data {name!r}: language {language!r}, allowed: {known}")
    random = np.random.default_rng(2015)
    parts = [np.arange(1000)]
    for least, count in ((1_000, 3_000), (10_000, 3_000), (100_000, 5_000)):
        parts.append(least + random.choice(9 * least, count, replace=False))
    values = random.permutation(np.concatenate(parts)).tolist()

    def say(number: int, language: str) -> str:
        try:
            return num2words.num2words(number, lang=language)
        except Exception as error:  # languages raise all kinds of exceptions
            raise DataError(
                f"data {name!r}: num2words fails on {number} in language {language!r}: {error}"
            ) from error

    splits, first = {}, 0
    for split, count in NUMBERS.items():
        part = values[first : first + count]
        splits[split] = [
            Line((str(n), str(n)), say(n, languages[0]), say(n, languages[1])) for n in part
        ]
        first += count
    return splits


def from_files(
    name: str, source: str, target: str | None, locate: Any, bad: Bad, *, divide: bool = True
) -> dict[str, list[Line]]:
    """Reads the lines of two files, or of a TSV if target is None, for each split.

    locate: (path as given) -> its location.  divide: whether to divide files without splits; else
    all lines are the test split.
    Raises DataError naming the file and its fault, or files with different numbers of lines.
    """
    names = [source] if target is None else [source, target]
    marked = ["{split}" in path for path in names]
    if any(marked) and not all(marked):
        raise DataError(
            f"data {name!r}: {{split}} in one of two names, expected in both or in none"
        )
    if not all(marked):
        lines = _read_pair([locate(path) for path in names], bad)
        if not divide:
            return {"test": lines}
        first, second = len(lines) * 90 // 100, len(lines) * 95 // 100
        return {"train": lines[:first], "validation": lines[first:second], "test": lines[second:]}
    splits = {}
    for split, words in NAMES.items():
        splits[split] = _read_pair([of_split(path, words, locate) for path in names], bad)
    return splits


class MissingSplitError(DataError):
    """A split has no file."""


def of_split(name: str, words: tuple[str, ...], locate: Any) -> pathlib.Path:
    """The file of a split.

    words: names of the split, to replace "{split}" with.
    Raises MissingSplitError without a file, and DataError if two words match.
    """
    files: dict[str, pathlib.Path] = {}
    failure = None
    for word in words:
        for suffix in ("", ".gz", ".GZ"):
            try:
                files.setdefault(word, locate(name.replace("{split}", word) + suffix))
            except DataError as error:
                failure = failure or error
    if len(files) > 1:
        raise DataError(
            f"{' and '.join(map(str, files.values()))} are of the same split, expected one of them"
        )
    if not files:
        raise MissingSplitError(
            f"no file {name} with {{split}} replaced by {' or '.join(words)}: {failure}"
        )
    return next(iter(files.values()))


def _read_pair(files: list[pathlib.Path], bad: Bad) -> list[Line]:
    columns = [read_byte_lines(file) for file in files]
    if len({len(column) for column in columns}) > 1:
        counts = ", ".join(
            f"{file} has {len(column):,} lines" for file, column in zip(files, columns, strict=True)
        )
        raise DataError(f"{counts}; expected the same number in both, one sentence per line")
    pairs = []
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        places, cells = (
            (f"{files[0]}:{number}", f"{files[-1]}:{number}"),
            cells if len(files) > 1 else cells[0].split(b"\t"),
        )
        if len(cells) != 2:
            bad.add("not two columns that a tab separates", places[0])
            continue
        sides = []
        try:
            for cell in cells:
                sides.append(cell.decode())
            pairs.append(Line(places, *sides))
        except UnicodeDecodeError:
            bad.add("not UTF-8 text", places[len(sides)])
    return pairs
