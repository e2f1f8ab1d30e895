"""timit:DIR: TIMIT as it is distributed: phones of sentences that 630 speakers read.

Labels are its 61 phones, of which errors count as 39 (Lee and Hon 1989).  The test split is the
core test set of 24 speakers; ``train.utterances.read_timit`` has the rest.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from train import utterances
from train.data.base import Finder, Form, Utterances, path_after
from train.data.speech import Corpus, labelled, spoken_of
from train.dataset import Bad, Dataset
from train.tasks import Units
from train.utterances import Utterance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Utterances):
    """TIMIT."""

    kind: ClassVar[str] = "timit"
    identity: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""
    """The folder."""
    units: str = "phones"  # pyright: ignore[reportIncompatibleVariableOverride]
    """What a label stands for: phones."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        super().__post_init__()
        if self.units != "phones":
            raise ValueError(f"data.units={self.units!r}, allowed: 'phones'")

    def __str__(self) -> str:
        return f"timit:{self.path}"


FORMS = {
    "timit": Form(
        "timit:DIR", "phones of sentences, read aloud", path_after(lambda path: Config(path=path))
    )
}


def recordings(cfg: Config, find: Finder, bad: Bad, *, units: Units, rate: int) -> Corpus:
    """See ``train.data.speech.Recorded``."""
    place = find(cfg.path)
    splits = utterances.read_timit(place)
    phones = {phone for each in splits.values() for one in each for phone in one.phones or ()}

    def labels(text: str, utterance: Utterance) -> Sequence[str]:
        return utterance.phones or ()

    return Corpus(
        spoken_of(splits, place, find, labels, bad, rate),
        words=(),
        pronounced=lambda spoken: [[(phone,)] for phone in spoken.labels],
        pauses=False,
        scored={phone: "".join(utterances.fold_phones((phone,), 39)) for phone in phones},
    )


def load(cfg: Config, find: Finder) -> Dataset:
    """Frames and labels of the recordings, see ``train.acoustic``."""
    return labelled(cfg, find, recordings)
