"""How each program spells a LoRA in a file: names, matrices, and where alpha goes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from musubi_core.lora_tools.adapter import Adapter, row_magnitudes
from musubi_core.lora_tools.module_names import Model, Naming
from musubi_core.lora_tools.peft_settings import HEADER_KEY, PEFT_PREFIX, Strength, settings_for
from musubi_core.lora_tools.records import ALPHA, DORA, DOWN, MID, UP
from musubi_core.networks.naming import PREFIX

A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFormat:
    """One way to write a LoRA.

    encode: (dotted name, change) -> tensors under the names of the file; ValueError when there is no form for
    the change. settings: alpha goes into PEFT's settings, not into tensors.
    """

    name: str
    naming: Callable[[Model], Naming | None]
    encode: Callable[[str, Adapter], dict[str, Tensor]]
    settings: bool = False


def _tensors(base: str, adapter: Adapter) -> dict[str, Tensor]:
    """Every part under its own name, and alpha as a float32 scalar: 37.3 would be 37.25 in bfloat16."""
    tensors = {f"{base}.{part}": tensor for part, tensor in adapter.tensors.items()}
    if adapter.alpha is not None:
        tensors[f"{base}.{ALPHA}"] = torch.tensor(adapter.alpha, dtype=torch.float32)
    return tensors


def encode_underscored(name: str, adapter: Adapter) -> dict[str, Tensor]:
    """lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, alpha: kohya's and musubi-tuner's form."""
    return _tensors(PREFIX + name.replace(".", "_"), adapter)


def encode_dotted(name: str, adapter: Adapter) -> dict[str, Tensor]:
    """diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight, alpha: ComfyUI's own names."""
    return _tensors(f"diffusion_model.{name}", adapter)


def encoder_of_other(prefix: str) -> Callable[[str, Adapter], dict[str, Tensor]]:
    """diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight with the root of alpha / rank in A and B.

    Those are musubi-tuner's numbers: one product in the file's number format. Other kinds keep their alpha.
    """

    def encode(name: str, adapter: Adapter) -> dict[str, Tensor]:
        base = f"{prefix}.{name}"
        if adapter.kind != "lora":
            return _tensors(base, adapter)
        if MID in adapter.tensors:
            raise ValueError("this form has no place for the middle matrix of a Tucker LoRA")
        if adapter.scale < 0:
            raise ValueError(f"its alpha is {adapter.alpha}, and a negative number has no root")
        root = math.sqrt(adapter.scale)
        tensors = {
            f"{base}.{A}": adapter.tensors[DOWN] * root,
            f"{base}.{B}": adapter.tensors[UP] * root,
        }
        return tensors | ({f"{base}.{DORA}": adapter.tensors[DORA]} if DORA in adapter.tensors else {})

    return encode


def encoder_of_peft(prefix: str) -> Callable[[str, Adapter], dict[str, Tensor]]:
    """transformer.transformer_blocks.0.attn.to_q.lora_A.weight; alpha stands in the settings."""

    def encode(name: str, adapter: Adapter) -> dict[str, Tensor]:
        if adapter.kind != "lora" or MID in adapter.tensors:
            form = "a Tucker LoRA" if adapter.kind == "lora" else f"a change of kind {adapter.kind}"
            raise ValueError(f"PEFT has no form for {form}")
        tensors = {f"{prefix}{name}.{A}": adapter.tensors[DOWN], f"{prefix}{name}.{B}": adapter.tensors[UP]}
        if DORA in adapter.tensors:
            tensors[f"{prefix}{name}.{MAGNITUDE}"] = row_magnitudes(adapter).flatten()
        return tensors

    return encode


def format_for(target: str, *, key_format: str, prefix: str) -> LoraFormat:
    """The format of `--target`. key_format: spelling in default ("comfyui" or "musubi"). prefix: of other."""
    if target == "default":
        return LoraFormat(
            name=target,
            naming=lambda model: model.comfyui if key_format == "comfyui" else model.own,
            encode=encode_underscored,
        )
    if target == "comfyui":
        return LoraFormat(name=target, naming=lambda model: model.comfyui, encode=encode_dotted)
    if target == "other":
        return LoraFormat(name=target, naming=lambda model: model.own, encode=encoder_of_other(prefix))
    return LoraFormat(
        name=target,
        naming=lambda model: model.diffusers,
        encode=encoder_of_peft("transformer." if target == "diffusers" else PEFT_PREFIX),
        settings=True,
    )


def header_settings(modules: Mapping[str, Strength], *, dora: bool) -> dict[str, str]:
    """The header entry that diffusers reads ranks and alphas from."""
    fields = {f"transformer.{name}": value for name, value in settings_for(modules, dora=dora).items()}
    return {HEADER_KEY: json.dumps(fields, indent=2, sort_keys=True)}


def folder_settings(modules: Mapping[str, Strength], *, dora: bool) -> dict[str, object]:
    """What adapter_config.json holds in a PEFT folder."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        **settings_for(modules, dora=dora),
    }
