"""Names of adapters in files: from the model's own dotted names to every accepted spelling, and back.

`lora_unet_a_b_c` may be a.b.c, a.b_c or a_b.c: no string rule can know. Only a table made from the real names
of one model can, so the table is built first and file keys are looked up in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from musubi_core.config import nearest

PREFIX = "lora_unet_"
DOTTED_PREFIXES = ("diffusion_model.", "transformer.")
Substitutions = Sequence[tuple[str, str]]


def underscored(name: str) -> str:
    """double_blocks.0.img_mlp.fc1 -> lora_unet_double_blocks_0_img_mlp_fc1."""
    return PREFIX + name.replace(".", "_")


def file_name(name: str, key_format: str, substitutions: Substitutions) -> str:
    """What the adapter of the layer `name` is called in a file of `key_format` ("comfyui" or "musubi")."""
    return underscored(substituted(name, substitutions) if key_format == "comfyui" else name)


def spellings(name: str, substitutions: Substitutions) -> tuple[str, ...]:
    """The canonical names that mean the adapter of one layer: musubi-tuner's, and ComfyUI's if it differs."""
    return tuple(dict.fromkeys((underscored(name), underscored(substituted(name, substitutions)))))


def spelling_table(names: Iterable[str], substitutions: Substitutions) -> dict[str, str]:
    """{canonical name: the layer's dotted name}. Raises ValueError when two layers would share one."""
    table: dict[str, str] = {}
    for name in names:
        for spelling in spellings(name, substitutions):
            if table.setdefault(spelling, name) != name:
                raise ValueError(f"{table[spelling]} and {name} are both called {spelling} in LoRA files")
    return table


def canonical(base: str) -> str:
    """An adapter's name in a file as it stands in the table: "diffusion_model.a.b" -> "lora_unet_a_b".

    Turning dots into underscores loses nothing here, as the table is one to one. A foreign name stays itself.
    """
    for prefix in DOTTED_PREFIXES:
        if base.startswith(prefix):
            return underscored(base.removeprefix(prefix))
    return base


def similar(base: str, table: Mapping[str, str]) -> list[str]:
    """Up to three layers, by dotted name, that an unknown name of a file resembles."""
    return list(dict.fromkeys(table[spelling] for spelling in nearest(canonical(base), table)))


def substituted(name: str, substitutions: Substitutions) -> str:
    """A dotted name with the substitutions made in order."""
    for old, new in substitutions:
        name = name.replace(old, new)
    return name
