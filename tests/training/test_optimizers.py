"""Optimizers by name, and what they need."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from musubi_core.config import build
from musubi_core.errors import ConfigError, MissingLibraryError, TrainingError
from musubi_core.training.gradients import FlatGradients
from musubi_core.training.learning_rates import learning_rates
from musubi_core.training.optimizers import build_optimizer, evaluating, optimizer_class
from musubi_core.training.options.optimizer import OptimizerOptions
from musubi_core.training.options.schedule import ScheduleOptions
from musubi_core.training.packing import pack, unpack
from musubi_core.training.state import restore_optimizer


def built(name: str, *arguments: str, lr: float = 1e-2):
    parameter = nn.Parameter(torch.ones(4))
    options = build(
        OptimizerOptions,
        {"optimizer_type": name, "optimizer_args": arguments, "learning_rate": lr},
        where="the test",
    )
    return build_optimizer(options, [{"name": "unet", "params": [parameter], "lr": lr}])


def advance(optimizer, steps: int) -> None:
    for step in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.sin(torch.arange(4.0) + step + parameter.detach())
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("AdamW", "torch.optim.adamw.AdamW"),
        ("adamw", "torch.optim.adamw.AdamW"),
        ("SGD", "torch.optim.sgd.SGD"),
        ("torch.optim.RAdam", "torch.optim.radam.RAdam"),
        ("prodigyopt.Prodigy", "prodigyopt.prodigy.Prodigy"),
        ("Prodigy", "prodigyopt.prodigy.Prodigy"),
        ("adafactor", "transformers.optimization.Adafactor"),
        ("AdamWScheduleFree", "schedulefree.adamw_schedulefree.AdamWScheduleFree"),
    ],
)
def test_an_optimizer_is_found_by_name(name, path):
    cls = optimizer_class(name)
    assert f"{cls.__module__}.{cls.__name__}" == path


def test_the_default_works():
    assert optimizer_class(OptimizerOptions().optimizer_type) is torch.optim.AdamW


def test_arguments_are_passed_on_and_written_into_the_label():
    made = built("AdamW", "betas=0.8,0.9", "weight_decay=0.5")
    assert made.optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert made.label == "torch.optim.adamw.AdamW(betas=(0.8, 0.9),weight_decay=0.5)"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("AdamV", ConfigError, "Nearest: .*Adam"),
        ("", ConfigError, "empty"),
        ("os.path.join", ConfigError, "not a subclass of Optimizer"),
        ("torch.nn.Linear", ConfigError, "not a subclass of Optimizer"),
        ("torch.no_such_room.Adam", ConfigError, "no module torch.no_such_room"),
        ("no_such_library.Adam", MissingLibraryError, "pip install no_such_library"),
        ("Optimizer", ConfigError, "only the base"),
        ("torch..Adam", ConfigError, "."),
    ],
)
def test_a_wrong_name_is_explained_and_nothing_is_called(name, error, message):
    with pytest.raises(error, match=message):
        optimizer_class(name)


def test_bitsandbytes_is_named_when_it_is_missing():
    pytest.importorskip("torch")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(MissingLibraryError, match="bitsandbytes"):
            optimizer_class("adamw8bit")
    else:
        assert optimizer_class("adamw8bit").__name__ == "AdamW8bit"


def test_an_unknown_argument_is_named():
    with pytest.raises(ConfigError, match=r"optimizer_args: bettas=1.*bettas"):
        built("AdamW", "bettas=1")


def test_adafactor_chooses_its_own_rate_unless_told_not_to():
    own = built("Adafactor")
    assert own.own_rate
    advance(own.optimizer, 2)
    told = built("Adafactor", "relative_step=False", "scale_parameter=False")
    assert not told.own_rate
    assert told.optimizer.param_groups[0]["lr"] == 1e-2
    with pytest.raises(ConfigError, match="warmup_init"):
        built("Adafactor", "relative_step=False", "warmup_init=True")


def test_adafactor_and_a_schedule_contradict_each_other():
    options = build(ScheduleOptions, {"lr_scheduler": "cosine"}, where="the test")
    with pytest.raises(ConfigError, match="relative_step=False"):
        learning_rates(options, built("Adafactor"), total=10, learning_rate=1e-2)
    with pytest.raises(ConfigError, match="belongs to optimizer_type Adafactor"):
        learning_rates(
            build(ScheduleOptions, {"lr_scheduler": "adafactor"}, where="the test"),
            built("AdamW"),
            total=10,
            learning_rate=1e-2,
        )


def test_a_custom_scheduler_class_is_stepped_and_restored():
    options = build(
        ScheduleOptions,
        {"lr_scheduler_type": "StepLR", "lr_scheduler_args": ("step_size=2", "gamma=0.5")},
        where="the test",
    )
    made = built("AdamW")
    rates = learning_rates(options, made, total=10, learning_rate=1e-2)
    advance(made.optimizer, 1)
    for _ in range(3):
        rates.after_step()
    assert rates.values() == {"lr/unet": 5e-3}
    again = built("AdamW")
    other = learning_rates(options, again, total=10, learning_rate=1e-2)
    tensors: dict[str, torch.Tensor] = {}
    other.restore(unpack(pack(rates.state(), tensors, "schedule"), tensors))
    restore_optimizer(again.optimizer, made.optimizer.state_dict())
    advance(again.optimizer, 1)
    other.after_step()
    assert other.values() == {"lr/unet": 2.5e-3}


def test_a_scheduler_that_needs_a_loss_is_refused():
    options = build(ScheduleOptions, {"lr_scheduler_type": "ReduceLROnPlateau"}, where="the test")
    with pytest.raises(ConfigError, match="ReduceLROnPlateau"):
        learning_rates(options, built("AdamW"), total=10, learning_rate=1e-2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("AdamW", ()),
        ("AdamW", ("amsgrad=True",)),
        ("SGD", ("momentum=0.9",)),
        ("RAdam", ()),
        ("Adagrad", ()),
        ("Adafactor", ()),
        ("Adafactor", ("relative_step=False", "beta1=0.9")),
        ("Prodigy", ("growth_rate=inf",)),
        ("AdamWScheduleFree", ("warmup_steps=3",)),
        ("RAdamScheduleFree", ()),
    ],
)
def test_an_optimizer_goes_on_from_plain_data_exactly(name, arguments):
    """safetensors and JSON hold everything, also infinities, tuples and number types."""
    arguments = tuple(a for a in arguments if a != "growth_rate=inf")  # Prodigy's own default
    first = built(name, *arguments).optimizer
    if hasattr(first, "train"):
        first.train()
    advance(first, 3)
    tensors: dict[str, torch.Tensor] = {}
    packed = pack(first.state_dict(), tensors, "optimizer")
    tensors = {key: value.clone() for key, value in tensors.items()}
    second = built(name, *arguments).optimizer
    second.param_groups[0]["params"][0].data.copy_(first.param_groups[0]["params"][0].data)
    restore_optimizer(second, unpack(packed, tensors))
    for one, other in zip(first.state.values(), second.state.values(), strict=True):
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == other[key].dtype, key
    advance(first, 4)
    advance(second, 4)
    assert torch.equal(first.param_groups[0]["params"][0], second.param_groups[0]["params"][0])


def test_a_state_keeps_its_number_type():
    """torch would turn it into the type of the parameter, and rounding would change the run."""
    parameter = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([parameter])
    advance(optimizer, 1)
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].double()
    restore_optimizer(optimizer, saved)
    assert optimizer.state[parameter]["exp_avg"].dtype == torch.float64


def test_what_is_no_plain_data_is_refused():
    with pytest.raises(TrainingError, match=r"optimizer/state/0/fn is a function"):
        pack({"state": {0: {"fn": pack}}}, {}, "optimizer")


def test_a_look_at_the_averaged_weights_changes_nothing():
    optimizer = built("AdamWScheduleFree").optimizer
    optimizer.train()
    advance(optimizer, 3)
    parameter = optimizer.param_groups[0]["params"][0]
    before = parameter.detach().clone()
    with evaluating(optimizer, [parameter]):
        assert not torch.equal(parameter, before)
    assert torch.equal(parameter, before)


def test_gradients_share_one_buffer_and_survive_zero_grad():
    parameters = [nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(7))]
    flat = FlatGradients(parameters)
    sum((p * p).sum() for p in parameters).backward()
    expected = torch.cat([2 * p.detach().flatten() for p in parameters]).norm()
    loss, norm = flat.loss_and_norm()
    assert loss == 0.0
    assert norm == pytest.approx(expected.item(), rel=1e-6)
    flat.clip(norm, 1.0)
    assert flat.loss_and_norm()[1] == pytest.approx(1.0, rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in parameters])
    assert clipped.norm().item() == pytest.approx(1.0, rel=1e-5)
    torch.optim.SGD(parameters).zero_grad(set_to_none=True)
    flat.clear()
    assert all(p.grad is not None and not p.grad.any() for p in parameters)
