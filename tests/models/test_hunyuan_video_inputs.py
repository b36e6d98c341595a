"""What the network is fed, in training and in sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musubi_core.errors import BadFileError
from musubi_core.models.hunyuan_video.inputs import predict, sample_conditioning, training_input
from musubi_core.models.hunyuan_video.options import TrainOptions


def cached(lengths: tuple[int, ...] = (5, 9), dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """A batch as the caches hold it, in the sizes of the tiny network."""
    generator = torch.Generator().manual_seed(2)
    count = len(lengths)
    return {
        "latents": torch.randn(count, 16, 3, 6, 10, generator=generator).to(dtype),
        "llm": torch.randn(count, 12, 32, generator=generator).to(dtype),
        "llm_mask": torch.tensor([[int(i < length) for i in range(12)] for length in lengths]),
        "clipL": torch.randn(count, 24, generator=generator).to(dtype),
        "clipL_mask": torch.ones(count, 77, dtype=torch.int64),
    }


class Recorder(nn.Module):
    """Stands for the network and keeps what it is given."""

    def forward(self, x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        self.x, self.t, self.conditioning = x, t, conditioning
        return x[:, :16]


def test_cached_latents_are_scaled_in_float32():
    batch = cached()
    result = training_input(batch, TrainOptions())
    assert result.latents.dtype == torch.float32
    torch.testing.assert_close(result.latents, batch["latents"].float() * 0.476986, rtol=0, atol=0)


def test_text_is_cut_to_the_longest_caption_of_the_batch():
    conditioning = training_input(cached(lengths=(5, 9)), TrainOptions()).conditioning
    assert conditioning["text_lengths"] == (5, 9)
    assert conditioning["text"].shape == (2, 9, 32)


def test_a_caption_without_a_token_is_refused():
    with pytest.raises(BadFileError, match="llm_mask is all zero"):
        training_input(cached(lengths=(5, 0)), TrainOptions())


@pytest.mark.parametrize(("scale", "multiplier", "heard"), [(1.0, 1.0, 1.0), (6.0, 1000.0, 6000.0)])
def test_training_guidance_is_scale_times_multiplier(scale: float, multiplier: float, heard: float):
    options = TrainOptions(guidance_scale=scale, guidance_multiplier=multiplier)
    assert training_input(cached(), options).conditioning["guidance"].tolist() == [heard, heard]


def test_the_default_guidance_is_that_of_existing_loras():
    assert training_input(cached(), TrainOptions()).conditioning["guidance"].tolist() == [1.0, 1.0]


def test_sampling_tells_the_network_a_thousand_times_the_guidance():
    assert sample_conditioning(cached(), 6.0, TrainOptions())["guidance"].tolist() == [6000.0, 6000.0]


def test_time_reaches_the_network_on_its_scale_of_1000():
    network, inputs = Recorder(), training_input(cached(), TrainOptions())
    predict(network, inputs.latents, torch.tensor([0.25, 1.0]), inputs.conditioning, TrainOptions())
    assert network.t.tolist() == [250.0, 1000.0]
    assert network.x.shape[1] == 16


def test_image_to_video_training_shows_only_the_clean_first_frame():
    options = TrainOptions(dit_in_channels=32)
    network, inputs = Recorder(), training_input(cached(), options)
    noisy = torch.randn(inputs.latents.shape, generator=torch.Generator().manual_seed(3))
    predict(network, noisy, torch.tensor([0.5, 0.5]), inputs.conditioning, options)
    assert network.x.shape[1] == 32
    assert torch.equal(network.x[:, :16], noisy)
    assert torch.equal(network.x[:, 16:, 0], inputs.latents[:, :, 0])
    assert network.x[:, 16:, 1:].abs().max() == 0


def test_image_to_video_without_a_picture_sees_zeros():
    options = TrainOptions(dit_in_channels=32)
    network = Recorder()
    conditioning = sample_conditioning(cached(), 1.0, options)
    predict(network, torch.ones(2, 16, 3, 6, 10), torch.tensor([0.5, 0.5]), conditioning, options)
    assert network.x[:, 16:].abs().max() == 0


def test_a_whole_training_step_runs_from_cached_tensors(hunyuan):
    network = hunyuan()
    weight = network.single_blocks[0].linear1.weight.requires_grad_(True)
    inputs = training_input(cached(), TrainOptions())
    velocity = predict(network, inputs.latents, torch.tensor([0.3, 0.8]), inputs.conditioning, TrainOptions())
    assert velocity.shape == inputs.latents.shape
    velocity.square().mean().backward()
    assert weight.grad.abs().max() > 0
