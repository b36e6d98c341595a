"""Which architecture a model file is of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.models.registry import architectures

if TYPE_CHECKING:
    from musubi_core.models.spec import ArchSpec


def architecture_of(path: Path) -> ArchSpec:
    """The spec that recognises the network in `path`, a file or a folder of shards.

    Reads names and shapes only. Raises BadFileError when no architecture knows them, or several do.
    """
    with open_checkpoint(path) as checkpoint:
        header = checkpoint.header
        found = [spec for spec in architectures() if spec.detect(header) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(spec.name for spec in found)
        raise BadFileError(f"{path} could be {names}: the file cannot tell. Give --architecture.")
    known = ", ".join(spec.name for spec in architectures())
    reasons = " ".join(filter(None, (spec.refuse(header) for spec in architectures())))
    raise BadFileError(f"{path} is no network that this program knows ({known}): {reasons}")
