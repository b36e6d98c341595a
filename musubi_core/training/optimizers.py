"""Optimizers by name, from torch and from libraries that are only needed when they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from musubi_core.config import nearest, parse_key_values
from musubi_core.errors import ConfigError, MissingLibraryError
from musubi_core.training.options.optimizer import OptimizerOptions

SHORT_NAMES = {  # in lower case
    "adamw": "torch.optim.AdamW",
    "adafactor": "transformers.optimization.Adafactor",
    "prodigy": "prodigyopt.Prodigy",
    "adamwschedulefree": "schedulefree.AdamWScheduleFree",
    "radamschedulefree": "schedulefree.RAdamScheduleFree",
    "sgdschedulefree": "schedulefree.SGDScheduleFree",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltOptimizer:
    """label: for metadata, as module.Class(key=value). own_rate: it chooses its learning rate by itself."""

    optimizer: torch.optim.Optimizer
    label: str
    own_rate: bool = False


def build_optimizer(options: OptimizerOptions, groups: Sequence[Mapping[str, Any]]) -> BuiltOptimizer:
    """The optimizer over parameter groups that have a "lr" each.

    Raises ConfigError for an unknown name, something that is no optimizer, or arguments it does not take, and
    MissingLibraryError when its library is not installed.
    """
    cls = optimizer_class(options.optimizer_type)
    arguments = parse_key_values(options.optimizer_args, where="--optimizer_args")
    arguments.setdefault("lr", options.learning_rate)
    own_rate = False
    if cls.__name__ == "Adafactor" and cls.__module__.startswith("transformers."):
        arguments, own_rate = _adafactor(arguments)
    own_groups = [{k: v for k, v in group.items() if not (own_rate and k == "lr")} for group in groups]
    try:
        optimizer = cls(own_groups, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        given = " ".join(options.optimizer_args) or "none"
        raise ConfigError(
            f"optimizer_type {options.optimizer_type} does not accept its arguments "
            f"(optimizer_args: {given}): {error}"
        ) from error
    words = ",".join(f"{key}={value}" for key, value in arguments.items() if key != "lr")
    return BuiltOptimizer(
        optimizer=optimizer, label=f"{cls.__module__}.{cls.__name__}({words})", own_rate=own_rate
    )


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that a name means: a short name, one of torch.optim, or a full dotted name."""
    if not name.strip():
        raise ConfigError("optimizer_type is empty. Use AdamW, or another optimizer's name.")
    path = SHORT_NAMES.get(name.lower())
    if path is None:
        if "." in name:
            path = name
        elif name.lower().endswith("8bit"):
            path = f"bitsandbytes.optim.{'AdamW8bit' if name.lower() == 'adamw8bit' else name}"
        else:
            path = f"torch.optim.{name}"
    found = class_at(path, base=torch.optim.Optimizer, what=f"optimizer_type {name}")
    if found is torch.optim.Optimizer:
        raise ConfigError("optimizer_type Optimizer is only the base of optimizers. Use AdamW, for example.")
    return found


def class_at(path: str, *, base: type, what: str) -> Any:
    """The class of a dotted name, which must inherit from `base`; nothing else is ever called.

    what: named in errors. Raises MissingLibraryError, or ConfigError with the nearest names.
    """
    module_name, _, class_name = path.rpartition(".")
    try:
        module = import_module(module_name)
    except ImportError as error:
        library = module_name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.startswith(library + "."):
            raise ConfigError(f"{what}: the library {library} has no module {module_name}.") from None
        raise MissingLibraryError(
            f"{what} needs the library {library}, which cannot be imported ({error}). "
            f"Install it with: pip install {library}"
        ) from error
    except ValueError:
        raise ConfigError(f"{what} is not a class name. Write package.Class, or a plain name.") from None
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, base):
        return found
    known = [
        key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)
    ]
    near = nearest(class_name, known) or sorted(known)[:8]
    kind = "no such class" if found is None else f"not a subclass of {base.__name__}"
    raise ConfigError(
        f"{what}: {class_name} is {kind} in {module_name}. Nearest: {', '.join(near) or 'none'}."
    )


def _adafactor(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Adafactor's own rules: with relative_step (its default) it takes no learning rate."""
    result = dict(arguments)
    result.setdefault("relative_step", True)
    if result.get("warmup_init") and not result["relative_step"]:
        raise ConfigError("optimizer_args: Adafactor's warmup_init=True needs relative_step=True.")
    if result["relative_step"]:
        result["lr"] = None
    return result, bool(result["relative_step"])


@contextlib.contextmanager
def evaluating(optimizer: Any, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, the parameters hold what the optimizer means to be used: schedule-free ones keep an average.

    Their way there and back rounds, so the weights in training are put back as they were, to the last bit.
    """
    if not (hasattr(optimizer, "eval") and hasattr(optimizer, "train")):
        yield
        return
    copies = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.copy_(copy)
