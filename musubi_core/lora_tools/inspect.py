"""What a file of weights is: in words, without reading weights, and the norms of its blocks as a picture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from musubi_core.encoders.stored_scales import read_unscaled, without_helpers
from musubi_core.errors import BadFileError, MusubiError
from musubi_core.events import FileWritten, Listener, Progress, ShouldStop, ignore, never
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.files.replace import replace_file
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.lora_tools.dense import DENSE, dense_change
from musubi_core.lora_tools.layers import matrices
from musubi_core.lora_tools.module_names import Model, Naming, model_of
from musubi_core.lora_tools.records import ALPHA, DORA, DOWN, LoraSource, Record, open_lora, split_key
from musubi_core.models.registry import architectures
from musubi_core.networks.naming import underscored
from musubi_core.pictures.plot import COLOURS, curves

_SHOWN = 12  # names of tensors
_BLOCK = re.compile(r"^(.*?)[._](\d+)(?=[._]|$)")
_CACHE = ("architecture", "format_version")  # metadata that every cache has


def description(path: Path) -> str:
    """What the file is, its numbers, who loads it, the first names and its metadata. Reads no weights.

    Raises BadFileError for a file that is not readable as weights at all.
    """
    lora = _is_lora(path)
    with open_checkpoint(_weights(path)) as checkpoint:
        header, metadata = dict(checkpoint.header), dict(checkpoint.metadata)
    lines = [str(path), *_numbers(header)]
    lines += _lora_lines(path) if lora else [_network_line(header, metadata)]
    names = [f"  {name} {_shape(info)}" for name, info in header.items()]
    lines += ["tensors:", *names[:_SHOWN], *[f"  ... and {len(names) - _SHOWN} more"] * (len(names) > _SHOWN)]
    if metadata:
        lines += ["metadata:", *(f"  {key} = {_short(value)}" for key, value in sorted(metadata.items()))]
    return "\n".join(lines)


def norms_picture(
    path: Path, picture: Path, emit: Listener = ignore, should_stop: ShouldStop = never
) -> bool:
    """Draw the norm of each block: of what a LoRA changes, or of a network's weights. False when stopped.

    Reads the file tensor by tensor.
    """
    squares: dict[str, dict[int, float]] = {}
    for done, (name, norm) in enumerate(_norms(path)):
        if should_stop():
            return False
        emit(Progress(stage="norms", done=done + 1, total=None, text=name))
        series, block = _place(name)
        blocks = squares.setdefault(series, {})
        blocks[block] = blocks.get(block, 0.0) + norm**2
    if not squares:
        raise BadFileError(f"{path} holds nothing whose norm could be drawn.")
    largest = sorted(squares, key=lambda series: -sum(squares[series].values()))[: len(COLOURS)]
    image = curves(
        {
            series: [(float(block), value**0.5) for block, value in sorted(squares[series].items())]
            for series in largest
        },
        title=f"norm of each block: {path.name}",
        x_label="block",
    )
    with replace_file(picture) as file:
        image.save(file, "PNG")
    emit(FileWritten(path=picture, what="picture of the norms"))
    return True


def _is_lora(path: Path) -> bool:
    with open_checkpoint(_weights(path)) as checkpoint:
        return any(split_key(key)[1] for key in checkpoint.header)


def _weights(path: Path) -> Path:
    """The file to open, where `path` may be a PEFT folder."""
    from musubi_core.lora_tools.peft_settings import read_settings

    return read_settings(path).weights


def _network_line(header: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> str:
    if all(key in metadata for key in _CACHE):
        return f"cache of: {metadata['architecture']}, format {metadata['format_version']}"
    known = [spec.name for spec in architectures() if spec.detect(header) is not None]
    return f"network of: {' or '.join(known)}" if known else "network of: no architecture known here"


def _lora_lines(path: Path) -> list[str]:
    """Kind, model, ranks, alphas and readers of a LoRA; what is wrong with it, if anything."""
    try:
        source = open_lora(path)
    except BadFileError as error:
        return [_reason("LoRA that cannot be used", error, path)]
    with source:
        records = source.records
        kinds = Counter("DoRA" if DORA in one.keys else one.kind for one in records)
        lines = [f"LoRA of {len(records)} changes: {_counted(kinds)}"]
        ranked = [one for one in records if one.rank]
        if ranked:
            lines.append(f"ranks: {_counted(Counter(one.rank for one in ranked))}")
            lines.append(f"alphas: {_counted(Counter(f'{one.alpha:g}' for one in ranked))}")
            lines.append(f"strength (alpha / rank): {_counted(Counter(f'{one.scale:g}' for one in ranked))}")
        if source.unknown:
            lines.append(f"{len(source.unknown)} tensors belong to no adapter (first: {source.unknown[0]})")
        try:
            model = model_of([one.base for one in records], source.metadata, path)
        except MusubiError as error:
            return [*lines, _reason("made for", error, path)]
        return [*lines, f"made for: {model.name}", *_readers(records, model)]


def _reason(what: str, error: MusubiError, path: Path) -> str:
    """One line; the path is known from the first one."""
    return _short(f"{what}: {str(error).replace(str(path), path.name)}", 190)


def _readers(records: Sequence[Record], model: Model) -> list[str]:
    """Who loads how many of the changes, by names alone."""
    bases, theirs = [one.base for one in records], _names(model.diffusers)
    comfyui, musubi = found_by_comfyui(model), {underscored(name) for name in _names(model.own)}
    in_comfyui = sum(base in comfyui for base in bases)
    stated = [one for one in records if one.alpha_source not in ("tensor", "rank", "")]
    weaker = any(one.alpha != one.rank for one in stated)
    in_musubi = sum(
        one.base in musubi and one.kind in DENSE and ALPHA in one.keys and DORA not in one.keys
        for one in records
    )
    in_diffusers = sum(
        one.kind == "lora"
        and ".lora_A" in one.keys[DOWN]
        and one.base.startswith("transformer.")
        and one.base.removeprefix("transformer.") in theirs
        for one in records
    )
    here = sum(model.place(base) is not None for base in bases)
    count = len(bases)
    return [
        f"loads in ComfyUI: {_share(in_comfyui, count)}"
        + (", at another strength: it ignores alpha in a header" if in_comfyui and weaker else ""),
        f"loads in musubi-tuner: {_share(in_musubi, count)}",
        f"loads in diffusers: {_share(in_diffusers, count)}"
        + ("" if in_diffusers else " names of its own; it converts some files of other programs itself"),
        f"loads in convert-lora, which can rewrite it: {_share(here, count)}",
    ]


def found_by_comfyui(model: Model) -> set[str]:
    """The names in LoRA files that ComfyUI finds; none for a relative, which it has no network for."""
    if model.name != model.home.name:
        return set()
    spelled = _names(model.comfyui)
    found = {underscored(name) for name in spelled} | {f"diffusion_model.{name}" for name in spelled}
    for form in model.home.lora_names.also:
        for name in _names(model.diffusers if form.diffusers else model.own):
            if name.startswith(form.within):
                dotted = form.prefix.endswith(".")
                found.add(form.prefix + (name if dotted else name.replace(".", "_")))
    return found


def _names(naming: Naming | None) -> set[str]:
    return set() if naming is None else {name for names in naming.names.values() for name in names}


def _share(count: int, whole: int) -> str:
    return "completely" if count == whole else f"{count} of {whole} changes" if count else "no"


def _norms(path: Path) -> Iterator[tuple[str, float]]:
    """Name and norm of each change of a LoRA, or of each weight of a network."""
    if _is_lora(path):
        with open_lora(path) as source:
            for record in source.records:
                yield record.base, _change_norm(source, record)
        return
    with open_checkpoint(path) as checkpoint:
        yield from _weight_norms(checkpoint)


def _weight_norms(checkpoint: Checkpoint) -> Iterator[tuple[str, float]]:
    for name in without_helpers(checkpoint.header):
        if name.endswith(".weight"):
            yield name, float(read_unscaled(checkpoint, name).float().norm())


def _change_norm(source: LoraSource, record: Record) -> float:
    """|scale * up @ down| from two (r, r) matrices where the change has two factors."""
    tensors = source.read(record)
    if record.kind == "lora":
        up, down = matrices(record, tensors)
        square = ((up.T @ up) * (down @ down.T)).sum()
        return abs(record.scale) * float(square.clamp(min=0)) ** 0.5
    if record.kind in DENSE and not {"hada_t1", "lokr_t2"} & set(tensors):
        return float(dense_change(record, tensors).norm())
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5


def _place(name: str) -> tuple[str, int]:
    """(series of blocks, number of the block); 0 for what lies outside of blocks."""
    found = _BLOCK.match(name)
    return (found[1], int(found[2])) if found else ("other", 0)


def _counted(counts: Mapping[Any, int]) -> str:
    """The most frequent values with their number, or the only one alone."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    if len(ordered) == 1:
        return str(ordered[0][0])
    more = f" and {len(ordered) - _SHOWN} others" if len(ordered) > _SHOWN else ""
    return ", ".join(f"{value} ({count})" for value, count in ordered[:_SHOWN]) + more


def _numbers(header: Mapping[str, TensorInfo]) -> list[str]:
    formats = Counter[str]()
    for info in header.values():
        formats[info.dtype] += prod(info.shape)
    parts = ", ".join(f"{count:,} {name}" for name, count in formats.most_common())
    return [f"{len(header)} tensors, {sum(formats.values()):,} numbers: {parts or 'none'}"]


def _shape(info: TensorInfo) -> str:
    return f"{'x'.join(map(str, info.shape)) or 'scalar'} {info.dtype}"


def _short(value: str, most: int = 100) -> str:
    return value if len(value) <= most else f"{value[:most]}..."
