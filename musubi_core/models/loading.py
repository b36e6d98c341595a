"""Loading a network from a released file: tensor by tensor, so that the file is never held twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from musubi_core.device.precision import dtype_of
from musubi_core.encoders.loading import check_names, fill
from musubi_core.encoders.stored_scales import without_helpers
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.models.spec import Detected, Header, LoadRequest

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFile(Generic[Net]):
    """How the files of one architecture are read."""

    what: str  # in messages: "Wan network"
    detect: Callable[[Header], Detected | None]
    refuse: Callable[[Header], str]
    stored_names: Callable[[Iterable[str], Detected], dict[str, str]]  # our names -> the file's
    network: Callable[..., Net]  # (config, attention=, split_attention=, checkpointing=)
    check: Callable[[Detected, LoadRequest], None] = lambda found, request: None  # raises if it is another's


def load_network(request: LoadRequest, file: NetworkFile[Net], *, dtype: str = "") -> Net:
    """The frozen network in `request.path`, a file or a folder of shards; float8 weights are cast.

    dtype: of the weights, where it is not the one of the request.
    Raises BadFileError for another kind of file or one that is not complete.
    """
    chosen = dtype_of(dtype) if dtype else request.dtype
    with open_checkpoint(request.path) as checkpoint:
        found = file.detect(checkpoint.header)
        if found is None:
            raise BadFileError(f"{request.path} is not a {file.what}: {file.refuse(checkpoint.header)}")
        file.check(found, request)
        with torch.device("meta"):
            network = file.network(
                found.config,
                attention=request.attention,
                split_attention=request.split_attention,
                checkpointing=request.checkpointing,
            )
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        sources = file.stored_names(shapes, found)
        held = {name for name in without_helpers(checkpoint.header) if name.startswith(found.prefix)}
        check_names(
            {sources[name]: shape for name, shape in shapes.items()},
            {name: info for name, info in checkpoint.header.items() if name in held},
            path=request.path,
            what=file.what,
        )
        fill(
            network,
            checkpoint,
            sources,
            device=request.device,
            dtype_of=lambda name: chosen,
            transform=request.transform,
            quantisation=request.quantisation,
            placement=request.placement,
            watch=request.watch,
        )
    return network
