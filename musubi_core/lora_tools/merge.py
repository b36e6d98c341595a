"""`merge-lora`: several LoRAs into one, or into a model."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Listener, Note, Progress, ShouldStop, ignore, never
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.lora_tools.dense import DENSE, dense_change, refuse_others
from musubi_core.lora_tools.kinds_report import LayerFate, report
from musubi_core.lora_tools.layers import (
    OtherTensor,
    OutputLayer,
    dtype_for,
    matrices,
    write_lora,
)
from musubi_core.lora_tools.merge_config import MergeConfig
from musubi_core.lora_tools.merge_layers import Layer, Part, Parts, parts_of, shape_of
from musubi_core.lora_tools.norms import leading_spectrum
from musubi_core.lora_tools.rank_rules import NOTHING, count_for_energy
from musubi_core.lora_tools.records import ALPHA, DOWN, UP, LoraSource, open_lora
from musubi_core.lora_tools.scores import Cost, threshold_for
from musubi_core.lora_tools.spectral import Spectrum, side_by_side, spectrum_of
from musubi_core.networks.reading import listed

_BESIDE = ("diff", "norm")  # changes without a rank: they are added
_SAME_MODEL = ("ss_base_model_version", "modelspec.architecture")


def merge_lora(
    config: MergeConfig, emit: Listener = ignore, should_stop: ShouldStop = never
) -> tuple[Path, ...]:
    """Merge LoRAs. Returns the file written; nothing when stopped.

    Raises ConfigError or BadFileError, and then nothing was written.
    """
    config.check()
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(open_lora(path)) for path in config.lora_weight]
        for source in sources:
            refuse_others(source, _BESIDE)
        _check_one_model(sources)
        if config.dit is not None:
            from musubi_core.lora_tools.merge_base import merge_into_model

            done = merge_into_model(config, sources, emit, should_stop)
        else:
            done = _into_one(config, sources, emit, should_stop)
    if not done:
        return ()
    emit(FileWritten(path=config.output_file, what="merged LoRA" if config.dit is None else "merged model"))
    return (config.output_file,)


def _check_one_model(sources: Sequence[LoraSource]) -> None:
    """Raises BadFileError when the files say that they are for different models."""
    for key in _SAME_MODEL:
        named = {source.metadata[key]: source.path.name for source in sources if source.metadata.get(key)}
        if len(named) > 1:
            texts = ", ".join(f"{path} for {model}" for model, path in named.items())
            raise BadFileError(f"These LoRAs are for different models by their {key}: {texts}.")


def _into_one(
    config: MergeConfig, sources: Sequence[LoraSource], emit: Listener, should_stop: ShouldStop
) -> bool:
    parts = parts_of(sources, config.multipliers, config.architecture)
    layers = _layers(config, parts)
    beside = _sums(config, parts)
    if not _set_ranks(config, list(layers.values()), sources, beside, emit, should_stop):
        return False
    outputs = {}
    for layer in layers.values():
        if layer.rank:
            output = _output(layer, config)
            outputs[output.down_key] = (output, layer)
    if not outputs and not beside:
        raise ConfigError("Nothing is left of these LoRAs. Raise size, or check the multipliers.")
    exact = config.new_rank is None and config.energy is None and config.size is None
    fates: list[LayerFate] = []

    def factors(output: OutputLayer) -> tuple[Tensor, Tensor]:
        up, down, fate = _factors(outputs[output.down_key][1], exact=exact)
        fates.append(fate)
        return up, down

    done = write_lora(
        config.output_file,
        [output for output, _ in outputs.values()],
        factors,
        _metadata(config, sources, layers.values()),
        others=beside,
        emit=emit,
        should_stop=should_stop,
        stage="merge",
    )
    if done:
        for line in [] if exact else report(fates):
            emit(Note(text=line))
        worst = max((fate.lost / fate.whole for fate in fates if fate.whole), default=0.0)
        ranks = [layer.rank for layer in layers.values()] or [0]
        emit(
            Note(
                text=f"{len(layers)} layers of {len(sources)} LoRAs, rank {min(ranks)} to {max(ranks)}; at "
                f"most {worst:.2%} of a layer's change was cut off."
            )
        )
    return done


def _layers(config: MergeConfig, parts: Parts) -> dict[str, Layer]:
    """{a name that all spellings share: layer}. Raises BadFileError for files that do not belong together."""
    layers: dict[str, Layer] = {}
    for part in parts.parts:
        if part.record.kind in DENSE:
            layers.setdefault(parts.key(part.record.base), Layer(shape=shape_of(part))).add(part)
    shared = any(len(layer.parts) > 1 for layer in layers.values())
    if len(config.lora_weight) > 1 and not shared and not config.disjoint:
        raise BadFileError(
            "These LoRAs have no layer in common: they are for different models, or their names do not tell "
            "for which one (then give --architecture). If each trains another part of one model, set "
            "--disjoint."
        )
    return layers


def _set_ranks(
    config: MergeConfig,
    layers: Sequence[Layer],
    sources: Sequence[LoraSource],
    beside: dict[str, OtherTensor],
    emit: Listener,
    should_stop: ShouldStop,
) -> bool:
    """Decide the rank of every layer; where that needs the singular values, in a pass of its own."""
    if config.energy is None and config.size is None:
        for layer in layers:
            if config.new_rank is None and not layer.plain:
                raise ConfigError(
                    f"{layer.parts[0].record.base} is not LoRA in every file, so the sum has no exact LoRA "
                    "form. Give --new_rank, --energy or --size."
                )
            whole = sum(part.record.rank for part in layer.parts)
            layer.rank = whole if config.new_rank is None else min(config.new_rank, layer.widest)
        return True
    spectra = []
    for done, layer in enumerate(layers):
        if should_stop():
            return False
        emit(Progress(stage="measure", done=done, total=len(layers), text=layer.parts[0].record.base))
        s = _spectrum(layer, layer.widest)[0].s
        spectra.append(s)
        if config.energy is not None:
            most = config.new_rank or len(s)
            layer.rank = min(count_for_energy(s, float(s.norm()), config.energy), most)
    if config.size is not None:
        _fit(config, layers, spectra, sources, beside)
    return True


def _fit(
    config: MergeConfig,
    layers: Sequence[Layer],
    spectra: Sequence[Tensor],
    sources: Sequence[LoraSource],
    beside: dict[str, OtherTensor],
) -> None:
    """Ranks of the strongest directions of all layers that fit into the file."""
    assert config.size is not None
    texts = json.dumps(_metadata(config, sources, layers), ensure_ascii=False)
    names = [part.record.base for layer in layers for part in layer.parts[:1]]
    header = len(texts.encode()) + 1000 + sum(3 * (len(name) + 150) for name in names)
    header += sum(len(name) + 150 for name in beside)
    copied = sum(4 * math.prod(other.info.shape) for other in beside.values())
    costs = [
        Cost(
            direction=(layer.shape.outputs + layer.shape.columns)
            * getattr(torch, _dtype(layer, config)).itemsize,
            opening=4,
        )
        for layer in layers
    ]
    rated = [torch.where(s > NOTHING, s, 0.0).log10() for s in spectra]
    least = threshold_for(rated, costs, config.size * 2**20 - header - copied)
    for layer, one in zip(layers, rated, strict=True):
        layer.rank = int(((one >= least) & one.isfinite()).sum())


def _spectrum(layer: Layer, rank: int) -> tuple[Spectrum, float]:
    """The leading `rank` directions, or all, of the weighted sum of all changes; and the norm of the sum."""
    if layer.plain:
        spectrum = spectrum_of(*_concatenated(layer))
        return spectrum, float(spectrum.s.norm())
    total = torch.zeros(layer.shape.outputs, layer.shape.columns)
    for part in layer.parts:
        change = dense_change(part.record, part.read())
        total.add_(change, alpha=part.multiplier)
    return leading_spectrum(total, rank, seed=0), float(total.norm())


def _concatenated(layer: Layer) -> tuple[Tensor, Tensor]:
    """up (o, sum r) and down (sum r, i * k) in float64, the strengths half in each."""
    ups, downs = [], []
    for part in layer.parts:
        up, down = matrices(part.record, part.read())
        strength = part.multiplier * part.record.scale
        root = math.sqrt(abs(strength))
        ups.append(up * math.copysign(root, strength))
        downs.append(down * root)
    return side_by_side(ups, downs)


def _factors(layer: Layer, *, exact: bool) -> tuple[Tensor, Tensor, LayerFate]:
    """up, down, and what was cut off."""
    base, before = layer.parts[0].record.base, sum(part.record.rank for part in layer.parts)
    if exact:
        fate = LayerFate(base=base, before=before, after=before, whole=0.0, lost=0.0, s=torch.empty(0))
        return *_concatenated(layer), fate
    spectrum, whole = _spectrum(layer, layer.rank)
    lost = max(whole**2 - float(spectrum.s[: layer.rank].square().sum()), 0.0) ** 0.5
    fate = LayerFate(base=base, before=before, after=layer.rank, whole=whole, lost=lost, s=spectrum.s)
    return *spectrum.factors(layer.rank), fate


def _dtype(layer: Layer, config: MergeConfig) -> str:
    """The format asked for, else the widest of the files'."""
    formats = [getattr(torch, dtype) for part in layer.parts for dtype in part.record.dtypes.values()]
    floats = [dtype for dtype in formats if dtype.is_floating_point and dtype.itemsize > 1]
    widest = torch.bfloat16 if not floats else floats[0]
    for dtype in floats[1:]:
        widest = torch.promote_types(widest, dtype)
    return dtype_for(config.save_precision, str(widest).removeprefix("torch."))


def _output(layer: Layer, config: MergeConfig) -> OutputLayer:
    """Named as in the first file; alpha = rank."""
    record = layer.parts[0].record
    dotted = record.kind == "lora" and ALPHA not in record.keys
    return OutputLayer(
        down_key=record.keys.get(DOWN, f"{record.base}.{DOWN}"),
        up_key=record.keys.get(UP, f"{record.base}.{UP}"),
        alpha_key="" if dotted else record.keys.get(ALPHA, f"{record.base}.{ALPHA}"),
        shape=layer.shape,
        rank=layer.rank,
        alpha=float(layer.rank),
        dtype=_dtype(layer, config),
    )


def _sums(config: MergeConfig, parts: Parts) -> dict[str, OtherTensor]:
    """Changes of biases and norms: weighted sums, under the names of the first file that has them."""
    groups: dict[str, list[tuple[Part, str]]] = {}
    for part in parts.parts:
        if part.record.kind in _BESIDE:
            for name in part.record.keys:
                groups.setdefault(f"{parts.key(part.record.base)}.{name}", []).append((part, name))
    found = {}
    for group in groups.values():
        first, name = group[0]
        shapes = {part.record.shapes[name] for part, _ in group}
        if len(shapes) > 1:
            raise BadFileError(
                f"{first.record.keys[name]} has different shapes in these files: "
                f"{listed(sorted(map(str, shapes)))}."
            )
        info = TensorInfo(
            shape=first.record.shapes[name],
            dtype=dtype_for(config.save_precision, first.record.dtypes[name]),
        )
        found[first.record.keys[name]] = OtherTensor(info=info, make=_summer(group))
    return found


def _summer(parts: Sequence[tuple[Part, str]]) -> Callable[[], Tensor]:
    def make() -> Tensor:
        changes = [part.read()[name].float() * part.multiplier for part, name in parts]
        return torch.stack(changes).sum(dim=0)

    return make


def _metadata(config: MergeConfig, sources: Sequence[LoraSource], layers: Iterable[Layer]) -> dict[str, str]:
    """What the files agree on about the model, and what was merged."""
    common = {
        name: text
        for name, text in sources[0].metadata.items()
        if (name.startswith("modelspec.") or name in _SAME_MODEL or name == "ss_network_module")
        and all(source.metadata.get(name, text) == text for source in sources)
    }
    ranks = {layer.rank for layer in layers if layer.rank}
    dim = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    named = zip(config.lora_weight, config.multipliers, strict=True)
    return {
        **common,
        "ss_network_dim": dim,
        "ss_network_alpha": dim,
        "musubi_core.merged": ", ".join(f"{path.name} {strength:g}" for path, strength in named),
    }
