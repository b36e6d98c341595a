"""Averaging what LoRAs do to the model, instead of their matrices: mean(B) @ mean(A) is not mean(B @ A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.events import Listener, Note, Progress, ShouldStop
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import TensorFile, write_made
from musubi_core.lora_tools.ema import Average, output_metadata, weighted_sums
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

    Tensors that belong to no pair are averaged as they are. Returns False when stopped.
    """
    first = series.checkpoints[0]
    pairs = pairs_of(first, rank)
    by_name = {name: pair for pair in pairs for name in (pair.down, pair.up, pair.alpha) if name}
    infos = {
        name: TensorInfo(shape=_shape(name, stored.shape, by_name.get(name)), dtype=stored.dtype)
        for name, stored in first.tensors.items()
    }
    files = [one.file for one in series.checkpoints]
    for average in averages:
        maker = DeltaMaker(files, average, by_name)

        def make(name: str, maker: DeltaMaker = maker) -> Tensor:
            if should_stop():
                raise _Stopped
            emit(Progress(stage="average", done=len(maker.made) + 1, total=len(infos), text=name))
            return maker.make(name)

        try:
            write_made(average.path, infos, make, _metadata(series, average, rank), sshs_hashes=True)
        except _Stopped:
            return False
        emit(Note(text=f"{average.path.name}: at most {maker.lost:.2%} of a layer's change was cut off."))
    return True


class DeltaMaker:
    """Makes the tensors of one average. Holds one layer's factors until both were asked for."""

    def __init__(self, files: Sequence[TensorFile], average: Average, by_name: dict[str, Pair]) -> None:
        self._files = files
        self._average = average
        self._by_name = by_name
        self._ready: dict[str, Tensor] = {}
        self.made: list[str] = []
        self.lost = 0.0  # largest share of a layer's norm beyond the rank

    def make(self, name: str) -> Tensor:
        self.made.append(name)
        pair = self._by_name.get(name)
        if pair is None:
            versions = (file.read(name) for file in self._files)
            return weighted_sums(versions, name, [self._average.weights])[0]
        if name == pair.alpha:
            alpha = self._files[0].read(name)
            return (alpha.double() / self._stored_rank(pair) * pair.rank).to(alpha.dtype)
        if name not in self._ready:
            self._ready = self._factors(pair)  # a pair that was not finished is made again
        return self._ready.pop(name)

    def _stored_rank(self, pair: Pair) -> int:
        return self._files[0].header.tensors[pair.down].shape[0]

    def _factors(self, pair: Pair) -> dict[str, Tensor]:
        weighted = list(zip(self._average.weights, self._files, strict=True))
        downs = [file.read(pair.down) for _, file in weighted]
        ups = [file.read(pair.up) for _, file in weighted]
        scaled = [up.flatten(1).double() * weight for up, (weight, _) in zip(ups, weighted, strict=True)]
        spectrum = spectrum_of(*side_by_side(scaled, [down.flatten(1) for down in downs]))
        if not torch.isfinite(spectrum.s).all():
            raise BadFileError(f"{pair.down} or {pair.up} is not finite in one of the checkpoints.")
        whole = float(spectrum.s.norm())
        if whole:
            self.lost = max(self.lost, float(spectrum.s[pair.rank :].norm()) / whole)
        up, down = spectrum.factors(pair.rank)
        return {
            pair.down: down.reshape(pair.rank, *downs[0].shape[1:]).to(downs[0].dtype),
            pair.up: up.reshape(ups[0].shape[0], pair.rank, *ups[0].shape[2:]).to(ups[0].dtype),
        }


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
