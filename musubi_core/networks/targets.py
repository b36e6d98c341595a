"""Which layers of a model get adapters: target blocks, then exclude patterns, then include patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from musubi_core.config import nearest
from musubi_core.errors import ConfigError
from musubi_core.networks.config import NetworkArgs, compile_patterns
from musubi_core.networks.layer import Layer, layer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What an architecture says about its adapters. Plain values: this room knows no architecture.

    classes: class names of the blocks whose layers are adapted; empty means the whole model. exclude: always
    excluded unless the user's include patterns bring a layer back. comfyui: substitutions, in order, from
    dotted names to the names that ComfyUI loads.
    """

    classes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    comfyui: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One layer of the model, and why it gets no adapter ("" when it gets one)."""

    layer: Layer
    excluded: str = ""


def choose_layers(model: nn.Module, targets: Targets, arguments: NetworkArgs) -> tuple[Choice, ...]:
    """Every linear map and convolution of the model in its own order, chosen or with the reason why not.

    Patterns match whole dotted names. Excluded = (a pattern of the architecture or the user excludes it) and
    (no include pattern matches it). Raises ConfigError for a user's pattern that matches no layer, and when
    nothing is left.
    """
    layers = _layers(model, targets.classes)
    eligible = [layer.name for layer, inside in layers if inside]
    own = compile_patterns(targets.exclude, where="the architecture's exclude patterns")
    exclude = compile_patterns(arguments.exclude_patterns, where="network_args exclude_patterns")
    include = compile_patterns(arguments.include_patterns, where="network_args include_patterns")
    for key, patterns in (("exclude_patterns", exclude), ("include_patterns", include)):
        _refuse_idle(key, patterns, eligible)
    choices = tuple(
        Choice(
            layer=layer,
            excluded=_why_not(layer, exclude=(*own, *exclude), include=include, wide=bool(arguments.conv_dim))
            if inside
            else f"not inside {' or '.join(targets.classes)}",
        )
        for layer, inside in layers
    )
    if all(choice.excluded for choice in choices):
        raise ConfigError(
            f"No layer is left to train: {len(eligible)} of {len(layers)} layers are in the target blocks "
            f"({', '.join(targets.classes) or 'the whole model'}), and all of them are excluded. "
            "Loosen exclude_patterns, or add include_patterns."
        )
    return choices


def _layers(model: nn.Module, classes: Sequence[str]) -> list[tuple[Layer, bool]]:
    """Every layer in the model's own order, with whether it lies in a target block."""
    inside = set() if classes else {""}
    found = []
    for name, module in model.named_modules():
        if (name and name.rpartition(".")[0] in inside) or type(module).__name__ in classes:
            inside.add(name)
        if "_orig_mod" in name.split("."):
            raise ValueError(f"{name}: adapters take their names before torch.compile, not after it")
        layer = layer_of(name, module)
        if layer is not None:
            found.append((layer, name in inside))
    return found


def _why_not(
    layer: Layer, *, exclude: Sequence[re.Pattern[str]], include: Sequence[re.Pattern[str]], wide: bool
) -> str:
    by = next((pattern.pattern for pattern in exclude if pattern.fullmatch(layer.name)), None)
    if by is not None and not any(pattern.fullmatch(layer.name) for pattern in include):
        return f"excluded by {by}"
    if layer.wide and not wide:
        return f"kernel {'x'.join(map(str, layer.kernel))}: set conv_dim to train it"
    return ""


def _refuse_idle(key: str, patterns: Sequence[re.Pattern[str]], names: Sequence[str]) -> None:
    """A pattern without any effect is a slip: musubi-tuner would train something else than was meant."""
    for pattern in patterns:
        if not any(pattern.fullmatch(name) for name in names):
            plain = re.sub(r"\\d[+*]?|\[0-9\][+*]?", "0", pattern.pattern).replace("\\", "").replace(".*", "")
            near = [name for name in names if plain and plain in name][:3]
            near = near or nearest(plain, names) or list(names[:3])
            raise ConfigError(
                f"network_args: {key} {pattern.pattern!r} matches none of the {len(names)} layers that can "
                f"be trained. A pattern must match the whole name (r'.*attn.*', not 'attn'). "
                f"Nearest names: {', '.join(near)}."
            )
