"""`generate` on a card: whatever waits in host memory, the picture is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from generate_stage import drawn, write_lora

from musubi_core.models.wan.tiny import write_tiny_variant

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("fp8", [{}, {"fp8": True, "fp8_scaled": True}], ids=["bf16", "fp8"])
@pytest.mark.parametrize("mode", ["merge", "runtime"])
def test_swapped_blocks_draw_the_same(tmp_path: Path, fp8: dict[str, Any], mode: str):
    lora = write_lora("wan", tmp_path / "lora.safetensors")
    given = {"lora_weight": [lora], "lora_mode": mode, "output_type": "latent", "device": "cuda", **fp8}
    straight = drawn("wan", tmp_path / "a", **given).latent
    assert torch.equal(drawn("wan", tmp_path / "b", blocks_to_swap=1, **given).latent, straight)


def test_a_network_that_waits_in_host_memory_draws_the_same(tmp_path: Path):
    low, high = (write_tiny_variant(tmp_path / str(seed), seed, task="t2v-A14B").dit for seed in (1, 2))
    given = {"dit": low, "dit_high_noise": high, "task": "t2v-A14B", "device": "cuda", "infer_steps": 4}
    straight = drawn("wan", tmp_path / "a", output_type="latent", **given).latent
    waiting = drawn("wan", tmp_path / "b", output_type="latent", offload_inactive_dit=True, **given).latent
    assert torch.equal(waiting, straight)
