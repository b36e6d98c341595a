"""One evaluation of a ComfyUI network: through its blocks with a look at what they add, or past them.

ComfyUI's own code runs in both cases: embeddings, positions, references, the head. Nothing of it is replaced,
and nothing stays on the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .known_networks import KnownNetwork

BLOCK_PATCHES = ("double_block", "single_block")  # what other nodes do between blocks


@dataclass(slots=True, kw_only=True)
class Call:
    """A call of the forward of a network. at: where in `args` the transformer options are, if they are."""

    network: Any
    args: list[Any]
    kwargs: dict[str, Any]
    at: int | None

    @property
    def options(self) -> dict[str, Any]:
        """ComfyUI's transformer options of this call."""
        return self.kwargs["transformer_options"] if self.at is None else self.args[self.at]

    @property
    def x(self) -> Tensor:
        """The latents of all conditionings, one after the other."""
        return self.args[0]


def call_of(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The call, or None when it is not one of a sampling run as we know it."""
    at = next((i for i, one in enumerate(args) if isinstance(one, dict) and "sample_sigmas" in one), None)
    options = kwargs.get("transformer_options") if at is None else args[at]
    wanted = ("sample_sigmas", "sigmas", "uuids", "cond_or_uncond")
    if not isinstance(options, dict) or not all(name in options for name in wanted):
        return None
    if not args or not isinstance(args[0], Tensor) or args[0].shape[0] % len(options["uuids"]):
        return None
    return Call(network=network, args=list(args), kwargs=dict(kwargs), at=at)


def through_blocks(executor: Any, call: Call, known: KnownNetwork) -> tuple[Any, Tensor | None]:
    """The network's answer, and what its blocks added to the tokens, (B, L, D).

    None when the blocks could not be watched, as inside a network that was compiled whole.
    """
    first, tail = getattr(call.network, known.blocks)[0], getattr(call.network, known.tail)
    seen: dict[str, Tensor] = {}

    def into(_: Any, args: Any, kwargs: Any) -> None:
        tokens = kwargs.get("img", kwargs.get("hidden_states", args[0] if args else kwargs.get("x")))
        seen.setdefault("before", tokens.clone())  # blocks add in place

    def out_of(_: Any, args: Any, kwargs: Any) -> None:
        seen["after"] = args[0] if args else kwargs.get("x")

    hooks = [
        first.register_forward_pre_hook(into, with_kwargs=True),
        tail.register_forward_pre_hook(out_of, with_kwargs=True),
    ]
    try:
        answer = executor(*call.args, **call.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return answer, _difference(seen) if len(seen) == 2 else None


def _difference(seen: dict[str, Tensor]) -> Tensor:
    """What was added. Tokens of references in front, which some networks drop at the end, got nothing."""
    before, after = seen["before"], seen["after"]
    dropped = before.shape[1] - after.shape[1]
    if not dropped:
        return after - before
    residual = torch.zeros_like(before)
    residual[:, dropped:] = after - before[:, dropped:]
    return residual


def past_blocks(executor: Any, call: Call, residual: Tensor) -> Any:
    """The network's answer with the blocks left out and `residual` added instead."""
    options = call.options
    replaced = {**options.get("patches_replace", {}), "dit": _AddOnce(residual)}
    # What other nodes add between blocks, and what ControlNets add there, is part of the residual already.
    patches = {name: one for name, one in options.get("patches", {}).items() if name not in BLOCK_PATCHES}
    skipping = {**options, "patches_replace": replaced, "patches": patches}
    args = [None if _is_control(one) and at != call.at else one for at, one in enumerate(call.args)]
    kwargs = {**call.kwargs}
    if call.at is None:
        kwargs["transformer_options"] = skipping
    else:
        args[call.at] = skipping
    if "control" in kwargs:
        kwargs["control"] = None
    with _without_hints(call.network):
        return executor(*args, **kwargs)


class _AddOnce(dict[Any, Any]):
    """Stands for the replacements of blocks: claims each, and the first one called adds the residual."""

    def __init__(self, residual: Tensor) -> None:
        super().__init__()
        self.residual: Tensor | None = residual

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple)

    def __getitem__(self, key: Any) -> Any:
        return self.block

    def block(self, args: dict[str, Any], _: Any) -> dict[str, Any]:
        """Called in place of a block."""
        out: dict[str, Any] = {name: args[name] for name in ("img", "txt") if name in args}
        if self.residual is not None:
            out["img"], self.residual = out["img"] + self.residual.to(out["img"]), None
        return out


def _is_control(value: Any) -> bool:
    """Whether an argument is what a ControlNet adds."""
    return isinstance(value, dict) and ("input" in value or "output" in value)


@contextlib.contextmanager
def _without_hints(network: Any) -> Iterator[None]:
    """While it lasts, Wan's VACE runs none of its own blocks, whose hints are part of the residual."""
    mapping = getattr(network, "vace_layers_mapping", None)
    if mapping is None:
        yield
        return
    network.vace_layers_mapping = {}
    try:
        yield
    finally:
        network.vace_layers_mapping = mapping
