"""Pictures of a prompt are encoded as the latent caches of a matching item hold them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.generation.conditions import has_pictures, read_pictures
from musubi_core.generation.draw import draw, start_noise
from musubi_core.models.flux_kontext.sizes import SIZES, nearest_size
from musubi_core.models.spec import EncoderRequest, GivenPictures, Pixels
from musubi_core.sampling.evaluation import asked
from musubi_core.sampling.solving import flow_times

WIDTH, HEIGHT, FRAMES = 32, 48, 5
CPU = torch.device("cpu")
EXACT = {"atol": 0.0, "rtol": 0.0}


def pixels(seed: int, frames: int = 1, width: int = WIDTH, height: int = HEIGHT) -> Tensor:
    """(F, H, W, 3) uint8, smooth enough for a VAE to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((frames, 3, 4, 4), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def saved(path: Path, seed: int, **size: int) -> Path:
    Image.fromarray(pixels(seed, **size)[0].numpy()).save(path)
    return path


def folder_of(path: Path, clip: Tensor) -> Path:
    """A folder of pictures is a clip, frame by frame."""
    path.mkdir()
    for number, frame in enumerate(clip):
        Image.fromarray(frame.numpy()).save(path / f"{number:03}.png")
    return path


def clip_between(first: int, last: int) -> Tensor:
    """(1, F, H, W, 3): unlike frames between two pictures, which no network may be told."""
    clip = pixels(99, FRAMES)
    clip[0], clip[-1] = pixels(first)[0], pixels(last)[0]
    return clip[None]


@pytest.mark.parametrize("task", ["i2v-14B", "i2v-A14B"])
def test_a_start_picture_is_encoded_as_the_first_frame_of_a_cached_clip(tiny, tmp_path, task):
    model = tiny(f"wan/{task}")
    conditions = model.conditions(image=saved(tmp_path / "a.png", 1))
    (cached,) = model.codec.encode(Pixels(frames=clip_between(1, 2), seeds=[0]))
    del cached["latents"]
    assert set(conditions.pictures) == set(cached)
    for name, tensor in cached.items():
        torch.testing.assert_close(conditions.pictures[name].to(tensor.dtype), tensor, **EXACT)


def test_first_and_last_picture_are_encoded_as_those_of_a_cached_clip(tiny, tmp_path):
    model = tiny("wan/flf2v-14B")
    ends = {"image": saved(tmp_path / "a.png", 1), "end_image": saved(tmp_path / "b.png", 2)}
    conditions = model.conditions(**ends)
    (cached,) = model.codec.encode(Pixels(frames=clip_between(1, 2), seeds=[0]))
    for name in ("latents_image", "clip"):
        torch.testing.assert_close(conditions.pictures[name].to(cached[name].dtype), cached[name], **EXACT)
    with pytest.raises(ConfigError, match="a drawing of one frame"):
        model.conditions(frames=1, **ends)


def test_a_network_for_a_start_picture_may_be_given_a_last_one_too(tiny, tmp_path):
    model = tiny("wan/i2v-14B")
    start = saved(tmp_path / "a.png", 1)
    both = model.conditions(image=start, end_image=saved(tmp_path / "b.png", 2)).pictures
    one = model.conditions(image=start).pictures
    assert torch.equal(both["clip"], one["clip"]), "CLIP looks at the first one"
    assert both["latents_image"][:4, -1].amax(dim=(1, 2)).tolist() == [0, 0, 0, 1]
    assert one["latents_image"][:4, -1].amax() == 0


def test_a_control_clip_is_encoded_as_cached_ones_are_and_a_start_picture_beside_it(tiny, tmp_path):
    model = tiny("wan/i2v-14B-FC")
    control = pixels(5, FRAMES)
    conditions = model.conditions(
        image=saved(tmp_path / "a.png", 1), control_video=folder_of(tmp_path / "control", control)
    )
    (cached,) = model.codec.encode(
        Pixels(frames=clip_between(1, 2), seeds=[0], controls=[[control]]),
    )

    def shown(found: dict[str, Tensor]) -> Tensor:
        batch = {name: tensor.float()[None] for name, tensor in found.items()}
        batch["t5"] = [torch.zeros(1, 32)]
        return model.spec.sample_conditioning(batch, 1.0, model.options)["beside"]

    found = {name: tensor.to(cached[name].dtype) for name, tensor in conditions.pictures.items()}
    torch.testing.assert_close(shown(found), shown(cached), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(found["latents_control"], cached["latents_control"], **EXACT)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("wan/i2v-14B", ["image"]),
        ("wan/flf2v-14B", ["image", "end_image"]),
        ("wan/t2v-1.3B-FC", ["control_video"]),
        ("wan/ti2v-5B", ["image"]),
        ("flux_kontext", ["control_images"]),
    ],
)
def test_what_is_drawn_depends_on_each_picture(tiny, tmp_path, name, kinds):
    model = tiny(name)
    size = 64 if name == "wan/ti2v-5B" else WIDTH

    def drawn(**seeds: int) -> Tensor:
        flags: dict[str, object] = {}
        for kind in kinds:
            seed = seeds.get(kind, 1)
            path = tmp_path / f"{kind}{seed}.png"
            saved(path, seed)
            if kind == "control_video":
                path = path.with_suffix("")
                if not path.exists():
                    folder_of(path, pixels(seed, FRAMES))
            flags[kind] = (path,) if kind == "control_images" else path
        conditions = model.conditions(width=size, height=size, resize_controls=False, cfg_scale=1.0, **flags)
        result = draw(model.networks, conditions)
        assert result is not None
        assert torch.isfinite(result).all()
        return result

    usual = drawn()
    assert torch.equal(usual, drawn())
    for kind in kinds:
        assert not torch.equal(usual, drawn(**{kind: 2})), kind


def test_a_clip_that_goes_on_from_a_picture_begins_with_it(tiny, tmp_path):
    """TI2V-5B is shown the picture as its first frame, and no solver may move it."""
    model = tiny("wan/ti2v-5B")
    image = saved(tmp_path / "a.png", 1, width=64, height=64)
    for sampler in model.spec.sampling_with(model.options).samplers:
        conditions = model.conditions(width=64, height=64, image=image, sampler=sampler, steps=8)
        drawn = draw(model.networks, conditions)
        assert drawn is not None
        known = conditions.pictures["latents_image"][:, 0]
        torch.testing.assert_close(drawn[0, :, 0], known, atol=5e-3, rtol=5e-3)


def test_a_first_frame_reaches_hunyuan_video_as_it_does_in_training(tiny):
    model = tiny("hunyuan_video")
    options = replace(model.options, dit_in_channels=32)
    image = pixels(1)
    given = GivenPictures(size=(FRAMES, HEIGHT, WIDTH), seed=3, image=image[0])
    found = model.spec.encode_pictures(model.codec, given, options)
    (cached,) = model.codec.encode(Pixels(frames=image[None], seeds=[3]))
    text = {"llm": torch.zeros(1, 4, 8), "llm_mask": torch.ones(1, 4), "clipL": torch.zeros(1, 8)}
    trained = model.spec.training_input({**text, "latents": cached["latents"][None]}, options)
    shown = model.spec.sample_conditioning(
        {**text, "latents_image": found.tensors["latents_image"][None]}, 1, options
    )
    assert torch.equal(shown["first_frame"], trained.conditioning["first_frame"])
    assert model.spec.encode_pictures(model.codec, replace(given, image=None), options).tensors == {}


def test_a_longer_clip_begins_with_the_same_noise_as_a_shorter_one(tiny):
    noise = tiny("hunyuan_video").spec.noise
    short, long = (noise((16, frames, 4, 6), torch.Generator().manual_seed(0)) for frames in (2, 5))
    assert torch.equal(long[:, :2], short)


def test_control_pictures_of_kontext_are_encoded_as_cached_ones_each_in_its_own_size(tiny, tmp_path):
    model = tiny("flux_kontext")
    paths = (saved(tmp_path / "a.png", 1), saved(tmp_path / "b.png", 2, width=64, height=32))
    conditions = model.conditions(control_images=paths, resize_controls=False)
    controls = [pixels(1), pixels(2, width=64, height=32)]
    (cached,) = model.codec.encode(Pixels(frames=pixels(9)[None], seeds=[0], controls=[controls]))
    assert set(conditions.pictures) == {"latents_control", "latents_control_1"}
    for name, tensor in conditions.pictures.items():
        torch.testing.assert_close(tensor, cached[name], **EXACT)


def test_noise_of_kontext_is_drawn_token_by_token(tiny):
    noise = tiny("flux_kontext").spec.noise((16, 4, 6), torch.Generator().manual_seed(0))
    tokens = torch.randn((6, 64), generator=torch.Generator().manual_seed(0))
    # The second token is the top of columns 2 and 3; its numbers are ordered channel, row, column.
    assert torch.equal(noise[:, :2, 2:4], tokens[1].view(16, 2, 2))


def test_the_nearest_size_keeps_the_proportions():
    assert nearest_size(1000, 1000) == (1024, 1024)
    assert nearest_size(3000, 2000) == (1248, 832)
    assert nearest_size(600, 5000) == (672, 1568)
    assert len(SIZES) == 17
    assert all(width % 16 == 0 and height % 16 == 0 for width, height in SIZES)


def test_sizes_of_control_pictures(tiny, tmp_path):
    """Brought to the model's own sizes, or kept and cut to whole steps around the middle."""
    model = tiny("flux_kontext")
    path = saved(tmp_path / "a.png", 1, width=70, height=50)
    shape, taken = model.spec.latent, model.spec.sampling.pictures

    def read(path: Path, **flags: object) -> Tensor:
        settings = model.settled(control_images=(path,), **flags)
        assert has_pictures(settings)
        (found,) = read_pictures(settings, shape, taken).control_images
        return found

    assert read(path).shape[:2] == nearest_size(70, 50)[::-1]
    kept = read(path, resize_controls=False)
    assert torch.equal(kept, pixels(1, width=70, height=50)[0, 1:49, 3:67])
    thin = saved(tmp_path / "thin.png", 1, width=70, height=10)
    with pytest.raises(BadFileError, match=r"thin.png is 70x10 pixels.*at least 16x16"):
        read(thin, resize_controls=False)
    with pytest.raises(BadFileError, match="does not exist"):
        read(tmp_path / "none.png")


def test_a_short_control_clip_stands_still_at_its_end_and_a_large_one_is_scaled(tiny, tmp_path):
    model = tiny("wan/t2v-1.3B-FC")
    clip = pixels(5, 3, width=64, height=96)
    settings = model.settled(control_video=folder_of(tmp_path / "control", clip))
    found = read_pictures(settings, model.spec.latent, model.spec.sampling.pictures).control_video
    assert found is not None
    assert found.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert torch.equal(found[2], found[4])
    halved = clip.float().view(3, 48, 2, 32, 2, 3).mean(dim=(2, 4))
    assert np.abs(found[:3].numpy() - halved.numpy()).max() <= 0.5


@pytest.mark.parametrize(("task", "controls"), [("i2v-14B", 1), ("flf2v-14B", 2), ("i2v-14B", 2)])
def test_one_frame_is_drawn_among_controls_that_are_encoded_as_cached_ones_are(
    tiny, tmp_path, task, controls
):
    model = tiny(f"wan/{task}")
    times, target = (0, 9)[:controls], 4
    paths = tuple(saved(tmp_path / f"{number}.png", number) for number in range(controls))
    conditions = model.conditions(
        control_images=paths,
        one_frame=f"target_index={target},control_index={';'.join(map(str, times))}",
        frames=81,
    )
    options = replace(model.own(model.spec.latent_options), one_frame=True)
    request = EncoderRequest(device=CPU, dtype=torch.float32, options=options, weights=model.files.vae)
    item = Pixels(
        frames=pixels(50)[None],
        seeds=[0],
        controls=[[pixels(number) for number in range(controls)]],
        item_options={"fp_1f_clean_indices": list(times), "fp_1f_target_index": target},
    )
    (cached,) = model.spec.latents(request).open().encode(item)
    del cached["latents"]
    assert set(conditions.pictures) == set(cached)
    for name, tensor in cached.items():
        torch.testing.assert_close(conditions.pictures[name].to(tensor.dtype), tensor, **EXACT)
    assert conditions.settings.frames == 1
    assert conditions.size[1] == controls + 1
    whole = draw(model.networks, replace(conditions, result=None))
    one = draw(model.networks, conditions)
    assert torch.equal(one[:, :, 0], whole[:, :, 1]), "the target is second in the order of times"


def test_start_and_last_picture_serve_as_controls_of_one_frame(tiny, tmp_path):
    model = tiny("wan/flf2v-14B")
    ends = {"image": saved(tmp_path / "a.png", 1), "end_image": saved(tmp_path / "b.png", 2)}
    times = "target_index=4,control_index=0;9"
    found = model.conditions(one_frame=times, **ends).pictures
    expected = model.conditions(one_frame=times, control_images=tuple(ends.values())).pictures
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "of", "message"),
    [
        ("hunyuan_video", "target_index=1", "draws no single frames"),
        ("wan/i2v-14B", "target_index=x", r"'target_index=x' is not understood; expected a list of target_"),
        ("wan/i2v-14B", "no_8x", "'no_8x' is not understood"),
        ("wan/i2v-14B", "control_index=0", "names no time for the frame that is drawn"),
        ("wan/i2v-14B", "target_index=0,control_index=0", "times must differ"),
        ("wan/i2v-14B", "target_index=1,control_index=0;2", r"names 2 times .* gives 1 pictures"),
        ("wan/i2v-14B", "target_index=1,no_post", None),
    ],
)
def test_times_that_cannot_be_are_refused(tiny, tmp_path, name, of, message):
    model = tiny(name)
    flags = {"one_frame": of, "control_images": (saved(tmp_path / "a.png", 1),)}
    if message is None:
        assert model.conditions(**flags).settings.one_frame.without == {"no_post"}
        return
    with pytest.raises(ConfigError, match=message):
        model.conditions(**flags)


def test_a_clip_to_begin_with_replaces_the_first_steps(tiny, tmp_path):
    """With strength 0.5 the last half of the times is walked, from the clip and noise mixed for the first."""
    model = tiny("hunyuan_video")
    clip = pixels(5, FRAMES)
    flags = {"video": folder_of(tmp_path / "clip", clip), "steps": 8}
    conditions = model.conditions(strength=0.5, **flags)
    (cached,) = model.codec.encode(Pixels(frames=clip[None], seeds=[1]))
    text = {name: tensor[None] for name, tensor in conditions.text.items()}
    clean = model.spec.training_input({**text, "latents": cached["latents"][None]}, model.options).latents
    torch.testing.assert_close(conditions.start[None], clean, **EXACT)

    times = flow_times(8, conditions.settings.shift)
    seen: list[tuple[int, float]] = []
    began: list[Tensor] = []

    def wrapper(evaluation, ask):
        seen.append((evaluation.steps, evaluation.t))
        began.append(evaluation.x)
        return asked(evaluation, ask)

    draw(model.networks, conditions, wrapper=wrapper)
    assert seen == [(4, t) for t in times[4:8].tolist()]
    mixed = torch.lerp(clean, start_noise(model.networks, conditions), times[4].item())
    torch.testing.assert_close(began[0], mixed)

    whole = draw(model.networks, model.conditions(strength=1.0, **flags))
    assert torch.equal(whole, draw(model.networks, model.conditions(steps=8))), "strength 1 begins with noise"
    assert model.conditions(**flags).settings.taken_steps == 6, "0.8 is usual"
    with pytest.raises(ConfigError, match=r"strength 0.1 leaves none of the 8 steps"):
        model.conditions(strength=0.1, **flags)
    with pytest.raises(ConfigError, match=r"strength is 1.5"):
        model.conditions(strength=1.5, **flags)
