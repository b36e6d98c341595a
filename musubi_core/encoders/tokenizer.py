"""Captions as token ids of fixed length.

Tokenizers are read from `tokenizer.json` by the `tokenizers` library itself: opening a folder through
transformers depends on its version, and makes up a byte-level vocabulary where files are missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from musubi_core.encoders.hub import fetch_file
from musubi_core.encoders.precision import dtype_name, math_dtype
from musubi_core.encoders.sentencepiece import read_sentencepiece_file, sentencepiece_tokenizer
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.files.digest import content_hash

if TYPE_CHECKING:
    from tokenizers import Tokenizer

JSON = "tokenizer.json"
PAIR = ("vocab.json", "merges.txt")  # CLIP's older form
SPIECE = "spiece.model"  # T5's original form
PACKED = "spiece_model"  # the same as a tensor of bytes, inside ComfyUI's text encoders


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerPlace:
    """Where a tokenizer comes from: the file of its encoder, a folder, or a name at Hugging Face."""

    option: str  # the option that chooses it, e.g. "tokenizer1", for messages
    folder: Path | None
    hub: str
    packed: Path | None = None  # weights that carry their tokenizer

    def identity(self) -> str:
        """Changes when another tokenizer is used: the hash of its files, or its name at Hugging Face."""
        if self.packed is not None:
            return hashlib.sha256(_packed_model(self.packed)).hexdigest()
        if self.folder is None:
            return self.hub
        return "+".join(content_hash(file) for file in _files_in(self.folder))


def find_tokenizer(
    *, option: str, given: str | None, encoder: Path, sibling: str, hub: str, beside: str | None = None
) -> TokenizerPlace:
    """The user's choice, else what lies with the encoder, else `hub`. Nothing is downloaded yet.

    given: value of `option`: a folder, a file of a tokenizer, or a Hugging Face name. encoder: file or folder
    of the text encoder. sibling: name of the tokenizer's folder beside a folder, in diffusers' layout.
    beside: the same beside a single file, where a publisher has one; also looked for is a SentencePiece model
    inside that file. Raises ConfigError if `given` is a path without a tokenizer.
    """
    if given is not None:
        return _given(option, given, hub)
    around = [encoder, encoder / "tokenizer", encoder.parent / sibling] if encoder.is_dir() else []
    if beside is not None and not encoder.is_dir():
        if _is_packed(encoder):
            return TokenizerPlace(option=option, folder=None, hub=hub, packed=encoder)
        around = [encoder.parent / beside]
    folder = next((place for place in around if _files_in(place)), None)
    return TokenizerPlace(option=option, folder=folder, hub=hub)


def open_tokenizer(place: TokenizerPlace, *, rows: int) -> Tokenizer:
    """The tokenizer, checked against the embedding table of `rows` rows.

    Raises BadFileError if it is not this encoder's, or cannot be had because Hugging Face is out of reach.
    """
    if place.packed is not None:
        file = place.packed
        tokenizer = sentencepiece_tokenizer(_packed_model(file), where=f"{PACKED} in {file}")
    elif place.folder is None:
        file = fetch_file(place.hub, JSON, remedy=f"set --{place.option} to a folder with this file")
        tokenizer = _from_json(file)
    elif (place.folder / JSON).is_file():
        file = place.folder / JSON
        tokenizer = _from_json(file)
    elif (place.folder / SPIECE).is_file():
        file = place.folder / SPIECE
        tokenizer = read_sentencepiece_file(file)
    else:
        file = place.folder
        tokenizer = _from_pair(file)
    tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    if not rows * 0.95 <= tokens <= rows:  # tables are padded a little, e.g. 128320 rows for 128259 tokens
        raise BadFileError(
            f"The tokenizer {file} has {tokens} tokens, but the text encoder has {rows}, so they do not "
            f"belong together. Set --{place.option} to the tokenizer of this encoder, e.g. {place.hub}."
        )
    return tokenizer


def token_ids(
    tokenizer: Tokenizer, texts: Sequence[str], *, length: int, pad: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (B, length) int64: cut to `length`, padded on the right, mask 1 for real tokens.

    pad: names of the padding token, in order of preference; 0 is used where the tokenizer knows none, as
    padding is masked.
    """
    known = [number for name in pad if (number := tokenizer.token_to_id(name)) is not None]
    tokenizer.enable_truncation(max_length=length)
    tokenizer.enable_padding(length=length, pad_id=known[0] if known else 0, direction="right")
    encoded = tokenizer.encode_batch(list(texts))
    ids = torch.tensor([one.ids for one in encoded], dtype=torch.int64).reshape(-1, length)
    mask = torch.tensor([one.attention_mask for one in encoded], dtype=torch.int64).reshape(-1, length)
    return ids, mask


def text_settings(place: TokenizerPlace, dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    """What of tokenizer and precision changes the encoded text, for the fingerprint of its caches."""
    return {
        "tokenizer": place.identity(),
        "dtype": dtype_name(dtype),
        "math": dtype_name(math_dtype(dtype, device)),
    }


def _given(option: str, given: str, usual: str) -> TokenizerPlace:
    path = Path(given)
    if path.name in (JSON, SPIECE, *PAIR) and path.is_file():
        path = path.parent
    if _files_in(path):
        return TokenizerPlace(option=option, folder=path, hub=usual)
    if path.exists() or path.is_absolute() or len(path.parts) > 2 or "\\" in given:
        found = "is there, but holds no tokenizer" if path.exists() else "does not exist"
        raise ConfigError(
            f"--{option}: {given} {found}. Expected a folder with {JSON}, with {' and '.join(PAIR)}, or with "
            f"{SPIECE}."
        )
    return TokenizerPlace(option=option, folder=None, hub=given)


def _files_in(folder: Path) -> tuple[Path, ...]:
    """The files of the tokenizer in a folder, none if there is none."""
    for name in (JSON, SPIECE):
        if (folder / name).is_file():
            return (folder / name,)
    pair = tuple(folder / name for name in PAIR)
    return pair if all(file.is_file() for file in pair) else ()


def _is_packed(encoder: Path) -> bool:
    with open_checkpoint(encoder) as checkpoint:
        return PACKED in checkpoint.header


def _packed_model(encoder: Path) -> bytes:
    with open_checkpoint(encoder) as checkpoint:
        return checkpoint.read(PACKED).numpy().tobytes()


def _from_json(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        text = file.read_text(encoding="utf-8")
        return Tokenizer.from_str(text)
    except OSError as error:
        raise BadFileError(f"{file} cannot be read: {error.strerror}.") from None
    except Exception as error:  # noqa: BLE001  the library raises plain Exception for a broken file
        raise BadFileError(f"{file} is not a tokenizer: {error}. Download the file again.") from None


def _from_pair(folder: Path) -> Tokenizer:
    from transformers import CLIPTokenizerFast

    tokenizer: Tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True).backend_tokenizer
    return tokenizer
