"""Names of the network's parameters: ours are the original checkpoints', which ComfyUI shares."""

from __future__ import annotations

from collections.abc import Iterable

from musubi_core.models.spec import ForeignForm, LoraNames

# Adapters are saved under our own names: with underscores for dots, ComfyUI finds every one of them.
LORA_NAMES = LoraNames(
    also=tuple(
        ForeignForm(prefix=prefix, diffusers=True)
        for prefix in ("transformer.", "lycoris_", "lora_transformer_")
    )
)


def stored_names(originals: Iterable[str], *, naming: str, prefix: str) -> dict[str, str]:
    """Our parameter names -> their names in a file of `naming`.

    naming: "original", or "comfyui new" for files that ComfyUI has saved since its norms' `scale` is called
    `weight` (0.33 at the latest).
    """
    names = {name: prefix + name for name in originals}
    if naming == "original":
        return names
    return {ours: theirs.replace("_norm.scale", "_norm.weight") for ours, theirs in names.items()}
