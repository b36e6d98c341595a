"""Loading the network from a released file."""

from __future__ import annotations

from musubi_core.models.flux_kontext.detect import detect, refuse
from musubi_core.models.flux_kontext.keys import stored_names
from musubi_core.models.flux_kontext.model import FluxKontext
from musubi_core.models.flux_kontext.options import TrainOptions
from musubi_core.models.loading import NetworkFile, load_network
from musubi_core.models.spec import LoadRequest


def load(request: LoadRequest) -> FluxKontext:
    """The frozen network of a file in original naming; float8 weights become the asked dtype.

    Raises BadFileError for another kind of file or one that is not complete.
    """
    options = request.options or TrainOptions()
    return load_network(request, FILE, dtype=options.dit_dtype or "")


FILE = NetworkFile(
    what="FLUX.1 Kontext network",
    detect=detect,
    refuse=refuse,
    stored_names=lambda names, found: stored_names(names, naming=found.naming, prefix=found.prefix),
    network=FluxKontext,
)
