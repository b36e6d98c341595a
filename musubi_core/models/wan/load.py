"""Loading a network from a released file: tensor by tensor, so that the file is never held twice."""

from __future__ import annotations

import torch

from musubi_core.device.precision import dtype_of
from musubi_core.encoders.loading import check_names, fill
from musubi_core.encoders.stored_scales import without_helpers
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.models.spec import LoadRequest
from musubi_core.models.wan.detect import detect, refuse
from musubi_core.models.wan.keys import stored_names
from musubi_core.models.wan.model import Wan
from musubi_core.models.wan.options import TrainOptions


def load(request: LoadRequest) -> Wan:
    """The frozen network of a file or a folder of shards; float8 weights become the asked dtype.

    Whether it is the one that --task means is checked by `settle`, before anything is loaded.
    Raises BadFileError for another kind of file or one that is not complete.
    """
    options = request.options or TrainOptions()
    dtype = dtype_of(options.dit_dtype) if options.dit_dtype else request.dtype
    with open_checkpoint(request.path) as checkpoint:
        found = detect(checkpoint.header)
        if found is None:
            raise BadFileError(f"{request.path} is not a Wan network: {refuse(checkpoint.header)}")
        with torch.device("meta"):
            network = Wan(
                found.config,
                attention=request.attention,
                split_attention=request.split_attention,
                checkpointing=request.checkpointing,
            )
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        sources = stored_names(shapes, prefix=found.prefix)
        held = {name for name in without_helpers(checkpoint.header) if name.startswith(found.prefix)}
        check_names(
            {sources[name]: shape for name, shape in shapes.items()},
            {name: info for name, info in checkpoint.header.items() if name in held},
            path=request.path,
            what="Wan network",
        )
        fill(
            network,
            checkpoint,
            sources,
            device=request.device,
            dtype_of=lambda name: dtype,
            transform=request.transform,
            quantisation=request.quantisation,
            placement=request.placement,
        )
    return network
