"""Prompts through the text encoders, before any network is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from musubi_core.device.memory import empty_cache
from musubi_core.events import Listener, Progress, ShouldStop, ignore, never
from musubi_core.generation.settings import DrawSettings
from musubi_core.models.spec import ArchSpec, EncoderRequest, TextPass

if TYPE_CHECKING:
    from torch import Tensor

Encoded: TypeAlias = "Mapping[str, Tensor]"  # canonical cache names, on the CPU, without a batch axis


def encode_prompts(
    spec: ArchSpec,
    drawings: Iterable[DrawSettings],
    request: EncoderRequest,
    *,
    emit: Listener = ignore,
    should_stop: ShouldStop = never,
) -> dict[str, Encoded] | None:
    """Every prompt and negative prompt once, by its text, as caching would encode it; None when stopped.

    One text encoder after the other is in memory, and none when this returns.
    """
    texts = list(dict.fromkeys(text for one in drawings for text in (one.text, one.negative_prompt)))
    wanted = [text for text in texts if text is not None]
    found: dict[str, dict[str, Tensor]] = {text: {} for text in wanted}
    for each in spec.texts(request):
        for text, tensors in zip(wanted, _encode(each, wanted, emit, should_stop), strict=False):
            found[text] |= tensors
        empty_cache(request.device)
        if should_stop():
            return None
    return {text: dict(tensors) for text, tensors in found.items()}


def _encode(
    each: TextPass, texts: Sequence[str], emit: Listener, should_stop: ShouldStop
) -> list[dict[str, Tensor]]:
    """One by one, so that a prompt has the same numbers whatever others are drawn. The encoder goes with
    this call."""
    encode = each.open()
    result: list[dict[str, Tensor]] = []
    for done, text in enumerate(texts):
        if should_stop():
            break
        emit(Progress(stage=f"prompts: {each.name}", done=done, total=len(texts), text=text))
        result += encode([text])
    emit(Progress(stage=f"prompts: {each.name}", done=len(result), total=len(texts)))
    return result
