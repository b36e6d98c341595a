"""Our latents are those that ComfyUI makes of the same pixels with the same weights."""

from __future__ import annotations

import pytest
import torch

from musubi_core.files.tensors import read_tensors, write_tensors
from musubi_core.models.wan.tiny_vae import DECODER_WIDTH, WIDTH, tiny_vae
from musubi_core.models.wan.vae import open_vae
from musubi_core.models.wan.vae_config import WAN21, WAN22

CODE = """
import json, torch
import comfy.latent_formats, comfy.utils
from comfy.ldm.wan import vae, vae2_2
folder, small = {folder!r}, {small!r}
sizes = dict(z_dim=48 if small else 16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
             temperal_downsample=[False, True, True], dropout=0.0)
if small:
    model = vae2_2.WanVAE(dim={width}, dec_dim={decoder_width}, **sizes)
else:
    model = vae.WanVAE(dim={width}, image_channels=3, **sizes)
model.load_state_dict(comfy.utils.load_torch_file(f"{{folder}}/vae.safetensors"), strict=True)
form = comfy.latent_formats.Wan22() if small else comfy.latent_formats.Wan21()
with torch.no_grad():
    clip = comfy.utils.load_torch_file(f"{{folder}}/clip.safetensors")["clip"]
    latents = form.process_in(model.eval().encode(clip))
comfy.utils.save_torch_file(dict(latents=latents.contiguous()), f"{{folder}}/latents.safetensors")
print(json.dumps("done"))
"""


@pytest.mark.parametrize("kind", [WAN21, WAN22], ids=lambda kind: kind.name)
def test_latents_equal_comfyuis(in_comfyui, tmp_path, kind):
    write_tensors(tmp_path / "vae.safetensors", tiny_vae(kind, torch.Generator().manual_seed(0)))
    clip = torch.rand(1, 3, 9, 64, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    write_tensors(tmp_path / "clip.safetensors", {"clip": clip})
    in_comfyui(
        CODE.format(folder=str(tmp_path), small=kind is WAN22, width=WIDTH, decoder_width=DECODER_WIDTH)
    )
    vae = open_vae(tmp_path / "vae.safetensors", device=torch.device("cpu"), dtype=torch.float32)
    expected = read_tensors(tmp_path / "latents.safetensors")["latents"]
    torch.testing.assert_close(vae.encode(clip), expected, rtol=0, atol=1e-5)
