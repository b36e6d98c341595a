"""MagCache as a user of `generate` has it: measure, draw with the file, or with the shipped ratios."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from generate_stage import drawn

from musubi_core.models.registry import SPECS, architecture

OFFERED = [name for name in SPECS if architecture(name).ratios_for is not None]
STEPS = {"infer_steps": 8, "output_type": "latent"}


@pytest.mark.parametrize("name", OFFERED)
def test_a_measured_file_is_found_written_and_used(name: str, tmp_path: Path):
    plain = drawn(name, tmp_path, **STEPS)
    measured = drawn(name, tmp_path, **STEPS, magcache_calibration=True)
    (ratios,) = measured.told_of("MagCache ratios")
    assert ratios.parent == tmp_path
    torch.testing.assert_close(measured.latent, plain.latent, atol=1e-4, rtol=1e-4)
    given = {"magcache_mag_ratios": str(ratios)}
    exact = drawn(name, tmp_path, **STEPS, **given, magcache_threshold=0)
    assert torch.equal(exact.latent, plain.latent)
    cached = drawn(name, tmp_path, **STEPS, **given, magcache_threshold=0.5)
    assert not torch.equal(cached.latent, plain.latent)
    assert "MagCache skipped " in cached.lines and "Accumulated error" in cached.lines


@pytest.mark.parametrize("name", OFFERED)
def test_the_shipped_ratios_need_no_file(name: str, tmp_path: Path):
    found = drawn(name, tmp_path, **STEPS, magcache_mag_ratios="0")
    assert "MagCache skipped " in found.lines
    assert not found.told_of("MagCache ratios")
