"""UniPC: one predictor and one corrector, with one question per step (Zhao et al., arXiv 2302.04867).

Written from the paper's data-prediction form. Legend, for a step from time s to time t:

    l      the axis of the solver, h = l(t) - l(s)
    m_i    clean latents that were predicted so far, m_0 at s, m_1 before it, ...
    r_i    (l of m_i - l(s)) / h, in units of the step; 1 for the clean latent at t
    D_i    (m_i - m_0) / r_i
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musubi_core.sampling.log_ratio import log_ratio
from musubi_core.sampling.solving import Denoise, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Which member of the family.

    order: at most. axis: l(t). signal: what the clean latent is multiplied by at t. second: B(h) is
    exp(-h) - 1 instead of -h. lower_at_end: the order falls towards the last steps.
    """

    order: int
    axis: Callable[[float], float]
    signal: Callable[[float], float]
    second: bool
    lower_at_end: bool


def _noise_axis(t: float) -> float:
    return -math.log(t) if t > 0 else math.inf


FLOW = Form(order=2, axis=log_ratio, signal=lambda t: 1 - t, second=True, lower_at_end=True)
# For x0 + t * noise, without a factor on x0. Networks for flow matching are asked by it nevertheless.
NOISE_ONLY = Form(order=3, axis=_noise_axis, signal=lambda t: 1.0, second=False, lower_at_end=False)


@dataclass(frozen=True, slots=True)
class _Known:
    """A clean latent that was predicted, and where."""

    place: float  # l
    clean: Tensor


@dataclass(frozen=True, slots=True)
class _Move:
    """A step that was predicted and waits to be corrected."""

    start: Tensor  # x at s
    s: float
    t: float
    known: tuple[_Known, ...]  # newest first, as many as the order


def unipc(denoise: Denoise, noise: Tensor, times: Tensor, *, form: Form = FLOW) -> Iterator[Step]:
    """From times[0] < 1 to times[-1] = 0. See `solving.Solver`.

    The last step leads to the clean latent that the network sees at times[-2]. Where the axis of `form` is
    finite, times[0] may be 1.
    """
    if float(times[-1]) != 0:
        raise ValueError(f"the last time is {float(times[-1])}; expected 0")
    if not math.isfinite(form.axis(float(times[0]))):
        raise ValueError(f"the first time is {float(times[0])}, which is infinitely far away; expected less")
    x = noise.float()
    count = len(times) - 1
    highest = form.order if form.lower_at_end else min(form.order, count - 1)
    move: _Move | None = None
    known: tuple[_Known, ...] = ()
    for index in range(count):
        t, t_next = float(times[index]), float(times[index + 1])
        clean = x - t * denoise(x, t).float()
        if move is not None:
            x = _corrected(form, move, clean)
        order = min(highest, index + 1, count - index if form.lower_at_end else highest)
        known = (_Known(form.axis(t), clean), *known)[: form.order]
        if index == count - 1:
            x = clean
        else:
            move = _Move(x, t, t_next, known[:order])
            x = _predicted(form, move)
        yield Step(index=index, t=t, x=x, clean=clean)


def _predicted(form: Form, move: _Move) -> Tensor:
    """x at t of a move, from what is known before it."""
    base, bend, places, slopes = _start(form, move)
    order = len(move.known)
    if order == 1:
        return base
    shares = [0.5] if order == 2 else _shares(form, places, _width(form, move), order - 1)
    return base - bend * _sum(shares, slopes)


def _corrected(form: Form, move: _Move, clean: Tensor) -> Tensor:
    """x at t of a move, now that the network was asked there and answered `clean`."""
    base, bend, places, slopes = _start(form, move)
    order = len(move.known)
    shares = [0.5] if order == 1 else _shares(form, [*places, 1.0], _width(form, move), order)
    return base - bend * _sum(shares, [*slopes, clean - move.known[0].clean])


def _start(form: Form, move: _Move) -> tuple[Tensor, float, list[float], list[Tensor]]:
    """The step of first order, the factor of all further terms, and r_i and D_i of i = 1, 2, ..."""
    newest, *older = move.known
    width = _width(form, move)
    signal = form.signal(move.t)
    base = move.t / move.s * move.start - signal * math.expm1(-width) * newest.clean
    places = [(one.place - newest.place) / width for one in older]
    slopes = [(one.clean - newest.clean) / place for one, place in zip(older, places, strict=True)]
    return base, signal * _bend(form, width), places, slopes


def _width(form: Form, move: _Move) -> float:
    return form.axis(move.t) - form.axis(move.s)


def _bend(form: Form, width: float) -> float:
    """B(h)."""
    return math.expm1(-width) if form.second else -width


def _shares(form: Form, places: Sequence[float], width: float, order: int) -> list[float]:
    """What each D_i counts: the solution p of sum_i p_i * r_i^(k-1) = b_k for k = 1 ... order."""
    left = -width
    right: list[float] = []
    term = math.expm1(left) / left - 1
    for k in range(1, order + 1):
        right.append(math.factorial(k) * term / _bend(form, width))
        term = term / left - 1 / math.factorial(k + 1)
    r = torch.tensor(places[:order], dtype=torch.float64)
    rows = torch.stack([r**k for k in range(order)])
    solved: list[float] = torch.linalg.solve(rows, torch.tensor(right, dtype=torch.float64)).tolist()
    return solved


def _sum(shares: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    first, *rest = (share * slope for share, slope in zip(shares, slopes, strict=True))
    return sum(rest, start=first)
