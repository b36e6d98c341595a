"""Both VAEs open from every published file and give what diffusers gives when it is called directly."""

from __future__ import annotations

import inspect

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_files import diffusers_file, official_file, prefixed_file

from musubi_core.config import ConfigError
from musubi_core.errors import BadFileError, MusubiError
from musubi_core.models.wan.tiny_vae import DECODER_WIDTH, WIDTH, tiny_vae, vae_shapes
from musubi_core.models.wan.vae import open_vae, read_layout
from musubi_core.models.wan.vae_config import WAN21, WAN22
from musubi_core.models.wan.vae_keys import diffusers_name

CPU = torch.device("cpu")
KINDS = {"2.1": WAN21, "2.2": WAN22}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def vae_file(tmp_path_factory, kind):
    path = tmp_path_factory.mktemp("vae") / "wan_vae.safetensors"
    save_file(tiny_vae(kind, torch.Generator().manual_seed(0)), path)
    return path


@pytest.fixture(scope="module")
def diffusers_vae(vae_file, kind):
    """diffusers' class with the reference's arguments; names of 2.1 by diffusers' own converter."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    if kind is WAN21:
        vae = AutoencoderKLWan(base_dim=WIDTH)
        vae.load_state_dict(convert_wan_vae_to_diffusers(load_file(vae_file)))
        return vae.eval()
    vae = AutoencoderKLWan(
        base_dim=WIDTH,
        decoder_base_dim=DECODER_WIDTH,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=list(kind.mean),
        latents_std=list(kind.std),
    )
    vae.load_state_dict({diffusers_name(name): tensor for name, tensor in load_file(vae_file).items()})
    return vae.eval()


def clip(frames: int = 5, size: int = 64, batch: int = 1) -> torch.Tensor:
    """(B, 3, F, size, size) in -1..1: smooth, and different in every frame."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(batch, 3, frames, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(frames, size, size), mode="trilinear") * 2 - 1


def opened(path, **how):
    return open_vae(path, device=CPU, dtype=torch.float32, **how)


def normalised(vae, x, kind):
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1, 1) for numbers in (kind.mean, kind.std))
    with torch.no_grad():
        return (vae.encode(x).latent_dist.mode() - mean) / std


def test_latents_are_the_normalised_mode_that_diffusers_gives(vae_file, diffusers_vae, kind):
    ours = opened(vae_file).encode(clip(frames=9))
    assert ours.shape == (1, kind.channels, 3, 64 // kind.spatial, 64 // kind.spatial)
    torch.testing.assert_close(ours, normalised(diffusers_vae, clip(frames=9), kind), rtol=0, atol=1e-5)


def test_decoding_equals_diffusers(vae_file, diffusers_vae, kind):
    vae = opened(vae_file)
    latents = vae.encode(clip(frames=9))
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1, 1) for numbers in (kind.mean, kind.std))
    with torch.no_grad():
        expected = (diffusers_vae.decode(latents * std + mean).sample / 2 + 0.5).clamp(0, 1) * 255
    pixels = vae.decode(latents)
    assert pixels.shape == (1, 9, 64, 64, 3) and pixels.dtype == torch.uint8
    assert (pixels.float() - expected.permute(0, 2, 3, 4, 1)).abs().max() <= 0.51


def test_the_published_statistics_are_those_of_diffusers(kind):
    if kind is WAN22:
        pytest.skip("diffusers keeps 2.2's in the Hub's config")
    from diffusers import AutoencoderKLWan

    defaults = inspect.signature(AutoencoderKLWan.__init__).parameters
    assert tuple(defaults["latents_mean"].default) == kind.mean
    assert tuple(defaults["latents_std"].default) == kind.std


@pytest.mark.parametrize("rewrite", [diffusers_file, official_file, prefixed_file])
def test_every_published_form_gives_the_same_latents(tmp_path, vae_file, rewrite):
    other = rewrite(vae_file, tmp_path / "vae.bin")
    assert torch.equal(opened(other).encode(clip()), opened(vae_file).encode(clip()))


def test_the_first_latent_frames_of_a_clip_do_not_see_what_comes_later(vae_file):
    vae = opened(vae_file)
    whole, start, picture = (vae.encode(clip(frames=9)[:, :, :count]) for count in (9, 5, 1))
    torch.testing.assert_close(whole[:, :, :2], start, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[:, :, :1], picture, rtol=0, atol=1e-5)


def test_chunks_give_what_one_pass_over_all_frames_gives(vae_file, diffusers_vae, kind):
    """Without its feature cache diffusers' encoder cannot shrink time, so only what does not is compared."""
    if kind is WAN22:
        pytest.skip("its first level holds its own resampler")
    level = diffusers_vae.encoder.down_blocks[:2]
    x = diffusers_vae.encoder.conv_in(clip(frames=9))
    with torch.no_grad():
        whole = level[1](level[0](x))
        cache, pieces = [None] * 8, []
        for chunk in (x[:, :, :1], x[:, :, 1:5], x[:, :, 5:]):
            place = [0]
            piece = level[0](chunk, feat_cache=cache, feat_idx=place)
            pieces.append(level[1](piece, feat_cache=cache, feat_idx=place))
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=0, atol=1e-5)


def test_keeping_the_feature_cache_in_host_memory_changes_no_bit(vae_file):
    plain, saving = opened(vae_file), opened(vae_file, cache_cpu=True)
    latents = plain.encode(clip(frames=13))
    assert torch.equal(saving.encode(clip(frames=13)), latents)
    assert torch.equal(saving.decode(latents), plain.decode(latents))


def test_an_items_latents_depend_on_neither_batch_nor_order(vae_file):
    vae, x = opened(vae_file), clip(batch=2)
    together = vae.encode(x)
    torch.testing.assert_close(vae.encode(x.flip(0)).flip(0), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.encode(x[1:]), together[1:], rtol=0, atol=1e-5)


def test_the_shape_table_is_that_of_diffusers(diffusers_vae, kind):
    theirs = {name: tuple(tensor.shape) for name, tensor in diffusers_vae.state_dict().items()}
    assert {diffusers_name(name): shape for name, shape in vae_shapes(kind).items()} == theirs


def test_the_released_sizes_have_the_released_number_of_weights(kind):
    """Counts of the reference, taken from the published files."""
    width, decoder, entries, weights = {"Wan 2.1": (96, 96, 194, 126_892_531)}.get(
        kind.name, (160, 256, 196, 704_688_668)
    )
    shapes = vae_shapes(kind, width, decoder)
    assert len(shapes) == entries
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == weights


def test_the_kind_is_told_by_the_file(vae_file, kind):
    layout = read_layout(vae_file)
    assert layout.kind is kind
    assert (layout.width, layout.decoder_width) == (WIDTH, DECODER_WIDTH if kind is WAN22 else WIDTH)


def test_the_tiny_vae_of_2_1_lets_a_picture_through(tmp_path):
    save_file(tiny_vae(WAN21, torch.Generator().manual_seed(1)), tmp_path / "vae.safetensors")
    vae = opened(tmp_path / "vae.safetensors")
    half = torch.full((1, 3, 5, 64, 64), -0.6)
    half[..., 32:] = 0.6
    latents = vae.encode(half)
    shown = vae.decode(latents)[0].float()
    assert shown[..., 40:, :].mean() - shown[..., :24, :].mean() > 60
    assert 0.3 < latents.std() < 3


def test_numbers_that_are_not_finite_are_never_returned(tmp_path, vae_file):
    weights = load_file(vae_file)
    weights["conv1.bias"][0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(MusubiError, match=r"not finite in float32.*--vae_dtype"):
        opened(tmp_path / "nan.safetensors").encode(clip())


def test_sizes_that_do_not_fit_are_refused_with_the_step(vae_file, kind):
    vae = opened(vae_file)
    for shape in ((1, 3, 4, 64, 64), (1, 3, 1, 60, 64)):
        with pytest.raises(ConfigError, match=f"cannot be encoded.*multiples of {kind.spatial}"):
            vae.encode(torch.zeros(shape))


FOREIGN = {
    "HunyuanVideo's": {"encoder.down_blocks.0.resnets.0.norm1.weight": (8,)},
    "a picture VAE": {"encoder.down.0.block.0.norm1.weight": (32,)},
    "a Wan network": {"head.modulation": (1, 2, 8)},
    "nothing": {},
}


@pytest.mark.parametrize("shapes", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused(tmp_path, shapes):
    path = tmp_path / "foreign.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(BadFileError, match=r"foreign\.safetensors is not a Wan VAE.*Expected wan_2\.1_vae"):
        read_layout(path)


def test_an_incomplete_vae_names_what_it_lacks(tmp_path, vae_file):
    weights = load_file(vae_file)
    del weights["decoder.head.2.bias"]
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(BadFileError, match=r"lacks 1 \(decoder\.conv_out\.bias\)"):
        opened(tmp_path / "cut.safetensors")
