from __future__ import annotations

import json
from pathlib import Path

import pytest

from musubi_core.config import build, options_of
from musubi_core.models.registry import architectures
from musubi_core.models.spec import Expert
from musubi_core.training.config import TrainConfig
from musubi_core.training.metadata import PRIVATE, RunFacts, lora_metadata

SPEC = architectures()[0]
FACTS = RunFacts(
    session_id=1,
    started_at=2.0,
    seed=3,
    precision="no",
    optimizer="torch.optim.AdamW()",
    total=10,
    epochs=1,
    items=5,
    batches_per_epoch=5,
    datasets=[],
    experts=(Expert(path=Path("base.safetensors")),),
)


def metadata(**values):
    required = {
        "dit": "/home/somebody/models/base.safetensors",
        "dataset_config": "/home/somebody/cats.toml",
        "output_dir": "/home/somebody/output",
        "output_name": "cats",
    }
    from dataclasses import replace

    config = build(TrainConfig, {**required, **values}, where="test")
    config = replace(config, arch_options=build(SPEC.train_options, {}, where="test"))
    return lora_metadata(config, SPEC, FACTS, "", 4, 1)


@pytest.mark.parametrize(
    "name",
    [
        info.name
        for cls in (TrainConfig, SPEC.train_options)
        for info in options_of(cls)
        if info.name not in PRIVATE
    ],
)
def test_every_option_of_a_run_stands_in_its_lora(name):
    assert name in json.loads(metadata()["musubi_core.options"])


def test_a_lora_tells_strangers_no_folders_and_no_keys():
    text = "".join(metadata(wandb_api_key="secret", base_weights=["/home/somebody/a.safetensors"]).values())
    assert "somebody" not in text and "secret" not in text
    assert "a.safetensors" in text


def test_no_metadata_keeps_only_what_loading_needs():
    found = metadata(no_metadata=True)
    assert {name for name in found if not name.startswith("modelspec.")} == {
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
    }
