"""Memory that the jobs of the LoRA workshop take, over a model and LoRAs of two sizes: it must not grow.

Every job runs in a process of its own, `grown_mb` is the largest growth of its own memory, mapped files
excluded (Linux). The largest layer is the same in both sizes; the large one has four times as many.

    python benchmarks/lora_memory.py --write
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from circumstances import circumstances, keep
from peak import Peak

from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import write_made, write_tensors
from musubi_core.lora_tools.convert import convert_lora
from musubi_core.lora_tools.convert_config import ConvertConfig
from musubi_core.lora_tools.ema import ema_merge
from musubi_core.lora_tools.ema_config import EmaConfig
from musubi_core.lora_tools.extract import extract_lora
from musubi_core.lora_tools.extract_config import ExtractConfig
from musubi_core.lora_tools.inspect import norms_picture
from musubi_core.lora_tools.merge import merge_lora
from musubi_core.lora_tools.merge_config import MergeConfig
from musubi_core.lora_tools.resize import resize_lora
from musubi_core.lora_tools.resize_config import ResizeConfig
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo

HIDDEN, RANK = 768, 16
BLOCKS = (10, 40)


def jobs(folder: Path) -> dict[str, Callable[[], object]]:
    """Each job on the files of `folder`."""
    model, tuned, lora, second = (
        folder / f"{name}.safetensors" for name in ("model", "tuned", "a-step1", "b-step2")
    )
    out = folder / "out.safetensors"
    two = (lora, second)
    return {
        "merge-lora": lambda: merge_lora(MergeConfig(lora_weight=two, output_file=out, new_rank=8)),
        "merge-lora --dit": lambda: merge_lora(
            MergeConfig(lora_weight=(lora,), output_file=tuned, dit=model)
        ),
        "merge-lora --dit --fp8": lambda: merge_lora(
            MergeConfig(lora_weight=(lora,), output_file=out, dit=model, fp8="musubi")
        ),
        "extract-lora": lambda: extract_lora(
            ExtractConfig(model_org=model, model_tuned=tuned, output_file=out, dim=8)
        ),
        "resize-lora": lambda: resize_lora(
            ResizeConfig(path=lora, output_file=out, recipe="fro_ckpt,thr=-9", dit=model)
        ),
        "ema-merge": lambda: ema_merge(EmaConfig(path=two, output_file=out)),
        "ema-merge --average delta": lambda: ema_merge(EmaConfig(path=two, output_file=out, average="delta")),
        "convert-lora": lambda: convert_lora(ConvertConfig(input=lora, output=out, target="diffusers")),
        "inspect --plot": lambda: norms_picture(model, folder / "norms.png"),
    }


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    if options.job:
        with Peak() as peak:
            jobs(options.folder)[options.job]()
        sys.stdout.write(f"{peak.grown}\n")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="musubi-bench-"))
    try:
        found = {str(blocks): _measured(folder / str(blocks), blocks) for blocks in BLOCKS}
    finally:
        shutil.rmtree(folder)
    result = {
        **circumstances("lora_memory.py"),
        "largest_weight_mb": HIDDEN * HIDDEN * 7 * 2 / 1e6,
        "grown_mb_by_blocks": found,
    }
    sys.stdout.write(f"{json.dumps(result, indent=2)}\n")
    if options.write:
        keep("lora_memory", result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="keep the result")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def _measured(folder: Path, blocks: int) -> dict[str, float]:
    folder.mkdir()
    _write_model(folder / "model.safetensors", blocks)
    for step, name in enumerate(("a-step1", "b-step2")):
        _write_lora(folder / f"{name}.safetensors", blocks, step + 1)
    found = {"model_file_mb": (folder / "model.safetensors").stat().st_size / 1e6}
    for job in jobs(folder):
        words = [sys.executable, __file__, "--job", job, "--folder", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[job] = int(done.stdout.split()[-1]) / 1e6
    return found


def _write_model(path: Path, blocks: int) -> None:
    config = HunyuanVideoConfig(
        hidden=HIDDEN,
        heads=6,
        double_blocks=2,
        single_blocks=blocks,
        mlp_width=4 * HIDDEN,
        text_width=64,
    )
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in HunyuanVideo(config).state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    infos = {name: TensorInfo(shape=shape, dtype="bfloat16") for name, shape in shapes.items()}
    write_made(path, infos, lambda name: torch.randn(shapes[name], generator=draw).bfloat16())


def _write_lora(path: Path, blocks: int, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    tensors = {}
    for block in range(blocks):
        for layer, (rows, columns) in {"linear1": (7, 1), "linear2": (1, 5)}.items():
            base = f"lora_unet_single_blocks_{block}_{layer}"
            tensors[f"{base}.lora_down.weight"] = torch.randn(RANK, columns * HIDDEN, generator=draw)
            tensors[f"{base}.lora_up.weight"] = torch.randn(rows * HIDDEN, RANK, generator=draw) / 100
            tensors[f"{base}.alpha"] = torch.tensor(8.0)
    write_tensors(path, tensors, {"ss_base_model_version": "hunyuan_video", "ss_steps": str(step)})


if __name__ == "__main__":
    sys.exit(main())
