"""Loading the network from a released file: tensor by tensor, so that the file is never held twice."""

from __future__ import annotations

import torch

from musubi_core.device.precision import dtype_of
from musubi_core.encoders.loading import check_names, fill
from musubi_core.encoders.stored_scales import without_helpers
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.models.flux_kontext.detect import detect, refuse
from musubi_core.models.flux_kontext.keys import stored_names
from musubi_core.models.flux_kontext.model import FluxKontext
from musubi_core.models.flux_kontext.options import TrainOptions
from musubi_core.models.spec import LoadRequest


def load(request: LoadRequest) -> FluxKontext:
    """The frozen network of a file in original naming; float8 weights become the asked dtype.

    Raises BadFileError for another kind of file or one that is not complete.
    """
    options = request.options or TrainOptions()
    dtype = dtype_of(options.dit_dtype) if options.dit_dtype else request.dtype
    with open_checkpoint(request.path) as checkpoint:
        found = detect(checkpoint.header)
        if found is None:
            raise BadFileError(f"{request.path} is not a FLUX.1 Kontext network: {refuse(checkpoint.header)}")
        with torch.device("meta"):
            network = FluxKontext(
                found.config,
                attention=request.attention,
                split_attention=request.split_attention,
                checkpointing=request.checkpointing,
            )
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        sources = stored_names(shapes, naming=found.naming, prefix=found.prefix)
        held = {name for name in without_helpers(checkpoint.header) if name.startswith(found.prefix)}
        check_names(
            {sources[name]: shape for name, shape in shapes.items()},
            {name: info for name, info in checkpoint.header.items() if name in held},
            path=request.path,
            what="FLUX.1 Kontext network",
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
