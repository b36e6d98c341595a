"""Averaging what LoRAs do to the model, instead of their matrices: mean(B) @ mean(A) is not mean(B @ A)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.events import Listener, Note, Progress, ShouldStop
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import TensorFile, open_writer
from musubi_core.lora_tools.ema import Average, is_finite, output_metadata, refuse_infinite, weighted_sums
from musubi_core.lora_tools.series import Checkpoint, Series
from musubi_core.lora_tools.spectral import side_by_side, spectrum_of

PAIRS = (("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight"))
ALPHA = "alpha"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two matrices of one layer by their names in the file, and the rank that the result gets."""

    down: str
    up: str
    alpha: str  # "" where the file has none
    rank: int


class _Stopped(Exception):
    """Leaves the file unwritten."""


def merge_deltas(
    series: Series, averages: Sequence[Average], rank: int | None, emit: Listener, should_stop: ShouldStop
) -> bool:
    """Each layer's weighted sum of changes, factored again at `rank` (default: the files' own).

    Tensors that belong to no pair are averaged as they are. Reads each file once, whatever the number of
    averages. Returns False when stopped.
    """
    first = series.checkpoints[0]
    pairs = pairs_of(first, rank)
    by_name = {name: pair for pair in pairs for name in (pair.down, pair.up, pair.alpha) if name}
    infos = {
        name: TensorInfo(shape=_shape(name, stored.shape, by_name.get(name)), dtype=stored.dtype)
        for name, stored in first.tensors.items()
    }
    maker = DeltaMaker([one.file for one in series.checkpoints], averages, by_name)
    try:
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(
                    open_writer(one.path, infos, _metadata(series, one, rank), sshs_hashes=True)
                )
                for one in averages
            ]
            for done, name in enumerate(writers[0].order):
                if should_stop():
                    raise _Stopped
                for writer, made in zip(writers, maker.make(name), strict=True):
                    writer.add(made)
                emit(Progress(stage="average", done=done + 1, total=len(infos), text=name))
    except _Stopped:
        return False
    for average, lost in zip(averages, maker.lost, strict=True):
        emit(Note(text=f"{average.path.name}: at most {lost:.2%} of a layer's change was cut off."))
    return True


class DeltaMaker:
    """Makes each tensor of all averages. Holds one layer's factors until both were asked for."""

    def __init__(
        self, files: Sequence[TensorFile], averages: Sequence[Average], by_name: Mapping[str, Pair]
    ) -> None:
        self._files = files
        self._averages = averages
        self._by_name = by_name
        self._ready: dict[str, list[Tensor]] = {}
        self.lost = [0.0] * len(averages)  # largest share of a layer's norm beyond the rank

    def make(self, name: str) -> list[Tensor]:
        """One tensor of every average. Raises BadFileError for NaN or infinity."""
        pair = self._by_name.get(name)
        if pair is None:
            versions = (file.read(name) for file in self._files)
            sums = weighted_sums(versions, name, [one.weights for one in self._averages])
            refuse_infinite(sums, self._files, name)
            return sums
        if name == pair.alpha:
            alpha = self._files[0].read(name)
            new = (alpha.double() / self._stored_rank(pair) * pair.rank).to(alpha.dtype)
            return [new] * len(self._averages)
        if name not in self._ready:
            self._ready = self._factors(pair)  # a pair that was not finished is made again
        return self._ready.pop(name)

    def _stored_rank(self, pair: Pair) -> int:
        return self._files[0].header.tensors[pair.down].shape[0]

    def _factors(self, pair: Pair) -> dict[str, list[Tensor]]:
        downs = [file.read(pair.down) for file in self._files]
        ups = [file.read(pair.up) for file in self._files]
        for file, *both in zip(self._files, downs, ups, strict=True):
            if not all(is_finite(tensor) for tensor in both):
                raise BadFileError(
                    f"{pair.down} or {pair.up} holds NaN or infinity in {file.path.name}. Leave that "
                    "checkpoint out. Nothing was written."
                )
        found: dict[str, list[Tensor]] = {pair.down: [], pair.up: []}
        for place, average in enumerate(self._averages):
            scaled = [up.flatten(1).double() * w for up, w in zip(ups, average.weights, strict=True)]
            spectrum = spectrum_of(*side_by_side(scaled, [down.flatten(1) for down in downs]))
            whole = float(spectrum.s.norm())
            if whole:
                lost = float(spectrum.s[pair.rank :].norm()) / whole
                self.lost[place] = max(self.lost[place], lost)
            up, down = spectrum.factors(pair.rank)
            found[pair.down].append(down.reshape(pair.rank, *downs[0].shape[1:]).to(downs[0].dtype))
            found[pair.up].append(up.reshape(ups[0].shape[0], pair.rank, *ups[0].shape[2:]).to(ups[0].dtype))
        return found


def pairs_of(checkpoint: Checkpoint, rank: int | None) -> list[Pair]:
    """The LoRA pairs of a file. Raises BadFileError when it has none or half a pair."""
    found = []
    for down_suffix, up_suffix in PAIRS:
        for down in [name for name in checkpoint.tensors if name.endswith(f".{down_suffix}")]:
            base = down.removesuffix(down_suffix)
            up = base + up_suffix
            if up not in checkpoint.tensors:
                raise BadFileError(f"{checkpoint.path} has {down} without {up}.")
            alpha = base + ALPHA if base + ALPHA in checkpoint.tensors else ""
            shapes = checkpoint.tensors[down].shape, checkpoint.tensors[up].shape
            own = shapes[0][0]
            widest = min(shapes[1][0], _columns(shapes[0]))
            found.append(Pair(down=down, up=up, alpha=alpha, rank=min(rank or own, widest)))
    if not found:
        raise BadFileError(
            f"{checkpoint.path} holds no LoRA pairs, so average delta does not apply. Use average factors."
        )
    return found


def _columns(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape[1:]:
        size *= axis
    return size


def _shape(name: str, shape: tuple[int, ...], pair: Pair | None) -> tuple[int, ...]:
    if pair is None or name == pair.alpha:
        return shape
    return (pair.rank, *shape[1:]) if name == pair.down else (shape[0], pair.rank, *shape[2:])


def _metadata(series: Series, average: Average, rank: int | None) -> dict[str, str]:
    metadata = output_metadata(series, average) | {"musubi_core.ema_of": "delta"}
    return metadata if rank is None else metadata | {"ss_network_dim": str(rank)}
