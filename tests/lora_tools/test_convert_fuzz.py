"""LoRA files with random damage are converted or refused with our own error, never with a traceback."""

from __future__ import annotations

import random

import pytest
import torch
from lora_files import ARCHITECTURES, converted, lora_tensors
from safetensors.torch import save_file

from musubi_core.errors import MusubiError
from musubi_core.lora_tools.records import SUFFIXES

TARGETS = ("default", "comfyui", "diffusers", "peft", "other")
DTYPES = (torch.float16, torch.bfloat16, torch.int64, torch.float8_e4m3fn, torch.bool, torch.float64)
FACTORS = (0, float("inf"), 1e30, -1)


def some_layers(name, luck):
    tensors = lora_tensors(name, kind=luck.choice(["lora", "dora", "loha", "lokr", "full"]))
    bases = luck.sample(sorted({key.partition(".")[0] for key in tensors}), 4)
    return {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] in bases}


def random_tensor(luck, axes):
    return torch.randn([luck.choice([1, 2, 3, 8, 128]) for _ in range(luck.randint(0, axes))])


def damage(tensors, luck):
    """One tensor is lost, added, or gets other numbers, another shape or another number format."""
    key = luck.choice(sorted(tensors))
    kind = luck.randrange(6)
    if kind == 0:
        del tensors[key]
    elif kind == 1:
        tensors[key] = random_tensor(luck, 4)
    elif kind == 2:
        tensors[key] = tensors[key].to(luck.choice(DTYPES))
    elif kind == 3:
        tensors[key.partition(".")[0] + luck.choice(sorted(SUFFIXES))] = random_tensor(luck, 3)
    elif kind == 4:
        tensors[key] = tensors[key].flatten()[:0]
    else:
        tensors[key] = tensors[key].float() * luck.choice(FACTORS)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(20))
def test_damaged_loras_are_converted_or_refused(tmp_path, name, seed):
    luck = random.Random(f"{name} {seed}")
    for _ in range(4):
        tensors = some_layers(name, luck)
        for _ in range(luck.randint(0, 3)):
            damage(tensors, luck)
        path = tmp_path / "damaged.safetensors"
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
        try:
            for step in range(3):
                path = converted(
                    path,
                    tmp_path / f"{step}.safetensors",
                    luck.choice(TARGETS),
                    architecture=name,
                    allow_drop=luck.random() < 0.5,
                )
        except MusubiError as error:
            assert "Please report" not in str(error), error
