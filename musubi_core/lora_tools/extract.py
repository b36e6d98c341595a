"""`extract-lora`: the difference of two models as a LoRA. Two passes, one weight of each in memory.

The first pass measures which tensors differ (and, for a share of the norm, which rank each needs), the second
makes the factors.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Listener, Note, Progress, ShouldStop, Warned, ignore, never
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.lora_tools.base_model import BaseModel, open_base
from musubi_core.lora_tools.extract_config import ExtractConfig
from musubi_core.lora_tools.kinds_report import LayerFate, report, spectrum_picture
from musubi_core.lora_tools.layers import LayerShape, OtherTensor, OutputLayer, dtype_for, write_lora
from musubi_core.lora_tools.norms import leading_spectrum
from musubi_core.lora_tools.rank_rules import count_for_energy
from musubi_core.lora_tools.records import ALPHA, DOWN, UP
from musubi_core.lora_tools.spectral import Spectrum
from musubi_core.networks.naming import file_name
from musubi_core.networks.reading import listed

_WHOLE = {"weight": "diff", "bias": "diff_b"}  # parameter -> what its difference is called in a LoRA file


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """norm: of the difference. rank: of its LoRA, 0 for tensors that get none."""

    name: str
    norm: float
    rank: int


class Pair:
    """The same network twice, by its own names."""

    def __init__(self, before: BaseModel, after: BaseModel) -> None:
        self.before, self.after = before, after
        _check_alike(before, after)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.before.checkpoint.header[self.before.names[name]].shape

    def difference(self, name: str) -> Tensor:
        """After less before, in float32."""
        return self.after.read(name).sub_(self.before.read(name))

    def spectrum(self, name: str, rank: int) -> Spectrum:
        """The `rank` leading directions of the difference; the same ones each time."""
        return leading_spectrum(self.difference(name).flatten(1), rank, seed=zlib.crc32(name.encode()))


def extract_lora(
    config: ExtractConfig, emit: Listener = ignore, should_stop: ShouldStop = never
) -> tuple[Path, ...]:
    """Make a LoRA of the difference of two models. Returns the file written; nothing when stopped.

    Raises ConfigError or BadFileError, and then nothing was written.
    """
    config.check()
    with (
        open_base(config.model_org, config.architecture) as before,
        open_base(config.model_tuned, config.architecture or before.spec.name) as after,
    ):
        pair = Pair(before, after)
        found = _measure(config, pair, emit, should_stop)
        if found is None or not _write(config, pair, found, emit, should_stop):
            return ()
    emit(FileWritten(path=config.output_file, what="extracted LoRA"))
    return (config.output_file,)


def _check_alike(before: BaseModel, after: BaseModel) -> None:
    """Raises BadFileError when the two are not the same network."""
    ours, theirs = before.checkpoint.header, after.checkpoint.header
    alone = [f"{name} (only in {before.path.name})" for name in before.names if name not in after.names]
    alone += [f"{name} (only in {after.path.name})" for name in after.names if name not in before.names]
    odd = [
        f"{name} is {list(ours[stored].shape)} and {list(theirs[after.names[name]].shape)}"
        for name, stored in before.names.items()
        if name in after.names and ours[stored].shape != theirs[after.names[name]].shape
    ]
    if alone or odd:
        raise BadFileError(
            f"{before.path} and {after.path} are not the same network: {listed([*alone, *odd])}. Give a "
            "model and what was tuned from it, in the same naming."
        )


def _measure(
    config: ExtractConfig, pair: Pair, emit: Listener, should_stop: ShouldStop
) -> list[Difference] | None:
    """Every tensor that differs. None when stopped."""
    found = []
    for done, name in enumerate(pair.before.names):
        if should_stop():
            return None
        emit(Progress(stage="compare", done=done, total=len(pair.before.names), text=name))
        size = float(pair.before.read(name).norm())
        norm = float(pair.difference(name).norm())
        if not torch.tensor([size, norm]).isfinite().all():
            raise BadFileError(
                f"{name} contains NaN or infinity in one of the models. Fetch that file again."
            )
        if norm == 0 or norm < config.min_diff * size:
            continue
        found.append(Difference(name=name, norm=norm, rank=_rank(config, pair, name, norm)))
    if not found:
        raise ConfigError(
            f"{config.model_tuned} equals {config.model_org} to within {config.min_diff:g}; there is nothing "
            "to extract."
        )
    return found


def _rank(config: ExtractConfig, pair: Pair, name: str, norm: float) -> int:
    shape = pair.shape(name)
    if len(shape) < 2 or not name.endswith(".weight"):
        return 0
    columns = torch.Size(shape[1:]).numel()
    most = min(config.dim, shape[0], columns)
    if config.energy is None:
        return most
    return count_for_energy(pair.spectrum(name, most).s, norm, config.energy)


def _write(
    config: ExtractConfig, pair: Pair, found: Sequence[Difference], emit: Listener, should_stop: ShouldStop
) -> bool:
    layers = {one.name: one for one in found if one.rank}
    others = _others(config, pair, [one.name for one in found if not one.rank], emit)
    outputs = {name: _output(config, pair, one) for name, one in layers.items()}
    if not outputs and not others:
        raise ConfigError("Only biases and norms differ. Set --with_diff to store them.")
    names = {output.down_key: name for name, output in outputs.items()}
    fates: list[LayerFate] = []

    def factors(output: OutputLayer) -> tuple[Tensor, Tensor]:
        name = names[output.down_key]
        spectrum = pair.spectrum(name, output.rank)
        whole = layers[name].norm
        lost = max(whole**2 - float(spectrum.s.square().sum()), 0.0) ** 0.5
        fates.append(
            LayerFate(
                base=name.rpartition(".")[0],
                before=0,
                after=output.rank,
                whole=whole,
                lost=lost,
                s=spectrum.s,
            )
        )
        up, down = spectrum.factors(output.rank)
        return _clamped(up, down, config.clamp_quantile)

    done = write_lora(
        config.output_file,
        list(outputs.values()),
        factors,
        _metadata(config, pair, layers),
        others=others,
        emit=emit,
        should_stop=should_stop,
        stage="extract",
    )
    if done and fates:
        _report(config, pair, fates, emit)
    return done


def _report(config: ExtractConfig, pair: Pair, fates: Sequence[LayerFate], emit: Listener) -> None:
    """What a LoRA of this rank cannot hold: |difference - LoRA|."""
    for line in report(fates):
        emit(Note(text=line))
    whole, lost = (sum(getattr(one, what) ** 2 for one in fates) for what in ("whole", "lost"))
    worst = max(fates, key=lambda one: one.lost / one.whole)
    emit(
        Note(
            text=f"{len(fates)} layers of {len(pair.before.names)} tensors. The LoRA misses "
            f"{(lost / whole) ** 0.5:.2%} of the difference; at most {worst.lost / worst.whole:.2%}, in "
            f"{worst.base}."
        )
    )
    if config.plot is not None:
        spectrum_picture(fates, config.plot, cut=False)
        emit(FileWritten(path=config.plot, what="singular values"))


def _output(config: ExtractConfig, pair: Pair, one: Difference) -> OutputLayer:
    outputs, inputs, *kernel = pair.shape(one.name)
    base = _base(pair, one.name)
    return OutputLayer(
        down_key=f"{base}.{DOWN}",
        up_key=f"{base}.{UP}",
        alpha_key=f"{base}.{ALPHA}",
        shape=LayerShape(outputs=outputs, inputs=inputs, kernel=tuple(kernel)),
        rank=one.rank,
        alpha=float(one.rank),
        dtype=dtype_for(config.save_precision, "float32"),
    )


def _base(pair: Pair, name: str) -> str:
    """What the layer of a parameter is called in LoRA files that ComfyUI loads."""
    return file_name(name.rpartition(".")[0], "comfyui", pair.before.spec.lora_names.comfyui)


def _others(
    config: ExtractConfig, pair: Pair, names: Sequence[str], emit: Listener
) -> dict[str, OtherTensor]:
    """Differences that are stored whole. What cannot be stored is told."""
    fit = [name for name in names if name.rpartition(".")[2] in _WHOLE] if config.with_diff else []
    left = [name for name in names if name not in fit]
    if left:
        remedy = "" if config.with_diff else " --with_diff stores those of biases and norms."
        emit(Warned(text=f"{len(left)} tensors differ and are not in the LoRA: {listed(left)}.{remedy}"))
    return {
        f"{_base(pair, name)}.{_WHOLE[name.rpartition('.')[2]]}": OtherTensor(
            info=TensorInfo(shape=pair.shape(name), dtype=dtype_for(config.save_precision, "float32")),
            make=lambda name=name: pair.difference(name),  # type: ignore[misc]
        )
        for name in fit
    }


def _clamped(up: Tensor, down: Tensor, quantile: float | None) -> tuple[Tensor, Tensor]:
    """Both limited to the quantile of their absolute values."""
    if quantile is None:
        return up, down
    sizes = torch.cat([up.flatten(), down.flatten()]).abs()
    place = max(1, round(quantile * sizes.numel()))
    limit = float(sizes.kthvalue(place).values)  # torch.quantile refuses layers of 16 million numbers
    return up.clamp(-limit, limit), down.clamp(-limit, limit)


def _metadata(config: ExtractConfig, pair: Pair, layers: Mapping[str, Difference]) -> dict[str, str]:
    ranks = {one.rank for one in layers.values()}
    dim = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    card = pair.before.spec.card
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{card.architecture}/lora",
        "modelspec.implementation": card.implementation,
        "modelspec.title": config.output_file.stem,
        "ss_base_model_version": pair.before.spec.latent.architecture,
        "ss_network_module": pair.before.spec.network_modules[0],
        "ss_network_dim": dim,
        "ss_network_alpha": dim,
        "musubi_core.extracted": f"{config.model_tuned.name} - {config.model_org.name}",
    }
