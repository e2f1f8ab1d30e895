"""What a person can ask of a trained model: the options of each verb of the command line.

A task says in its VERBS which of them its runs have, and how they are done.  This module imports
nothing heavy, so that ``--help`` is fast.
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
    """usage: what follows the run folder in an example.  does: what the example does."""

    usage: ClassVar[str]
    does: ClassVar[str]
    run_dir: RunDir
    """Run folder, as zoo-train made it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OfFiles(Verb):
    """A verb of files, at least one."""

    files: Files

    def __post_init__(self) -> None:
        """Raises ValueError without a file: the command line takes none for an empty tuple."""
        if not self.files:
            raise ValueError("FILE: none given, expected at least one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(_OfFiles):
    """Labels files: images of any format and size, or npz files with an array "inputs"."""

    usage, does = "FILE", "labels your own images"
    files: Files
    """Images, or npz files."""
    invert: bool = False
    """Swap light and dark, for images of the opposite polarity to the training data (MNIST is light
    on dark)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Verb):
    """Lets a language model continue a text."""

    usage, does = '--prompt "..."', "continues a text"
    tokens: int = 500
    """How many tokens to write, characters or words."""
    prompt: str = ""
    """What the text begins with; words and punctuation are separated by spaces, as in the training
    text."""
    temperature: float = 1.0
    """Below 1, probable tokens are drawn more often; 0 always takes the most probable one."""
    top_k: int | None = None
    """Draw among this many most probable tokens only."""
    seed: int = 0
    """Decides which tokens are drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searching(Verb):
    """Options of a beam search."""

    beam: int = 5
    """Number of hypotheses that are kept; 1 always takes the most probable token."""
    length_penalty: float = 1.0
    """Above 0, longer hypotheses are preferred to shorter ones of the same probability.  Without
    effect for --beam 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translate(Searching):
    """Translates sentences, or the lines of a file."""

    usage, does = '"..."', "translates"
    sentences: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT ...]")
    ] = ()
    """Sentences to translate."""
    file: pathlib.Path | None = None
    """Translate each line of this file, plain or gzipped; - is standard input."""
    alignment: pathlib.Path | None = None
    """Of a single sentence: also draw the attention weights into this SVG file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption(Searching, _OfFiles):
    """Writes a caption for each image, and captions.html beside the run, which shows the attention."""

    usage, does = "FILE", "describes an image"
    files: Files
    """Images of any format and size."""
    invert: bool = False
    """Swap light and dark, for images of the opposite polarity to the training data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(_OfFiles):
    """Labels each pixel of images of any size.

    Two PNGs for each are written to the folder segments beside the run: the image under its labels,
    and the labels alone.
    """

    usage, does = "FILE", "labels the pixels of an image"
    files: Files
    """Images of any format and size."""
    invert: bool = False
    """Swap light and dark, for images of the opposite polarity to the training data."""


VERBS: dict[str, type[Verb]] = {
    "predict": Predict,
    "sample": Sample,
    "translate": Translate,
    "caption": Caption,
    "segment": Segment,
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
"""Options of earlier versions, and what takes their place."""


def require(run: "Run", verb: str, verbs: Mapping[str, Any]) -> None:
    """Raises DataError unless the verb is among those of the run's task."""
    if verb in verbs:
        return
    from train.formats import DataError

    has = ", ".join(verbs) or "none"
    raise DataError(
        f"{run.folder.path}: {verb} is not for a model of {run.task.name}; its verbs: {has}"
    )
