"""The VAE opens from every published file and gives what diffusers gives when it is called directly."""

from __future__ import annotations

import pytest
import torch
from hunyuan_video_files import comfy_org_vae, official_vae
from safetensors.torch import load_file, save_file

from musubi_core.config import ConfigError
from musubi_core.errors import BadFileError, MusubiError
from musubi_core.models.hunyuan_video.options import LatentOptions
from musubi_core.models.hunyuan_video.tiny_vae import WIDTHS, tiny_vae, vae_shapes
from musubi_core.models.hunyuan_video.vae import VaeCodec, latents, open_vae
from musubi_core.models.spec import EncoderRequest, Pixels

CPU = torch.device("cpu")
SCALE = 0.476986


@pytest.fixture(scope="module")
def vae_file(tmp_path_factory):
    """Original naming, as Kijai's file has it."""
    path = tmp_path_factory.mktemp("vae") / "hunyuan_video_vae_bf16.safetensors"
    save_file(tiny_vae(torch.Generator().manual_seed(0)), path)
    return path


@pytest.fixture(scope="module")
def diffusers_vae(vae_file):
    """diffusers' class, built and called as its documentation says, cutting in time switched off."""
    from diffusers import AutoencoderKLHunyuanVideo

    vae = AutoencoderKLHunyuanVideo(block_out_channels=WIDTHS).eval()
    vae.load_state_dict(load_file(vae_file))
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return vae


def clip(frames: int = 5, size: int = 48, batch: int = 1) -> torch.Tensor:
    """(B, F, size, size, 3) uint8: smooth, and different in every frame."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(batch, 3, frames, 6, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(frames, size, size), mode="trilinear")
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def request(path, dtype=torch.float32, **options) -> EncoderRequest:
    return EncoderRequest(device=CPU, dtype=dtype, options=LatentOptions(**options), weights=path)


def encode(path, frames, seeds=(5,), **options):
    encoded = latents(request(path, **options)).open().encode(Pixels(frames=frames, seeds=seeds))
    return torch.stack([item["latents"] for item in encoded])


def posterior_of(vae, frames):
    with torch.no_grad():
        return vae.encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist


def sample_of(posterior, seed):
    noise = torch.randn(posterior.mean.shape[1:], generator=torch.Generator().manual_seed(seed))
    return posterior.mean[0] + posterior.std[0] * noise


def test_latents_equal_a_direct_call_of_diffusers(vae_file, diffusers_vae):
    frames = clip()
    ours = encode(vae_file, frames)
    assert ours.shape == (1, 16, 2, 6, 6)
    torch.testing.assert_close(ours[0], sample_of(posterior_of(diffusers_vae, frames), 5), rtol=0, atol=1e-5)


def test_long_clips_are_not_cut_in_time(vae_file, diffusers_vae):
    frames = clip(frames=21, size=32)
    expected = sample_of(posterior_of(diffusers_vae, frames), 5)
    torch.testing.assert_close(encode(vae_file, frames)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rewrite", [comfy_org_vae, official_vae])
def test_every_published_form_gives_the_same_latents(tmp_path, vae_file, rewrite):
    other = rewrite(vae_file, tmp_path / vae_file.name)
    assert torch.equal(encode(other, clip()), encode(vae_file, clip()))


def test_a_picture_is_encoded_as_the_first_frame_of_a_still_clip(vae_file):
    still = clip(frames=1).expand(1, 9, -1, -1, -1)
    vae = open_vae(vae_file, device=CPU, dtype=torch.float32, options=LatentOptions())
    clip_mean, picture_mean = posterior_of(vae, still).mean, posterior_of(vae, still[:, :1]).mean
    torch.testing.assert_close(clip_mean[:, :, :1], picture_mean, rtol=0, atol=1e-4)


def test_no_latent_frame_sees_later_frames_but_through_the_norms(vae_file):
    """Group norms take mean and variance over all frames, so they are taken out for this."""
    vae = open_vae(vae_file, device=CPU, dtype=torch.float32, options=LatentOptions(vae_chunk_size=2))
    for parent in list(vae.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.GroupNorm):
                setattr(parent, name, torch.nn.Identity())
    frames = clip(frames=9)
    whole, start = posterior_of(vae, frames).mean, posterior_of(vae, frames[:, :5]).mean
    assert (whole.shape[2], start.shape[2]) == (3, 2)
    torch.testing.assert_close(whole[:, :, :2], start, rtol=1e-5, atol=1e-5)


def test_an_items_latents_depend_on_neither_batch_nor_order(vae_file):
    frames = clip(batch=2)
    codec = latents(request(vae_file)).open()
    together = codec.encode(Pixels(frames=frames, seeds=[1, 2]))
    swapped = codec.encode(Pixels(frames=frames.flip(0), seeds=[2, 1]))
    alone = codec.encode(Pixels(frames=frames[1:], seeds=[2]))
    for other in (swapped[0], alone[0]):
        torch.testing.assert_close(other["latents"], together[1]["latents"], rtol=0, atol=1e-4)


def test_another_seed_is_another_sample(vae_file):
    assert not torch.equal(encode(vae_file, clip(), seeds=(1,)), encode(vae_file, clip(), seeds=(2,)))


def test_decoding_equals_diffusers_and_undoes_the_scaling(vae_file, diffusers_vae):
    stored = encode(vae_file, clip())
    with torch.no_grad():
        expected = (diffusers_vae.decode(stored).sample / 2 + 0.5).clamp(0, 1) * 255
    pixels = latents(request(vae_file)).open().decode(stored * SCALE)
    assert pixels.shape == (1, 5, 48, 48, 3)
    assert (pixels.float() - expected.permute(0, 2, 3, 4, 1)).abs().max() <= 0.51


def test_chunked_convolutions_change_nothing(vae_file):
    whole = encode(vae_file, clip(frames=13))
    torch.testing.assert_close(encode(vae_file, clip(frames=13), vae_chunk_size=2), whole, rtol=0, atol=1e-5)


def test_tiles_are_diffusers_own(vae_file, diffusers_vae):
    frames = clip(frames=1, size=96)
    diffusers_vae.enable_tiling(64, 64, None, 48, 48)
    try:
        expected = sample_of(posterior_of(diffusers_vae, frames), 5)
    finally:
        diffusers_vae.disable_tiling()
    tiled = encode(vae_file, frames, vae_spatial_tile_sample_min_size=64)
    torch.testing.assert_close(tiled[0], expected, rtol=0, atol=1e-5)
    assert not torch.equal(tiled, encode(vae_file, frames))


def test_tiling_options():
    assert LatentOptions().tile_size is None
    assert LatentOptions(vae_tiling=True).tile_size == 256
    assert LatentOptions(vae_spatial_tile_sample_min_size=128).tile_size == 128
    with pytest.raises(ConfigError, match="use 96 or 128"):
        LatentOptions(vae_spatial_tile_sample_min_size=100).check()


def test_latents_are_float16_unless_asked_otherwise(vae_file):
    default = latents(request(vae_file, dtype=None))
    assert (default.settings["dtype"], default.settings["math"]) == ("float16", "float32")
    assert default.open().encode(Pixels(frames=clip(), seeds=[1]))[0]["latents"].dtype == torch.float16
    half = latents(request(vae_file, dtype=torch.bfloat16))
    assert (half.settings["dtype"], half.settings["math"]) == ("bfloat16", "bfloat16")
    assert half.open().encode(Pixels(frames=clip(), seeds=[1]))[0]["latents"].dtype == torch.bfloat16


def test_what_changes_the_latents_is_in_the_settings_and_nothing_else(vae_file):
    base = latents(request(vae_file))
    assert latents(request(vae_file, vae_chunk_size=4)).settings == base.settings
    assert latents(request(vae_file, vae_tiling=True)).settings != base.settings
    assert latents(request(vae_file, dtype=torch.float16)).settings != base.settings
    assert base.settings["posterior"] == "sample" and base.settings["scaled"] is False


def test_the_identity_follows_the_weights(tmp_path, vae_file):
    other = tmp_path / "other.safetensors"
    save_file(tiny_vae(torch.Generator().manual_seed(1)), other)
    assert latents(request(other)).identity != latents(request(vae_file)).identity


def test_the_shape_table_is_that_of_diffusers(diffusers_vae):
    theirs = {name: tuple(tensor.shape) for name, tensor in diffusers_vae.state_dict().items()}
    assert vae_shapes(WIDTHS) == theirs


def test_numbers_that_are_not_finite_are_never_returned(vae_file):
    vae = open_vae(vae_file, device=CPU, dtype=torch.float32, options=LatentOptions())
    vae.quant_conv.bias.data[0] = float("nan")
    with pytest.raises(MusubiError, match=r"not finite in float32.*--vae_dtype"):
        VaeCodec(vae, dtype=torch.float16).encode(Pixels(frames=clip(), seeds=[1]))


def test_sizes_that_do_not_fit_are_refused(vae_file):
    codec = latents(request(vae_file)).open()
    for shape in ((1, 4, 48, 48, 3), (1, 1, 44, 48, 3)):
        with pytest.raises(ConfigError, match="cannot be encoded"):
            codec.encode(Pixels(frames=torch.zeros(shape, dtype=torch.uint8), seeds=[1]))


def test_a_missing_option_names_the_files_to_get():
    with pytest.raises(ConfigError, match=r"--vae .*hunyuan_video_vae_bf16\.safetensors"):
        latents(request(None))


FOREIGN = {
    "a Wan VAE": {"encoder.conv1.weight": (8, 3, 3, 3, 3), "decoder.conv1.weight": (8, 8, 3, 3, 3)},
    "a picture VAE": {
        "encoder.down.0.block.0.norm1.weight": (32,),
        "encoder.conv_in.weight": (32, 3, 3, 3),
    },
    "a LoRA": {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 8)},
    "nothing": {},
}


@pytest.mark.parametrize("shapes", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused_before_anything_is_opened(tmp_path, shapes):
    path = tmp_path / "foreign.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(BadFileError, match=r"foreign\.safetensors is not the HunyuanVideo VAE.*Expected"):
        latents(request(path))


def test_an_incomplete_vae_names_what_it_lacks(tmp_path, vae_file):
    weights = load_file(vae_file)
    del weights["decoder.conv_out.conv.bias"]
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(BadFileError, match=r"lacks 1 \(decoder\.conv_out\.conv\.bias\)"):
        latents(request(tmp_path / "cut.safetensors")).open()
