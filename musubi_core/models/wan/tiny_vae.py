"""Small VAEs in the real layouts; the one of Wan 2.1 lets a picture through, although its weights are random.

Its latents hold blurred colours in 8 x 8 squares, and its decoder brings them back. It learned nothing:
colours are carried by hand-set taps, all else is random. Each colour travels twice, once negated, because
silu(x) - silu(-x) = x; beside them a constant keeps their contrast where everything is normalised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from musubi_core.encoders.random_weights import random_weights
from musubi_core.models.wan.vae_config import WAN21, WAN22, VaeKind
from musubi_core.models.wan.vae_keys import RESNETS

WIDTH, DECODER_WIDTH = 8, 16  # the second is Wan 2.2's alone
MULTIPLES = (1, 2, 4, 4)
TEMPORAL_LEVELS = (1, 2)  # of the encoder, which shrink time too
COLOURS = 3
CARRIED = 2 * COLOURS + 1  # channels: colours, negated colours, the constant
CONSTANT = 8.0
COLOUR_STD = 0.5  # of photographs, in -1..1
NOISE, WEAK = 0.1, 0.03  # how much of the random weights stays in carrying layers, and beside them


def tiny_vae(kind: VaeKind, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights in the original naming, float32."""
    weights = random_weights(vae_shapes(kind), generator)
    for name, tensor in weights.items():
        if name.endswith("gamma"):
            tensor.copy_(1 + NOISE * torch.randn(tensor.shape, generator=generator))
    if kind is WAN22:
        return weights
    for name, tensor in weights.items():
        if "residual.6." in name or "middle.1.proj." in name:
            tensor.mul_(WEAK)
        if name.endswith("head.0.gamma"):
            tensor[:CARRIED] = 1  # a colour and its negative count alike
    mixing = _mixing(generator)
    _carry_in(weights, mixing)
    _carry_out(weights, mixing)
    return weights


def vae_shapes(
    kind: VaeKind, width: int = WIDTH, decoder_width: int = DECODER_WIDTH
) -> dict[str, tuple[int, ...]]:
    """Original name and shape of every tensor of a VAE with levels of 1, 2, 4 and 4 times these widths."""
    decoder = decoder_width if kind.grouped else width
    top, tail = MULTIPLES[-1], 2 * kind.channels
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= _conv("encoder.conv1", width, kind.colours)
    for level, (into, out) in enumerate(zip((1, *MULTIPLES), MULTIPLES, strict=False)):
        places = _places(kind, "encoder.downsamples", level, RESNETS)
        shapes |= _resnets(places, into * width, out * width)
        if level < len(MULTIPLES) - 1:
            shapes |= _plane(f"{places[-1]}.resample.1", out * width, out * width)
            if level in TEMPORAL_LEVELS:
                shapes |= _conv(f"{places[-1]}.time_conv", out * width, out * width, (3, 1, 1))
    shapes |= _middle("encoder", top * width)
    shapes |= _conv("encoder.head.2", tail, top * width)
    shapes |= _conv("conv1", tail, tail, (1, 1, 1))
    shapes |= _conv("conv2", kind.channels, kind.channels, (1, 1, 1))
    shapes |= _conv("decoder.conv1", top * decoder, kind.channels)
    shapes |= _middle("decoder", top * decoder)
    into = top * decoder
    for level, multiple in enumerate(reversed(MULTIPLES)):
        out = multiple * decoder
        places = _places(kind, "decoder.upsamples", level, RESNETS + 1)
        shapes |= _resnets(places, into, out)
        into = out if kind.grouped else out // 2
        if level < len(MULTIPLES) - 1:
            shapes |= _plane(f"{places[-1]}.resample.1", into, out)
            if level + 1 in TEMPORAL_LEVELS:
                shapes |= _conv(f"{places[-1]}.time_conv", 2 * out, out, (3, 1, 1))
    shapes |= _conv("decoder.head.2", kind.colours, decoder)
    shapes["decoder.head.0.gamma"] = (decoder, 1, 1, 1)
    return shapes


def _places(kind: VaeKind, side: str, level: int, resnets: int) -> list[str]:
    """Names of the residual blocks of a level, then of its resampler."""
    if kind.grouped:
        inner = side.partition(".")[2]
        return [f"{side}.{level}.{inner}.{number}" for number in range(resnets + 1)]
    return [f"{side}.{level * (resnets + 1) + number}" for number in range(resnets + 1)]


def _conv(name: str, out: int, into: int, kernel: tuple[int, ...] = (3, 3, 3)) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)}


def _plane(name: str, out: int, into: int, kernel: int = 3) -> dict[str, tuple[int, ...]]:
    return _conv(name, out, into, (kernel, kernel))


def _resnets(places: list[str], into: int, out: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number, place in enumerate(places[:-1]):
        first = into if number == 0 else out
        shapes[f"{place}.residual.0.gamma"] = (first, 1, 1, 1)
        shapes |= _conv(f"{place}.residual.2", out, first)
        shapes[f"{place}.residual.3.gamma"] = (out, 1, 1, 1)
        shapes |= _conv(f"{place}.residual.6", out, out)
        if first != out:
            shapes |= _conv(f"{place}.shortcut", out, first, (1, 1, 1))
    return shapes


def _middle(side: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = _resnets([f"{side}.middle.0", ""], width, width)
    shapes |= _resnets([f"{side}.middle.2", ""], width, width)
    shapes[f"{side}.middle.1.norm.gamma"] = (width, 1, 1)
    shapes |= _plane(f"{side}.middle.1.to_qkv", 3 * width, width, 1)
    shapes |= _plane(f"{side}.middle.1.proj", width, width, 1)
    shapes[f"{side}.head.0.gamma"] = (width, 1, 1, 1)
    return shapes


def _mixing(generator: torch.Generator) -> Tensor:
    """(C, 3): how colours make up normalised latents of variance 1. Columns are orthogonal, equally long."""
    basis, _ = torch.linalg.qr(torch.randn(WAN21.channels, COLOURS, generator=generator))
    scaled: Tensor = basis / COLOUR_STD * (WAN21.channels / COLOURS) ** 0.5
    return scaled


def _carry_in(weights: dict[str, Tensor], mixing: Tensor) -> None:
    """Encoder: colours, their negatives and the constant stay in the first channels, shrunk three times."""
    mean, std = torch.tensor(WAN21.mean), torch.tensor(WAN21.std)
    _set_taps(weights, "encoder.conv1", _twice(torch.eye(COLOURS)), _THREE)
    _set_constant(weights, "encoder.conv1")
    for place in (2, 5, 8):
        _set_taps(weights, f"encoder.downsamples.{place}.resample.1", torch.eye(CARRIED), _HALVE)
    for place in (5, 8):
        _set_taps(weights, f"encoder.downsamples.{place}.time_conv", torch.eye(CARRIED), _LATEST_TWO)
    for place in (3, 6):
        _set_taps(weights, f"encoder.downsamples.{place}.shortcut", torch.eye(CARRIED), _ONE)
    width = MULTIPLES[-1] * WIDTH
    _set_taps(weights, "encoder.head.2", _difference(std[:, None] * mixing, width), _THREE)
    _set_taps(weights, "conv1", torch.eye(2 * WAN21.channels), _ONE)
    weights["conv1.bias"][: WAN21.channels] += mean


def _carry_out(weights: dict[str, Tensor], mixing: Tensor) -> None:
    """Decoder: from latents back to colours, smoothed at every enlargement."""
    mean, std = torch.tensor(WAN21.mean), torch.tensor(WAN21.std)
    unmix = torch.linalg.pinv(mixing) / std
    _set_taps(weights, "conv2", torch.eye(WAN21.channels), _ONE)
    _set_taps(weights, "decoder.conv1", _twice(unmix), _THREE)
    weights["decoder.conv1.bias"][: 2 * COLOURS] -= _twice(unmix) @ mean
    _set_constant(weights, "decoder.conv1")
    for place in (3, 7, 11):
        _set_taps(weights, f"decoder.upsamples.{place}.resample.1", torch.eye(CARRIED), _SOFTEN)
    for place in (3, 7):
        name = f"decoder.upsamples.{place}.time_conv"
        out = len(weights[f"{name}.weight"])
        both = torch.zeros(out, CARRIED)  # either new frame is the old one
        both[:CARRIED] = both[out // 2 : out // 2 + CARRIED] = torch.eye(CARRIED)
        _set_taps(weights, name, both, _LATEST)
    _set_taps(weights, "decoder.upsamples.4.shortcut", torch.eye(CARRIED), _ONE)
    _set_taps(weights, "decoder.head.2", _difference(torch.eye(COLOURS), WIDTH), _THREE)


def _twice(carry: Tensor) -> Tensor:
    """(3, in) -> (6, in): the colours and their negatives."""
    return torch.cat([carry, -carry])


def _difference(carry: Tensor, width: int) -> Tensor:
    """(out, 3) -> (out, 6): from normalised colours and negatives to what `carry` makes of the colours.

    The norm before it divides by the length of all `width` channels, mostly the constant's.
    """
    return torch.cat([carry, -carry], dim=1) * CONSTANT / width**0.5


def _set_constant(weights: dict[str, Tensor], name: str) -> None:
    weights[f"{name}.weight"][CARRIED - 1] = 0
    weights[f"{name}.bias"][CARRIED - 1] = CONSTANT


def _set_taps(weights: dict[str, Tensor], name: str, carry: Tensor, taps: Tensor) -> None:
    """Let a convolution pass its first channels on as `carry` (out, in) says; all else is a little noise."""
    weight = weights[f"{name}.weight"]
    out, into = carry.shape
    weight.mul_(NOISE)
    weight[:out, :into] = carry.view(out, into, *[1] * taps.ndim) * taps


_ONE = torch.ones(1, 1, 1)
_THREE = torch.zeros(3, 3, 3)
_THREE[2, 1, 1] = 1  # only the frame itself, only the pixel itself
_LATEST = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)
_LATEST_TWO = torch.tensor([0.0, 0.5, 0.5]).view(3, 1, 1)
_HALVE = torch.outer(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.5, 0.0]))
_SOFTEN = torch.outer(torch.tensor([0.25, 0.5, 0.25]), torch.tensor([0.25, 0.5, 0.25]))
