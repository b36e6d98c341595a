"""Every node as ComfyUI sees it, in a real ComfyUI without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pack_schemas import load

from musubi_core.config import options_of
from musubi_core.data.dataset_config import DatasetConfig
from musubi_core.models.registry import architectures
from musubi_core.training.config import TrainConfig


def test_every_node_and_every_input_is_explained(pack: dict[str, Any]):
    assert len(pack["found"]) >= 19
    for name, node in pack["found"].items():
        assert name.startswith("Musubi"), name
        assert node["category"].startswith("Musubi"), name
        assert node["display"], name
        assert len(node["description"]) > 30, name
        for each, about in node["inputs"].items():
            assert len(about.get("tooltip") or "") > 10, f"{name}.{each}"
        for output, tooltip in node["outputs"]:
            assert tooltip, f"{name}: {output}"
        if node["aliases"] is not None:  # older versions do not know them
            assert "musubi" in node["aliases"], name


def test_names_are_unique_and_inputs_differ_from_outputs(pack: dict[str, Any]):
    shown = [node["display"] for node in pack["found"].values()]
    assert len(shown) == len(set(shown))
    for name, node in pack["found"].items():
        assert not {output for output, _ in node["outputs"]} & set(node["inputs"]), name


def test_loading_the_pack_is_quick_and_brings_in_nothing_heavy(pack: dict[str, Any]):
    heavy = {"accelerate", "diffusers", "transformers", "bitsandbytes", "wandb", "tensorboard", "matplotlib"}
    assert not heavy & set(pack["new"])
    assert set(pack["new"]) <= {"a-pack_x_1", "musubi_core"}
    assert pack["seconds"] < 0.5


def test_every_option_of_training_has_a_widget_with_its_default_and_limits(pack: dict[str, Any]):
    """What the command line offers and the graph does not is listed here, with the reason."""
    elsewhere = {
        *(
            "dataset_config",
            "dit",
            "vae",
            "architecture",
            "output_dir",
            "sample_prompts",
        ),  # links and folders
        *("sdpa", "flash_attn", "xformers", "flash3", "sage_attn"),  # one choice: attention
        *("plan", "show_timesteps"),  # nodes of their own
        *("logging_dir", "log_with", "log_prefix", "log_tracker_name", "log_tracker_config", "log_config"),
        *("wandb_run_name", "wandb_api_key"),  # a workflow is shared, and would carry the key
        *("max_data_loader_n_workers", "persistent_data_loader_workers", "block_swap_h2d_only"),
        *("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph"),  # several GPUs: command line
        "resume",  # a choice of two
    }
    names = (
        *("MusubiTrainLora", "MusubiNetwork", "MusubiOptimizer", "MusubiTimesteps", "MusubiMemory"),
        *("MusubiSaving", "MusubiSamplePrompts"),
    )
    widgets = {key: value for name in names for key, value in pack["found"][name]["inputs"].items()}
    for info in options_of(TrainConfig):
        if info.name in elsewhere:
            continue
        assert info.name in widgets, info.name
        widget = widgets[info.name]
        assert widget["tooltip"].startswith(info.help), info.name
        if info.type in (int, float) and widget["kind"] in ("INT", "FLOAT") and not info.optional:
            assert widget["default"] == info.default, info.name
            assert info.ge is None or widget["min"] == info.ge, info.name
            assert info.le is None or widget["max"] == info.le, info.name
        if info.choices:
            assert set(info.choices) <= set(widget["options"]), info.name


def test_every_key_of_a_dataset_has_a_widget(pack: dict[str, Any]):
    sources = {"image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file"}
    found = {
        key
        for name in ("MusubiImageFolderDataset", "MusubiVideoFolderDataset")
        for key in pack["found"][name]["inputs"]
    }
    assert {info.name for info in options_of(DatasetConfig)} - sources <= found


def test_every_architecture_brings_its_own_options(pack: dict[str, Any]):
    options = pack["found"]["MusubiTrainingModel"]["inputs"]["architecture"]["options"]
    shown = {
        row["key"]: {**row["inputs"].get("required", {}), **row["inputs"]["optional"]} for row in options
    }
    assert set(shown) == {"detect", *(spec.name for spec in architectures())}
    for spec in architectures():
        for cls in (spec.latent_options, spec.text_options, spec.train_options):
            assert {info.name for info in options_of(cls)} <= set(shown[spec.name])


def test_a_seed_is_not_changed_by_the_page(pack: dict[str, Any]):
    """The page adds "randomize after queueing" to inputs of this name, and a run could not be continued."""
    for name in ("MusubiTrainLora", "MusubiQuickStart"):
        assert pack["found"][name]["inputs"]["seed"]["control_after_generate"] is False


def test_a_second_copy_of_the_engine_is_refused_with_its_place(in_comfyui: Callable[[str], Any]):
    first = 'import types\nsys.modules["musubi_core"] = types.ModuleType("musubi_core")\n'
    first += 'sys.modules["musubi_core"].__version__ = "0.0.1"\n'
    first += 'sys.modules["musubi_core"].__file__ = "elsewhere"\n'
    code = load(first).replace("extension = pack", "try:\n    pack").split("classes =")[0]
    code += "except ImportError as error:\n    print(json.dumps(str(error)))\n"
    assert "Another version of musubi_core is loaded already, from elsewhere" in in_comfyui(code)
