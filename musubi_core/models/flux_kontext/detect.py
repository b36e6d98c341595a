"""Recognising FLUX.1 Kontext by the names and shapes in a header, or saying what else a file is.

FLUX.1 dev has the same names and shapes, so it is accepted too: no file can tell the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from musubi_core.errors import ConfigError
from musubi_core.models.flux_kontext.config import PATCH, FluxKontextConfig
from musubi_core.models.headers import block_count, other_kind, wrong_rank
from musubi_core.models.spec import Detected, Header

PREFIXES = ("model.diffusion_model.", "model.model.", "diffusion_model.", "transformer.", "net.")
FAMILY = ("img_in.weight", "double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight")
GUIDANCE = "guidance_in.in_layer.weight"
NORM = "double_blocks.0.img_attn.norm.query_norm."
NAMINGS = {"original": f"{NORM}scale", "comfyui new": f"{NORM}weight"}
MLP = "double_blocks.0.img_mlp.0.weight"
BITSANDBYTES = r"\.(absmax|quant_map)$|\.quant_state\."
RANKS = {
    "img_in.weight": 2,
    "txt_in.weight": 2,
    "vector_in.in_layer.weight": 2,
    "final_layer.linear.weight": 2,
    MLP: 2,
}
WANTED = (
    "FLUX.1 Kontext [dev] in original naming, for example flux1-kontext-dev.safetensors "
    "(black-forest-labs/FLUX.1-Kontext-dev) or flux1-dev-kontext_fp8_scaled.safetensors "
    "(Comfy-Org/flux1-kontext-dev_ComfyUI)"
)
# Signs of other kinds of file: some name must match. In order, the first that fits is reported.
OTHERS = (
    (r"(\.(lora_(down|up|A|B)|hada_w1_a|lokr_w[12]|lora_mid)\b)", "a LoRA, not a whole network"),
    (r"\.(qweight|wscales|smooth_factor)$", "weights quantised for Nunchaku, which are not read"),
    (r"^double_stream_modulation_img\.lin\.weight$", "FLUX.2, which is another network"),
    (r"^distilled_guidance_layer\.", "Chroma, which is another network"),
    (
        r"^single_transformer_blocks\.0\.proj_mlp\.weight$",
        "a FLUX network in diffusers naming, which is not read",
    ),
    (r"^txt_in\.individual_token_refiner\.", "a Hunyuan network"),
    (r"^blocks\.0\.cross_attn\.q\.weight$", "a Wan network"),
    (r"^transformer_blocks\.0\.img_mod\.1\.weight$", "a Qwen-Image network"),
    (r"^input_blocks\.0\.0\.weight$", "a Stable Diffusion U-Net"),
    (r"^(vae\.)?(en|de)coder\.(conv_in|conv1)\.", "a VAE"),
    (r"(^|\.)(embed_tokens|token_embedding|shared)\.weight$", "a text encoder"),
)


def detect(header: Header) -> Detected | None:
    """The network in a file, or None if it is not FLUX.1 dev or Kontext in a naming that can be read."""
    found = _examine(header)
    return found if isinstance(found, Detected) else None


def refuse(header: Header) -> str:
    """Why `detect` turned a header down: what the file seems to be, and which file is wanted."""
    found = _examine(header)
    return "" if isinstance(found, Detected) else f"{found} Expected {WANTED}."


def _examine(header: Header) -> Detected | str:
    prefix = next((p for p in ("", *PREFIXES) if all(p + name in header for name in FAMILY)), None)
    if prefix is None:
        return other_kind(list(header), PREFIXES, OTHERS)
    shapes = {name.removeprefix(prefix): i.shape for name, i in header.items() if name.startswith(prefix)}
    if any(re.search(BITSANDBYTES, name) for name in shapes):
        return "it holds FLUX.1 quantised by bitsandbytes, which is not read."
    naming = next((naming for naming, norm in NAMINGS.items() if norm in shapes), None)
    if naming is None:
        return f"it looks like FLUX.1, but lacks {NAMINGS['original']}; the file is not complete."
    if wrong := wrong_rank(shapes, {**RANKS, NAMINGS[naming]: 1}):
        return f"it looks like FLUX.1, but {wrong}"
    if variant := _variant(shapes):
        return variant
    try:
        config = _sizes(shapes, NAMINGS[naming])
    except ConfigError as error:
        return f"it looks like FLUX.1, but its sizes do not fit. {error}"
    return Detected(config=config, naming=naming, prefix=prefix)


def _variant(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Which of FLUX.1's other networks this is, "" for dev and Kontext."""
    if GUIDANCE not in shapes:
        return (
            f"it is FLUX.1 schnell, or another network without guidance ({GUIDANCE} is missing), which "
            "cannot be trained as Kontext."
        )
    taken, given = shapes["img_in.weight"][1], shapes["final_layer.linear.weight"][0]
    if taken == given:
        return ""
    names = {6 * given: "FLUX.1 Fill", 2 * given: "FLUX.1 Canny or Depth"}
    return (
        f"it is {names.get(taken, 'a FLUX.1 network with further inputs')}: a token has {taken} numbers on "
        f"the way in and {given} on the way out. Kontext has the same number on both sides."
    )


def _sizes(shapes: Mapping[str, tuple[int, ...]], norm: str) -> FluxKontextConfig:
    """Raises ConfigError for sizes that no network can have."""
    hidden, token = shapes["img_in.weight"]
    head = shapes[norm][0]
    if hidden % head or token % PATCH:
        raise ConfigError(
            f"A hidden size of {hidden} with heads of {head}, or {token} numbers per token, is impossible."
        )
    return FluxKontextConfig(
        hidden=hidden,
        heads=hidden // head,
        double_blocks=block_count(shapes, "double_blocks."),
        single_blocks=block_count(shapes, "single_blocks."),
        mlp_width=shapes[MLP][0],
        channels=token // PATCH,
        text_width=shapes["txt_in.weight"][1],
        pooled_width=shapes["vector_in.in_layer.weight"][1],
    )
