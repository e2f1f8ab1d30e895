"""Recordings with transcripts as tables: features, normalisation, labels and buckets.

A table has inputs {"frames": float32 [n, time, values], "lengths": int32 [n]}, targets int32
[n, most], labels from 1 on, and mask [n, most].  Extras: "texts", "speakers", and "recordings", a
``Sounds``.  Recordings of a batch are of similar length.

Frames are normalised, value by value, to mean 0 and deviation 1 over all recordings of a speaker in
a split ("speaker"), over the recording ("utterance"), or with the mean and deviation of the
training split ("global").  With "speaker", a test recording is scaled by statistics of the
speaker's other test recordings: this is usual, but transductive.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from train.dataset import Bad, Table
from train.formats import DataError
from train.samplers import Bucketed, bucket_edges, bucket_of
from train.tasks import Normalise, States, Transcription
from zoo.parts import acoustics
from zoo.parts.labelling import BLANK

if TYPE_CHECKING:
    from train.data.base import Utterances

BLOCK = 4096
"""Windows whose features are computed at once."""
ROUNDED = 1024
"""Features are rounded to this fraction: their last bits depend on the machine, and the fingerprint
of the data must not."""
STEP = 16
"""Widths of buckets are multiples of this many frames."""
LEAST_DEVIATION = 1e-3
"""Of a value over frames; a smaller one is that of a constant."""


class Spoken(NamedTuple):
    """A transcribed recording.

    name: what it is called in messages, independent of where the data are.
    read: returns its samples, float32 [n] in -1..1, at the rate of the features; raises DataError.
    labels: the words, phones or characters of its transcript.
    """

    name: str
    speaker: str
    text: str
    labels: Sequence[str]
    read: Callable[[], np.ndarray]


class Sounds(tuple[str, ...]):
    """Names of recordings; ``read`` has their samples.  Only the names are content of the data."""

    readers: Sequence[Callable[[], np.ndarray]]

    @classmethod
    def of(cls, spoken: Iterable[Spoken]) -> "Sounds":
        """Names and readers of these recordings."""
        spoken = list(spoken)
        sounds = cls(each.name for each in spoken)
        sounds.readers = [each.read for each in spoken]
        return sounds

    def read(self, row: int) -> np.ndarray:
        """Samples of a recording, float32 [n] in -1..1."""
        return self.readers[row]()


class Encoded(NamedTuple):
    """Encoded recordings.  notes: for the user."""

    tables: dict[str, Table]
    task: Transcription
    notes: tuple[str, ...]


def frames_of(front_end: acoustics.Config, recordings: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Features of recordings, float32 [frames, values] each, not normalised.

    recordings: samples [n] in -1..1.  One that is shorter than a window has no frame.
    """
    counts: list[int] = []

    def blocks() -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        for samples in recordings:
            windows = acoustics.windows(front_end, samples)
            counts.append(len(windows))
            waiting.append(windows)
            while sum(map(len, waiting)) >= BLOCK:
                joined = np.concatenate(waiting)
                yield joined[:BLOCK]
                waiting = [joined[BLOCK:]]
        joined = np.concatenate([np.zeros((0, front_end.window_samples + 1), np.float32), *waiting])
        if len(joined):
            yield np.pad(joined, ((0, BLOCK - len(joined)), (0, 0)))

    computed = [_static_features(front_end, block) for block in blocks()]
    size = front_end.values // (1 + front_end.deltas)
    flat = np.concatenate([np.zeros((0, size), np.float32), *map(np.asarray, computed)])
    parts = np.split(flat[: sum(counts)], np.cumsum(counts)[:-1]) if counts else []
    return [_rounded(_with_deltas(front_end, part)) for part in parts]


_static_features = jax.jit(acoustics.static_features)
_deltas = jax.jit(acoustics.with_deltas)


def _with_deltas(front_end: acoustics.Config, frames: np.ndarray) -> np.ndarray:
    if not front_end.deltas or not len(frames):
        return frames
    deltas = _deltas(front_end, _long(frames), np.array([len(frames)]))
    return np.asarray(deltas)[0, : len(frames)]


def _rounded(values: np.ndarray) -> np.ndarray:
    return (np.round(values * ROUNDED) / ROUNDED).astype(np.float32)


def windows(frames: Sequence[np.ndarray], context: int) -> np.ndarray:
    """Every frame of recordings with its neighbours: float32 [all frames, context, values].

    context: an odd number.  The frames at the ends of a recording are repeated.
    """
    parts = []
    for each in frames:
        spliced = _spliced(_long(each), np.array([len(each)]), context // 2)
        parts.append(np.asarray(spliced)[0, : len(each)])
    joined = np.concatenate(parts)
    return joined.reshape(len(joined), context, -1)


_spliced = jax.jit(acoustics.splice, static_argnums=2)


def _long(frames: np.ndarray) -> np.ndarray:
    """A recording as a batch of one, padded so that few lengths are compiled."""
    return np.pad(frames, ((0, -len(frames) % 256), (0, 0)))[None]


class Moments(NamedTuple):
    """Mean and deviation of each value."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, frames: Sequence[np.ndarray]) -> "Moments":
        """The moments of all frames of several recordings, in float64."""
        joined = np.concatenate(frames).astype(np.float64)
        deviation = joined.std(axis=0)
        return cls(joined.mean(axis=0), np.where(deviation < LEAST_DEVIATION, 1, deviation))

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """Normalised frames, float32."""
        return _rounded((frames - self.mean) / self.deviation)


def moments_of(frames: Sequence[np.ndarray], over: Normalise) -> tuple[tuple[float, ...], ...]:
    """The moments that a task stores: of all training frames for "global", else ()."""
    moments = Moments.of(frames) if over == "global" else ()
    return tuple(tuple(map(float, values)) for values in moments)


def normalised(
    frames: Sequence[np.ndarray],
    speakers: Sequence[str],
    over: Normalise,
    moments: Sequence[Sequence[float]] = (),
) -> list[np.ndarray]:
    """Normalised frames of recordings, see the module.  moments: for "global"."""
    if over == "global":
        known = Moments(*map(np.asarray, moments))
        return [known.apply(each) for each in frames]
    groups = speakers if over == "speaker" else range(len(frames))
    members: dict[Any, list[np.ndarray]] = {}
    for group, each in zip(groups, frames, strict=True):
        members.setdefault(group, []).append(each)
    moments_of = {group: Moments.of(each) for group, each in members.items()}
    return [moments_of[group].apply(each) for group, each in zip(groups, frames, strict=True)]


def encode(
    name: str,
    splits: Mapping[str, Sequence[Spoken]],
    cfg: "Utterances",
    bad: Bad,
    task: Transcription | None = None,
    *,
    words: Iterable[str] = (),
    scored: Mapping[str, str] | None = None,
) -> Encoded:
    """Recordings as tables.

    bad: collects unusable recordings.  task: of a trained model, which decides features and labels;
    by default, labels are those of the training split.  words: that may occur, by default those of
    the training split.  scored: see ``Transcription.scored``, by label.
    Raises DataError for unusable recordings and for splits without usable ones.
    """
    front_end = task.features if task else cfg.front_end
    kept, frames = usable(splits, front_end, bad, _least)
    bad.check(name, cfg)
    require_some(name, kept)
    task = task or _fitted(kept["train"], frames["train"], cfg, words, scored or {})
    label = {text: index for index, text in enumerate(task.vocabulary) if index != BLANK}
    for split, spoken in kept.items():
        rows = []
        for row, each in enumerate(spoken):
            if unknown := sorted({text for text in each.labels if text not in label}):
                shown = ", ".join(map(repr, unknown[:5]))
                bad.add(f"{task.units} that the model does not know ({shown})", each.name)
            else:
                rows.append(row)
        kept[split] = [spoken[row] for row in rows]
        frames[split] = [frames[split][row] for row in rows]
    bad.check(name, cfg)
    require_some(name, kept)
    labels = {
        split: [[label[text] for text in each.labels] for each in spoken]
        for split, spoken in kept.items()
    }
    scaled = {
        split: normalised(
            frames[split], [each.speaker for each in spoken], task.normalise, task.moments
        )
        for split, spoken in kept.items()
    }
    lengths = {
        split: np.array([len(each) for each in recordings]) for split, recordings in scaled.items()
    }
    widths = {split: (-(-each // STEP) * STEP)[:, None] for split, each in lengths.items()}
    most = np.max([each.max(axis=0) for each in widths.values()], axis=0)
    edges = bucket_edges(next(iter(widths.values())), most, cfg.buckets)
    longest = max(len(each) for rows in labels.values() for each in rows)
    tables = {}
    for split, spoken in kept.items():
        sampler = Bucketed(bucket_of(widths[split], edges), {"inputs.frames": edges[0]})
        extras = {
            "texts": tuple(each.text for each in spoken),
            "speakers": tuple(each.speaker for each in spoken),
            "recordings": Sounds.of(spoken),
        }
        columns = _columns(scaled[split], labels[split], int(most[0]), longest)
        tables[split] = Table(columns, sampler, extras)
    first = lengths[next(iter(lengths))]
    share = 100 * (1 - first.sum() / np.asarray(edges[0])[np.searchsorted(edges[0], first)].sum())
    shapes = ", ".join(map(str, edges[0]))
    padding = f"filled up to {shapes} frames: {share:.1f} % of the frames are padding"
    return Encoded(tables, task, (*described(task, kept, lengths, bad), padding))


def usable(
    splits: Mapping[str, Sequence[Spoken]],
    front_end: acoustics.Config,
    bad: Bad,
    least: Callable[[Spoken], int],
) -> tuple[dict[str, list[Spoken]], dict[str, list[np.ndarray]]]:
    """The recordings that can be read and have labels and enough frames, and their frames.

    bad: collects the others.  least: fewest frames of a recording.
    """
    kept: dict[str, list[Spoken]] = {}
    frames: dict[str, list[np.ndarray]] = {}
    for split, spoken in splits.items():
        readable: list[Spoken] = []

        def samples(
            spoken: Sequence[Spoken] = spoken, readable: list[Spoken] = readable
        ) -> Iterator[np.ndarray]:
            for each in spoken:
                if not each.labels:
                    bad.add("an empty transcript", each.name)
                    continue
                try:
                    read = each.read()
                except DataError as error:
                    # The message begins with the file.
                    bad.add(str(error).partition(": ")[2], each.name)
                    continue
                readable.append(each)
                yield read

        computed = frames_of(front_end, samples())
        enough = [len(part) >= least(each) for part, each in zip(computed, readable, strict=True)]
        for each, fits in zip(readable, enough, strict=True):
            if not fits:
                bad.add("fewer frames than its labels need", each.name)
        kept[split] = [each for each, fits in zip(readable, enough, strict=True) if fits]
        frames[split] = [part for part, fits in zip(computed, enough, strict=True) if fits]
    return kept, frames


def _least(spoken: Spoken) -> int:
    """Fewest frames for these labels, see ``zoo.parts.labelling.fits``."""
    return len(spoken.labels) + sum(a == b for a, b in itertools.pairwise(spoken.labels))


def require_some(name: str, splits: Mapping[str, Sequence[Any]]) -> None:
    """Raises DataError naming the splits without recordings."""
    if without := ", ".join(split for split, spoken in splits.items() if not spoken):
        raise DataError(f"{name}: no usable recording in {without}")


def _fitted(
    spoken: Sequence[Spoken],
    frames: Sequence[np.ndarray],
    cfg: "Utterances",
    words: Iterable[str],
    scored: Mapping[str, str],
) -> Transcription:
    """The task of the training split."""
    vocabulary = ("", *sorted({text for each in spoken for text in each.labels}))
    known = {word for each in spoken for word in each.text.split()} | set(words)
    return Transcription(
        vocabulary,
        cfg.units,
        cfg.front_end,
        cfg.normalise,
        moments=moments_of(frames, cfg.normalise),
        words=tuple(sorted(known)),
        scored=tuple(scored.get(text, text) for text in vocabulary) if scored else (),
    )


def _columns(
    frames: Sequence[np.ndarray], labels: Sequence[Sequence[int]], time: int, most: int
) -> dict[str, Any]:
    lengths = np.array([len(each) for each in frames], np.int32)
    packed = np.zeros((len(frames), time, frames[0].shape[1]), np.float32)
    targets = np.zeros((len(frames), most), np.int32)
    for row, (each, ids) in enumerate(zip(frames, labels, strict=True)):
        packed[row, : len(each)] = each
        targets[row, : len(ids)] = ids
    counts = np.array([len(ids) for ids in labels])
    return {
        "inputs": {"frames": packed, "lengths": lengths},
        "targets": targets,
        "mask": np.arange(most)[None] < counts[:, None],
    }


def described(
    task: Transcription | States,
    kept: Mapping[str, Sequence[Spoken]],
    lengths: Mapping[str, np.ndarray],
    bad: Bad,
) -> Iterator[str]:
    """Notes for the user.  lengths: frames of each recording."""
    for what, places in bad.places.items():
        yield f"left out: {len(places):,} recordings, {what}"
    for split, spoken in kept.items():
        minutes = lengths[split].sum() * task.features.hop / 60
        speakers = len({each.speaker for each in spoken})
        yield f"{split}: {len(spoken):,} recordings, {speakers} speakers, {minutes:.1f} minutes"
    by = {split: {each.speaker for each in spoken} for split, spoken in kept.items()}
    for split in by:
        if split != "train" and (shared := by[split] & by.get("train", set())):
            yield f"{split}: {len(shared)} of its speakers are also in training"
    over = {"speaker": "the speaker's recordings in the split (transductive)"}
    yield f"normalised over {over.get(task.normalise, task.normalise)}"
