"""Latents and the conditions beside them, against hand-made pixels and direct calls of VAE and CLIP."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from musubi_core.config import ConfigError
from musubi_core.errors import BadFileError
from musubi_core.models.spec import EncoderRequest, Pixels
from musubi_core.models.wan.images import clip_input, frame_mask, with_unknown_frames
from musubi_core.models.wan.latents import latents
from musubi_core.models.wan.options import LatentOptions
from musubi_core.models.wan.tiny import write_tiny_variant
from musubi_core.models.wan.vae import open_vae

CPU = torch.device("cpu")
SIZE = (48, 32)  # height, width
TIMES = {"fp_1f_clean_indices": [0], "fp_1f_target_index": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_tiny_variant(tmp_path_factory.mktemp("wan"), 0, task="i2v-14B")


@pytest.fixture(scope="module")
def small_vae(tmp_path_factory):
    return write_tiny_variant(tmp_path_factory.mktemp("wan"), 0, task="ti2v-5B").vae


@pytest.fixture(scope="module")
def vae(files):
    return open_vae(files.vae, device=CPU, dtype=torch.float32)


def media(frames: int = 5, seed: int = 1, channels: int = 3, size=SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, *size, channels), dtype=torch.uint8, generator=generator)


def signed(*clips: torch.Tensor) -> torch.Tensor:
    return torch.stack(clips)[..., :3].permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def encoding(files, dtype=torch.float32, vae=None, **options):
    options = LatentOptions(**options)
    return latents(EncoderRequest(device=CPU, dtype=dtype, options=options, weights=vae or files.vae))


def encode(files, *clips, controls=(), item_options=None, **options):
    pixels = Pixels(
        frames=torch.stack(clips),
        seeds=range(len(clips)),
        controls=controls,
        item_options=item_options or {},
    )
    return encoding(files, **options).open().encode(pixels)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def features(files, picture):
    """CLIP's features (257, D) of (1, H, W, 3) uint8, by transformers and torch alone."""
    from safetensors.torch import load_file
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=80, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, patch_size=14
    )
    config.hidden_act = "gelu"
    model = CLIPVisionModel(config).eval()
    prefix = "vision_model." if "vision_model.post_layernorm.bias" in model.state_dict() else ""
    state = {prefix + name.removeprefix("vision_model."): tensor.float()
             for name, tensor in load_file(files.options["clip"]).items()}  # fmt: skip
    model.load_state_dict(state, strict=False)
    x = functional.interpolate(signed(picture)[:, :, 0], size=(224, 224), mode="bicubic") / 2 + 0.5
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        return model(pixel_values=(x - mean) / std, output_hidden_states=True).hidden_states[-2][0]


# --- text to video


def test_a_clip_alone_has_its_latents_and_nothing_else(files, vae):
    for item, clip in zip(encode(files, media(), media(seed=2)), (media(), media(seed=2)), strict=True):
        assert set(item) == {"latents"}
        close(item["latents"], vae.encode(signed(clip))[0])
        assert item["latents"].shape == (16, 2, 6, 4)


def test_latents_are_bfloat16_unless_asked_otherwise_and_calculated_in_float32_on_a_cpu(files, vae):
    made = encoding(files, dtype=None)
    assert (made.settings["dtype"], made.settings["math"]) == ("bfloat16", "float32")
    stored = made.open().encode(Pixels(frames=media()[None], seeds=[0]))[0]["latents"]
    assert torch.equal(stored, vae.encode(signed(media()))[0].bfloat16())


def test_seeds_change_nothing_because_the_mode_is_taken(files):
    codec = encoding(files).open()
    one, other = (codec.encode(Pixels(frames=media()[None], seeds=[seed]))[0]["latents"] for seed in (1, 2))
    assert torch.equal(one, other)


def test_decoding_takes_latents_as_the_network_sees_them(files, vae):
    codec, clean = encoding(files).open(), vae.encode(signed(media()))
    assert torch.equal(codec.decode(clean), vae.decode(clean))


# --- image to video


def test_a_start_frame_is_followed_by_grey_and_marked(files, vae):
    for frames in (1, 9):
        (item,) = encode(files, media(frames), i2v=True)
        shown = signed(media(frames)).clone()
        shown[:, :, 1:] = 0
        image = item["latents_image"]
        assert set(item) == {"latents", "latents_image"}
        assert image.shape == (20, (frames - 1) // 4 + 1, 6, 4)
        assert image[:4, 0].eq(1).all() and image[:4, 1:].eq(0).all()
        close(image[4:], vae.encode(shown)[0])


def test_clip_sees_the_start_frame_squeezed_into_a_square(files):
    (item,) = encode(files, media(), clip=files.options["clip"])
    assert set(item) == {"latents", "latents_image", "clip"}
    assert item["clip"].dtype == torch.float16 and item["clip"].shape == (257, 80)
    torch.testing.assert_close(item["clip"].float(), features(files, media()[:1]), rtol=2e-3, atol=2e-3)


def test_the_task_alone_says_what_is_cached(files):
    clip = files.options["clip"]
    for task, options, names in (
        ("t2v-A14B", {}, {"latents"}),
        ("i2v-A14B", {}, {"latents", "latents_image"}),
        ("i2v-14B", {"clip": clip}, {"latents", "latents_image", "clip"}),
        ("flf2v-14B", {"clip": clip}, {"latents", "latents_image", "clip"}),
    ):
        assert set(encode(files, media(), task=task, **options)[0]) == names
        assert {"latents", *encoding(files, task=task, **options).tensors} == names


# --- first and last frame


def test_first_and_last_frame_share_one_pass_and_the_last_is_the_fourth_channel_of_its_latent(files, vae):
    (item,) = encode(files, media(9), task="flf2v-14B", clip=files.options["clip"])
    shown = signed(media(9)).clone()
    shown[:, :, 1:-1] = 0
    mask = item["latents_image"][:4]
    assert mask[:, 0].eq(1).all() and mask[:, 1].eq(0).all()
    assert mask[:3, 2].eq(0).all() and mask[3, 2].eq(1).all()
    close(item["latents_image"][4:], vae.encode(shown)[0])


def test_first_and_last_frame_are_two_views_for_clip(files):
    (item,) = encode(files, media(9), task="flf2v-14B", clip=files.options["clip"])
    assert item["clip"].shape == (2, 257, 80)
    for view, frame in zip(item["clip"], (0, 8), strict=True):
        expected = features(files, media(9)[frame : frame + 1])
        torch.testing.assert_close(view.float(), expected, rtol=2e-3, atol=2e-3)


def test_a_single_picture_has_no_last_frame(files):
    with pytest.raises(ConfigError, match=r"single picture.*--one_frame"):
        encode(files, media(1), task="flf2v-14B", clip=files.options["clip"])


# --- Fun-Control


def test_a_control_clip_is_encoded_as_it_is(files, vae):
    control = media(seed=5)
    for options in ({"task": "t2v-14B-FC"}, {}):
        (item,) = encode(files, media(), controls=[[control]], **options)
        assert set(item) == {"latents", "latents_control"}
        close(item["latents_control"], vae.encode(signed(control))[0])


def test_control_and_start_frame_together(files):
    options = {"task": "i2v-14B-FC", "clip": files.options["clip"]}
    (item,) = encode(files, media(), controls=[[media(seed=5)]], **options)
    assert set(item) == {"latents", "latents_image", "latents_control", "clip"}


def test_fun_control_without_a_control_says_where_to_name_it(files):
    for controls in ([], [[]], [[media(), media()]]):
        with pytest.raises(ConfigError, match=r"control clips; Fun-Control takes one.*control_directory"):
            encode(files, media(), controls=controls, task="t2v-14B-FC")


def test_a_control_of_another_size_is_refused(files):
    for other in (media(9), media(size=(64, 32))):
        with pytest.raises(ConfigError, match="must be equal"):
            encode(files, media(), controls=[[other]], task="t2v-14B-FC")


def test_other_tasks_do_not_encode_controls(files):
    assert set(encode(files, media(), controls=[[media()]], task="t2v-14B")[0]) == {"latents"}


# --- one frame


def test_one_frame_puts_controls_and_target_in_the_order_of_their_times(files, vae):
    target, early, late = (media(1, seed) for seed in (1, 2, 3))
    (item,) = encode(
        files,
        target,
        controls=[[late, early]],
        item_options={"fp_1f_clean_indices": [7, 0], "fp_1f_target_index": 3},
        one_frame=True,
        clip=files.options["clip"],
    )
    single = {name: vae.encode(signed(clip))[0] for name, clip in
              {"early": early, "target": target, "late": late}.items()}  # fmt: skip
    grey = vae.encode(torch.zeros(1, 3, 1, *SIZE))[0]
    close(item["latents"], torch.cat(list(single.values()), dim=1))
    image = item["latents_image"]
    assert image[:4, [0, 2]].eq(1).all() and image[:4, 1].eq(0).all()
    close(image[4:], torch.cat([single["early"], grey, single["late"]], dim=1))
    assert item["f_indices"].dtype == torch.int32 and item["f_indices"].tolist() == [0, 3, 7]
    assert item["clip"].shape == (2, 257, 80)
    torch.testing.assert_close(item["clip"][0].float(), features(files, early), rtol=2e-3, atol=2e-3)


def test_one_frame_with_one_control_of_two_items(files, vae):
    targets, controls = (media(1, 1), media(1, 2)), (media(1, 3), media(1, 4, channels=4))
    items = encode(files, *targets, controls=[[one] for one in controls[:1]] + [[controls[1][..., :3]]],
                   item_options=TIMES, one_frame=True)  # fmt: skip
    with_alpha = encode(files, targets[1], controls=[[controls[1]]], item_options=TIMES, one_frame=True)
    for item, target, control in zip(items, targets, controls, strict=True):
        close(item["latents"], torch.cat([vae.encode(signed(c))[0] for c in (control, target)], dim=1))
        assert item["latents_image"].shape == (20, 2, 6, 4)
    close(with_alpha[0]["latents"], items[1]["latents"])


def test_one_frame_reads_its_times_from_the_dataset_and_says_so(files):
    assert encoding(files, one_frame=True).item_options == ("fp_1f_clean_indices", "fp_1f_target_index")
    assert encoding(files, one_frame=True).controls_are_frames
    assert encoding(files).item_options == () and not encoding(files).controls_are_frames


@pytest.mark.parametrize(
    ("item_options", "controls", "message"),
    [
        ({"fp_1f_clean_indices": [0]}, 1, "needs fp_1f_target_index"),
        ({"fp_1f_clean_indices": [0, 2], "fp_1f_target_index": 1}, 1, r"names 2 times.* has 1 control"),
        (TIMES, 0, r"names 1 times.* has 0 control"),
        ({"fp_1f_clean_indices": [1], "fp_1f_target_index": 1}, 1, "times must differ"),
        ({"fp_1f_clean_indices": [-1], "fp_1f_target_index": 1}, 1, "not be negative"),
    ],
)
def test_times_that_do_not_fit_are_refused(files, item_options, controls, message):
    own = [media(1, seed) for seed in range(controls)]
    with pytest.raises(ConfigError, match=message):
        encode(files, media(1), controls=[own], item_options=item_options, one_frame=True)


def test_one_frame_takes_pictures_only(files):
    with pytest.raises(ConfigError, match="--one_frame trains pictures, and an item has 5 frames"):
        encode(files, media(5), controls=[[media(5)]], item_options=TIMES, one_frame=True)


# --- TI2V-5B


def test_the_small_latents_of_5b(files, small_vae):
    made = encoding(files, vae=small_vae, task="ti2v-5B")
    (item,) = made.open().encode(Pixels(frames=media(5, size=(64, 32))[None], seeds=[0]))
    assert set(item) == {"latents"} and item["latents"].shape == (48, 2, 4, 2)


def test_vae_and_task_must_belong_together(files, small_vae):
    with pytest.raises(ConfigError, match=r"is the Wan 2\.2 TI2V-5B VAE.*Add --task ti2v-5B"):
        encoding(files, vae=small_vae)
    with pytest.raises(
        ConfigError, match=r"--task t2v-A14B works on latents of the Wan 2\.1 VAE.*wan_2\.1_vae"
    ):
        encoding(files, vae=small_vae, task="t2v-A14B")
    with pytest.raises(ConfigError, match=r"--task ti2v-5B works on latents of the Wan 2\.2.*wan2\.2_vae"):
        encoding(files, task="ti2v-5B")
    with pytest.raises(ConfigError, match=r"first frame of the latents.*Remove --i2v"):
        encoding(files, vae=small_vae, i2v=True)


# --- options, settings, files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "t2v-14B", "i2v": True}, "--i2v was given with --task t2v-14B"),
        ({"task": "t2v-A14B", "one_frame": True}, "--one_frame was given"),
        ({"task": "i2v-14B"}, r"needs the CLIP image encoder.*clip_vision_h"),
        ({"task": "flf2v-14B"}, "needs the CLIP image encoder"),
        ({"task": "i2v-A14B", "clip": "clip.safetensors"}, "--clip was given with --task i2v-A14B"),
        ({"task": "ti2v-5B", "i2v": True}, "--i2v was given"),
    ],
)
def test_options_that_contradict_the_task_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        LatentOptions(**options).check()


def test_a_task_that_is_trained_as_one_frame_needs_clip_too(files):
    clip = files.options["clip"]
    LatentOptions(task="flf2v-14B", one_frame=True, clip=clip).check()
    (item,) = encode(files, media(1), controls=[[media(1, 2)]], item_options=TIMES, task="flf2v-14B",
                     one_frame=True, clip=clip)  # fmt: skip
    assert set(item) == {"latents", "latents_image", "f_indices", "clip"}


def test_what_changes_the_tensors_is_in_the_settings_and_nothing_else(files):
    base, clip = encoding(files).settings, files.options["clip"]
    assert encoding(files, vae_cache_cpu=True).settings == base
    for options in ({"i2v": True}, {"clip": clip}, {"one_frame": True}, {"dtype": torch.float16},
                    {"task": "flf2v-14B", "clip": clip}):  # fmt: skip
        assert encoding(files, **options).settings != base
    assert encoding(files, i2v=True).settings == encoding(files, task="i2v-A14B").settings


def test_a_missing_vae_names_the_files_to_get():
    request = EncoderRequest(device=CPU, dtype=None, options=LatentOptions(), weights=None)
    with pytest.raises(ConfigError, match=r"--vae .*wan_2\.1_vae\.safetensors.*wan2\.2_vae\.safetensors"):
        latents(request)


def test_a_wrong_clip_is_refused_before_anything_is_opened(files):
    with pytest.raises(BadFileError, match="is not a CLIP image encoder"):
        encoding(files, clip=files.vae)


# --- pictures, alone


def test_masks_fold_four_pixel_frames_into_channels():
    mask = frame_mask(9, [0, 3, 8], height=1, width=1)[:, :, 0, 0]
    assert mask.T.tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_unknown_frames_are_grey_and_the_clip_itself_is_left_alone():
    clip = torch.ones(1, 3, 5, 2, 2)
    shown = with_unknown_frames(clip, [0, -1])
    assert shown[:, :, [0, 4]].eq(1).all() and shown[:, :, 1:4].eq(0).all()
    assert clip.eq(1).all()


def test_a_grey_picture_is_clips_zero_of_the_normalisation():
    grey = clip_input(torch.zeros(1, 3, 20, 30), 14)
    mean, std = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    torch.testing.assert_close(grey[0, :, 7, 7], (0.5 - mean) / std)
    assert grey.shape == (1, 3, 14, 14)
