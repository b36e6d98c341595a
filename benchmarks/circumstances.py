"""What a figure was measured with, and where it is kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def circumstances(script: str, libraries: tuple[str, ...] = ()) -> dict[str, Any]:
    """Date, commit, command, machine and versions, as every result file begins."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "commit": commit.stdout.strip(),
        "command": " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "machine": {"system": platform.system(), "cpu": _cpu(), "cores": os.cpu_count(), "card": card},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", *libraries)},
        },
    }


def keep(name: str, result: dict[str, Any]) -> Path:
    """Write results/<name>-<date>.json and return its path."""
    path = RESULTS / f"{name}-{datetime.now(timezone.utc):%Y-%m-%d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
