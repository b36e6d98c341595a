"""The VAE of FLUX.1 opens from every published file and gives what diffusers gives when called directly."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi_core.config import ConfigError
from musubi_core.encoders.vae_keys import diffusers_name
from musubi_core.errors import BadFileError, MusubiError
from musubi_core.models.flux_kontext.options import LatentOptions
from musubi_core.models.flux_kontext.tiny_vae import WIDTHS, tiny_vae, vae_shapes
from musubi_core.models.flux_kontext.vae import VaeCodec, latents, open_vae
from musubi_core.models.spec import EncoderRequest, Pixels

CPU = torch.device("cpu")
SHIFT, SCALE = 0.1159, 0.3611


@pytest.fixture(scope="module")
def vae_file(tmp_path_factory):
    """Original naming, as ae.safetensors has it."""
    path = tmp_path_factory.mktemp("vae") / "ae.safetensors"
    save_file(tiny_vae(torch.Generator().manual_seed(0)), path)
    return path


def in_diffusers_names(path):
    """diffusers' names; its attention is made of linear layers, the original's of 1x1 convolutions."""
    renamed = {}
    for name, tensor in load_file(path).items():
        attention = ".attn_1." in name and tensor.ndim == 4
        renamed[diffusers_name(name)] = tensor[:, :, 0, 0].clone() if attention else tensor
    return renamed


@pytest.fixture(scope="module")
def diffusers_vae(vae_file):
    """diffusers' class, built as the FLUX.1 repository's config.json says, in tiny widths."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
    ).eval()
    vae.load_state_dict(in_diffusers_names(vae_file))
    return vae


def pictures(batch: int = 1, size: tuple[int, int] = (48, 64), seed: int = 3) -> torch.Tensor:
    """(B, 1, H, W, 3) uint8, smooth."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.nn.functional.interpolate(torch.rand(batch, 3, 6, 6, generator=generator), size=size)
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).unsqueeze(1).contiguous()


def request(path, dtype=None) -> EncoderRequest:
    return EncoderRequest(device=CPU, dtype=dtype, options=LatentOptions(), weights=path)


def encode(path, frames, seeds=(5,), controls=None):
    controls = [[picture] for picture in pictures(len(frames), seed=4)] if controls is None else controls
    return latents(request(path)).open().encode(Pixels(frames=frames, seeds=seeds, controls=controls))


def posterior_of(vae, frames):
    with torch.no_grad():
        return vae.encode(frames[:, 0].permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1).latent_dist


def test_the_target_is_a_posterior_sample_and_the_control_its_mode(vae_file, diffusers_vae):
    frames, control = pictures(), pictures(seed=4)
    (item,) = encode(vae_file, frames, controls=[[control[0]]])
    assert {name: tuple(tensor.shape) for name, tensor in item.items()} == {
        "latents": (16, 6, 8),
        "latents_control": (16, 6, 8),
    }
    assert {tensor.dtype for tensor in item.values()} == {torch.float32}
    target = posterior_of(diffusers_vae, frames)
    noise = torch.randn(target.mean.shape[1:], generator=torch.Generator().manual_seed(5))
    expected = (target.mean[0] + target.std[0] * noise - SHIFT) * SCALE
    torch.testing.assert_close(item["latents"], expected, rtol=0, atol=1e-5)
    mode = (posterior_of(diffusers_vae, control).mode()[0] - SHIFT) * SCALE
    torch.testing.assert_close(item["latents_control"], mode, rtol=0, atol=1e-5)


def test_decoding_equals_diffusers_and_undoes_the_scaling(vae_file, diffusers_vae):
    stored = encode(vae_file, pictures())[0]["latents"][None]
    with torch.no_grad():
        expected = (diffusers_vae.decode(stored / SCALE + SHIFT).sample / 2 + 0.5).clamp(0, 1) * 255
    pixels = latents(request(vae_file)).open().decode(stored)
    assert (tuple(pixels.shape), pixels.dtype) == ((1, 1, 48, 64, 3), torch.uint8)
    assert (pixels[:, 0].float() - expected.permute(0, 2, 3, 1)).abs().max() <= 0.51


def test_files_in_diffusers_names_give_the_same_latents(tmp_path, vae_file):
    folder = tmp_path / "vae"
    folder.mkdir()
    save_file(in_diffusers_names(vae_file), folder / "diffusion_pytorch_model.safetensors")
    older = {
        name.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): tensor
        for name, tensor in in_diffusers_names(vae_file).items()
    }
    save_file(older, tmp_path / "older.safetensors")
    inside = {f"vae.{name}": tensor for name, tensor in load_file(vae_file).items()}
    save_file(inside | {"model.diffusion_model.img_in.weight": torch.zeros(2)}, tmp_path / "all.safetensors")
    expected = encode(vae_file, pictures())[0]["latents"]
    for path in (folder, tmp_path / "older.safetensors", tmp_path / "all.safetensors"):
        assert torch.equal(encode(path, pictures())[0]["latents"], expected), path


def test_several_controls_of_their_own_sizes_are_numbered(vae_file):
    one, two = pictures(2, size=(32, 80)), pictures(2, size=(64, 32), seed=9)
    items = encode(vae_file, pictures(2), seeds=(1, 2), controls=list(zip(one, two, strict=True)))
    for index, item in enumerate(items):
        assert item["latents_control"].shape == (16, 4, 10)
        assert item["latents_control_1"].shape == (16, 8, 4)
        alone = encode(vae_file, pictures(2)[index : index + 1], controls=[[one[index]]])
        torch.testing.assert_close(item["latents_control"], alone[0]["latents_control"], rtol=0, atol=1e-4)


def test_transparency_of_a_control_is_not_encoded(vae_file):
    control = pictures(seed=4)[0]
    clear = torch.cat([control, torch.zeros_like(control[..., :1])], dim=-1)
    plain, seen = (encode(vae_file, pictures(), controls=[[one]])[0] for one in (control, clear))
    assert torch.equal(plain["latents_control"], seen["latents_control"])


def test_an_items_latents_depend_on_neither_batch_nor_order(vae_file):
    frames, controls = pictures(2), [[one] for one in pictures(2, seed=4)]
    together = encode(vae_file, frames, seeds=[1, 2], controls=controls)
    swapped = encode(vae_file, frames.flip(0), seeds=[2, 1], controls=controls[::-1])
    alone = encode(vae_file, frames[1:], seeds=[2], controls=controls[1:])
    for name in ("latents", "latents_control"):
        for other in (swapped[0], alone[0]):
            torch.testing.assert_close(other[name], together[1][name], rtol=0, atol=1e-4)


def test_another_seed_is_another_sample_of_the_target_and_the_same_control(vae_file):
    one, two = (encode(vae_file, pictures(), seeds=(seed,))[0] for seed in (1, 2))
    assert not torch.equal(one["latents"], two["latents"])
    assert torch.equal(one["latents_control"], two["latents_control"])


def test_latents_are_float32_whatever_is_calculated_in(vae_file):
    encoding = latents(request(vae_file, torch.bfloat16))
    assert (encoding.settings["dtype"], encoding.settings["math"]) == ("float32", "bfloat16")
    pixels = Pixels(frames=pictures(), seeds=[1], controls=[[pictures()[0]]])
    assert {tensor.dtype for tensor in encoding.open().encode(pixels)[0].values()} == {torch.float32}
    assert latents(request(vae_file)).settings == {
        "posterior": "sample",
        "control_posterior": "mode",
        "scaled": True,
        "dtype": "float32",
        "math": "float32",
    }


def test_the_shape_table_is_that_of_the_published_file(diffusers_vae):
    renamed = {diffusers_name(name): shape for name, shape in vae_shapes(WIDTHS).items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in diffusers_vae.state_dict().items()}
    assert {name: shape[:2] for name, shape in renamed.items()} == {
        name: shape[:2] for name, shape in theirs.items()
    }
    released = vae_shapes((128, 256, 512, 512))
    assert len(released) == 244
    assert sum(torch.Size(shape).numel() for shape in released.values()) == 83_819_683


def test_numbers_that_are_not_finite_are_never_returned(vae_file):
    vae = open_vae(vae_file, device=CPU, dtype=torch.float32)
    vae.encoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(MusubiError, match=r"not finite in float32.*--vae_dtype"):
        VaeCodec(vae).encode(Pixels(frames=pictures(), seeds=[1], controls=[[pictures()[0]]]))


@pytest.mark.parametrize(
    ("frames", "controls", "words"),
    [
        (pictures(size=(44, 48)), [[pictures()[0]]], "48x44 cannot be encoded"),
        (pictures(), [[pictures(size=(48, 44))[0]]], "44x48 cannot be encoded"),
        (pictures(), [[]], "each picture needs a control picture.*control_directory"),
        (pictures(), [], "each picture needs a control picture"),
        (pictures().repeat(1, 2, 1, 1, 1), [[pictures()[0]]], "2 pictures of 3 channels.*multiple_target"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(vae_file, frames, controls, words):
    with pytest.raises(ConfigError, match=words):
        encode(vae_file, frames, controls=controls)


def test_a_missing_option_names_the_files_to_get():
    with pytest.raises(ConfigError, match=r"--vae .*ae\.safetensors"):
        latents(request(None))


FOREIGN = {
    "a Wan VAE": {"encoder.conv1.weight": (8, 3, 3, 3, 3), "decoder.conv1.weight": (8, 8, 3, 3, 3)},
    "a LoRA": {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 8)},
    "nothing": {},
}


@pytest.mark.parametrize("shapes", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused_before_anything_is_opened(tmp_path, shapes):
    path = tmp_path / "foreign.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(BadFileError, match=r"foreign\.safetensors is not the VAE of FLUX\.1.*Expected"):
        latents(request(path))


def test_the_vae_of_another_model_is_refused(tmp_path, vae_file):
    stable = load_file(vae_file)
    stable["decoder.conv_in.weight"] = torch.zeros(64, 4, 3, 3)
    stable["quant_conv.weight"] = torch.zeros(8, 8, 1, 1)
    save_file(stable, tmp_path / "sdxl_vae.safetensors")
    with pytest.raises(BadFileError, match=r"latents of 4 channels with quant_conv.*expected 16 channels"):
        latents(request(tmp_path / "sdxl_vae.safetensors"))
    video = {name: t[:, :, None] if t.ndim == 4 else t for name, t in in_diffusers_names(vae_file).items()}
    save_file({name: t.clone() for name, t in video.items()}, tmp_path / "video.safetensors")
    with pytest.raises(BadFileError, match=r"is not the VAE of FLUX\.1: its first convolution"):
        latents(request(tmp_path / "video.safetensors"))


def test_an_incomplete_vae_names_what_it_lacks(tmp_path, vae_file):
    weights = load_file(vae_file)
    del weights["decoder.conv_out.bias"]
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(BadFileError, match=r"lacks 1 \(decoder\.conv_out\.bias\)"):
        latents(request(tmp_path / "cut.safetensors")).open()
