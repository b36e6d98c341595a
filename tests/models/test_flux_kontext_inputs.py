"""What FLUX.1 Kontext is fed, in training and in sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flux_kontext_networks import make_inputs, make_network
from torch import Tensor, nn

from musubi_core.errors import ConfigError
from musubi_core.models.flux_kontext.inputs import (
    control_name,
    dynamic_shift,
    predict,
    sample_conditioning,
    training_input,
)
from musubi_core.models.flux_kontext.options import TrainOptions
from musubi_core.models.flux_kontext.rope import places
from musubi_core.models.flux_kontext.spec import SPEC
from musubi_core.training.timesteps import log_shift


def cached(*controls: tuple[int, int], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A batch of two as the caches hold it, in the sizes of the tiny network."""
    generator = torch.Generator().manual_seed(2)

    def noise(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator).to(dtype)

    batch = {"latents": noise(16, 8, 12), "t5_vec": noise(7, 48), "clip_l_pooler": noise(32)}
    return batch | {control_name(i): noise(16, *size) for i, size in enumerate(controls)}


class Recorder(nn.Module):
    """Stands for the network and keeps what it is given."""

    def forward(self, x: Tensor, t: Tensor, **given: Any) -> Tensor:
        self.x, self.t, self.given = x, t, given
        return x


def test_latents_are_used_as_they_are_cached():
    batch = cached((8, 12), dtype=torch.bfloat16)
    result = training_input(batch, TrainOptions())
    assert result.latents.dtype == torch.float32
    assert torch.equal(result.latents, batch["latents"].float())


def test_controls_reach_the_network_clean_and_in_their_order():
    # More than ten, because names sorted as texts would put the eleventh before the third.
    sizes = [(2 * (n + 1), 4) for n in range(12)]
    batch = cached(*sizes)
    assert {"latents_control", "latents_control_1", "latents_control_11"} <= set(batch)
    inputs = training_input(batch, TrainOptions())
    network = Recorder()
    predict(
        network, torch.zeros(2, 16, 8, 12), torch.tensor([0.25, 1.0]), inputs.conditioning, TrainOptions()
    )
    assert [tuple(one.shape[-2:]) for one in network.given["references"]] == sizes
    for index, reference in enumerate(network.given["references"]):
        assert torch.equal(reference, batch[control_name(index)])


def test_time_reaches_the_network_as_it_is():
    network, inputs = Recorder(), training_input(cached((8, 12)), TrainOptions())
    predict(network, inputs.latents, torch.tensor([0.25, 1.0]), inputs.conditioning, TrainOptions())
    assert network.t.tolist() == [0.25, 1.0]


def test_training_tells_a_guidance_of_1_unless_the_user_says_otherwise():
    assert training_input(cached(), TrainOptions()).conditioning["guidance"].tolist() == [1.0, 1.0]
    asked = training_input(cached(), TrainOptions(guidance_scale=3.5))
    assert asked.conditioning["guidance"].tolist() == [3.5, 3.5]


def test_samples_tell_the_guidance_that_users_know():
    given = sample_conditioning(cached((8, 12)), 2.5, TrainOptions())
    assert given["guidance"].tolist() == [2.5, 2.5]
    assert len(given["references"]) == 1


@pytest.mark.parametrize(("side", "shift"), [(64, 1.878), (128, 3.158), (166, 5.067)])
def test_the_time_shift_follows_the_size_as_in_the_released_samplers(side: int, shift: float):
    assert dynamic_shift(side, side) == pytest.approx(shift, abs=5e-4)
    assert SPEC.sampling.shift_at(side, side) == dynamic_shift(side, side)
    assert dynamic_shift(side, side) == pytest.approx(torch.tensor(log_shift("flux_shift", side, side)).exp())


def test_the_shift_that_is_named_is_that_of_the_size_the_model_was_made_for():
    assert SPEC.sampling.shift == pytest.approx(dynamic_shift(128, 128), abs=5e-4)


def test_a_reference_changes_the_prediction_and_its_place_does_too():
    network = make_network()
    inputs = make_inputs((6, 10), (8, 4))
    base = network(**inputs)
    one = network(**{**inputs, "references": inputs["references"][:1]})
    swapped = network(**{**inputs, "references": inputs["references"][::-1]})
    by_index = network(**inputs, placement="index")
    for other in (one, swapped, by_index):
        assert other.shape == base.shape
        assert not torch.allclose(base, other, atol=1e-4)


def test_one_reference_stands_the_same_in_both_placements():
    assert places((8, 12), [(6, 10)], "offset") == places((8, 12), [(6, 10)], "index")


def test_latents_of_a_wrong_shape_are_refused():
    network = make_network()
    for change in ({"x": torch.zeros(2, 8, 8, 12)}, {"references": (torch.zeros(2, 16, 1, 8, 12),)}):
        with pytest.raises(ConfigError, match="takes latents of 16 channels"):
            network(**{**make_inputs(), **change})


def test_a_preview_under_inference_mode_does_not_spoil_training():
    network = make_network()
    weight = network.single_blocks[0].linear1.weight.requires_grad_(True)
    with torch.inference_mode():
        network(**make_inputs((6, 10)))
    network(**make_inputs((6, 10))).square().mean().backward()
    assert weight.grad.abs().max() > 0


def test_float16_never_overflows_between_blocks():
    network = make_network().to(torch.float16)
    network.single_blocks[0].linear2.bias.fill_(60000.0)
    network.single_blocks[0].modulation.lin.bias.fill_(2.0)
    assert torch.isfinite(network.single_blocks[0](*single_inputs(network))).all()


def single_inputs(network: nn.Module) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    x, vec = (torch.randn(*shape, generator=generator).half() for shape in ((1, 5, 64), (1, 64)))
    rope = (torch.ones(5, 16), torch.zeros(5, 16))
    return x, vec, rope, network._attend
