"""Names of the network's weights. Official and repackaged files use one naming, which is ours too."""

from __future__ import annotations

from collections.abc import Iterable

from musubi_core.models.spec import LoraNames

# ComfyUI keeps the original names, so LoRAs need no other ones.
LORA_NAMES = LoraNames()


def stored_names(originals: Iterable[str], *, prefix: str) -> dict[str, str]:
    """Our parameter names -> their names in a file, e.g. below "model.diffusion_model."."""
    return {name: prefix + name for name in originals}
