"""Options of the verbs of the command line, which use a trained model.

A task's VERBS lists the verbs that its runs support, with their implementations.  This module
imports nothing heavy, so that ``--help`` is fast.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

if TYPE_CHECKING:
    from evals.run import Run

RunDir = Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
Files = Annotated[
    tuple[pathlib.Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE [FILE ...]")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """Options that all verbs share.

    usage: example arguments, which follow the run folder.  does: what the example does.
    """

    usage: ClassVar[str]
    does: ClassVar[str]
    run_dir: RunDir
    """Run folder, written by zoo-train."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OfFiles(Verb):
    """A verb that takes one or more files."""

    files: Files

    def __post_init__(self) -> None:
        """Raises ValueError without a file: tyro parses no files as an empty tuple."""
        if not self.files:
            raise ValueError("FILE: none given, expected at least one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(_OfFiles):
    """Classifies files: images of any format and size, or npz files with an array "inputs"."""

    usage, does = "FILE", "labels your own images"
    files: Files
    """Images, or npz files."""
    invert: bool = False
    """Swap light and dark, for images with the opposite polarity to the training data (MNIST is
    light on dark)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Verb):
    """Continues a text with a language model."""

    usage, does = '--prompt "..."', "continues a text"
    tokens: int = 500
    """Number of tokens (characters or words) to generate."""
    prompt: str = ""
    """Beginning of the text.  Separate words and punctuation by spaces, as in the training text."""
    temperature: float = 1.0
    """Sampling temperature: below 1, probable tokens are drawn more often; 0 always takes the most
    probable token."""
    top_k: int | None = None
    """Sample only from the k most probable tokens."""
    seed: int = 0
    """Random seed of the sampling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searching(Verb):
    """Options of a beam search."""

    beam: int = 5
    """Beam width; 1 is greedy search."""
    length_penalty: float = 1.0
    """Above 0, a longer hypothesis is preferred to a shorter one with the same probability.  Has no
    effect with --beam 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translate(Searching):
    """Translates sentences or the lines of a file."""

    usage, does = '"..."', "translates"
    sentences: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT ...]")
    ] = ()
    """Sentences to translate."""
    file: pathlib.Path | None = None
    """Translate each line of this file, plain or gzipped; - is standard input."""
    alignment: pathlib.Path | None = None
    """Also draw the attention weights to this SVG file; for a single sentence only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption(Searching, _OfFiles):
    """Writes a caption for each image, and captions.html in the run folder with the attention."""

    usage, does = "FILE", "describes an image"
    files: Files
    """Images of any format and size."""
    invert: bool = False
    """Swap light and dark, for images with the opposite polarity to the training data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(_OfFiles):
    """Labels each pixel of images of any size.

    Writes two PNGs for each image to the folder segments in the run folder: the image overlaid with
    its labels, and the labels alone.
    """

    usage, does = "FILE", "labels the pixels of an image"
    files: Files
    """Images of any format and size."""
    invert: bool = False
    """Swap light and dark, for images with the opposite polarity to the training data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcribe(_OfFiles):
    """Writes down what is said in recordings: for each file, its name, a tab, and the transcript.

    A model whose frames are normalised over the recordings of a speaker (normalise=speaker) takes
    all files for recordings of one speaker; with --each, every file is a speaker of its own.
    """

    usage, does = "FILE", "transcribes a recording"
    files: Files
    """Sound files, such as WAV or FLAC, of any rate; - is standard input."""
    beam: int = 25
    """Width of the prefix beam search; 1 takes the most probable path, without a lexicon."""
    lexicon: bool = True
    """Write only words of the training data or their dictionary, if the model writes characters and
    knows the words.  There is no language model: the run folder does not contain the text."""
    each: bool = False
    """Normalise the frames of each file alone."""


VERBS: dict[str, type[Verb]] = {
    "predict": Predict,
    "sample": Sample,
    "translate": Translate,
    "caption": Caption,
    "segment": Segment,
    "transcribe": Transcribe,
}
"""Every verb by name."""
FORMER = {
    "--predict": "predict RUN_DIR FILE ...",
    "--sample": "sample RUN_DIR --tokens N",
    "--translate": 'translate RUN_DIR "..."',
    "--translate-file": "translate RUN_DIR --file FILE",
    "--caption": "caption RUN_DIR FILE ...",
    "--segment": "segment RUN_DIR FILE ...",
}
"""Options of earlier versions and the verbs that replace them."""


def require(run: "Run", verb: str, verbs: Mapping[str, Any]) -> None:
    """Raises DataError unless the run's task supports the verb."""
    if verb in verbs:
        return
    from train.formats import DataError

    has = f"its verbs: {', '.join(verbs)}" if verbs else "it has no verbs"
    raise DataError(f"{run.folder.path}: {verb} is not for a model of {run.task.name}; {has}")
