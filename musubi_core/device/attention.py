"""Attention over the whole sequence, by whichever library the user chose, with one meaning.

Shapes: B samples, L tokens, n heads, d numbers per head; T is all valid tokens of a batch in one row.

A batch of unequal lengths is padded at the end. `lengths` says how many leading tokens of each sample are
valid. They are Python numbers, because the caller has them on the CPU anyway (from the length of the text),
and reading them back from a card would stop it once per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from musubi_core.device.libraries import library
from musubi_core.errors import ConfigError

ATTENTIONS = ("sdpa", "flash_attn", "flash3", "xformers", "sage_attn")
Dense: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v and result (B, L, n, d)
Packed: TypeAlias = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]  # q, k, v and result (T, n, d)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Sequence[int] | Tensor | None = None,
    kind: str = "sdpa",
    split: bool = False,
) -> Tensor:
    """Softmax attention, scaled by 1/sqrt(d), every valid token seeing every valid token of its sample.

    q, k, v: (B, L, n, d). lengths: B numbers from 1 to L, None when all tokens are valid; a tensor of them
    is accepted, and makes a card wait unless it is on the CPU. kind: one of ATTENTIONS. split: one sample at
    a time, which needs less memory for masks and more calls.
    Returns (B, L, n, d); rows behind the valid length are zero. The choice of kind or split changes the valid
    rows by rounding only (sage_attn: by its 8-bit arithmetic). Without lengths, k and v may be of another
    length than q. Raises MissingLibraryError, and ConfigError when the library cannot compute these inputs.
    """
    dense = _dense(kind)
    _check_numbers(q, kind)
    if lengths is None:
        if split and len(q) > 1:
            return torch.cat([dense(*one) for one in zip(q.split(1), k.split(1), v.split(1), strict=True)])
        return dense(q, k, v)
    lengths = _checked_lengths(lengths, q)
    if not split and len(set(lengths)) == 1:
        longest = lengths[0]
        return _padded(dense(q[:, :longest], k[:, :longest], v[:, :longest]), q.shape[1])
    if not split and kind == "sdpa":
        return _masked_sdpa(q, k, v, lengths)
    packed = None if split else _packed(kind)
    if packed is not None:
        parts = [_pack(tensor, lengths) for tensor in (q, k, v)]
        return _unpack(packed(parts[0], parts[1], parts[2], lengths), lengths, q.shape[1])
    rows = [
        _padded(dense(q[i : i + 1, :n], k[i : i + 1, :n], v[i : i + 1, :n]), q.shape[1])
        for i, n in enumerate(lengths)
    ]
    return torch.cat(rows)


def check_attention(kind: str, *, training: bool, device: torch.device | None = None) -> None:
    """Refuse a choice that cannot work, before anything is loaded. Raises ConfigError, MissingLibraryError.

    Unequal lengths work with every kind, with and without split, so nothing else is to be checked.
    """
    if kind not in ATTENTIONS:
        raise ConfigError(f"attention {kind!r} is unknown; choose one of {', '.join(ATTENTIONS)}.")
    if training and kind == "sage_attn":
        raise ConfigError(
            "sage_attn cannot train: SageAttention has no backward pass. Use --sdpa or --flash_attn for "
            "training; sage_attn is for generating."
        )
    if kind != "sdpa" and device is not None and device.type == "cpu":
        raise ConfigError(f"{kind} computes on a graphics card only, and the device is the CPU. Use --sdpa.")
    _dense(kind)


def _dense(kind: str) -> Dense:
    """The function of a library for a batch without padding."""
    if kind == "sdpa":
        return _sdpa
    if kind == "flash_attn":
        return library("flash_attn", "flash-attn", option="--flash_attn").flash_attn_func
    if kind == "flash3":
        flash3 = _flash3()
        return lambda q, k, v: _first(flash3.flash_attn_func(q, k, v))
    if kind == "xformers":
        return _xformers().memory_efficient_attention
    if kind == "sage_attn":
        sage = library("sageattention", "sageattention", option="--sage_attn")
        return lambda q, k, v: sage.sageattn(q, k, v, tensor_layout="NHD", is_causal=False)
    raise ConfigError(f"attention {kind!r} is unknown; choose one of {', '.join(ATTENTIONS)}.")


def _packed(kind: str) -> Packed | None:
    """The function of a library for sequences of unequal lengths in one row, where it has one."""
    if kind == "flash_attn":
        return _varlen(library("flash_attn", "flash-attn", option="--flash_attn").flash_attn_varlen_func)
    if kind == "flash3":
        return _varlen(_flash3().flash_attn_varlen_func)
    if kind == "xformers":
        return _block_diagonal
    return None


def _flash3() -> ModuleType:
    return library("flash_attn_interface", "flash-attn-3 (built from its repository)", option="--flash3")


def _xformers() -> ModuleType:
    return library("xformers.ops", "xformers", option="--xformers")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q, k, v: (B, L, n, d). mask: (B, 1, 1, L), False hides a key."""
    out = scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


def _masked_sdpa(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """One call for the batch, cut to its longest sample."""
    longest = max(lengths)
    valid = torch.ones(len(lengths), longest, dtype=torch.bool, device=q.device)
    for row, length in zip(valid, lengths, strict=True):
        row[length:] = False  # fills on the device: nothing is copied there, nothing waits
    out = _sdpa(q[:, :longest], k[:, :longest], v[:, :longest], valid[:, None, None, :])
    return _padded(out.masked_fill(~valid[:, :, None, None], 0), q.shape[1])


def _varlen(function: Callable[..., Tensor | tuple[Tensor, ...]]) -> Packed:
    """Flash attention's form for packed sequences, given the borders and the longest length."""

    def run(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
        borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(q.device, non_blocking=True)
        return _first(function(q, k, v, borders, borders, max(lengths), max(lengths)))

    return run


def _block_diagonal(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """xformers' form for packed sequences: one sample, and a mask that knows where each ends."""
    xformers = _xformers()
    mask = xformers.fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(lengths))
    return xformers.memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask)[0]


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Some versions of flash attention 3 return the sums of the softmax as well."""
    return result if isinstance(result, Tensor) else result[0]


def _pack(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, L, n, d) -> (T, n, d), padding left out."""
    return torch.cat([sample[:length] for sample, length in zip(x, lengths, strict=True)])


def _unpack(x: Tensor, lengths: Sequence[int], length: int) -> Tensor:
    """(T, n, d) -> (B, L, n, d) with L = length, padding zero."""
    return torch.cat([_padded(sample[None], length) for sample in x.split(list(lengths))])


def _padded(x: Tensor, length: int) -> Tensor:
    """(B, L', n, d) -> (B, length, n, d), zeros at the end."""
    return x if x.shape[1] == length else pad(x, (0, 0, 0, 0, 0, length - x.shape[1]))


def _checked_lengths(lengths: Sequence[int] | Tensor, q: Tensor) -> Sequence[int]:
    numbers = lengths.tolist() if isinstance(lengths, Tensor) else lengths
    if len(numbers) != len(q) or not all(1 <= number <= q.shape[1] for number in numbers):
        raise ValueError(f"lengths {list(numbers)} do not fit q of shape {tuple(q.shape)}")
    return numbers


def _check_numbers(q: Tensor, kind: str) -> None:
    if kind in ("flash_attn", "flash3", "sage_attn") and q.dtype not in (torch.float16, torch.bfloat16):
        dtype = str(q.dtype).removeprefix("torch.")
        raise ConfigError(
            f"{kind} computes in 16 bits only, and the network runs in {dtype}. "
            "Set mixed_precision to bf16 or fp16, or use --sdpa."
        )
