"""Singular values of a LoRA's change, without ever building the change (reference lora-and-fp8 5.1).

Shapes: o rows and i columns of the layer, r rank. delta = up @ down, (o, r) @ (r, i).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """delta = u * s @ vh. u: (o, k) and vh: (k, i) orthonormal, s: (k,) falling; all float64."""

    u: Tensor
    s: Tensor
    vh: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(o, rank) and (rank, i), each carrying the root of the singular values; zeros beyond k."""
        kept = min(rank, len(self.s))
        root = self.s[:kept].sqrt()
        up, down = self.u[:, :kept] * root, root[:, None] * self.vh[:kept]
        missing = rank - kept
        return (
            torch.nn.functional.pad(up, (0, missing)),
            torch.nn.functional.pad(down, (0, 0, 0, missing)),
        )


def spectrum_of(up: Tensor, down: Tensor) -> Spectrum:
    """Exact SVD of up @ down: (o, r), (r, i), at a cost of (o + i) * r^2."""
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return Spectrum(u=q_up @ u, s=s, vh=vh @ q_down.T)


def side_by_side(ups: Sequence[Tensor], downs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Factors of a sum of changes: (o, sum r) and (sum r, i)."""
    return torch.cat([one.double() for one in ups], dim=1), torch.cat([one.double() for one in downs], dim=0)
