"""Nodes that only the tests have: tiny models for ComfyUI's own KSampler, and a look into the process."""

from __future__ import annotations

import gc
import hashlib
import json
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io


def wan_sizes(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What ComfyUI reads from a file, but the width of the text, which it takes to be 4096."""
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    hidden = weights["head.modulation"].shape[-1]
    return {
        "image_model": "wan2.1",
        "dim": hidden,
        "out_dim": 16,
        "num_heads": hidden // 128,
        "ffn_dim": weights["blocks.0.ffn.0.weight"].shape[0],
        "num_layers": layers,
        "patch_size": (1, 2, 2),
        "freq_dim": 256,
        "window_size": (-1, -1),
        "qk_norm": True,
        "cross_attn_norm": True,
        "eps": 1e-6,
        "text_len": 512,
        "text_dim": weights["text_embedding.0.weight"].shape[1],
        "model_type": "t2v",
        "in_dim": 16,
    }


class TinyWan(io.ComfyNode):
    """The tiny network as ComfyUI's MODEL, and a conditioning for it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestTinyWan",
            category="tests",
            inputs=[io.String.Input("file")],
            outputs=[
                io.Model.Output("model"),
                io.Conditioning.Output("positive"),
                io.Latent.Output("latent"),
            ],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        weights = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("diffusion_models", file))
        sizes = wan_sizes(weights)
        config = comfy.supported_models.WAN21_T2V(sizes)
        config.set_inference_dtype(torch.float32, None)
        config.custom_operations = None
        model = comfy.model_base.WAN21(config, device=torch.device("cpu"))
        model.diffusion_model.load_state_dict(weights, strict=True)
        cpu = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
        text = torch.randn(1, 8, sizes["text_dim"], generator=torch.Generator().manual_seed(1))
        latent = {"samples": torch.zeros(1, 16, 1, 8, 8)}
        return io.NodeOutput(patcher, [[text, {}]], latent)


class Digest(io.ComfyNode):
    """The hash of latents or of a LoRA, shown."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestDigest",
            category="tests",
            is_output_node=True,
            inputs=[io.AnyType.Input("value")],
            outputs=[],
        )

    @classmethod
    def execute(cls, value: Any) -> io.NodeOutput:
        tensors = value if isinstance(value, dict) else {"value": value}
        digest = hashlib.sha256()
        for name in sorted(tensors):
            if isinstance(tensors[name], torch.Tensor):
                digest.update(name.encode() + tensors[name].float().contiguous().numpy().tobytes())
        return io.NodeOutput(ui={"text": [digest.hexdigest()]})


class Shows(io.ComfyNode):
    """A value as JSON, shown."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestShows",
            category="tests",
            is_output_node=True,
            inputs=[io.AnyType.Input("value")],
            outputs=[],
        )

    @classmethod
    def execute(cls, value: Any) -> io.NodeOutput:
        plain = list(value.shape) if isinstance(value, torch.Tensor) else value
        return io.NodeOutput(ui={"text": [json.dumps(plain)]})


class Census(io.ComfyNode):
    """How many tensors live in this process, their bytes, and the state that others could have changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestCensus",
            category="tests",
            is_output_node=True,
            inputs=[io.Int.Input("time")],
            outputs=[],
        )

    @classmethod
    def execute(cls, time: int) -> io.NodeOutput:
        import accelerate

        gc.collect()
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
        facts = {
            "tensors": len(tensors),
            "bytes": sum(one.untyped_storage().nbytes() for one in tensors),
            "inference": torch.is_inference_mode_enabled(),
            "random": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
            "accelerate": sorted(accelerate.PartialState._shared_state),
        }
        return io.NodeOutput(ui={"text": [json.dumps(facts)]})


class Images(io.ComfyNode):
    """A list of small pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestImages",
            category="tests",
            inputs=[io.Int.Input("count")],
            outputs=[
                io.Image.Output("images", is_output_list=True),
                io.String.Output("texts", is_output_list=True),
            ],
        )

    @classmethod
    def execute(cls, count: int) -> io.NodeOutput:
        noise = torch.Generator().manual_seed(0)
        images = [torch.rand(1, 64, 64, 3, generator=noise) for _ in range(count)]
        return io.NodeOutput(images, [f"picture {number}" for number in range(count)])


class TestNodes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyWan, Digest, Shows, Census, Images]


def comfy_entrypoint() -> ComfyExtension:
    return TestNodes()
