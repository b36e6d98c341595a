"""Several processes train as one would: gloo on the CPU, started by accelerate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_arch import (
    FAKE,
    FAKE_PAIR,
    config_for,
    options_for,
    pair_config,
    write_second,
    write_workplace,
)
from safetensors.torch import load_file

from musubi_core.training.metrics import read_metrics
from musubi_core.training.processes import join_processes
from musubi_core.training.run import train

HERE = Path(__file__).parent
PROGRAM = """
import json, sys
from pathlib import Path
import fake_arch
options = json.loads(Path(sys.argv[1]).read_text())
fake_arch.run_fake(options, options.pop("pair", None))
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def launch(folder: Path, options: dict, processes: int) -> None:
    """`accelerate launch --multi_gpu`, with the CPU in place of the cards.

    Its own --cpu would need an MPI installation to start more than one process.
    """
    program, chosen = folder / "program.py", folder / "options.json"
    program.write_text(PROGRAM)
    chosen.write_text(json.dumps(options, default=str))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
    ]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(free_port()), str(program), str(chosen)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_equal_one_with_twice_the_accumulation(tmp_path):
    """Equal global batch, also in the short last step of an epoch, where one process has nothing to do.

    The second half is a resume by one process of what two have begun.
    """
    place = write_workplace(tmp_path)
    common = {"max_train_steps": 8, "network_dropout": 0.1, "validation_split": 0.2}
    single = {**place, "output_dir": tmp_path / "single"}
    result = train(config_for(single, gradient_accumulation_steps=2, **common), spec=FAKE)
    expected = read_metrics(result.metrics)

    launch(tmp_path, options_for(place, save_every_n_steps=5, **common), processes=2)
    found = read_metrics(place["output_dir"] / "lora.metrics.jsonl")
    for name in ("loss/current", "grad/norm"):
        assert [one[name] for one in found] == pytest.approx([one[name] for one in expected], rel=1e-4), name
    measured = [one["loss/validation"] for one in expected if "loss/validation" in one]
    assert [one["loss/validation"] for one in found if "loss/validation" in one] == pytest.approx(
        measured, rel=1e-4
    )

    state = place["output_dir"] / "lora-step00000005-state"
    alone = {**place, "output_dir": tmp_path / "alone"}
    train(config_for(alone, resume=str(state), gradient_accumulation_steps=2, **common), spec=FAKE)
    ours = load_file(tmp_path / "alone" / "lora.safetensors")
    theirs = load_file(place["output_dir"] / "lora.safetensors")
    for key, value in theirs.items():
        assert torch.allclose(ours[key], value, rtol=1e-3, atol=1e-5), key


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_may_train_on_different_networks(tmp_path):
    """Each on the side of its own batch; a LoRA that neither was for is passed over by both."""
    place = write_workplace(tmp_path)
    second = write_second(place)
    single = {**place, "output_dir": tmp_path / "single"}
    common = {"max_train_steps": 8, "network_dropout": 0.1, "validation_split": 0.2}
    result = train(
        pair_config(single, {"apart": True}, gradient_accumulation_steps=2, **common), spec=FAKE_PAIR
    )
    expected = read_metrics(result.metrics)

    pair = {"second": second, "apart": True, "wait": True}
    launch(tmp_path, {**options_for(place, **common), "pair": pair}, processes=2)
    found = read_metrics(place["output_dir"] / "lora.metrics.jsonl")
    for name in ("loss/current", "grad/norm"):
        assert [one[name] for one in found] == pytest.approx([one[name] for one in expected], rel=1e-4), name
    for path in result.loras:
        ours, theirs = load_file(path), load_file(place["output_dir"] / path.name)
        for key, value in theirs.items():
            assert torch.allclose(ours[key], value, rtol=1e-3, atol=1e-5), key


def test_what_was_set_up_is_taken_down():
    from accelerate import PartialState

    with join_processes("no") as here:
        assert (here.index, here.count, here.main) == (0, 1, True)
        assert here.dtype == torch.float32
    assert not PartialState._shared_state


def test_accelerate_chooses_the_precision_unless_the_user_does(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with join_processes(None) as here:
        assert here.precision == "bf16"
    with join_processes("no") as here:
        assert here.precision == "no"
