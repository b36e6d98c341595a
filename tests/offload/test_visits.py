"""Input layers that wait in host memory: the same bits, and nothing of them on the device afterwards."""

from __future__ import annotations

import pytest
import torch
from layered import equal, inputs, layered, numbers

from musubi_core.offload.visits import Visits

CPU = torch.device("cpu")


def test_a_network_whose_outer_layers_visit_gives_the_same_bits():
    plain, model = layered(), layered()
    visits = Visits([model.inward, model.outward], device=CPU)
    assert visits.host_bytes == sum(weight.nbytes for weight in (*model.inward.parameters(),)) * 2
    homes = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    for seed in range(3):
        with torch.no_grad():
            assert torch.equal(model(*inputs(seed)), plain(*inputs(seed)))
        assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == homes
    visits.release()
    assert equal(numbers(model), numbers(plain))


def test_it_computes_with_a_copy_and_goes_home_also_after_an_error():
    model = layered()
    Visits([model.inward], device=CPU)
    home, seen = model.inward.weight.data_ptr(), []

    def broken(x: torch.Tensor) -> torch.Tensor:
        seen.append(model.inward.weight.data_ptr())
        raise ZeroDivisionError

    model.inward.forward = broken
    with pytest.raises(ZeroDivisionError):
        model(*inputs())
    assert seen != [home]
    assert model.inward.weight.data_ptr() == home


def test_a_gradient_through_a_visitor_is_refused_instead_of_being_wrong():
    model = layered()
    Visits([model.inward], device=CPU)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        numbers(model)  # its x asks for a gradient


def test_trained_weights_are_refused():
    with pytest.raises(ValueError, match="trained"):
        Visits([layered().requires_grad_(True).inward], device=CPU)
