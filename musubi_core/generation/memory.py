"""Running out of memory, in words that say what would help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from musubi_core.errors import MusubiError

TEXT = "--text_encoder_cpu, or the encoders' fp8 option (--fp8_llm, --fp8_t5)"
DRAWING = (
    "--fp8 --fp8_scaled, --blocks_to_swap (start with 20), --split_uncond, a smaller --video_size or "
    "--video_length"
)
DECODING = (
    "where the model has them --vae_tiling, --vae_chunk_size or --vae_cache_cpu; else --device cpu, or fewer "
    "frames"
)
_NO_HOST_MEMORY = ("can't allocate memory", "not enough memory")  # torch has no class for it on a CPU


@contextlib.contextmanager
def enough_memory(doing: str, help: str) -> Iterator[None]:
    """Turns running out of memory into a MusubiError. doing: what could not be done. help: what to try."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not _is_about_memory(error):
            raise
        # The frames of the error hold the tensors of what failed.
        raise MusubiError(f"Out of memory while {doing}. What helps: {help}.") from error.with_traceback(None)


def _is_about_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in _NO_HOST_MEMORY)
