"""`resize-lora`: a LoRA with fewer directions, chosen layer by layer. Two passes, one layer in memory.

The first pass finds the singular values of every layer, the second makes the factors of those that stay.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Listener, Note, Progress, ShouldStop, Warned, ignore, never
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.lora_tools.base_model import BaseModel, Target, open_base
from musubi_core.lora_tools.kinds_report import LayerFate, report, spectrum_picture
from musubi_core.lora_tools.layers import (
    LayerShape,
    OtherTensor,
    OutputLayer,
    dtype_for,
    layer_shape,
    matrices,
    require_lora,
    write_lora,
)
from musubi_core.lora_tools.peft_settings import HEADER_KEY
from musubi_core.lora_tools.rank_rules import NOTHING, kept_count
from musubi_core.lora_tools.recipe import Recipe
from musubi_core.lora_tools.records import ALPHA, DOWN, UP, LoraSource, Record, open_lora
from musubi_core.lora_tools.resize_config import ResizeConfig
from musubi_core.lora_tools.scores import Measured, choose, references
from musubi_core.lora_tools.spectral import Spectrum, spectrum_of
from musubi_core.networks.reading import listed

_BESIDE = ("diff", "norm")  # kinds that have no rank and are copied


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One output: the directions of each layer that stay, in the order of `Measured`."""

    path: Path
    kept: tuple[Tensor, ...]  # of indices, falling singular values; empty where the layer is left out
    rescale: float
    metadata: dict[str, str]


def resize_lora(
    config: ResizeConfig, emit: Listener = ignore, should_stop: ShouldStop = never
) -> tuple[Path, ...]:
    """Lower the ranks of a LoRA. Returns the files written; none when stopped.

    Raises ConfigError or BadFileError, and then nothing was written.
    """
    config.check()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_lora(config.path))
        records = require_lora(source, job="resize-lora", also=_BESIDE)
        base = None
        if any(recipe.needs_base for recipe in config.recipes) and config.dit is not None:
            base = stack.enter_context(open_base(config.dit, config.architecture))
        measured = _measure(source, records, base, config.recipes, emit, should_stop)
        if measured is None:
            return ()
        choices = _choices(config, source, measured, emit)
        for choice in choices:
            if not _write(choice, config, source, measured, emit, should_stop):
                return ()
            for line in report(_fates(measured, choice)):
                emit(Note(text=line))
            emit(FileWritten(path=choice.path, what="resized LoRA"))
    if config.plot is not None:
        spectrum_picture(_fates(measured, choices[0]), config.plot, cut=len(choices) == 1)
        emit(FileWritten(path=config.plot, what="singular values"))
    return tuple(choice.path for choice in choices)


def _fates(measured: Sequence[Measured], choice: Choice) -> list[LayerFate]:
    found = []
    for layer, kept in zip(measured, choice.kept, strict=True):
        whole, stays = layer.s.square().sum(), layer.s[kept].square().sum()
        found.append(
            LayerFate(
                base=layer.record.base,
                before=layer.record.rank,
                after=len(kept),
                whole=float(whole.sqrt()),
                lost=float((whole - stays).clamp(min=0).sqrt()),
                s=layer.s,
            )
        )
    return found


def _measure(
    source: LoraSource,
    records: Sequence[Record],
    base: BaseModel | None,
    recipes: Sequence[Recipe],
    emit: Listener,
    should_stop: ShouldStop,
) -> list[Measured] | None:
    """Singular values of every layer, and what the recipes compare them with. None when stopped."""
    loras = [record for record in records if record.kind == "lora"]
    if not loras:
        raise BadFileError(f"{source.path} holds no LoRA layer, so there is no rank to lower.")
    wanted = {name for recipe in recipes for name in recipe.weights}
    targets = {} if base is None else base.targets([record.base for record in loras], source.path)
    found = []
    for done, record in enumerate(loras):
        if should_stop():
            return None
        emit(Progress(stage="measure", done=done, total=len(loras), text=record.base))
        spectrum, shape = _spectrum(source, record), layer_shape(record)
        weight = None
        if base is not None:
            weight = _base_weight(base, targets[record.base], record, shape, source.path)
        found.append(
            Measured(
                record=record,
                shape=shape,
                s=spectrum.s,
                references=references(wanted, spectrum, shape, weight),
            )
        )
    return found


def _spectrum(source: LoraSource, record: Record) -> Spectrum:
    """Of the change of one layer, its scale included."""
    up, down = matrices(record, source.read(record))
    return spectrum_of(up * record.scale, down)


def _base_weight(base: BaseModel, target: Target, record: Record, shape: LayerShape, path: Path) -> Tensor:
    """(o, i * k) float32: what the LoRA changes. Raises BadFileError when it has another size."""
    weight = target.turned(target.rows(base.weight(target.layer)))
    if tuple(weight.shape) != (shape.outputs, shape.inputs, *shape.kernel):
        raise BadFileError(
            f"{path}: {record.base} changes a weight of {[shape.outputs, shape.inputs, *shape.kernel]}, but "
            f"{target.layer} of {base.path} has {list(weight.shape)} there. Give the base model that it was "
            "made for."
        )
    return weight.flatten(1)


def _choices(
    config: ResizeConfig, source: LoraSource, measured: Sequence[Measured], emit: Listener
) -> list[Choice]:
    """What each output keeps."""
    common = {
        name: text
        for name, text in source.metadata.items()
        if not name.startswith("sshs_") and name != HEADER_KEY
    }
    if config.recipe is None:
        kept = tuple(torch.arange(_count(config, one)) for one in measured)
        found = [Choice(path=config.output_file, kept=kept, rescale=1.0, metadata=common)]
    else:
        found = [_by_recipe(recipe, config, source, measured, common, emit) for recipe in config.recipes]
    for choice in found:
        if choice.path.resolve() == config.path.resolve():
            raise ConfigError(f"{choice.path} is the LoRA itself. Give another output_file.")
        choice.metadata.update(_ranks_text(measured, choice.kept))
    return found


def _count(config: ResizeConfig, layer: Measured) -> int:
    wide = math.prod(layer.shape.kernel) > 1
    most = (config.new_conv_rank or config.new_rank) if wide else config.new_rank
    if config.dynamic_method is None or config.dynamic_param is None:
        return min(most or len(layer.s), len(layer.s))
    size = min(layer.shape.outputs, layer.shape.columns)
    return kept_count(layer.s, size, config.dynamic_method, config.dynamic_param, most)


def _by_recipe(
    recipe: Recipe,
    config: ResizeConfig,
    source: LoraSource,
    measured: Sequence[Measured],
    metadata: dict[str, str],
    emit: Listener,
) -> Choice:
    empty = [one.record.base for one in measured if one.s[0] < NOTHING]
    if empty:
        emit(Warned(text=f"{len(empty)} layers have learned nothing and are left out: {listed(empty)}."))
    path = config.output_file
    if len(config.recipes) > 1:
        path = path.with_name(f"{path.stem}-{recipe.label}{path.suffix}")
    chosen = choose(recipe, measured, _budget(recipe, config, source, metadata))
    if not any(len(kept) for kept in chosen.kept):
        raise ConfigError(
            f"recipe {recipe.text!r} keeps nothing of {config.path}: the best score is {chosen.best:.2f}. "
            "Lower thr, or raise size."
        )
    emit(Note(text=f"{path.name}: {recipe.text} keeps what scores at least {chosen.threshold:.4g}."))
    parameters = {"recipe": recipe.text, "weights": dict(recipe.weights), "threshold": chosen.threshold}
    return Choice(
        path=path,
        kept=chosen.kept,
        rescale=recipe.rescale,
        metadata={**metadata, "resize_params": json.dumps(parameters)},
    )


def _budget(
    recipe: Recipe, config: ResizeConfig, source: LoraSource, metadata: dict[str, str]
) -> tuple[float, int] | None:
    """(bytes that factors and alphas may take, bytes per number), or None without a size.

    The header is counted as longer than it can become, so that the file never exceeds the size.
    """
    if recipe.size is None:
        return None
    texts = {**metadata, "resize_params": " " * 1000, "hashes": " " * 200}
    keys = [key for record in source.records for key in record.keys.values()]
    header = len(json.dumps(texts, ensure_ascii=False).encode()) + sum(len(key) + 150 for key in keys)
    beside = sum(_size(info) for info in _beside(source, config.save_precision).values())
    formats = [dtype_for(config.save_precision, one.dtypes[UP]) for one in source.records if UP in one.dtypes]
    widest = max(getattr(torch, dtype).itemsize for dtype in formats)
    return recipe.size * 2**20 - header - beside, widest


def _size(info: TensorInfo) -> int:
    return math.prod(info.shape) * int(getattr(torch, info.dtype).itemsize)


def _beside(source: LoraSource, precision: str | None) -> dict[str, TensorInfo]:
    """The tensors that are copied."""
    return {
        key: TensorInfo(shape=record.shapes[part], dtype=dtype_for(precision, record.dtypes[part]))
        for record in source.records
        if record.kind in _BESIDE
        for part, key in record.keys.items()
    }


def _ranks_text(measured: Sequence[Measured], kept: Sequence[Tensor]) -> dict[str, str]:
    """kohya's fields: one number when all layers agree, else "Dynamic"."""
    sizes = {
        (len(one), _kept_scale(layer.record)) for one, layer in zip(kept, measured, strict=True) if len(one)
    }
    if len(sizes) > 1:
        return {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
    ((rank, scale),) = sizes
    return {"ss_network_dim": str(rank), "ss_network_alpha": str(scale * rank)}


def _kept_scale(record: Record) -> float:
    """alpha / rank of the output: the source's where alpha is a tensor of the file, else 1."""
    return record.scale if ALPHA in record.keys else 1.0


def _write(
    choice: Choice,
    config: ResizeConfig,
    source: LoraSource,
    measured: Sequence[Measured],
    emit: Listener,
    should_stop: ShouldStop,
) -> bool:
    """The second pass. Returns False when stopped."""
    layers, sources = [], {}
    for layer, kept in zip(measured, choice.kept, strict=True):
        if not len(kept):
            continue
        record = layer.record
        output = OutputLayer(
            down_key=record.keys[DOWN],
            up_key=record.keys[UP],
            alpha_key=record.keys.get(ALPHA, ""),
            shape=layer.shape,
            rank=len(kept),
            alpha=_kept_scale(record) * len(kept),
            dtype=dtype_for(config.save_precision, record.dtypes[UP]),
        )
        layers.append(output)
        sources[output.down_key] = (record, kept)

    def factors(output: OutputLayer) -> tuple[Tensor, Tensor]:
        record, kept = sources[output.down_key]
        return _factors(_spectrum(source, record), kept, choice.rescale / _kept_scale(record))

    owners = {key: record for record in source.records for key in record.keys.values()}
    others = {
        key: OtherTensor(info=info, make=lambda key=key: _copied(source, owners[key], key))  # type: ignore[misc]
        for key, info in _beside(source, config.save_precision).items()
    }
    return write_lora(
        choice.path,
        layers,
        factors,
        choice.metadata,
        others=others,
        emit=emit,
        should_stop=should_stop,
        stage="resize",
    )


def _copied(source: LoraSource, record: Record, key: str) -> Tensor:
    tensors = source.read(record)
    return next(tensors[part] for part, name in record.keys.items() if name == key)


def _factors(spectrum: Spectrum, kept: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """up (o, k) and down (k, i), both with the root of the kept singular values times |scale|."""
    root = (spectrum.s[kept] * abs(scale)).sqrt()
    return spectrum.u[:, kept] * root * math.copysign(1, scale), root[:, None] * spectrum.vh[kept]
