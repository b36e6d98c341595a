"""`ema-merge`: checkpoints of one run into their average, tensor by tensor."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Listener, Note, Progress, ShouldStop, Warned, ignore, never
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import TensorFile, open_writer
from musubi_core.lora_tools.ema_config import EmaConfig
from musubi_core.lora_tools.series import Checkpoint, Series, open_series
from musubi_core.networks.power_ema import (
    SIGMA_KEY,
    Profile,
    constant_betas,
    counted_betas,
    exponent_of,
    synthesize,
    weights_at_steps,
    weights_of_betas,
)

POOR = 0.1  # relative error of a synthesised profile above which a warning is due


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """One output: the weight of each file, oldest first. Weights sum to 1 and may be negative."""

    path: Path
    weights: tuple[float, ...]
    label: str


def ema_merge(
    config: EmaConfig, emit: Listener = ignore, should_stop: ShouldStop = never
) -> tuple[Path, ...]:
    """Average checkpoints. Returns the files written; none when stopped.

    Number formats are those of the oldest file, metadata that of the newest with fresh hashes. Raises
    ConfigError or BadFileError before anything is written.
    """
    config.check()
    with open_series(config.path, sort=not config.no_sort and config.weighting != "stored") as series:
        emit(Note(text=_order_text(series)))
        averages = _averages(config, series, emit)
        for average in averages:
            emit(Note(text=_weights_text(average, series)))
        if config.average == "delta":
            from musubi_core.lora_tools.ema_delta import merge_deltas

            done = merge_deltas(series, averages, config.rank, emit, should_stop)
        else:
            done = merge_factors(series, averages, emit, should_stop)
    if not done:
        return ()
    for average in averages:
        emit(FileWritten(path=average.path, what="averaged LoRA"))
    return tuple(average.path for average in averages)


def merge_factors(
    series: Series, averages: Sequence[Average], emit: Listener, should_stop: ShouldStop
) -> bool:
    """Every float tensor becomes the weighted sum of its versions, in float32; others are the oldest's.

    Reads each file once, whatever the number of averages, and into the same memory again and again: it stays
    in the processor's cache, where the sum finds it. Returns False when stopped.
    """
    first = series.checkpoints[0]
    infos = {
        name: TensorInfo(shape=stored.shape, dtype=stored.dtype) for name, stored in first.tensors.items()
    }
    try:
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(
                    open_writer(one.path, infos, output_metadata(series, one), sshs_hashes=True)
                )
                for one in averages
            ]
            memory = torch.empty(_largest(series.checkpoints), dtype=torch.uint8)
            for done, name in enumerate(writers[0].order):
                if should_stop():
                    raise _Stopped
                versions = (one.file.read(name, memory=memory) for one in series.checkpoints)
                sums = weighted_sums(versions, name, [one.weights for one in averages])
                refuse_infinite(sums, [one.file for one in series.checkpoints], name)
                for writer, total in zip(writers, sums, strict=True):
                    writer.add(total)
                emit(Progress(stage="average", done=done + 1, total=len(infos), text=name))
    except _Stopped:
        return False
    return True


class _Stopped(Exception):
    """Leaves the open files unwritten."""


def _largest(checkpoints: Iterable[Checkpoint]) -> int:
    """Bytes that hold any tensor of any file."""
    return max(stored.end - stored.start for one in checkpoints for stored in one.tensors.values())


def weighted_sums(versions: Iterable[Tensor], name: str, weights: Sequence[Sequence[float]]) -> list[Tensor]:
    """One tensor of every average. versions: that of each file, oldest first.

    Each version is done with before the next is taken, which may come in the same memory.
    """
    dtype, whole = torch.float32, name.endswith(".alpha")  # alphas are equal, and a sum of parts could round
    totals: list[Tensor] = []
    for place, version in enumerate(versions):
        if place == 0:
            dtype = version.dtype
            whole = whole or not dtype.is_floating_point
            totals = [version.clone() if whole else version.float() * row[0] for row in weights]
        elif not whole:
            wide = version.float()
            for total, row in zip(totals, weights, strict=True):
                total.add_(wide, alpha=row[place])
    return [total.to(dtype) for total in totals]


def refuse_infinite(sums: Sequence[Tensor], files: Sequence[TensorFile], name: str) -> None:
    """Raises BadFileError naming the files when a sum holds NaN or infinity."""
    if all(is_finite(total) for total in sums):
        return
    guilty = [file.path.name for file in files if not is_finite(file.read(name))]
    where = f"in {', '.join(guilty)}. Leave that checkpoint out." if guilty else "after averaging."
    raise BadFileError(f"{name} holds NaN or infinity {where} Nothing was written.")


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; one pass, without a copy of wide formats."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())
    return math.isfinite(low.item()) and math.isfinite(high.item())


def output_metadata(series: Series, average: Average) -> dict[str, str]:
    """That of the newest file, and how the average was made."""
    newest = series.checkpoints[-1].metadata
    own = {"musubi_core.ema": average.label, "musubi_core.ema_files": str(len(series.checkpoints))}
    return {name: text for name, text in newest.items() if not name.startswith("sshs_")} | own


def _averages(config: EmaConfig, series: Series, emit: Listener) -> list[Average]:
    """What is to be written, with all weights known."""
    count = len(series.checkpoints)
    if count == 1 and config.weighting != "stored":
        emit(Warned(text="Only one checkpoint was given, so the average is a copy of it."))
    values = config.sigma_rel or config.beta
    found = []
    for value in values:
        label = f"sigma_rel={value:g}" if config.sigma_rel else f"beta={value:g}"
        if not config.sigma_rel:
            weights = weights_of_betas(constant_betas(count, value, config.beta2))
            label += f",beta2={config.beta2:g}" if config.beta2 is not None else ""
        elif config.weighting == "counted":
            weights = weights_of_betas(counted_betas(count, exponent_of(value)))
        elif config.weighting == "steps":
            weights = weights_at_steps(_steps(series.checkpoints), exponent_of(value))
        else:
            weights = _stored_weights(config, series, value, emit)
        path = config.output_file
        if len(values) > 1:
            path = path.with_name(f"{path.stem}-{_plain(label)}{path.suffix}")
        if path.resolve() in {one.resolve() for one in series.paths}:
            raise ConfigError(f"{path} is one of the checkpoints. Give another output_file.")
        label += f",weighting={config.weighting}" if config.sigma_rel else ""
        found.append(Average(path=path, weights=tuple(weights), label=label))
    return found


def _plain(label: str) -> str:
    """A label as part of a file name: "beta=0.9,beta2=0.95" -> "beta0.9-beta20.95"."""
    return label.replace("=", "").replace(",", "-")


def _steps(checkpoints: Sequence[Checkpoint]) -> list[float]:
    unknown = [one.path.name for one in checkpoints if one.step is None]
    if unknown:
        raise ConfigError(
            f"weighting steps needs the training step in each file, but {', '.join(unknown)} has none "
            "recorded (ss_steps). Use weighting counted."
        )
    steps = [float(one.step or 0) for one in checkpoints]
    if any(later <= earlier for earlier, later in pairwise(steps)) or steps[0] <= 0:
        raise ConfigError(f"The recorded steps are {steps}; they must rise. Leave out the odd one.")
    return steps


def _stored_weights(config: EmaConfig, series: Series, width: float, emit: Listener) -> list[float]:
    """Least squares over running averages kept by training."""
    steps = [one.step for one in series.checkpoints]
    widths = [one.metadata.get(SIGMA_KEY, "") for one in series.checkpoints]
    foreign = [
        one.path.name
        for one, step, text in zip(series.checkpoints, steps, widths, strict=True)
        if not step or not text
    ]
    if foreign:
        raise ConfigError(
            f"{', '.join(foreign[:5])} is no running average: weighting stored needs the files that training "
            "with --ema_sigma_rel writes. Use weighting steps for plain checkpoints."
        )
    profiles = [
        Profile(exponent=exponent_of(float(text)), time=float(step or 0))
        for step, text in zip(steps, widths, strict=True)
    ]
    last = max(profile.time for profile in profiles)
    wanted = Profile(exponent=exponent_of(width), time=float(config.at_step or last))
    found = synthesize(profiles, wanted)
    text = (
        f"sigma_rel {width:g} at step {wanted.time:g}: the profile is met to {found.error:.1%}, with weights "
        f"that sum to {found.amplification:.2f} in size."
    )
    if found.error > POOR:
        emit(Warned(text=f"{text} Store averages of more widths, or more often, for a better fit."))
    else:
        emit(Note(text=text))
    return list(found.weights)


def _order_text(series: Series) -> str:
    lines = [f"  {index + 1}. {path.name}" for index, path in enumerate(series.paths)]
    return "\n".join([f"Checkpoints, oldest first ({series.order}):", *lines])


def _weights_text(average: Average, series: Series) -> str:
    parts = [
        f"{path.name} {weight:.4g}"
        for path, weight in zip(series.paths, average.weights, strict=True)
        if not math.isclose(weight, 0.0, abs_tol=5e-5)
    ]
    return f"{average.path.name}: {average.label}. Weights: {', '.join(parts)}."
