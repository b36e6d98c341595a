from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musubi_core.device.memory import empty_cache, host_memory, memory_in_use


@pytest.mark.skipif(
    sys.platform not in ("linux", "win32"), reason="nothing tells here without further packages"
)
def test_the_memory_of_the_process_grows_with_what_it_holds():
    # In a process of its own: here the block might fit into memory that other tests have given back.
    source = (
        "import torch, numpy as np\n"
        "from musubi_core.device.memory import memory_in_use\n"
        "before = memory_in_use(torch.device('cpu'))\n"
        "block = np.ones(30_000_000, dtype=np.uint8)\n"
        "after = memory_in_use(torch.device('cpu'))\n"
        "print(before.allocated, after.allocated, after.peak, block[-1])\n"
    )
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    before, after, peak, _ = map(int, run.stdout.split())
    assert 25e6 < after - before < 60e6
    assert peak >= after - 5e6


def test_where_nothing_tells_memory_is_unknown(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(Path, "read_text", refuse)
    assert host_memory() is None
    real = builtins.__import__

    def without_resource(name: str, *args: object) -> object:
        if name == "resource":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_resource)
    assert host_memory() is None
    assert memory_in_use(torch.device("meta")) is None


def test_emptying_the_cache_of_the_cpu_does_nothing():
    empty_cache(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_card_tells_what_torch_holds():
    device = torch.device("cuda")
    before = memory_in_use(device)
    block = torch.ones(1_000_000, device=device)
    after = memory_in_use(device)
    assert before is not None and after is not None
    assert after.allocated - before.allocated == block.nbytes and after.peak >= after.allocated
    empty_cache(device)
