"""SentencePiece models (`spiece.model`) as tokenizers, without the library of that name.

A model is a small protobuf message. Only what a unigram tokenizer needs is read: pieces with their scores,
the table that normalises characters, and three switches. Fields are numbered as in sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from musubi_core.errors import BadFileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer, normalizers

END = "</s>"
SPACE = "▁"
UNIGRAM = 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # kinds of pieces
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the model
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_MODEL_TYPE, _BYTE_FALLBACK = 3, 35  # of the trainer's settings
_CHARACTERS, _DUMMY_PREFIX, _TRIM_SPACES = 2, 3, 4  # of the normaliser
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # how a field is stored


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieces:
    """What a model holds. pieces: (text, score, kind), in the order of their ids."""

    pieces: tuple[tuple[str, float, int], ...]
    characters: bytes  # empty: characters stay as they are
    byte_fallback: bool = False
    dummy_prefix: bool = True
    trim_spaces: bool = True


def read_sentencepiece(model: bytes, *, where: str) -> SentencePieces:
    """Read a model. where: named in errors. Raises BadFileError: damaged, or not of the unigram kind."""
    try:
        parts: dict[int, list[bytes]] = {}
        for number, value in _fields(model):
            if isinstance(value, bytes):
                parts.setdefault(number, []).append(value)
        pieces = tuple(_piece(part) for part in parts[_PIECES])
        trainer, normalizer = (dict(_fields(parts.get(part, [b""])[0])) for part in (_TRAINER, _NORMALIZER))
        characters = normalizer.get(_CHARACTERS, b"")
        if not isinstance(characters, bytes):
            raise ValueError("its table of characters is a number")
    except (KeyError, ValueError, IndexError, struct.error) as error:
        raise BadFileError(
            f"{where} is not a whole SentencePiece model ({error or type(error).__name__}). Download the "
            "file again."
        ) from None
    if trainer.get(_MODEL_TYPE, UNIGRAM) != UNIGRAM:
        raise BadFileError(
            f"{where} is a SentencePiece model of kind {trainer[_MODEL_TYPE]!r}; expected a unigram "
            "model, as T5's are."
        )
    return SentencePieces(
        pieces=pieces,
        characters=characters,
        byte_fallback=bool(trainer.get(_BYTE_FALLBACK, 0)),
        dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        trim_spaces=bool(normalizer.get(_TRIM_SPACES, 1)),
    )


def sentencepiece_tokenizer(model: bytes, *, where: str) -> Tokenizer:
    """A tokenizer that gives the ids of the SentencePiece library and an end token. Raises BadFileError."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    read = read_sentencepiece(model, where=where)
    kinds = [kind for _, _, kind in read.pieces]
    texts = [text for text, _, _ in read.pieces]
    if UNKNOWN not in kinds or END not in texts:
        raise BadFileError(f"{where} has no unknown token or no {END}: it is not the tokenizer of a T5.")
    vocabulary = [(text, score) for text, score, _ in read.pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, kinds.index(UNKNOWN), read.byte_fallback))
    steps: list[normalizers.Normalizer] = []
    if read.characters:
        steps.append(normalizers.Precompiled(read.characters))
    if read.trim_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if read.dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    tokenizer.add_special_tokens([text for text, _, kind in read.pieces if kind in (UNKNOWN, CONTROL)])
    tokenizer.add_tokens([text for text, _, kind in read.pieces if kind == USER_DEFINED])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, texts.index(END))]
    )
    return tokenizer


def read_sentencepiece_file(path: Path) -> Tokenizer:
    """The tokenizer of a `spiece.model`. Raises BadFileError."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}.") from None
    return sentencepiece_tokenizer(model, where=str(path))


def write_sentencepiece(pieces: Sequence[tuple[str, float, int]], *, byte_fallback: bool) -> bytes:
    """A unigram model of (text, score, kind) that leaves characters as they are, for the demo and tests."""
    parts = []
    for text, score, kind in pieces:
        fields = (_bytes_field(_TEXT, text.encode()), _key(_SCORE, _FOUR) + struct.pack("<f", score))
        parts.append(_bytes_field(_PIECES, b"".join(fields) + _number_field(_KIND, kind)))
    trainer = _number_field(_MODEL_TYPE, UNIGRAM) + _number_field(_BYTE_FALLBACK, int(byte_fallback))
    return b"".join([*parts, _bytes_field(_TRAINER, trainer), _bytes_field(_NORMALIZER, b"")])


def _bytes_field(number: int, content: bytes) -> bytes:
    return _key(number, _BYTES) + _sevens(len(content)) + content


def _number_field(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _sevens(value)


def _key(number: int, form: int) -> bytes:
    return _sevens(number << 3 | form)


def _sevens(value: int) -> bytes:
    """A whole number in groups of seven bits, the lowest first."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _piece(part: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(part))
    text, score, kind = fields[_TEXT], fields.get(_SCORE, b"\0\0\0\0"), fields.get(_KIND, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise ValueError("a piece has parts of the wrong form")
    return text.decode("utf-8"), struct.unpack("<f", score)[0], kind


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message; a value is a whole number or its bytes."""
    position, size = 0, len(message)
    while position < size:
        tag, position = _varint(message, position)
        number, form = tag >> 3, tag & 7
        if form == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        length = {_EIGHT: 8, _FOUR: 4}.get(form)
        if form == _BYTES:
            length, position = _varint(message, position)
        if length is None or position + length > size:
            raise ValueError(f"field {number} does not fit")
        yield number, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, the lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
