"""Recognising a Wan network by the names and shapes in a header, or saying what else it is.

No shape tells the text-to-video models of 2.1 and 2.2 apart, nor an expert for high noise from one for low
noise, nor networks for 480p from those for 720p: see `released.task_of`.
"""

from __future__ import annotations

from collections.abc import Mapping

from musubi_core.errors import ConfigError
from musubi_core.models.headers import block_count, other_kind, wrong_rank
from musubi_core.models.spec import Detected, Header
from musubi_core.models.wan.config import HEAD_SIZE, TIME_WAVES, WanConfig
from musubi_core.models.wan.released import LAYOUTS

PREFIXES = ("model.diffusion_model.", "model.model.", "diffusion_model.", "net.", "model.")
FAMILY = ("head.modulation", "blocks.0.cross_attn.q.weight")
MLP = "blocks.0.ffn.0.weight"
PICTURES, POSITIONS = "img_emb.proj.0.bias", "img_emb.emb_pos"
RANKS = {
    "head.modulation": 3,
    "head.head.weight": 2,
    "patch_embedding.weight": 5,
    "text_embedding.0.weight": 2,
    "time_embedding.0.weight": 2,
    MLP: 2,
}
OPTIONAL_RANKS = {PICTURES: 1, POSITIONS: 3}
# Networks that have Wan's blocks and something more, which is not trained here.
RELATIVES = (
    ("vace_", "VACE"),
    ("control_adapter.", "Fun-Camera, which is steered by camera positions"),
    ("casual_audio_encoder.", "Wan 2.2 S2V, which is driven by sound"),
    ("audio_proj.", "HuMo or another network that is driven by sound"),
    ("face_adapter.", "Wan 2.2 Animate"),
    ("ref_conv.", "Fun-Control 1.1, which takes a reference picture"),
)
WANTED = (
    "a Wan 2.1 or 2.2 network in original naming, for example wan2.1_t2v_14B_bf16.safetensors "
    "(Comfy-Org/Wan_2.1_ComfyUI_repackaged), wan2.2_t2v_low_noise_14B_fp16.safetensors "
    "(Comfy-Org/Wan_2.2_ComfyUI_Repackaged) or the folder low_noise_model of Wan-AI/Wan2.2-T2V-A14B"
)
# Signs of other kinds of file: some name must match. In order, the first that fits is reported.
OTHERS = (
    (r"(\.(lora_(down|up|A|B)|hada_w1_a|lokr_w[12]|lora_mid)\b)", "a LoRA, not a whole network"),
    (r"^vace_blocks\.", "only the part of VACE that is added to Wan"),
    (
        r"^condition_embedder\.time_proj\.weight$",
        "a Wan network in diffusers naming, which is not read",
    ),
    (r"^txt_in\.individual_token_refiner\.", "a Hunyuan network"),
    (r"^double_blocks\.0\.img_attn\.qkv\.weight$", "a Flux network"),
    (r"^transformer_blocks\.0\.img_mod\.1\.weight$", "a Qwen-Image network"),
    (r"^input_blocks\.0\.0\.weight$", "a Stable Diffusion U-Net"),
    (r"^(vae\.)?(en|de)coder\.(conv_in|conv1)\.", "a VAE"),
    (r"^(visual|vision_model)\.", "a CLIP image encoder"),
    (r"(^|\.)(embed_tokens|token_embedding|shared)\.weight$", "a text encoder"),
)


def detect(header: Header) -> Detected | None:
    """The network in a file, or None if it is not one of Wan's that can be trained."""
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
    for start, name in RELATIVES:
        if any(own.startswith(start) for own in shapes):
            return f"it is {name}: a relative of Wan that cannot be trained here."
    present = {name: rank for name, rank in OPTIONAL_RANKS.items() if name in shapes}
    if wrong := wrong_rank(shapes, {**RANKS, **present}):
        return f"it looks like Wan, but {wrong}"
    try:
        config = _sizes(shapes)
    except ConfigError as error:
        return f"it looks like Wan, but its sizes do not fit. {error}"
    if config.layout not in LAYOUTS.values():
        known = ", ".join(sorted({str(layout.in_channels) for layout in LAYOUTS.values()}))
        return (
            f"it looks like Wan, but has {config.in_channels} input and {config.out_channels} output "
            f"channels {'with' if config.picture_width else 'without'} a branch for pictures. Networks that "
            f"can be trained here have {known} input channels."
        )
    return Detected(config=config, naming="original", prefix=prefix)


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> WanConfig:
    """Raises ConfigError for sizes that no network can have."""
    hidden, in_channels = shapes["patch_embedding.weight"][:2]
    if hidden % HEAD_SIZE:
        raise ConfigError(f"A hidden size of {hidden} does not divide into heads of {HEAD_SIZE}.")
    waves = shapes["time_embedding.0.weight"][1]
    if waves != TIME_WAVES:
        raise ConfigError(f"Its noise levels are {waves} waves; Wan's are {TIME_WAVES}.")
    return WanConfig(
        hidden=hidden,
        heads=hidden // HEAD_SIZE,
        layers=block_count(shapes, "blocks."),
        mlp_width=shapes[MLP][0],
        in_channels=in_channels,
        out_channels=shapes["head.head.weight"][0] // 4,
        text_width=shapes["text_embedding.0.weight"][1],
        picture_width=shapes.get(PICTURES, (0,))[0],
        picture_tokens=shapes[POSITIONS][1] if POSITIONS in shapes else 0,
    )
