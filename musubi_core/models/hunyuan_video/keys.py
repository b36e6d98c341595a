"""One table of names: ours (the original checkpoints') and ComfyUI's own."""

from __future__ import annotations

from collections.abc import Iterable

from musubi_core.models.spec import ForeignForm, LoraNames

# Applied in this order to parameter names. ComfyUI does the same when it reads an original file.
ORIGINAL_TO_COMFYUI = (
    ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
    ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
    ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
    ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
    ("_mod.linear.", "_mod.lin."),
    ("_attn_qkv.", "_attn.qkv."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
    ("_attn_q_norm.weight", "_attn.norm.query_norm.scale"),
    ("_attn_k_norm.weight", "_attn.norm.key_norm.scale"),
    (".q_norm.weight", ".norm.query_norm.scale"),
    (".k_norm.weight", ".norm.key_norm.scale"),
    ("_attn_proj.", "_attn.proj."),
    (".modulation.linear.", ".modulation.lin."),
    ("_in.mlp.0.", "_in.in_layer."),
    ("_in.mlp.2.", "_in.out_layer."),
)

FOUND_BY_ORIGINAL_NAMES = (
    *("double_blocks.", "single_blocks.", "img_in.", "vector_in.", "final_layer."),
    *("txt_in.individual_token_refiner.", "txt_in.input_embedder"),
)

# The same for layers, that is without the name of the parameter.
LORA_NAMES = LoraNames(
    comfyui=tuple(
        (ours.removesuffix("weight").rstrip("."), theirs.removesuffix("scale").rstrip("."))
        for ours, theirs in ORIGINAL_TO_COMFYUI
    ),
    # all but the small networks of time, guidance and text
    also=tuple(
        ForeignForm(prefix=prefix, within=FOUND_BY_ORIGINAL_NAMES)
        for prefix in ("transformer.", "diffusion_model.")
    ),
)


def comfyui_name(original: str) -> str:
    """ComfyUI's name of one parameter, e.g. "double_blocks.0.img_attn.qkv.weight"."""
    for ours, theirs in ORIGINAL_TO_COMFYUI:
        original = original.replace(ours, theirs)
    return original


def stored_names(originals: Iterable[str], *, naming: str, prefix: str) -> dict[str, str]:
    """Our parameter names -> their names in a file of `naming`.

    naming: "original", "comfyui", or "comfyui new" for files that ComfyUI has saved since its norms' `scale`
    is called `weight` (0.33 at the latest).
    The reverse direction is this mapping turned round: it is one to one, which substitutions alone would not
    be, because ComfyUI's `mlp.0` comes from two different names.
    """
    if naming == "original":
        return {name: prefix + name for name in originals}
    names = {name: prefix + comfyui_name(name) for name in originals}
    if naming == "comfyui":
        return names
    return {ours: theirs.replace("_norm.scale", "_norm.weight") for ours, theirs in names.items()}
