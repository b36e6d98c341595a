"""Code for scripts in ComfyUI: tiny networks of its own classes with random weights, and prompts for them."""

from __future__ import annotations

NETWORKS = """
import comfy.model_base, comfy.model_patcher, comfy.supported_models
WIDTH, CPU = 12, torch.device("cpu")
SIZES = dict(hidden_size=32, num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[4, 6, 6], mlp_ratio=2.0)
STREAMS = dict(
    in_channels=16, out_channels=16, vec_in_dim=WIDTH, context_in_dim=WIDTH, qkv_bias=True,
    guidance_embed=True, **SIZES,
)
WAN = dict(
    image_model="wan2.1", dim=32, num_heads=2, ffn_dim=48, num_layers=2, patch_size=(1, 2, 2), freq_dim=32,
    in_dim=16, out_dim=16, window_size=(-1, -1), qk_norm=True, cross_attn_norm=True, eps=1e-6, text_dim=WIDTH,
)
CONFIGS = dict(
    flux=("Flux", dict(image_model="flux", patch_size=2, theta=10000, txt_ids_dims=[], **STREAMS)),
    hunyuan_video=("HunyuanVideo", dict(
        image_model="hunyuan_video", patch_size=[1, 2, 2], theta=256, byt5=False, meanflow=False,
        use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False, **STREAMS,
    )),
    wan=("WAN21_T2V", dict(model_type="t2v", **WAN)),
    vace=("WAN21_Vace", dict(model_type="vace", vace_in_dim=96, vace_layers=2, **WAN)),
    qwen_image=("QwenImage", dict(
        image_model="qwen_image", in_channels=64, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )),
    chroma=("Chroma", dict(
        image_model="chroma", in_channels=64, out_channels=64, context_in_dim=WIDTH, in_dim=64, out_dim=32,
        hidden_dim=16, n_layers=2, patch_size=2, qkv_bias=True, theta=10000, vec_in_dim=None, txt_ids_dims=[],
        **SIZES,
    )),
)
VIDEO = ("hunyuan_video", "wan", "vace")

def network(name):
    kind, sizes = CONFIGS[name]
    config = getattr(comfy.supported_models, kind)(sizes)
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = None
    model = config.get_model(dict(), "")
    random = torch.Generator().manual_seed(4)
    for key, weight in model.diffusion_model.named_parameters():
        weight.requires_grad_(False)
        wide = weight.ndim > 1 and "modulation" not in key
        spread = weight[0].numel() ** -0.5 if wide else 0.1
        centre = 1.0 if "norm" in key and key.endswith(("weight", "scale")) and not wide else 0.0
        weight.copy_(torch.randn(weight.shape, generator=random) * spread + centre)
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)

def latent_for(name):
    frames = 2 if name in VIDEO else 1
    return torch.zeros(1, 16, 8, 8) if name in ("flux", "chroma") else torch.zeros(1, 16, frames, 8, 8)

def prompts_for(name, **extra):
    texts = []
    for seed in (1, 2):
        given = dict(pooled_output=noise_like(1, WIDTH, seed=seed + 10), guidance=3.5, **extra)
        texts.append([[noise_like(1, 6, WIDTH, seed=seed), given]])
    return tuple(texts)
"""
