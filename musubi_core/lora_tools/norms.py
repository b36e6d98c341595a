"""Norms and singular values of weights too large for a full SVD. All draws come from a generator."""

from __future__ import annotations

import torch
from torch import Tensor

from musubi_core.lora_tools.spectral import Spectrum

_EXACT = 256  # up to this smaller side a full SVD is faster than anything clever


def spectral_norm(weight: Tensor, steps: int = 40, seed: int = 0) -> float:
    """The largest singular value of (o, i). Lanczos with full orthogonalisation; exact for small sides.

    Its error falls with the square of what power iteration would leave: 40 steps give about 4 digits even
    where singular values lie close together.
    """
    rows, columns = weight.shape
    if min(rows, columns) <= _EXACT:
        return float(torch.linalg.matrix_norm(weight.double(), 2))
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(columns, generator=generator).to(weight)
    basis = (start / start.norm())[:, None]
    images = [weight @ basis[:, 0]]
    for _ in range(steps - 1):
        new = weight.T @ images[-1]
        for _ in range(2):  # the second time removes what rounding left of the first
            new = new - basis @ (basis.T @ new)
        size = new.norm()
        if size <= 1e-6 * images[-1].norm():
            break  # everything that can be reached has been
        basis = torch.cat([basis, (new / size)[:, None]], dim=1)
        images.append(weight @ basis[:, -1])
    return float(torch.linalg.matrix_norm(torch.stack(images, dim=1).double(), 2))


def leading_spectrum(
    matrix: Tensor, rank: int, *, seed: int, oversampling: int = 16, iterations: int = 4
) -> Spectrum:
    """The `rank` largest singular values of (o, i) and their vectors.

    Exact when a side is small or most values are wanted; otherwise by random projection with power
    iterations (Halko, Martinsson and Tropp, arXiv 0909.4061).
    """
    wanted = rank + oversampling
    if min(matrix.shape) <= max(_EXACT, 2 * wanted):
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        return _first(u, s, vh, rank)
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], wanted, generator=generator).to(matrix))[0]
    for _ in range(iterations):
        q = torch.linalg.qr(matrix.T @ q)[0]
        q = torch.linalg.qr(matrix @ q)[0]
    u, s, vh = torch.linalg.svd((q.T @ matrix).double(), full_matrices=False)
    return _first(q.double() @ u, s, vh, rank)


def _first(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> Spectrum:
    return Spectrum(u=u[:, :rank], s=s[:rank], vh=vh[:rank])
