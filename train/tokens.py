"""Tokenizers: sentences to tokens and back, by subwords, words or characters.

Token 0 is "</s>", the end of a sentence and the first decoder input; token 1 is "<unk>".  Pieces
that follow a space begin with "▁", so decoding restores a sentence, except for its white space and
unknown tokens.
"""

import base64
import collections
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

END, UNKNOWN = 0, 1
"""Tokens of every vocabulary."""
SPACE = "▁"
Kind = Literal["subwords", "words", "characters"]
_WORD = re.compile(rf"{SPACE}?(?:\w+|[^\w\s])|{SPACE}")


@dataclass(frozen=True)
class Tokenizer:
    """For one language.  vocabulary: pieces by token.  model: of sentencepiece, for subwords."""

    kind: Kind
    vocabulary: tuple[str, ...]
    model: bytes = b""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "_index", {piece: token for token, piece in enumerate(self.vocabulary)}
        )
        object.__setattr__(
            self, "_processor", _processor(self.model) if self.kind == "subwords" else None
        )

    def encode(self, sentence: str) -> list[int]:
        """The tokens of a sentence, without an end token."""
        processor: Any = self._processor  # pyright: ignore[reportAttributeAccessIssue]
        if processor is not None:
            return processor.encode(_spaced(sentence))
        index = self._index  # pyright: ignore[reportAttributeAccessIssue]
        return [index.get(piece, UNKNOWN) for piece in pieces(self.kind, sentence)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The sentence of the tokens before the first end token."""
        parts = []
        for token in tokens:
            if token == END:
                break
            parts.append(self.vocabulary[int(token)])
        return "".join(parts).replace(SPACE, " ").strip()

    def unknown(self, sentences: Iterable[str]) -> list[str]:
        """Words of the sentences that contain unknown tokens."""
        words = dict.fromkeys(word for sentence in sentences for word in sentence.split())
        return [word for word in words if UNKNOWN in self.encode(word)]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "kind": self.kind,
            "vocabulary": list(self.vocabulary),
            "model": base64.b64encode(self.model).decode(),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Tokenizer":
        """The inverse of ``to_dict``."""
        return cls(fields["kind"], tuple(fields["vocabulary"]), base64.b64decode(fields["model"]))


def fit(kind: Kind, sentences: Sequence[str], *, size: int, min_count: int) -> Tokenizer:
    """Fits a tokenizer to sentences of a language.

    size: of a subword vocabulary (byte-pair encoding, Sennrich et al. 2016); the result is smaller
    if the sentences have fewer subwords.  min_count: rarer words and characters become <unk>.
    """
    if kind == "subwords":
        return _fit_subwords(sentences, size)
    counts = collections.Counter(
        piece for sentence in sentences for piece in pieces(kind, sentence)
    )
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Tokenizer(
        kind, ("</s>", "<unk>", *(piece for piece, count in ordered if count >= min_count))
    )


def pieces(kind: Kind, sentence: str) -> list[str]:
    """Words (runs of letters and digits, or single other signs) or characters.

    A piece includes the space before it.
    """
    spaced = _spaced(sentence)
    text = SPACE + spaced.replace(" ", SPACE) if spaced else ""
    return _WORD.findall(text) if kind == "words" else list(text)


def _spaced(sentence: str) -> str:
    return " ".join(sentence.split())


def _fit_subwords(sentences: Sequence[str], size: int) -> Tokenizer:
    import sentencepiece

    model = io.BytesIO()
    characters = len(set("".join(_spaced(sentence) for sentence in sentences)))
    options: dict[str, Any] = {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "character_coverage": 1.0,
        "eos_id": END,
        "unk_id": UNKNOWN,
        "bos_id": -1,
        "pad_id": -1,
        "unk_surface": "<unk>",
        "max_sentence_length": 2**20,
        "num_threads": 1,
        "minloglevel": 2,
    }
    # sentencepiece rejects a size that is too small or too large, and names the largest one.
    size = max(size, characters + 3)
    while True:
        try:
            trainer = sentencepiece.SentencePieceTrainer
            trainer.train(
                sentence_iterator=map(_spaced, sentences),
                model_writer=model,
                vocab_size=size,
                **options,
            )
            break
        except RuntimeError as error:
            most = re.search(r"value <= (\d+)", str(error))
            if not most:
                raise
            size, model = int(most[1]), io.BytesIO()
    processor = _processor(model.getvalue())
    return Tokenizer(
        "subwords", tuple(processor.id_to_piece(list(range(len(processor))))), model.getvalue()
    )


def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def packed(sentences: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Tokens of sentences as an array, int32 [sentences, width], padded with END."""
    array = np.full((len(sentences), width), END, np.int32)
    for row, tokens in zip(array, sentences, strict=True):
        row[: len(tokens)] = tokens
    return array


def teacher_forcing(
    sentences: Sequence[Sequence[int]], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decoder inputs (the targets shifted by one), targets (with end tokens) and mask of sentences.

    All are [sentences, width].
    """
    targets = packed(sentences, width)
    decoder_inputs = np.concatenate(
        [np.full((len(targets), 1), END, np.int32), targets[:, :-1]], axis=1
    )
    lengths = np.array([len(tokens) + 1 for tokens in sentences])
    return decoder_inputs, targets, np.arange(width) < lengths[:, None]
