"""Models in scaled fp8 inside a real ComfyUI: exact, LoRA-safe, and known to its memory management."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pack_in_comfyui import start
from safetensors.torch import load_file, save_file
from torch import Tensor

from musubi_core.models.registry import architecture
from musubi_core.quantization.fp8 import dequantise, quantise
from musubi_core.quantization.scheme import QuantisationConfig, Scheme

TEXT_WIDTH = 4096  # of Wan, for ComfyUI
CODE = """
folder = {folder!r}
from pathlib import Path
from musubi_core.quantization.scheme import Scheme
from musubi_pack.nodes.inference.fp8_loader import Fp8Request, load_fp8_model
from musubi_pack.nodes.inference.fp8_layout import is_scaled_fp8
place, found, pictures = Path(folder), dict(), dict()
complaints = []
logging.warning = lambda text, *args: complaints.append(str(text))
latent = torch.zeros(1, 16, 1, 4, 4)
positive, negative = prompts({width})

def request(name="bf16", granularity="block", **more):
    return Fp8Request(path=place / (name + ".safetensors"), scheme=Scheme(granularity=granularity), **more)

def picture(model, name=None):
    made = sample(model, latent, positive, negative, steps=2)
    if name:
        pictures[name] = made.float().contiguous()
    return made

def layers(model):
    modules = model.model.named_modules()
    return dict((name, module) for name, module in modules if is_scaled_fp8(getattr(module, "weight", None)))

def bits(model):
    return [
        (name, layer.weight._qdata.view(torch.uint8).tolist(), layer.weight._params.scale.tolist())
        for name, layer in layers(model).items()
    ]

def float_model(name):
    options = dict(dtype=torch.float32)
    return comfy.sd.load_diffusion_model(folder + "/" + name + ".safetensors", model_options=options)

def with_lora(model, strength=1.0):
    lora = comfy.utils.load_torch_file(folder + "/lora.safetensors")
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]

for granularity in ("block", "channel", "tensor"):
    model = load_fp8_model(request(granularity=granularity))
    picture(model, granularity)
    picture(float_model("as_" + granularity), "oracle_" + granularity)
for name in ("musubi", "comfyui", "scaled", "cast"):
    picture(load_fp8_model(request(name)), name)
    picture(float_model("float_" + name), "oracle_" + name)

for name in ("hunyuan", "oracle_hunyuan"):
    network = load_fp8_model(request(name)) if name == "hunyuan" else float_model("as_hunyuan")
    width = network.model.model_config.unet_config["context_in_dim"]
    texts = prompts(width, pooled_output=noise_like(1, 768, seed=6), guidance=6.0)
    pictures[name] = sample(network, latent, *texts, steps=2).float().contiguous()
    found[name] = len(layers(network))
del network

model = load_fp8_model(request())
found["size"] = model.model_size()
found["held"] = sum(
    tensor.numel() * tensor.element_size()
    for module in model.model.modules()
    for one in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    for tensor in ((one._qdata, one._params.scale) if is_scaled_fp8(one) else (one,))
)
before, plain = bits(model), picture(model)
picture(with_lora(model), "lora")
picture(with_lora(float_model("as_block")), "oracle_lora")
found["bits_with_lora"] = bits(model) == before
picture(model, "again")
pictures["before"] = plain.float().contiguous()
found["left"] = sum(len(layer.weight_function) for layer in layers(model).values())

lora_model = with_lora(model)
lora_model.patch_model(lowvram_model_memory=1)
found["offloaded"] = lora_model.model.model_lowvram
def evaluate(patcher):
    return patcher.model.diffusion_model(
        noise_like(1, 16, 1, 4, 4, seed=5), torch.tensor([500.0]), positive[0][0], transformer_options=dict()
    ).float().contiguous()
pictures["low"] = evaluate(lora_model)
lora_model.unpatch_model(lora_model.offload_device)
lora_model.patch_model()
pictures["full"] = evaluate(lora_model)
lora_model.partially_unload(lora_model.offload_device, 1 << 20)
pictures["part"] = evaluate(lora_model)
lora_model.unpatch_model(lora_model.offload_device)
found["bits_after"] = bits(model) == before
pictures["bare"] = evaluate(model)

merged = load_fp8_model(request(loras=((place / "lora.safetensors", 0.5),)))
picture(merged, "merged")
picture(float_model("as_merged"), "oracle_merged")

import comfy.hooks
def hooked(model):
    lora = comfy.utils.load_torch_file(folder + "/lora.safetensors")
    group = comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0)
    changed = comfy.hooks.set_hooks_for_conditioning(positive, group)
    made = sample(model, latent, changed, negative, steps=2)
    return made.float().contiguous()
pictures["hooked"], pictures["oracle_hooked"] = hooked(model), hooked(float_model("as_block"))
found["bits_after_hooks"] = bits(model) == before
pictures["after_hooks"] = picture(model).float().contiguous()
found["left_after_hooks"] = sum(len(layer.weight_function) for layer in layers(model).values())

saved = with_lora(model)
if hasattr(saved, "state_dict_for_saving"):
    lazy = saved.state_dict_for_saving()
    state = dict((k, v if isinstance(v, torch.Tensor) else v.to("cpu")) for k, v in lazy.items())
else:
    comfy.model_management.load_models_gpu([saved], force_patch_weights=True)
    state = saved.model.state_dict_for_saving()
state = dict((name, tensor.contiguous()) for name, tensor in state.items())
comfy.utils.save_torch_file(state, folder + "/saved.safetensors")
del saved, state
comfy.model_management.unload_all_models()
picture(load_fp8_model(request("saved")), "saved")
found["bits_after_saving"] = bits(model) == before

if hasattr(model, "cached_patcher_init"):
    again = model.clone(force_deepcopy=True)
    found["deep"] = again.model is not model.model
    picture(again, "deep")
    picture(model.deepclone_multigpu(new_load_device=torch.device("cpu")), "other_card")
found["complaints"] = [text for text in complaints if "missing" in text or "unexpected" in text]
comfy.utils.save_torch_file(pictures, folder + "/pictures.safetensors")
print(json.dumps(found))
"""


def float_weights(path: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def rounded(weights: dict[str, Tensor], wanted: list[str], scheme: Scheme) -> dict[str, Tensor]:
    """The weights that an 8-bit model stands for, in float32."""
    made = dict(weights)
    for name in wanted:
        one = quantise(weights[name], scheme)
        made[name] = dequantise(one.codes, one.scale, torch.float32)
    return made


def stored(weights: dict[str, Tensor], wanted: list[str], scheme: Scheme | None, scale_name: str):
    """An fp8 file and the float weights it stands for. scheme None: a plain cast without scales."""
    file = {name: tensor.bfloat16() for name, tensor in weights.items()}
    true = dict(weights)
    for name in wanted:
        if scheme is None:
            file[name] = weights[name].to(torch.float8_e4m3fn)
            true[name] = file[name].float()
            continue
        made = quantise(weights[name], scheme)
        file[name], file[name.replace("weight", scale_name)] = made.codes, made.scale
        true[name] = dequantise(made.codes, made.scale, torch.float32)
    return file, true


def lora_for(weights: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """A strong LoRA of rank 2 on every 8-bit weight, and the change that it makes."""
    random = torch.Generator().manual_seed(7)
    found = {}
    for name in wanted:
        rows, columns = weights[name].shape
        base = "diffusion_model." + name.removesuffix(".weight")
        found[f"{base}.lora_A.weight"] = torch.randn(2, columns, generator=random) * 0.1
        found[f"{base}.lora_B.weight"] = torch.randn(rows, 2, generator=random) * 0.1
    return found


def widened(weights: dict[str, Tensor], name: str, width: int) -> None:
    """Give a layer as many inputs as ComfyUI takes for granted; tiny networks have less."""
    wide = torch.randn(weights[name].shape[0], width, generator=torch.Generator().manual_seed(9))
    weights[name] = (wide / width**0.5).bfloat16().float()


def chosen(weights: dict[str, Tensor], name: str) -> list[str]:
    """The weights that are put into 8 bits."""
    spec = architecture(name)
    config = QuantisationConfig(targets=spec.fp8_targets, keep_precise=spec.keep_precise)
    linear = [key for key, tensor in weights.items() if key.endswith(".weight") and tensor.ndim == 2]
    return [key for key in linear if config.covers(key)]


def write_hunyuan(folder: Path) -> None:
    """A network whose layers ComfyUI renames while it loads them."""
    weights = float_weights(architecture("hunyuan_video").write_tiny(folder / "tiny", 0).dit)
    widened(weights, "vector_in.in_layer.weight", 768)
    save_file({key: tensor.bfloat16() for key, tensor in weights.items()}, folder / "hunyuan.safetensors")
    made = rounded(weights, chosen(weights, "hunyuan_video"), Scheme())
    save_file(made, folder / "as_hunyuan.safetensors")


def write_files(folder: Path) -> None:
    write_hunyuan(folder)
    weights = float_weights(architecture("wan").write_tiny(folder / "tiny", 0).dit)
    widened(weights, "text_embedding.0.weight", TEXT_WIDTH)
    wanted = chosen(weights, "wan")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "bf16.safetensors")
    for granularity in ("block", "channel", "tensor"):
        made = rounded(weights, wanted, Scheme(granularity=granularity))
        save_file(made, folder / f"as_{granularity}.safetensors")
    forms = {
        "musubi": (Scheme(), "scale_weight"),
        "comfyui": (Scheme(granularity="tensor"), "weight_scale"),
        "scaled": (Scheme(granularity="channel"), "scale_weight"),
        "cast": (None, ""),
    }
    for form, (scheme, scale_name) in forms.items():
        file, true = stored(weights, wanted, scheme, scale_name)
        save_file(file, folder / f"{form}.safetensors")
        save_file(true, folder / f"float_{form}.safetensors")
    lora = lora_for(weights, wanted)
    save_file(lora, folder / "lora.safetensors")
    merged = dict(weights)
    for name in wanted:
        base = "diffusion_model." + name.removesuffix(".weight")
        merged[name] = weights[name] + 0.5 * lora[f"{base}.lora_B.weight"] @ lora[f"{base}.lora_A.weight"]
    save_file(rounded(merged, wanted, Scheme()), folder / "as_merged.safetensors")


@pytest.fixture(scope="module")
def run(comfyui: Callable[[str, Path], Any], tmp_path_factory: pytest.TempPathFactory):
    """(what the script found, pictures by name), of one ComfyUI."""
    folder = tmp_path_factory.mktemp("fp8")
    write_files(folder)
    found = comfyui(start() + CODE.format(folder=str(folder), width=TEXT_WIDTH), folder)
    return found, load_file(folder / "pictures.safetensors")


def near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


@pytest.mark.parametrize("granularity", ["block", "channel", "tensor"])
def test_a_sampled_picture_is_that_of_the_weights_multiplied_out(run, granularity):
    _, pictures = run
    assert torch.equal(pictures[granularity], pictures[f"oracle_{granularity}"])


def test_weights_find_their_place_where_comfyui_renames_layers(run):
    found, pictures = run
    assert torch.equal(pictures["hunyuan"], pictures["oracle_hunyuan"])
    assert found["hunyuan"] > 0 and found["oracle_hunyuan"] == 0


@pytest.mark.parametrize("form", ["musubi", "comfyui", "scaled", "cast"])
def test_fp8_files_are_taken_as_they_are(run, form):
    _, pictures = run
    assert torch.equal(pictures[form], pictures[f"oracle_{form}"])


def test_comfyui_counts_the_bytes_that_are_held(run):
    found, _ = run
    assert found["size"] == found["held"]


def test_a_lora_on_top_is_exact_and_leaves_no_trace(run):
    found, pictures = run
    assert near(pictures["lora"], pictures["oracle_lora"])
    assert (pictures["lora"] - pictures["before"]).norm() > 0.1 * pictures["before"].norm()
    assert found["bits_with_lora"] and found["bits_after"] and found["left"] == 0
    assert torch.equal(pictures["again"], pictures["before"])


def test_a_lora_counts_the_same_however_much_of_the_model_is_loaded(run):
    found, pictures = run
    assert found["offloaded"]
    assert torch.equal(pictures["low"], pictures["full"])
    assert torch.equal(pictures["part"], pictures["full"])
    assert not torch.equal(pictures["bare"], pictures["full"])


def test_loras_are_merged_before_rounding(run):
    _, pictures = run
    assert near(pictures["merged"], pictures["oracle_merged"])


def test_lora_hooks_are_exact_and_leave_no_trace(run):
    found, pictures = run
    assert near(pictures["hooked"], pictures["oracle_hooked"])
    assert not near(pictures["hooked"], pictures["before"], 0.01)
    assert torch.equal(pictures["after_hooks"], pictures["before"])
    assert found["bits_after_hooks"] and found["left_after_hooks"] == 0


def test_a_saved_model_holds_the_lora(run):
    found, pictures = run
    # The sum is rounded to 8 bits here: a file cannot hold it otherwise.
    lora = (pictures["lora"] - pictures["before"]).norm()
    assert (pictures["saved"] - pictures["lora"]).norm() < 0.3 * lora
    assert found["bits_after_saving"]


def test_comfyui_can_load_the_model_once_more(run):
    found, pictures = run
    if "deep" not in found:
        pytest.skip("this ComfyUI never loads a model a second time")
    assert found["deep"]
    assert torch.equal(pictures["deep"], pictures["before"])
    assert torch.equal(pictures["other_card"], pictures["before"])


def test_every_weight_finds_its_place(run):
    found, _ = run
    assert found["complaints"] == []
