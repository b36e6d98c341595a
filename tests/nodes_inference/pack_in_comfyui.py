"""Code that scripts in a real ComfyUI share: the pack under a name of its own, and tiny sampling runs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

START = """
import importlib.util, json, logging, sys
import torch
torch.set_num_threads(1)
import comfy.model_management, comfy.patcher_extension, comfy.sample, comfy.samplers, comfy.sd, comfy.utils
root = {root!r}
spec = importlib.util.spec_from_file_location(
    "musubi_pack", root + "/__init__.py", submodule_search_locations=[root]
)
pack = importlib.util.module_from_spec(spec)
sys.modules["musubi_pack"] = pack
spec.loader.exec_module(pack)
from musubi_pack.nodes.core_link import bind_core
bind_core()
as_in_a_node = torch.inference_mode()
as_in_a_node.__enter__()

def noise_like(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

def prompts(text_width, length=6, **extra):
    return tuple(
        [[noise_like(1, length, text_width, seed=seed), {{**extra}}]] for seed in (1, 2)
    )

def sample(
    model, latent, positive, negative, *, steps=4, cfg=3.0, sampler="euler", scheduler="simple", **more
):
    return comfy.sample.sample(
        model, noise_like(*latent.shape, seed=3), steps, cfg, sampler, scheduler, positive, negative,
        latent, disable_pbar=True, seed=0, **more,
    ).clone()
"""


def start() -> str:
    return START.format(root=str(ROOT))
