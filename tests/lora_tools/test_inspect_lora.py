"""What is said of a file is true; the norms are those of the dense changes."""

from __future__ import annotations

import lora_files
import pytest
import torch
from dense_loras import dense, lora_file
from safetensors.torch import save_file

from musubi_core.errors import BadFileError
from musubi_core.lora_tools import inspect as room
from musubi_core.lora_tools.inspect import description, norms_picture
from musubi_core.models.registry import architecture, architectures

KONTEXT = "lora_unet_double_blocks_{}_img_attn_qkv"


def test_a_lora_is_told_with_model_ranks_strength_and_readers(tmp_path):
    path = lora_file(tmp_path / "k.safetensors", {KONTEXT.format(n): (12, 8) for n in range(19)}, alpha=2.0)
    text = description(path)
    for line in ("LoRA of 19 changes: lora", "ranks: 4", "alphas: 2", "strength (alpha / rank): 0.5"):
        assert line in text
    assert "made for: flux_kontext" in text and "loads in ComfyUI: completely" in text
    assert "loads in diffusers: no names of its own" in text and "loads in musubi-tuner: completely" in text


def test_names_that_comfyui_skips_are_counted(tmp_path):
    names = [f"lora_unet_double_blocks_{n}_img_{part}" for n in range(20) for part in ("attn_qkv", "mlp_fc1")]
    metadata = {"modelspec.architecture": "hunyuan-video/lora"}
    path = lora_file(tmp_path / "h.safetensors", dict.fromkeys(names, (12, 8)), metadata=metadata)
    text = description(path)
    assert "made for: hunyuan_video" in text and "loads in ComfyUI: 20 of 40 changes" in text
    assert "convert-lora, which can rewrite it: completely" in text


def test_other_kinds_and_broken_ones_are_told(tmp_path):
    save_file({"x.lokr_w1": torch.ones(2, 2), "x.lokr_w2": torch.ones(2, 2)}, tmp_path / "k.safetensors")
    text = description(tmp_path / "k.safetensors")
    assert "LoRA of 1 changes: lokr" in text and "is for no model that is known here" in text
    save_file({"x.lora_up.weight": torch.ones(2, 2)}, tmp_path / "broken.safetensors")
    assert "LoRA that cannot be used" in description(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("name", [spec.name for spec in architectures()])
def test_a_network_is_told_and_its_norms_are_drawn(tmp_path, name):
    dit = architecture(name).write_tiny(tmp_path, 0).dit
    assert "network of:" in description(dit) and name in description(dit)
    assert norms_picture(dit, tmp_path / "n.png")
    assert (tmp_path / "n.png").read_bytes().startswith(b"\x89PNG")


def test_pytorch_files_and_caches_are_told(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    assert "no architecture known here" in description(tmp_path / "a.pt")
    metadata = {"architecture": "wan", "format_version": "1.0.1"}
    save_file({"latents": torch.ones(2)}, tmp_path / "cache.safetensors", metadata)
    assert "cache of: wan, format 1.0.1" in description(tmp_path / "cache.safetensors")


def test_the_norms_drawn_are_those_of_the_dense_changes(tmp_path, monkeypatch):
    names = [KONTEXT.format(0), KONTEXT.format(3), "lora_unet_double_blocks_3_img_mlp_0"]
    path = lora_file(tmp_path / "k.safetensors", dict.fromkeys(names, (12, 8)))
    drawn = {}
    real = room.curves
    monkeypatch.setattr(room, "curves", lambda series, **words: drawn.update(series) or real(series, **words))
    assert norms_picture(path, tmp_path / "n.png")
    first = float(dense(path, names[0]).norm())
    other = float(torch.cat([dense(path, name) for name in names[1:]]).norm())
    ((place, points),) = drawn.items()
    assert place == "lora_unet_double_blocks"
    assert points == [(0.0, pytest.approx(first)), (3.0, pytest.approx(other))]


def test_nothing_to_draw_is_said_and_a_stop_leaves_no_picture(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(BadFileError, match="nothing whose norm"):
        norms_picture(tmp_path / "a.safetensors", tmp_path / "n.png")
    path = lora_file(tmp_path / "k.safetensors", {KONTEXT.format(0): (12, 8)})
    assert not norms_picture(path, tmp_path / "n.png", should_stop=lambda: True)
    assert not (tmp_path / "n.png").exists()


def test_an_alpha_that_comfyui_ignores_is_told(tmp_path):
    name = "flux_kontext"
    weak = lora_files.converted(
        lora_files.lora_file(tmp_path / "a.safetensors", name, alpha=1.5),
        tmp_path / "d.safetensors",
        "diffusers",
    )
    text = description(weak)
    assert "loads in ComfyUI: completely, at another strength: it ignores alpha in a header" in text
    assert "loads in diffusers: completely" in text and "loads in musubi-tuner: no" in text
    assert "loads in musubi-tuner: completely" in description(tmp_path / "a.safetensors")
