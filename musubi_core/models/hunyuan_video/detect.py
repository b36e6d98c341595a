"""Recognising a HunyuanVideo network by the names and shapes in a header, or saying what else it is."""

from __future__ import annotations

from collections.abc import Mapping

from musubi_core.errors import ConfigError
from musubi_core.models.headers import block_count, other_kind, wrong_rank
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.spec import Detected, Header

PREFIXES = ("model.diffusion_model.", "model.model.", "net.", "diffusion_model.")
FAMILY = "txt_in.individual_token_refiner.blocks.0.norm1.weight"
POOLED = "vector_in.in_layer.weight"  # newer networks of the family have no pooled text
NAMINGS = {
    "original": {
        "qkv": "double_blocks.0.img_attn_qkv.weight",
        "norm": "double_blocks.0.img_attn_q_norm.weight",
        "mlp": "double_blocks.0.img_mlp.fc1.weight",
    },
    "comfyui": {
        "qkv": "double_blocks.0.img_attn.qkv.weight",
        "norm": "double_blocks.0.img_attn.norm.query_norm.scale",
        "mlp": "double_blocks.0.img_mlp.0.weight",
    },
    "comfyui new": {
        "qkv": "double_blocks.0.img_attn.qkv.weight",
        "norm": "double_blocks.0.img_attn.norm.query_norm.weight",
        "mlp": "double_blocks.0.img_mlp.0.weight",
    },
}
RANKS = {
    "img_in.proj.weight": 5,
    "txt_in.input_embedder.weight": 2,
    "final_layer.linear.weight": 2,
    POOLED: 2,
}
WANTED = (
    "a HunyuanVideo network in original or ComfyUI naming, for example "
    "hunyuan_video_720_cfgdistill_bf16.safetensors (Kijai/HunyuanVideo_comfy), "
    "hunyuan_video_t2v_720p_bf16.safetensors (Comfy-Org/HunyuanVideo_repackaged) or "
    "mp_rank_00_model_states.pt (tencent/HunyuanVideo)"
)
# Signs of other kinds of file: some name must match. In order, the first that fits is reported.
OTHERS = (
    (r"\.(lora_(down|up|A|B)|hada_w1_a|lokr_w[12]|lora_mid)\b", "a LoRA, not a whole network"),
    (r"^clean_x_embedder\.proj\.weight$", "a FramePack network"),
    (r"^context_embedder\.token_refiner\.", "a HunyuanVideo network in diffusers naming, which is not read"),
    (r"^txt_in\.individual_token_refiner\.", "HunyuanVideo 1.5 or HunyuanImage, which are other networks"),
    (r"^blocks\.0\.cross_attn\.q\.weight$", "a Wan network"),
    (r"^double_blocks\.0\.img_attn\.qkv\.weight$", "a Flux network"),
    (r"^transformer_blocks\.0\.img_mod\.1\.weight$", "a Qwen-Image network"),
    (r"^input_blocks\.0\.0\.weight$", "a Stable Diffusion U-Net"),
    (r"^(vae\.)?(en|de)coder\.(conv_in|conv1)\.", "a VAE"),
    (r"(^|\.)(embed_tokens|token_embedding|shared)\.weight$", "a text encoder"),
)


def detect(header: Header) -> Detected | None:
    """The network in a file, or None if it is not HunyuanVideo in a naming that can be read."""
    found = _examine(header)
    return found if isinstance(found, Detected) else None


def refuse(header: Header) -> str:
    """Why `detect` turned a header down: what the file seems to be, and which file is wanted."""
    found = _examine(header)
    return "" if isinstance(found, Detected) else f"{found} Expected {WANTED}."


def _examine(header: Header) -> Detected | str:
    prefix = next((p for p in ("", *PREFIXES) if p + FAMILY in header and p + POOLED in header), None)
    if prefix is None:
        return other_kind(list(header), PREFIXES, OTHERS)
    shapes = {name.removeprefix(prefix): i.shape for name, i in header.items() if name.startswith(prefix)}
    naming = next((n for n, names in NAMINGS.items() if {names["qkv"], names["norm"]} <= set(shapes)), None)
    if naming is None:
        wanted = " and ".join((NAMINGS["original"]["qkv"], NAMINGS["original"]["norm"]))
        return f"it looks like HunyuanVideo, but lacks {wanted}; the file is not complete."
    if wrong := wrong_rank(shapes, {**RANKS, NAMINGS[naming]["norm"]: 1, NAMINGS[naming]["mlp"]: 2}):
        return f"it looks like HunyuanVideo, but {wrong}"
    try:
        config = _sizes(shapes, NAMINGS[naming])
    except ConfigError as error:
        return f"it looks like HunyuanVideo, but its sizes do not fit. {error}"
    return Detected(config=config, naming=naming, prefix=prefix)


def _sizes(shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]) -> HunyuanVideoConfig:
    """Raises ConfigError for sizes that no network can have."""
    hidden, in_channels = shapes["img_in.proj.weight"][:2]
    head = shapes[names["norm"]][0]
    if hidden % head:
        raise ConfigError(f"A hidden size of {hidden} does not divide into heads of {head}.")
    return HunyuanVideoConfig(
        hidden=hidden,
        heads=hidden // head,
        double_blocks=block_count(shapes, "double_blocks."),
        single_blocks=block_count(shapes, "single_blocks."),
        refiner_blocks=block_count(shapes, "txt_in.individual_token_refiner.blocks."),
        mlp_width=shapes[names["mlp"]][0],
        in_channels=in_channels,
        out_channels=shapes["final_layer.linear.weight"][0] // 4,
        text_width=shapes["txt_in.input_embedder.weight"][1],
        pooled_width=shapes[POOLED][1],
        guidance=any(name.startswith("guidance_in.") for name in shapes),
    )
