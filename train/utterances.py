"""Reads speech corpora: lists of recordings with speaker and text, in the splits of the corpus.

A recording is not opened here: ``train.formats.read_audio`` says whether it is missing or damaged.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from train.dataset import SPLIT_OF, by_split
from train.formats import DataError, named, read_byte_lines, read_lines, read_text, reading, visible


class Utterance(NamedTuple):
    """A recording of one speaker.

    place: where it is listed, FILE or MANIFEST:LINE, for messages.
    file: the recording.
    text: the words that were said, as the corpus writes them.
    phones: the corpus's own phonetic transcript; None without one.
    """

    place: str
    file: pathlib.Path
    speaker: str
    text: str
    phones: tuple[str, ...] | None = None


Splits = dict[str, list[Utterance]]

# ---------------------------------------------------------------- manifests

COLUMNS = ("path", "speaker", "text")


def read_manifest(file: pathlib.Path) -> list[Utterance]:
    """Reads a TSV file in UTF-8: path, speaker and text of a recording per line.

    The first line may name the columns.  Paths are relative to the folder of the manifest.  Blank
    lines are ignored.
    Raises DataError naming FILE:LINE for a line without three columns, an empty one, or a path that
    occurs twice, and for a file without utterances.
    """
    utterances, lines = [], {}
    for number, line in enumerate(read_lines(file), 1):
        place, cells = f"{file}:{number}", [cell.strip() for cell in line.split("\t")]
        if not any(cells) or (number == 1 and tuple(map(str.lower, cells)) == COLUMNS):
            continue
        if len(cells) != len(COLUMNS):
            raise DataError(
                f"{place}: columns: {len(cells)}, expected path, speaker and text, with tabs"
            )
        for column, cell in zip(COLUMNS, cells, strict=True):
            if not cell:
                raise DataError(f"{place}: {column} is empty")
        path, speaker, text = cells
        if path in lines:
            raise DataError(f"{place}: {path} is already in line {lines[path]}")
        lines[path] = number
        utterances.append(Utterance(place, file.parent / path, speaker, text))
    if not utterances:
        raise DataError(f"{file}: no utterances")
    return utterances


def manifest_splits(path: pathlib.Path) -> Splits:
    """The manifests train.tsv, validation.tsv (or valid, val, dev) and test.tsv of a folder.

    They may be gzipped; splits may be missing.  A file that is one manifest is {"all": utterances}.
    Raises DataError naming the file and its fault.
    """
    if not path.is_dir():
        return {"all": read_manifest(path)}
    with reading(path):
        files = [
            (match[1], file)
            for file in visible(path)
            if (match := re.fullmatch(r"(.+)\.tsv(\.gz)?", file.name, re.IGNORECASE))
            and match[1].lower() in SPLIT_OF
        ]
    if not files:
        raise DataError(f"{path}: no train.tsv, validation.tsv or test.tsv")
    return {split: read_manifest(file) for split, file in by_split(str(path), files).items()}


def read_an4(folder: pathlib.Path) -> Splits:
    """CMU AN4 with the manifests train.tsv and test.tsv -> splits "train" and "test".

    Raises DataError naming the file and its fault.
    """
    _require_folder(folder)
    return {split: read_manifest(folder / f"{split}.tsv") for split in ("train", "test")}


# ---------------------------------------------------------------- LibriSpeech


def read_librispeech(
    folder: pathlib.Path,
    train: Sequence[str] = ("train-clean-100",),
    validation: Sequence[str] = ("dev-clean",),
    test: Sequence[str] = ("test-clean",),
) -> Splits:
    """LibriSpeech: SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac -> the three splits.

    folder: LibriSpeech/ or the folder that contains it.
    train, validation, test: the subsets of each split.
    Texts are those of SPEAKER-CHAPTER.trans.txt: capital letters, apostrophes and spaces.
    Raises DataError for a missing subset or transcript, and for a recording without a line in it.
    """
    _require_folder(folder)
    inner = named(folder, "LibriSpeech")
    root = inner if inner.is_dir() else folder
    chosen = {"train": train, "validation": validation, "test": test}
    return {
        split: [
            utterance
            for subset in subsets
            for chapter in _folders(root / subset, 2)
            for utterance in _chapter(chapter)
        ]
        for split, subsets in chosen.items()
    }


def _require_folder(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")


def _folders(folder: pathlib.Path, depth: int) -> list[pathlib.Path]:
    """The folders ``depth`` levels below, sorted.  Raises DataError without any."""
    _require_folder(folder)
    folders = [folder]
    with reading(folder):
        for _ in range(depth):
            folders = [entry for parent in folders for entry in visible(parent) if entry.is_dir()]
    if not folders:
        raise DataError(f"{folder}: no folders of speakers and their recordings")
    return folders


def _chapter(folder: pathlib.Path) -> list[Utterance]:
    speaker, chapter = folder.parent.name, folder.name
    transcript = folder / f"{speaker}-{chapter}.trans.txt"
    utterances = []
    for number, line in enumerate(read_lines(transcript), 1):
        name, _, text = line.strip().partition(" ")
        if not name.startswith(f"{speaker}-{chapter}-") or not text.strip():
            raise DataError(
                f"{transcript}:{number}: expected {speaker}-{chapter}-NUMBER and the text"
            )
        utterances.append(
            Utterance(f"{transcript}:{number}", folder / f"{name}.flac", speaker, text.strip())
        )
    known = {utterance.file.name for utterance in utterances}
    with reading(folder):
        for file in visible(folder):
            if file.suffix == ".flac" and file.name not in known:
                raise DataError(f"{file}: not in {transcript.name}")
    return utterances


# ---------------------------------------------------------------- TIMIT

_TEST = """
FDHC0 FELC0 FJLM0 FMGD0 FMLD0 FNLP0 FPAS0 FPKT0 MBPM0 MCMJ0 MDAB0 MGRT0
MJDH0 MJLN0 MJMP0 MKLT0 MLLL0 MLNT0 MNJM0 MPAM0 MTAS1 MTLS0 MWBT0 MWEW0
"""
TIMIT_TEST = frozenset(_TEST.split())
"""The 24 speakers of the core test set, two men and a woman of each dialect."""
_VALIDATION = """
FADG0 FAKS0 FCAL1 FCMH0 FDAC1 FDMS0 FDRW0 FEDW0 FGJD0 FJEM0 FJMG0 FJSJ0 FKMS0
FMAH0 FMML0 FNMR0 FREW0 FSEM0 MAJC0 MBDG0 MBNS0 MBWM0 MCSH0 MDLF0 MDLS0 MDVC0
MERS0 MGJF0 MGLB0 MGWT0 MJAR0 MJFC0 MJSW0 MMDB1 MMDM2 MMJR0 MMWH0 MPDF0 MRCS0
MREB0 MRJM4 MRJR0 MROA0 MRTK0 MRWS1 MTAA0 MTDT0 MTEB0 MTHC0 MWJG0
"""
TIMIT_VALIDATION = frozenset(_VALIDATION.split())
"""The 50 speakers of the usual development set (Halberstadt 1998), from the rest of TEST."""

_PHONES = """
aa ae ah ao aw ax ax-h axr ay b bcl ch d dcl dh dx eh el em en eng epi er ey f g gcl h# hh hv
ih ix iy jh k kcl l m n ng nx ow oy p pau pcl q r s sh t tcl th uh uw ux v w y z zh
"""
PHONES_61 = tuple(_PHONES.split())
"""TIMIT's phonetic labels; "h#" is the silence at both ends."""
_FOLDS_48 = {
    "ax-h": "ax", "axr": "er", "em": "m", "eng": "ng", "hv": "hh", "nx": "n", "ux": "uw",
    "pcl": "cl", "tcl": "cl", "kcl": "cl", "bcl": "vcl", "dcl": "vcl", "gcl": "vcl",
    "h#": "sil", "pau": "sil",
}  # fmt: skip
_FOLDS_39 = {
    "ao": "aa", "ax": "ah", "el": "l", "en": "n", "ix": "ih", "zh": "sh",
    "cl": "sil", "vcl": "sil", "epi": "sil",
}  # fmt: skip


def fold_phones(phones: Sequence[str], size: int = 39) -> tuple[str, ...]:
    """Maps TIMIT's 61 labels to the 48 for training or the 39 for scoring, without "q".

    Lee and Hon 1989, "Speaker-independent phone recognition using hidden Markov models", table I.
    Neighbours that become equal, such as a closure after a pause, stay separate.
    phones: of the 61, or already of the 48.  Raises ValueError for an unknown label or size.
    """
    if size not in (48, 39):
        raise ValueError(f"size={size}, allowed: 48, 39")
    folded = []
    for phone in phones:
        if phone not in _KNOWN:
            raise ValueError(f"phone {phone!r}, allowed: {' '.join(PHONES_61)}")
        if phone != "q":
            phone = _FOLDS_48.get(phone, phone)
            folded.append(_FOLDS_39.get(phone, phone) if size == 39 else phone)
    return tuple(folded)


_KNOWN = {*PHONES_61, *_FOLDS_48.values()}


def read_timit(folder: pathlib.Path) -> Splits:
    """TIMIT: TRAIN/DR1/SPEAKER/SX1.WAV with .PHN and .TXT, in any case -> the three splits.

    folder: the one with TRAIN and TEST, or one that has it as TIMIT/ or data/.
    The test split is the core test set, and the validation split the usual development set; both
    come from TEST, whose other speakers are left out.  The two sentences that all speakers read
    (SA) are left out.  Speakers are in capitals.  Texts are the words in capitals, without
    punctuation except apostrophes.  Phones are the 61 labels (``PHONES_61``), see ``fold_phones``.
    Raises DataError naming the file and its fault, and for a split without recordings.
    """
    _require_folder(folder)
    with reading(folder):
        roots = [folder, named(folder, "TIMIT"), named(folder, "data")]
        roots += [named(roots[1], "TIMIT")]
        root = next((place for place in roots if named(place, "TRAIN").is_dir()), folder)
        halves = [named(root, half) for half in ("TRAIN", "TEST")]
    splits: Splits = {"train": [], "validation": [], "test": []}
    for half in halves:
        for place in _folders(half, 2):
            speaker = place.name.upper()
            if half == halves[0]:
                split = "train"
            elif speaker in TIMIT_TEST:
                split = "test"
            elif speaker in TIMIT_VALIDATION:
                split = "validation"
            else:
                continue
            splits[split] += _timit_speaker(place, speaker)
    for split, utterances in splits.items():
        if not utterances:
            who = {
                "train": "", "validation": " of the 50 speakers of the development set",
                "test": " of the 24 speakers of the core test set",
            }[split]  # fmt: skip
            raise DataError(f"{halves[split != 'train']}: no recordings{who}")
    return splits


def _timit_speaker(folder: pathlib.Path, speaker: str) -> list[Utterance]:
    with reading(folder):
        files = {file.name.lower(): file for file in visible(folder)}
    # Copies may have SX1.WAV.wav besides SX1.WAV.
    stems = {name[:-4] for name in files if re.fullmatch(r"(?!sa)[^.]+\.(wav|phn)", name)}
    utterances = []
    for stem in sorted(stems):
        parts = [files.get(f"{stem}.{ending}") for ending in ("wav", "txt", "phn")]
        if None in parts:
            ending = ("WAV", "TXT", "PHN")[parts.index(None)]
            raise DataError(f"{folder}: no {stem.upper()}.{ending}")
        audio, text, phones = (part for part in parts if part)
        utterances.append(
            Utterance(str(audio), audio, speaker, _timit_text(text), _timit_phones(phones))
        )
    return utterances


def _timit_text(file: pathlib.Path) -> str:
    """Reads "0 46797 She had your dark suit." -> "SHE HAD YOUR DARK SUIT"."""
    match = re.fullmatch(r"\d+\s+\d+\s+(.+)", " ".join(read_text(file).split()), re.ASCII)
    text = re.sub(r"[^A-Z']+", " ", match[1].upper()).strip() if match else ""
    if not text:
        raise DataError(f"{file}: expected first sample, last sample and text")
    return text


def _timit_phones(file: pathlib.Path) -> tuple[str, ...]:
    phones = []
    for number, line in enumerate(read_lines(file), 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 3 or not re.fullmatch(r"\d+ \d+", " ".join(cells[:2]), re.ASCII):
            raise DataError(f"{file}:{number}: expected first sample, last sample and phone")
        if (phone := cells[2].lower()) not in PHONES_61:
            raise DataError(f"{file}:{number}: phone {phone!r}, allowed: {' '.join(PHONES_61)}")
        phones.append(phone)
    if not phones:
        raise DataError(f"{file}: no phones")
    return tuple(phones)


# ---------------------------------------------------------------- speakers


def by_speaker(
    utterances: Sequence[Utterance], share: int = 10
) -> tuple[list[Utterance], list[Utterance]]:
    """Holds out every ``share``-th of the sorted speakers, from the first on.

    Returns (kept, held out), both in the given order and without common speakers.
    Raises DataError with fewer than two speakers, and ValueError for a share below 2.
    """
    if share < 2:
        raise ValueError(f"share={share}, allowed: 2 or more")
    speakers = sorted({utterance.speaker for utterance in utterances})
    if len(speakers) < 2:
        known = f"only speaker {speakers[0]!r}" if speakers else "no utterances"
        raise DataError(f"{known}, expected at least two speakers to hold some out")
    held = set(speakers[::share])
    return (
        [utterance for utterance in utterances if utterance.speaker not in held],
        [utterance for utterance in utterances if utterance.speaker in held],
    )


def shared_speakers(splits: Mapping[str, Sequence[Utterance]]) -> list[str]:
    """The speakers, sorted, that occur in more than one split."""
    seen: set[str] = set()
    shared: set[str] = set()
    for utterances in splits.values():
        speakers = {utterance.speaker for utterance in utterances}
        shared |= seen & speakers
        seen |= speakers
    return sorted(shared)


# ---------------------------------------------------------------- pronunciations

Pronunciations = dict[str, list[tuple[str, ...]]]


def read_pronunciations(file: pathlib.Path) -> Pronunciations:
    """Reads a pronouncing dictionary -> {word: its pronunciations, in the order of the file}.

    Either lines "WORD  P R O N" as in the CMU dictionary, where variants are "WORD(2)" or the same
    word again, with comments after ";;;" or " #"; or JSON, {"WORD": "P R O N"} or {"WORD": ["P R O
    N", ...]}.  Words and phones stay as they are, also their case and stress.
    Raises DataError naming the file, and FILE:LINE or the word.
    """
    lines = read_byte_lines(file)
    if re.match(rb'\s*\{\s*["}]', b" ".join(lines[:9])):  # unlike the word "{BRACE"
        return _json_pronunciations(file)
    words: Pronunciations = {}
    for number, raw in enumerate(lines, 1):
        try:
            line = raw.decode()
        except UnicodeDecodeError:  # release 0.7 of the CMU dictionary
            line = raw.decode("latin-1")
        cells = line.partition(" #")[0].split()
        if not cells or line.startswith(";;;"):
            continue
        variant = re.fullmatch(r"(.+)\(\d+\)", cells[0])
        _add(words, f"{file}:{number}", variant[1] if variant else cells[0], cells[1:])
    if not words:
        raise DataError(f"{file}: no words")
    return words


def _add(words: Pronunciations, place: str, word: str, phones: Sequence[str]) -> None:
    if not phones:
        raise DataError(f"{place}: {word!r} has no phones")
    known = words.setdefault(word, [])
    if tuple(phones) not in known:
        known.append(tuple(phones))


def _json_pronunciations(file: pathlib.Path) -> Pronunciations:
    text, words = read_text(file), {}
    with reading(file):
        content: Any = json.loads(text)
    for word, value in content.items():
        variants = value if isinstance(value, list) else [value]
        if not all(isinstance(variant, str) for variant in variants):
            raise DataError(f'{file}: {word!r}: expected "P R O N" or ["P R O N", ...]')
        for variant in variants or [""]:
            _add(words, str(file), word, variant.split())
    if not words:
        raise DataError(f"{file}: no words")
    return words
