"""A small VAE in the real layout whose random weights still let a picture through.

Its latents hold blurred colours in 8 x 8 squares, and its decoder brings them back with the mean and contrast
that normalisation leaves. It learned nothing: colours are carried by hand-set taps, all else is random.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = (32, 32, 64, 64)
LATENT, COLOURS = 16, 3
RESNETS = 2  # per level of the encoder; the decoder has one more
ANCHOR = 8.0  # constant beside each colour, so that normalising the pair keeps the colour's contrast
LINEAR = 6.0  # where SiLU is the identity within a percent
LATENT_STD = 2.0  # of pictures, as the real VAE has it
LOG_VARIANCE = -6.0


def tiny_vae(generator: torch.Generator) -> dict[str, Tensor]:
    """Weights in the original naming, float32."""
    shapes = vae_shapes(WIDTHS)
    weights = {name: _random(name, shape, generator) for name, shape in shapes.items()}
    mixing = _mixing(generator)
    _carry_in(weights, mixing)
    _carry_out(weights, mixing)
    return weights


def vae_shapes(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the HunyuanVideo VAE whose levels are `widths` wide."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, kernel, kernel, kernel), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def resnet(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1.conv", out, into)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2.conv", out, out)
        if into != out:
            conv(f"{name}.conv_shortcut.conv", out, into, kernel=1)

    def levels(side: str, order: tuple[int, ...], resnets: int, resampler: str) -> None:
        into = order[0]
        for level, out in enumerate(order):
            for number in range(resnets):
                resnet(f"{side}.{level}.resnets.{number}", into if number == 0 else out, out)
            if level < len(order) - 1:
                conv(f"{side}.{level}.{resampler}.0.conv.conv", out, out)
            into = out

    def middle(name: str, width: int) -> None:
        for number in range(2):
            resnet(f"{name}.resnets.{number}", width, width)
        norm(f"{name}.attentions.0.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes[f"{name}.attentions.0.{part}.weight"] = (width, width)
            shapes[f"{name}.attentions.0.{part}.bias"] = (width,)

    conv("encoder.conv_in.conv", widths[0], COLOURS)
    levels("encoder.down_blocks", widths, RESNETS, "downsamplers")
    middle("encoder.mid_block", widths[-1])
    norm("encoder.conv_norm_out", widths[-1])
    conv("encoder.conv_out.conv", 2 * LATENT, widths[-1])
    conv("decoder.conv_in.conv", widths[-1], LATENT)
    middle("decoder.mid_block", widths[-1])
    levels("decoder.up_blocks", widths[::-1], RESNETS + 1, "upsamplers")
    norm("decoder.conv_norm_out", widths[0])
    conv("decoder.conv_out.conv", COLOURS, widths[0])
    conv("quant_conv", 2 * LATENT, 2 * LATENT, kernel=1)
    conv("post_quant_conv", LATENT, LATENT, kernel=1)
    return shapes


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms near one, biases near zero, weights that keep the size of what goes through; branches weak."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.02 * noise
    fan_in = noise[0].numel()
    weak = 0.03 if "conv2" in name or "to_out" in name else 1.0
    return noise * weak / fan_in**0.5


def _mixing(generator: torch.Generator) -> Tensor:
    """(16, 3): how colours make up latents. Columns are orthogonal and equally long."""
    basis, _ = torch.linalg.qr(torch.randn(LATENT, COLOURS, generator=generator))
    colour_std = 0.5  # of photographs, in -1..1
    scaled: Tensor = basis * (LATENT_STD / colour_std) * (LATENT / COLOURS) ** 0.5
    return scaled


def _carry_in(weights: dict[str, Tensor], mixing: Tensor) -> None:
    """Encoder: colours stay in channels 0..2, then 0, 2, 4 beside their anchors, and end as `mixing` says."""
    halve_space = torch.tensor([0.0, 0.5, 0.5])
    square = halve_space[:, None] * halve_space[None, :]
    _set_taps(weights["encoder.conv_in.conv.weight"], torch.eye(WIDTHS[0], COLOURS), _NOW, _CENTRE)
    for level, width in enumerate(WIDTHS[:-1]):
        times = _NOW if level == 0 else halve_space  # the first level halves space only
        _set_taps(
            weights[f"encoder.down_blocks.{level}.downsamplers.0.conv.conv.weight"],
            torch.eye(width),
            times,
            square,
        )
    shortcut = weights["encoder.down_blocks.2.resnets.0.conv_shortcut.conv.weight"]
    shortcut.mul_(0.1)
    for colour in range(COLOURS):
        shortcut[2 * colour : 2 * colour + 2] = 0
        shortcut[2 * colour, colour] = 1
        weights["encoder.down_blocks.2.resnets.0.conv_shortcut.conv.bias"][2 * colour + 1] = ANCHOR
        weights["encoder.conv_norm_out.weight"][2 * colour] = ANCHOR / 2
        weights["encoder.conv_norm_out.bias"][2 * colour] = ANCHOR / 2 + LINEAR
    out, bias = weights["encoder.conv_out.conv.weight"], weights["encoder.conv_out.conv.bias"]
    out.mul_(0.1)
    out[:LATENT, 0 : 2 * COLOURS : 2] = mixing[:, :, None, None, None] * _kernel(_NOW, _CENTRE)
    bias[:LATENT] -= LINEAR * mixing.sum(1)
    bias[LATENT:] += LOG_VARIANCE
    _set_taps(weights["quant_conv.weight"], torch.eye(2 * LATENT), torch.ones(1), torch.ones(1, 1))


def _carry_out(weights: dict[str, Tensor], mixing: Tensor) -> None:
    """Decoder: from latents back to colours in channels 0..2, smoothed at every enlargement."""
    _set_taps(weights["post_quant_conv.weight"], torch.eye(LATENT), torch.ones(1), torch.ones(1, 1))
    unmix = torch.zeros(WIDTHS[-1], LATENT)
    unmix[:COLOURS] = torch.linalg.pinv(mixing)
    _set_taps(weights["decoder.conv_in.conv.weight"], unmix, _NOW, _CENTRE)
    soft = torch.tensor([0.25, 0.5, 0.25])
    for level, width in enumerate(WIDTHS[:0:-1]):
        name = f"decoder.up_blocks.{level}.upsamplers.0.conv.conv.weight"
        _set_taps(weights[name], torch.eye(width), _NOW, soft[:, None] * soft[None, :])
    narrow = weights["decoder.up_blocks.2.resnets.0.conv_shortcut.conv.weight"]
    _set_taps(narrow, torch.eye(*narrow.shape[:2]), torch.ones(1), torch.ones(1, 1))
    weights["decoder.conv_norm_out.weight"][:COLOURS] = 0.5
    weights["decoder.conv_norm_out.bias"][:COLOURS] = LINEAR
    out = weights["decoder.conv_out.conv.weight"]
    _set_taps(out, torch.eye(*out.shape[:2]), _NOW, _CENTRE)
    weights["decoder.conv_out.conv.bias"] -= LINEAR


_NOW = torch.tensor([0.0, 0.0, 1.0])  # time taps of a causal kernel: only the frame itself
_CENTRE = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


def _kernel(times: Tensor, square: Tensor) -> Tensor:
    """(t,) and (h, w) -> (t, h, w)."""
    return times[:, None, None] * square


def _set_taps(weight: Tensor, carry: Tensor, times: Tensor, square: Tensor) -> None:
    """Make a convolution pass channels on as `carry` (out, in) says, with a tenth of its noise, in place."""
    weight.mul_(0.1).add_(carry[:, :, None, None, None] * _kernel(times, square))
