"""Names in LoRA files become layers by tables of the real networks; which model it is comes out of them."""

from __future__ import annotations

import pytest
from lora_files import ARCHITECTURES, tiny_layers, underscored

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.lora_tools.module_names import known_models, model_of, related_views

FLUX, HUNYUAN = "flux_kontext", "hunyuan_video"


def layers(name):
    """Names of what musubi-tuner trains in the released network."""
    model = known_models()[name]
    return [
        layer
        for layer, shape in model.layers.items()
        if len(shape) > 1 and "blocks." in layer and "refiner" not in layer and "mod" not in layer
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_is_found_under_every_spelling(name):
    model = known_models()[name]
    for layer in (*layers(name), *tiny_layers(name)):
        for base in (
            underscored(layer),
            underscored(layer).replace("lora_unet_", "lycoris_"),
            underscored(layer).replace("lora_unet_", "lora_unet__"),
            *(f"{prefix}{layer}" for prefix in ("diffusion_model.", "transformer.", "base_model.model.", "")),
            f"base_model.model.diffusion_model.{layer}",
        ):
            place = model.place(base)
            assert place is not None and place.whole and place.layer == layer, base
        if model.diffusers is None:
            continue
        for part, theirs in enumerate(model.diffusers.names[layer]):
            for base in (f"transformer.{theirs}", underscored(theirs), underscored(theirs)[10:]):
                place = model.place(base)
                assert place is not None and (place.layer, place.part) == (layer, part), base


def test_underscores_are_never_guessed():
    """lora_unet_double_blocks_0_img_attn_qkv is another layer name in each of the two models."""
    base = "lora_unet_double_blocks_0_img_attn_qkv"
    assert known_models()[FLUX].place(base).layer == "double_blocks.0.img_attn.qkv"
    assert known_models()[HUNYUAN].place(base).layer == "double_blocks.0.img_attn_qkv"


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("spelling", ["own", "comfyui", "diffusers"])
def test_a_whole_lora_without_metadata_tells_its_model(name, spelling):
    naming = getattr(known_models()[name], spelling)
    bases = [underscored(one) for layer in layers(name) for one in naming.names[layer]]
    if name == "framepack" or (name, spelling) == (HUNYUAN, "diffusers"):  # the same names for both
        with pytest.raises(ConfigError, match=r"hunyuan_video or framepack: the file cannot tell"):
            model_of(bases, {}, "x")
    else:
        assert model_of(bases, {}, "x").name == name


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"ss_base_model_version": HUNYUAN}, HUNYUAN),
        ({"ss_base_model_version": FLUX}, FLUX),
        ({"modelspec.architecture": "Flux.1-dev/lora"}, FLUX),
        ({"modelspec.architecture": "hunyuan-video/lora"}, HUNYUAN),
    ],
)
def test_metadata_settles_what_names_leave_open(metadata, name):
    bases = ["lora_unet_double_blocks_3_img_attn_qkv", "lora_unet_double_blocks_4_img_mlp_0"]
    assert model_of(bases, metadata, "x").name == name


def test_names_count_more_than_metadata():
    bases = [underscored(layer) for layer in layers(FLUX)] + ["lora_unet_txt_in"]
    assert model_of(bases, {"ss_base_model_version": HUNYUAN}, "x").name == FLUX


def test_a_part_of_a_model_without_metadata_is_asked_for():
    with pytest.raises(
        ConfigError, match=r"cats could be for .*hunyuan_video.* or .*flux_kontext.*--architecture"
    ):
        model_of(["lora_unet_double_blocks_3_img_attn_qkv"], {}, "cats")


def test_a_lora_for_an_unknown_model_says_which_are_known():
    with pytest.raises(BadFileError, match=r"no model that is known here \(hunyuan_video.*lora_te1_x"):
        model_of(["lora_te1_x"], {}, "cats")


def test_only_related_models_can_be_exchanged():
    models = known_models()
    with pytest.raises(ConfigError, match=r"cannot become one for flux_kontext.*one for framepack"):
        related_views(models[HUNYUAN], FLUX)
    with pytest.raises(ConfigError, match=r"Did you mean framepack"):
        related_views(models[HUNYUAN], "framepak")
    ours, theirs = related_views(models["framepack"], HUNYUAN)
    assert ours.layers is theirs.layers
