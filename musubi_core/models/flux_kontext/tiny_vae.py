"""A small VAE in the original layout whose random weights still let a picture through.

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
LATENT_STD = 2.8  # of pictures, as the real VAE has it: about one after scaling
LOG_VARIANCE = -6.0


def tiny_vae(generator: torch.Generator) -> dict[str, Tensor]:
    """Weights in the original naming, float32."""
    weights = {name: _random(name, shape, generator) for name, shape in vae_shapes(WIDTHS).items()}
    mixing = _mixing(generator)
    _carry_in(weights, mixing)
    _carry_out(weights, mixing)
    return weights


def vae_shapes(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the VAE of FLUX.1 whose levels are `widths` wide."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, kernel, kernel), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def resnet(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, kernel=1)

    def levels(side: str, order: list[tuple[int, int]], resnets: int, resampler: str) -> None:
        """order: (number, width) of each level in the order of calculation; the last is not resampled."""
        into = order[0][1]
        for level, out in order:
            for number in range(resnets):
                resnet(f"{side}.{level}.block.{number}", into if number == 0 else out, out)
            if level != order[-1][0]:
                conv(f"{side}.{level}.{resampler}.conv", out, out)
            into = out

    def middle(name: str, width: int) -> None:
        resnet(f"{name}.block_1", width, width)
        norm(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", width, width, kernel=1)
        resnet(f"{name}.block_2", width, width)

    order = list(enumerate(widths))
    conv("encoder.conv_in", widths[0], COLOURS)
    levels("encoder.down", order, RESNETS, "downsample")
    middle("encoder.mid", widths[-1])
    norm("encoder.norm_out", widths[-1])
    conv("encoder.conv_out", 2 * LATENT, widths[-1])
    conv("decoder.conv_in", widths[-1], LATENT)
    middle("decoder.mid", widths[-1])
    levels("decoder.up", order[::-1], RESNETS + 1, "upsample")
    norm("decoder.norm_out", widths[0])
    conv("decoder.conv_out", COLOURS, widths[0])
    return shapes


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms near one, biases near zero, weights that keep the size of what goes through; branches weak."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.02 * noise
    weak = 0.03 if "conv2" in name or "proj_out" in name else 1.0
    return noise * weak / noise[0].numel() ** 0.5


def _mixing(generator: torch.Generator) -> Tensor:
    """(16, 3): how colours make up latents. Columns are orthogonal and equally long."""
    basis, _ = torch.linalg.qr(torch.randn(LATENT, COLOURS, generator=generator))
    colour_std = 0.5  # of photographs, in -1..1
    scaled: Tensor = basis * (LATENT_STD / colour_std) * (LATENT / COLOURS) ** 0.5
    return scaled


def _carry_in(weights: dict[str, Tensor], mixing: Tensor) -> None:
    """Encoder: colours stay in channels 0..2, then 0, 2, 4 beside their anchors, and end as `mixing` says."""
    square = torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]])  # halves a picture
    _set_taps(weights["encoder.conv_in.weight"], torch.eye(WIDTHS[0], COLOURS), _CENTRE)
    for level, width in enumerate(WIDTHS[:-1]):
        _set_taps(weights[f"encoder.down.{level}.downsample.conv.weight"], torch.eye(width), square)
    shortcut = weights["encoder.down.2.block.0.nin_shortcut.weight"]
    shortcut.mul_(0.1)
    for colour in range(COLOURS):
        shortcut[2 * colour : 2 * colour + 2] = 0
        shortcut[2 * colour, colour] = 1
        weights["encoder.down.2.block.0.nin_shortcut.bias"][2 * colour + 1] = ANCHOR
        weights["encoder.norm_out.weight"][2 * colour] = ANCHOR / 2
        weights["encoder.norm_out.bias"][2 * colour] = ANCHOR / 2 + LINEAR
    out, bias = weights["encoder.conv_out.weight"], weights["encoder.conv_out.bias"]
    out.mul_(0.1)
    out[:LATENT, 0 : 2 * COLOURS : 2] = mixing[:, :, None, None] * _CENTRE
    bias[:LATENT] -= LINEAR * mixing.sum(1)
    bias[LATENT:] += LOG_VARIANCE


def _carry_out(weights: dict[str, Tensor], mixing: Tensor) -> None:
    """Decoder: from latents back to colours in channels 0..2, smoothed at every enlargement."""
    unmix = torch.zeros(WIDTHS[-1], LATENT)
    unmix[:COLOURS] = torch.linalg.pinv(mixing)
    _set_taps(weights["decoder.conv_in.weight"], unmix, _CENTRE)
    soft = torch.tensor([0.25, 0.5, 0.25])
    for level in range(1, len(WIDTHS)):
        weight = weights[f"decoder.up.{level}.upsample.conv.weight"]
        _set_taps(weight, torch.eye(WIDTHS[level]), soft[:, None] * soft[None, :])
    narrow = weights["decoder.up.1.block.0.nin_shortcut.weight"]
    _set_taps(narrow, torch.eye(*narrow.shape[:2]), torch.ones(1, 1))
    weights["decoder.norm_out.weight"][:COLOURS] = 0.5
    weights["decoder.norm_out.bias"][:COLOURS] = LINEAR
    out = weights["decoder.conv_out.weight"]
    _set_taps(out, torch.eye(*out.shape[:2]), _CENTRE)
    weights["decoder.conv_out.bias"] -= LINEAR


_CENTRE = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


def _set_taps(weight: Tensor, carry: Tensor, square: Tensor) -> None:
    """Make a convolution pass channels on as `carry` (out, in) says, with a tenth of its noise, in place."""
    weight.mul_(0.1).add_(carry[:, :, None, None] * square)
