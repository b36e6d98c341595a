"""Fill a module from a checkpoint file, strictly, holding every weight only once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from musubi_core.encoders.fp8_layers import read_fp8_layers
from musubi_core.encoders.stored_scales import read_unscaled
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.quantization.fp8_linear import put_fp8_linears
from musubi_core.quantization.scheme import QuantisationConfig


def prefix_before(names: Iterable[str], anchor: str) -> str | None:
    """What precedes the key `anchor` in a checkpoint, e.g. "language_model.model." before "norm.weight".

    None if no name ends with the anchor as whole words; the shortest prefix if several do.
    """
    found = [name.removesuffix(anchor) for name in names if name == anchor or name.endswith(f".{anchor}")]
    return min(found, key=lambda prefix: (len(prefix), prefix), default=None)


def check_names(
    wanted: Mapping[str, torch.Size | tuple[int, ...]],
    stored: Mapping[str, TensorInfo],
    *,
    path: Path,
    what: str,
    unit_axes: bool = False,
) -> None:
    """Raises BadFileError unless `stored` has exactly the wanted names and shapes.

    unit_axes: trailing axes of length 1 may be missing or extra, e.g. a 1x1x1 convolution for a linear layer.
    """
    missing = sorted(set(wanted) - set(stored))
    extra = sorted(set(stored) - set(wanted))
    if missing or extra:
        parts = [_some("lacks", missing), _some("has unknown", extra)]
        raise BadFileError(
            f"{path} is not a complete {what}: it {' and '.join(part for part in parts if part)}. "
            f"Expected {len(wanted)} tensors. Download the file again, or check that it is the right one."
        )
    for name, shape in wanted.items():
        found = tuple(stored[name].shape)
        if found != tuple(shape) and not (unit_axes and _core(found) == _core(tuple(shape))):
            raise BadFileError(
                f"{path} is not a {what}: {name} has shape {list(found)}, expected {list(shape)}. "
                "Check that it is the right file."
            )


def fill(
    module: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, str],
    *,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
    cast: Callable[[Tensor, torch.dtype], Tensor] = Tensor.to,
    transform: Callable[[str, Tensor], Tensor] | None = None,
    quantisation: QuantisationConfig | None = None,
    placement: Callable[[nn.Module], Callable[[str], torch.device]] | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> None:
    """Load every parameter of an empty `module`, in place; tensors are read, cast and moved one by one.

    sources: own parameter name -> name in the file. dtype_of: own name -> dtype. transform: (own name, tensor
    as read) -> tensor, before the cast. quantisation: which linear layers become 8-bit ones, and how; those
    are read by rows and never held whole in another precision, unless there is a transform.
    device: on "meta" nothing is read, and the module is as it would be, but without memory.
    placement: the empty module -> where each tensor goes, by own name; None means all to `device`.
    watch: told (tensors loaded, of all) before each one and at the end; what it raises ends the loading.
    The module is frozen and in evaluation mode afterwards; buffers that are in no file move to the device in
    their own precision.
    """
    if device.type == "meta":
        _fill_empty(module, dtype_of, quantisation)
        return
    place = placement(module) if placement is not None else lambda name: device
    total = len(module.state_dict())

    def begin(done: int) -> None:
        if watch is not None:
            watch(min(done, total), total)

    state: dict[str, Tensor] = {}
    if quantisation is not None:
        state |= read_fp8_layers(
            module,
            checkpoint,
            sources,
            quantisation,
            device=device,
            place=place,
            transform=transform,
            begin=begin,
        )
    for name, empty in module.state_dict().items():
        if name in state:
            continue
        begin(len(state))
        stored = read_unscaled(checkpoint, sources[name])
        if transform is not None:
            stored = transform(name, stored)
        state[name] = cast(stored, dtype_of(name)).to(place(name)).reshape(empty.shape)
    begin(total)
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()
    for name, buffer in module.named_buffers():
        if name not in state:
            buffer.data = buffer.data.to(device)


def _fill_empty(
    module: nn.Module, dtype_of: Callable[[str], torch.dtype], quantisation: QuantisationConfig | None
) -> None:
    """Give the parameters of a module on the meta device the dtypes that loading would give them."""
    layers = put_fp8_linears(module, quantisation) if quantisation is not None else {}
    kept = {f"{name}.{part}" for name in layers for part in ("weight", "scale_weight")}
    state = {
        name: empty if name in kept else empty.to(dtype_of(name))
        for name, empty in module.state_dict().items()
    }
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval().to("meta")


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _some(verb: str, names: list[str]) -> str:
    if not names:
        return ""
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{verb} {len(names)} ({listed})"
