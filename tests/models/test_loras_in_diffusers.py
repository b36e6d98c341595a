"""A LoRA converted for diffusers or PEFT does to diffusers' network what it does to ours, and comes back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux_kontext_networks
import pytest
import test_flux_kontext_parity
import test_hunyuan_video_parity
import test_wan_parity
import torch
import wan_networks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from musubi_core.lora_tools.convert import convert_lora
from musubi_core.lora_tools.convert_config import ConvertConfig

pytest.importorskip("peft")
Outputs = Callable[[], tuple[Tensor, Tensor]]


@pytest.fixture(params=["hunyuan_video", "flux_kontext", "wan"])
def twins(request, hunyuan, hunyuan_inputs) -> tuple[str, nn.Module, nn.Module, Outputs]:
    """(architecture, our network, diffusers' with the same weights, both outputs for one input)."""
    name = request.param
    if name == "hunyuan_video":
        ours, parity, inputs = hunyuan(), test_hunyuan_video_parity, hunyuan_inputs()
    elif name == "flux_kontext":
        ours, parity = flux_kontext_networks.make_network(), test_flux_kontext_parity
        inputs = flux_kontext_networks.make_inputs()
    else:
        ours, parity = wan_networks.make_network("i2v-14B"), test_wan_parity
        inputs = wan_networks.make_inputs("i2v-14B")
    theirs = parity.oracle(ours)

    @torch.no_grad()
    def outputs() -> tuple[Tensor, Tensor]:
        return ours(**inputs), parity.run_oracle(theirs, inputs)

    return name, ours, theirs, outputs


def random_lora(network: nn.Module, *, dora: bool = False) -> dict[str, Tensor]:
    """Every linear map and convolution, with ranks 2 to 4 and alphas 1 to 4, in musubi-tuner's form."""
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv3d)]
    for number, (name, module) in enumerate(layers):
        if dora and isinstance(module, nn.Conv3d):
            continue
        shape, rank, base = module.weight.shape, 2 + number % 3, "lora_unet_" + name.replace(".", "_")
        down = torch.randn(rank, *shape[1:], generator=generator) * 0.1
        up = torch.randn(shape[0], rank, *[1] * len(shape[2:]), generator=generator) * 0.1
        tensors |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
        tensors[f"{base}.alpha"] = torch.tensor(1.0 + number % 4)
        if dora:
            norms = module.weight.flatten(1).norm(dim=1, keepdim=True)
            tensors[f"{base}.dora_scale"] = norms * (1 + 0.1 * torch.rand(norms.shape, generator=generator))
    return tensors


def merge(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """W + alpha / rank * up @ down; with DoRA each row of it is then made as long as its magnitude."""
    for name, module in network.named_modules():
        base = "lora_unet_" + name.replace(".", "_")
        if f"{base}.alpha" not in tensors:
            continue
        down, up = (tensors[f"{base}.lora_{side}.weight"].flatten(1) for side in ("down", "up"))
        weight = module.weight.flatten(1) + tensors[f"{base}.alpha"] / len(down) * (up @ down)
        if f"{base}.dora_scale" in tensors:
            weight = weight * (tensors[f"{base}.dora_scale"] / weight.norm(dim=1, keepdim=True))
        module.weight.data.copy_(weight.reshape(module.weight.shape))


PIPELINES = {
    "hunyuan_video": "HunyuanVideoPipeline",
    "flux_kontext": "FluxKontextPipeline",
    "wan": "WanPipeline",
}


def apply(name: str, theirs: nn.Module, path: Path) -> None:
    """Load the LoRA into diffusers' network, which changes in place."""
    if path.is_dir():
        from peft import PeftModel

        PeftModel.from_pretrained(theirs, path)
        return
    import diffusers

    kind = getattr(diffusers, PIPELINES[name])
    parts = inspect.signature(kind.__init__).parameters.values()
    needed = {part.name: None for part in parts if part.default is part.empty and part.name != "self"}
    kind(**{**needed, "transformer": theirs}).load_lora_weights(path)


def converted(source: Path, output: Path, target: str, **options: Any) -> Path:
    assert convert_lora(ConvertConfig(input=source, output=output, target=target, **options)) == output
    return output


@pytest.mark.parametrize("target", ["diffusers", "peft"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_diffusers_computes_the_same_with_the_converted_lora(twins, tmp_path, target, dora):
    name, ours, theirs, outputs = twins
    before, same = outputs()
    tensors = random_lora(ours, dora=dora)
    source = tmp_path / "source.safetensors"
    save_file(tensors, source, {"ss_base_model_version": name})
    path = converted(source, tmp_path / ("peft" if target == "peft" else "lora.safetensors"), target)
    apply(name, theirs, path)
    merge(ours, tensors)
    ours_after, theirs_after = outputs()
    scale = max(1.0, float(ours_after.abs().max()))
    assert float((before - same).abs().max()) < 1e-5 * scale
    assert float((ours_after - before).abs().max()) > 0.05 * scale, "the LoRA must change something"
    assert float((ours_after - theirs_after).abs().max()) < 2e-5 * scale


def test_what_diffusers_saves_comes_back_with_its_alphas(twins, tmp_path):
    """add_adapter and save_lora_adapter, the way diffusers' own training scripts do it."""
    from peft import LoraConfig

    name, ours, theirs, outputs = twins
    last = "to_out.0"
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", last], alpha_pattern={last: 3}))
    generator = torch.Generator().manual_seed(3)
    for parameter_name, parameter in theirs.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.normal_(std=0.1, generator=generator)
    theirs.save_lora_adapter(tmp_path / "saved")
    (saved,) = (tmp_path / "saved").iterdir()
    musubi = converted(
        saved, tmp_path / "b.safetensors", "default", architecture=name, lora_key_format="musubi"
    )
    merge(ours, load_file(musubi))
    ours_after, theirs_after = outputs()
    assert float((ours_after - theirs_after).abs().max()) < 2e-5 * max(1.0, float(ours_after.abs().max()))
