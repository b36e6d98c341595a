"""Loading a network from a released file."""

from __future__ import annotations

from musubi_core.models.loading import NetworkFile, load_network
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
    return load_network(request, FILE, dtype=options.dit_dtype or "")


FILE = NetworkFile(
    what="Wan network",
    detect=detect,
    refuse=refuse,
    stored_names=lambda names, found: stored_names(names, prefix=found.prefix),
    network=Wan,
)
