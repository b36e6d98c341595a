"""What became of a model's weights when they were put into 8 bits, in a line or two."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from statistics import fmean

from torch import nn

from musubi_core.device.fp8_matmul import why_no_fp8_matmul
from musubi_core.events import Note, Warned
from musubi_core.quantization.fp8_linear import Fp8Linear
from musubi_core.quantization.scheme import QuantisationConfig

KINDS = (("attention", "attn"), ("mlp", "mlp"), ("mlp", "ffn"), ("mlp", "ff"))  # kind, part of a layer's name
SHOWN = 3


def report(model: nn.Module, config: QuantisationConfig) -> list[Note | Warned]:
    """How many layers are in 8 bits, how far they are off, and what was not done as asked."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Fp8Linear)}
    form = "without scales" if config.scheme is None else "scaled"
    errors = {name: layer.error for name, layer in layers.items() if layer.error is not None}
    events: list[Note | Warned] = [Note(text=f"{len(layers)} layers are in fp8, {form}{error_text(errors)}.")]
    fallbacks = _fallbacks(layers, config)
    if fallbacks:
        events.append(Note(text=fallbacks))
    upcast = [name for name, layer in layers.items() if layer.upcast]
    if upcast:
        events.append(
            Warned(
                text=f"{len(upcast)} layers were fp8 already and have been rounded a second time (first: "
                f"{upcast[0]}). The bf16 file of this model would be more exact."
            )
        )
    if config.fast:
        events += _slow(layers)
    return events


def error_text(errors: Mapping[str, float]) -> str:
    """Relative RMS errors by dotted name of a layer, as the mean of each kind, to follow a statement."""
    if not errors:
        return ""
    kinds: dict[str, list[float]] = {}
    for name, error in errors.items():
        kinds.setdefault(kind_of(name), []).append(error)
    listed = ", ".join(f"{kind} {fmean(found):.2%}" for kind, found in sorted(kinds.items()))
    return f"; relative error of the weights: {listed}"


def kind_of(name: str) -> str:
    """The word attention or mlp, or the last of the name: linear1 for single_blocks.0.linear1."""
    words = set(re.split(r"[._]", name))
    found = next((kind for kind, word in KINDS if any(one.startswith(word) for one in words)), None)
    return found or next((part for part in reversed(name.split(".")) if not part.isdigit()), name)


def _fallbacks(layers: Mapping[str, Fp8Linear], config: QuantisationConfig) -> str:
    """Layers whose size does not allow the scheme that was asked for."""
    if config.scheme is None:
        return ""
    asked = config.scheme
    coarser = {
        name: fitting.granularity
        for name, layer in layers.items()
        if (fitting := asked.fitting(layer.weight.shape)) != asked
    }
    if not coarser:
        return ""
    counts = ", ".join(f"{count} one per {word}" for word, count in Counter(coarser.values()).items())
    names = ", ".join(list(coarser)[:SHOWN]) + (", ..." if len(coarser) > SHOWN else "")
    start = f"Rows of {len(coarser)} layers are no multiple of {asked.block}"
    return f"{start}, so their scales are {counts}: {names}."


def _slow(layers: Mapping[str, Fp8Linear]) -> list[Note | Warned]:
    slow = [name for name, layer in layers.items() if not layer.fast]
    if not slow:
        return []
    first = layers[slow[0]]
    reason = (
        why_no_fp8_matmul(first.weight.device, by_row=first.by_row) or "their sizes are no multiples of 16"
    )
    return [
        Warned(
            text=f"--fp8_fast: {len(slow)} of {len(layers)} layers are multiplied in the ordinary way, "
            f"because {reason}."
        )
    ]
