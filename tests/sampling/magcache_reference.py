"""The reference algorithm, written down once more from its description: plain loops over plain lists.

Published scripts run this inside a network's forward pass, once per evaluation. Nothing here uses the
program's own code, so that it may judge it.
"""

from __future__ import annotations


def interpolated(source: list[float], steps: int) -> list[float]:
    """Nearest neighbour on a common scale, as the scripts do it with numpy's rounding (halves to even)."""
    if len(source) == steps:
        return list(source)
    if steps == 1:
        return [source[-1]]
    found = []
    for i in range(steps):
        found.append(source[round(i * (len(source) - 1) / (steps - 1))])
    return found


def skips(
    ratios: list[float], threshold: float, longest: int, retention: float, starts: tuple[int, ...] = (0,)
) -> list[int]:
    """The steps that are skipped. starts: where each network of several begins its work."""
    num_steps = len(ratios)
    kept = set()
    for start, end in zip(starts, (*starts[1:], num_steps), strict=True):
        for cnt in range(start, start + max(1, int((end - start) * retention))):
            kept.add(cnt)
    accumulated_ratio, accumulated_steps, accumulated_err = 1.0, 0, 0.0
    found = []
    for cnt in range(num_steps):
        if cnt in kept:
            accumulated_ratio, accumulated_steps, accumulated_err = 1.0, 0, 0.0
            continue
        accumulated_ratio *= ratios[cnt]
        accumulated_steps += 1
        accumulated_err += abs(1 - accumulated_ratio)
        if accumulated_err < threshold and accumulated_steps <= longest:
            found.append(cnt)
        else:
            accumulated_ratio, accumulated_steps, accumulated_err = 1.0, 0, 0.0
    return found
