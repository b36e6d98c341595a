"""A layer of the base network as an adapter sees it: sizes and geometry, no weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from musubi_core.errors import ConfigError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A linear map, or a convolution when `kernel` is not empty."""

    name: str  # dotted, as in the model
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    plain: bool = True  # no groups, no dilation, zero padding: what an adapter can follow

    @property
    def kind(self) -> str:
        return f"Conv{len(self.kernel)}d" if self.kernel else "Linear"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: (outputs, inputs, *kernel)."""
        return self.outputs, self.inputs, *self.kernel

    @property
    def wide(self) -> bool:
        """A convolution that looks at more than one point."""
        return any(size > 1 for size in self.kernel)

    def check(self) -> None:
        """Raises ConfigError when no adapter can follow this layer."""
        if not self.plain:
            raise ConfigError(
                f"{self.name} is a {self.kind} with groups, dilation or a padding other than zeros, which "
                f"LoRA cannot follow. Exclude it: exclude_patterns=[r'{self.name}']."
            )


def layer_of(name: str, module: nn.Module) -> Layer | None:
    """The description of `module`, or None when it is neither a linear map nor a convolution.

    A quantised linear need not inherit from nn.Linear: in_features, out_features and weight are enough.
    """
    if isinstance(module, CONVOLUTIONS):
        padding = module.padding
        return Layer(
            name=name,
            inputs=module.in_channels,
            outputs=module.out_channels,
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=padding if isinstance(padding, str) else tuple(padding),
            plain=module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros",
        )
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(sizes[0], int) and isinstance(sizes[1], int) and hasattr(module, "weight"):
        return Layer(name=name, inputs=sizes[0], outputs=sizes[1])
    return None
