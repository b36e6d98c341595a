"""Block swap for blocks whose weights are trained: gradients go to host memory, and changed weights too.

Outside a forward or backward pass every streamed parameter and its gradient are ordinary tensors in host
memory: they can be clipped, saved, zeroed, and updated there by any optimizer. `update` has the device update
them instead, block by block. Within a pass weights come in as in a ring of frozen blocks.

Gradients that have accumulated come in with their block and go out again, so the device adds them up: the
arithmetic is that of a network that is on the device as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from musubi_core.device.pinning import host_buffer
from musubi_core.device.streams import CopyStream
from musubi_core.offload.ring import Ring


class Exchange:
    """Streamed blocks with trained weights, in the order in which they run; `ring` brings them in.

    Each block must be checkpointed, as in any ring. After a backward pass that ended in an error the
    gradients are void.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], *, slots: int, device: torch.device, pinned: bool = False
    ) -> None:
        self._hooks: list[Any] = []
        # The ring's own hook, which brings a block in, runs between the two hooks before a forward.
        self.ring = Ring(blocks, slots=slots, device=device, pinned=pinned, frozen=False)
        self._stream = CopyStream(device)
        self._homes = [host_buffer(len(one.master), pinned=pinned) for one in self.ring.streamed]
        self._last = -1
        self._ending = False  # a backward pass is under way and will call `_end`
        self._gathered: dict[Tensor, Tensor] = {}  # parameter -> its gradient in host memory, in this pass
        for rank, block in enumerate(blocks):
            first = block.register_forward_pre_hook(partial(self._begin, rank), prepend=True)
            third = block.register_forward_pre_hook(partial(self._with_gradients, rank))
            after = block.register_forward_hook(partial(self._leave, rank), always_call=True)
            self._hooks += [first, third, after]
            for weight, home in self.ring.streamed[rank].trained(self._homes[rank]):
                self._hooks.append(weight.register_post_accumulate_grad_hook(partial(self._gather, home)))

    @contextlib.contextmanager
    def on_device(self, rank: int) -> Iterator[None]:
        """A block is brought in; what its weights become is copied back, unless an error comes."""
        block = self.ring.streamed[rank]
        buffer = self.ring.bring([rank])[: len(block.master)]
        try:
            yield
            with torch.no_grad():
                self._stream.finish(self._stream.copy(block.master, buffer, self._stream.mark()))
        finally:
            self.ring.rest()

    def release(self) -> None:
        """End streaming: weights and gradients stay in host memory as ordinary ones."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.ring.release()

    def _begin(self, rank: int, module: nn.Module, inputs: Any) -> None:
        """A new pass takes nothing from the one before it: weights may have been updated in between."""
        if _in_backward():
            return
        if rank <= self._last:
            self.ring.rest()
            self._ending = False
            self._gathered.clear()
        self._last = rank

    def _with_gradients(self, rank: int, module: nn.Module, inputs: Any) -> None:
        """The block is about to go backward: bring in what was added up before."""
        if not _in_backward():
            return
        self._await_end()
        for weight, home in self.ring.streamed[rank].trained(self._homes[rank]):
            sum_so_far = self._gathered.get(weight) if weight.grad is None else weight.grad
            if sum_so_far is None:
                continue
            with torch.no_grad():
                gradient = torch.empty_like(weight)
                self._stream.wait(self._stream.copy(gradient, sum_so_far, self._stream.mark()))
            weight.grad = gradient
            self._gathered[weight] = home

    def _gather(self, home: Tensor, weight: Tensor) -> None:
        """A gradient is complete: send it to its place in host memory."""
        self._await_end()
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        with torch.no_grad():
            self._stream.copy(home, gradient, self._stream.mark())
        self._gathered[weight] = home

    def _leave(self, rank: int, module: nn.Module, inputs: Any, output: Any) -> None:
        """The forward of a block is over. In a backward pass its weights are still needed."""
        if not _in_backward():
            self.ring.let_go(rank)

    def _await_end(self) -> None:
        if not self._ending:
            self._ending = True
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._end)

    def _end(self) -> None:
        """The backward pass is over: everything is in host memory."""
        self._stream.finish()
        self.ring.rest()
        for weight, home in self._gathered.items():
            weight.grad = home
        self._gathered.clear()
        self._ending = False
        self._last = -1


def update(optimizer: torch.optim.Optimizer, exchanges: Sequence[Exchange]) -> None:
    """`optimizer.step()` on the device: first what is there already, then block by block.

    Weights and what the optimizer keeps of them go back to host memory. The optimizer must treat each
    parameter by itself, as AdamW, Adafactor and most others do, since it is asked once per block.
    """
    every = {weight: weight.grad for group in optimizer.param_groups for weight in group["params"]}
    streamed = {
        weight
        for one in exchanges
        for block in one.ring.streamed
        for weight, _ in block.trained(block.master)
    }
    try:
        for weight in streamed & every.keys():
            weight.grad = None
        optimizer.step()
        for weight in every.keys() - streamed:
            weight.grad = None
        for exchange in exchanges:
            for rank, block in enumerate(exchange.ring.streamed):
                own = [weight for weight, _ in block.trained(block.master)]
                given = {weight: every[weight] for weight in own if every.get(weight) is not None}
                if given:
                    _update(optimizer, exchange, rank, given)
    finally:
        for weight, gradient in every.items():
            weight.grad = gradient


def _update(
    optimizer: torch.optim.Optimizer, exchange: Exchange, rank: int, gradients: dict[Tensor, Tensor]
) -> None:
    """Update the weights of one block. Everything of them is in host memory before and after."""
    with exchange.on_device(rank):
        try:
            for weight, gradient in gradients.items():
                weight.grad = gradient.to(weight.device)
                _move(optimizer.state[weight], weight.device)
            optimizer.step()
        finally:
            for weight in gradients:
                weight.grad = None
                _move(optimizer.state[weight], torch.device("cpu"))


def _move(state: dict[str, Any], device: torch.device) -> None:
    """Numbers of their own, e.g. of steps, stay where they are: optimizers want those in host memory."""
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim:
            state[name] = value.to(device)


def _in_backward() -> bool:
    """Whether autograd is going backward just now, and a forward is the second one of a checkpoint."""
    return torch._C._current_graph_task_id() != -1
