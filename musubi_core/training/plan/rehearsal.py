"""One forward and backward pass of the real training step on tensors without memory, counted.

Fake tensors have shapes, dtypes and a device, and nothing behind them. So the network, its adapters and the
backward pass are the real ones, whatever the architecture, and even the largest takes seconds. Attention by
PyTorch is counted as its memory-efficient kernels work: they never hold the matrix of all pairs of tokens.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from musubi_core.data.batches import map_tensors
from musubi_core.errors import TrainingError
from musubi_core.events import ignore
from musubi_core.models.compiling import Compiled
from musubi_core.models.swapping import swapped, visitors
from musubi_core.networks.network import Network
from musubi_core.offload.activations import SMALLEST
from musubi_core.offload.config import SwapConfig
from musubi_core.offload.experts import Experts
from musubi_core.offload.ring import tensors_of
from musubi_core.quantization.fp8_linear import Fp8Linear
from musubi_core.training.gradients import FlatGradients
from musubi_core.training.inputs import Prepared
from musubi_core.training.loading import build_lora, load_model
from musubi_core.training.opening import Opened
from musubi_core.training.plan.live_bytes import LiveBytes
from musubi_core.training.step import LossScale, Stepper
from musubi_core.training.swapping import Saving, nowhere

META = torch.device("meta")
WEIGHTS, SCALES, ADAPTERS, GRADIENTS, BATCH = "base weights", "fp8 scales", "adapters", "gradients", "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Bytes of one transformer block that block swap would move."""

    weights: int
    scales: int

    @property
    def total(self) -> int:
        return self.weights + self.scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What was counted, with all blocks on the device.

    at_peak: bytes on the device by kind, when their sum was highest. shapes: of the trained parameters of one
    network. swappable: the blocks of each list. on_host: bytes of activations that wait in host memory.
    visiting: bytes of weights that are on the device only for a moment, not during the blocks.
    """

    at_peak: Mapping[str, int]
    shapes: tuple[tuple[int, ...], ...]
    swappable: tuple[tuple[Block, ...], ...]
    largest_weight: int
    on_host: int = 0
    visiting: int = 0

    @property
    def peak(self) -> int:
        return sum(self.at_peak.values())


def rehearse(opened: Opened, prepared: Prepared) -> Rehearsal:
    """Count the pass of `prepared` (on the CPU) with the first of the run's networks. Loads no weights.

    Raises TrainingError when the network does something that tensors without content cannot follow.
    """
    opened = _quiet(opened)
    expert, device = opened.experts[0], opened.here.device
    model = load_model(opened, expert, META)
    network = build_lora(opened, expert.lora, model).train()
    for adapter in network.adapters.values():
        adapter.module_dropout = 0.0  # the pass that needs most leaves no adapter out
    blocks, moved = _swappable(opened, model), list[int]()
    with FakeTensorMode(allow_non_fake_inputs=True):
        counter = LiveBytes(device)
        make_fake(model, device)
        make_fake(network, device)
        network.apply_to(model)
        fake = _fake_batch(prepared, device)
        stepper = _stepper(opened, model, network, moved)
        claim_parts(counter, stepper, fake)
        try:
            with counter:
                stepper.backward(fake, len(fake.noisy))
        except RuntimeError as error:
            raise TrainingError(
                f"The memory of this run cannot be predicted: {error}. Train without --plan, a few steps on "
                "the largest item will tell."
            ) from error
    network.remove()
    return Rehearsal(
        at_peak=counter.at_peak,
        shapes=tuple(tuple(parameter.shape) for parameter in network.parameters()),
        swappable=blocks,
        largest_weight=max(parameter.nbytes for parameter in model.parameters()),
        on_host=sum(moved),
        visiting=sum(
            tensor.nbytes
            for module in visitors(opened.spec, opened.config.swap, model)
            for tensor in tensors_of(module)
        ),
    )


def make_fake(module: nn.Module, device: torch.device) -> None:
    """Replace every parameter and buffer of a module by an empty one on `device`; inside a FakeTensorMode."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(_empty(parameter, device), parameter.requires_grad)
                part._parameters[name] = made[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _empty(buffer, device)


def _quiet(opened: Opened) -> Opened:
    """The same run without its messages, and without what is merged into weights: it takes no memory.

    Libraries for attention need real tensors; PyTorch's own takes as much memory as they do.
    """
    config = opened.config
    network = replace(config.network, base_weights=(), base_weights_multiplier=())
    model = replace(config.model, sdpa=True, flash_attn=False, xformers=False, flash3=False)
    return replace(opened, config=replace(config, network=network, model=model), emit=ignore)


def _empty(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def _fake_batch(prepared: Prepared, device: torch.device) -> Prepared:
    def fake(tensor: Tensor) -> Tensor:
        return _empty(tensor, device)

    return replace(
        prepared,
        noisy=fake(prepared.noisy),
        target=fake(prepared.target),
        t=fake(prepared.t),
        weights=None if prepared.weights is None else fake(prepared.weights),
        conditioning=map_tensors(prepared.conditioning, fake),
        side=0,
    )


def _stepper(opened: Opened, model: nn.Module, network: Network, moved: list[int]) -> Stepper:
    """The step without its end: nothing is updated, so there is no optimizer. moved: gets sizes, in bytes."""
    offload = opened.config.swap.gradient_checkpointing_cpu_offload
    return Stepper(
        spec=opened.spec,
        arch_options=opened.config.arch_options,
        experts=Experts([model], device=opened.here.device),
        optimizer=cast(Any, None),
        rates=cast(Any, None),
        gradients=FlatGradients(list(network.parameters())),
        parts=(0,),
        processes=opened.here,
        loss_scale=LossScale() if opened.here.precision == "fp16" else None,
        max_grad_norm=0.0,
        compiled=Compiled([]),
        saving=_on_host(moved, opened.here.device) if offload else nowhere,
    )


def _tensors(value: Any) -> list[Tensor]:
    return [one for one in tree_leaves(dict(value)) if isinstance(one, Tensor)]


def claim_parts(counter: LiveBytes, stepper: Stepper, batch: Prepared) -> None:
    """Count what is there before the pass, by what it is."""
    modules = [module for model in stepper.experts.models for module in model.modules()]
    scales = [
        module.scale_weight
        for module in modules
        if isinstance(module, Fp8Linear) and module.scale_weight is not None
    ]
    counter.claim(scales, SCALES)
    for model in stepper.experts.models:
        counter.claim([*model.parameters(), *model.buffers()], WEIGHTS)
    counter.claim(stepper.gradients.parameters, ADAPTERS)
    counter.claim([stepper.gradients.buffer], GRADIENTS)
    counter.claim([batch.noisy, batch.target, batch.t, *_tensors(batch.conditioning)], BATCH)


def _swappable(opened: Opened, model: nn.Module) -> tuple[tuple[Block, ...], ...]:
    """What streams in and out with each block: its weights and scales of two and more axes."""
    lists, _ = swapped(opened.spec, SwapConfig(), model)
    return tuple(tuple(_streamed(block) for block in blocks) for blocks in lists)


def _streamed(block: nn.Module) -> Block:
    weights, scales = (
        sum(tensor.nbytes for tensor in tensors if tensor.ndim > 1)
        for tensors in (block.parameters(), block.buffers())
    )
    return Block(weights=weights, scales=scales)


def _on_host(moved: list[int], device: torch.device) -> Saving:
    """What `offload.activations` does, for tensors that have no address to tell them apart by."""

    @contextlib.contextmanager
    def saving(model: nn.Module) -> Iterator[None]:
        weights = {id(parameter.untyped_storage()) for parameter in model.parameters()}
        known: dict[Any, tuple[weakref.ref[Any], Tensor]] = {}

        def pack(tensor: Tensor) -> Tensor | tuple[Tensor]:
            storage = tensor.untyped_storage()
            if tensor.device.type != device.type or tensor.nbytes < SMALLEST or id(storage) in weights:
                return tensor
            key = id(storage), tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride()
            if key not in known or known[key][0]() is not storage:
                host = torch.empty_like(tensor, device="cpu")
                if host.stride() != tensor.stride():
                    return tensor
                known[key] = weakref.ref(storage), host
                moved.append(tensor.nbytes)
            return (known[key][1],)

        def unpack(kept: Tensor | tuple[Tensor]) -> Tensor:
            return torch.empty_like(kept[0], device=device) if isinstance(kept, tuple) else kept

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
        known.clear()

    return saving
