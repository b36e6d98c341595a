"""What the options of the adapters accept, and what their errors say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from musubi_core.config import ConfigError, build
from musubi_core.networks.config import NetworkConfig

LORA = ("networks.lora",)


def test_the_options_import_no_torch():
    code = "import sys, musubi_core.networks.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_defaults_are_musubi_tuners():
    config = NetworkConfig()
    assert (config.network_dim, config.rank, config.network_alpha) == (None, 4, 1.0)
    config.check(network_modules=LORA)


@pytest.mark.parametrize(
    ("item", "exclude"),
    [
        (
            r"exclude_patterns=[r'.*single_blocks.*', r'.*double_blocks\.[0-9]\..*']",
            (r".*single_blocks.*", r".*double_blocks\.[0-9]\..*"),
        ),
        ("exclude_patterns='.*attn.*'", (".*attn.*",)),  # one quoted pattern
        ("exclude_patterns=.*attn.*", (".*attn.*",)),  # one pattern without quotes
        (r"exclude_patterns=[r'(?=.*attn).*=\d']", (r"(?=.*attn).*=\d",)),  # "=" inside a pattern
    ],
)
def test_patterns_are_read_as_the_documents_write_them(item: str, exclude: tuple[str, ...]):
    assert NetworkConfig(network_args=(item,)).arguments().exclude_patterns == exclude


def test_every_network_arg_of_musubi_tuner_is_known():
    items = ("conv_dim=8", "conv_alpha=4", "rank_dropout=0.1", "module_dropout=0.2", "loraplus_lr_ratio=4")
    arguments = NetworkConfig(network_args=(*items, "verbose=True")).arguments()
    assert (arguments.conv_dim, arguments.conv_alpha) == (8, 4.0)
    assert (arguments.rank_dropout, arguments.module_dropout) == (0.1, 0.2)
    assert (arguments.loraplus_lr_ratio, arguments.verbose) == (4.0, True)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (("exclude_pattern=['x']",), "Did you mean exclude_patterns"),
        (("exclude_patterns=['(']",), r"'\(' is not a valid regular expression"),
        (("include_patterns=[.*attn.*]",), "not a list of quoted texts"),
        (("conv_alpha=4",), "without conv_dim"),
        (("conv_dim=0",), "at least 1"),
        (("rank_dropout=1.0",), "from 0 to 0.99"),
        (("loraplus_lr_ratio=0",), "nothing at all"),
        (("verbose=yes",), "true or false"),
    ],
)
def test_a_wrong_network_arg_is_named(items: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(network_args=items).check(network_modules=LORA)


def test_contradictions_are_refused_before_anything_is_loaded(tmp_path):
    file = tmp_path / "some lora.safetensors"
    file.touch()
    for options, message in [
        ({"network_module": "networks.loraa"}, "Use networks.lora"),
        ({"dim_from_weights": True}, "network_weights names none"),
        (
            {"dim_from_weights": True, "network_weights": file, "network_dim": 8},
            "network_dim would be ignored",
        ),
        ({"base_weights": (file,), "base_weights_multiplier": (1.0, 2.0)}, "2 numbers for 1 files"),
        ({"network_weights": tmp_path / "gone.safetensors"}, "gone.safetensors is not a file"),
        ({"base_weights": (tmp_path / "gone.safetensors",)}, "gone.safetensors is not a file"),
    ]:
        with pytest.raises(ConfigError, match=message):
            NetworkConfig(**options).check(network_modules=LORA)


def test_a_missing_multiplier_is_one(tmp_path):
    config = build(
        NetworkConfig,
        {"base_weights": ["a", "b"], "base_weights_multiplier": [0.5]},
        where="the command line",
    )
    assert [multiplier for _, multiplier in config.base_files()] == [0.5, 1.0]
