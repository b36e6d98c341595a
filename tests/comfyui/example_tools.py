"""The example workflows that use LoRAs and models: average and compare, convert, fp8 and MagCache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from example_training import READ_ME, node, note
from stage import link
from workflow_maker import Column, Example

WAN_1_3B = "wan2.1_t2v_1.3B_fp16.safetensors"


def _scene(prompt: str, *, width: int, height: int, length: int) -> dict[str, dict[str, Any]]:
    """What ComfyUI's KSampler needs besides the model: text, an empty latent, the VAE."""
    return {
        "clip": node("CLIPLoader", clip_name="umt5_xxl_fp16.safetensors", type="wan", device="default"),
        "wish": node("CLIPTextEncode", "What should be seen", clip=link("clip"), text=prompt),
        "not": node("CLIPTextEncode", "What should not", clip=link("clip"), text="blurry, distorted"),
        "empty": node("EmptyHunyuanLatentVideo", width=width, height=height, length=length, batch_size=1),
        "vae": node("VAELoader", vae_name="wan_2.1_vae.safetensors"),
    }


def _drawn(name: str, model: str, title: str, steps: int = 20) -> dict[str, dict[str, Any]]:
    """KSampler, decoding and saving of one picture, with the same seed for all."""
    return {
        f"sample {name}": node(
            "KSampler",
            title,
            model=link(model),
            positive=link("wish"),
            negative=link("not"),
            latent_image=link("empty"),
            seed=42,
            steps=steps,
            cfg=5.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        f"decode {name}": node("VAEDecode", samples=link(f"sample {name}"), vae=link("vae")),
    }


def _saved(name: str, title: str) -> dict[str, dict[str, Any]]:
    prefix = f"musubi/{name}"
    saving = node("SaveImage", title, images=link(f"decode {name}"), filename_prefix=prefix)
    return {f"save {name}": saving}


def ema_sweep() -> Example:
    words = """
# Average the checkpoints of a run, and compare
The last checkpoint of a training is seldom the best one. The average over the last part of the run is often
calmer and more faithful. How long that part should be, one finds by trying.

1. Train with `save_every_n_steps` in **Saving and Validation**, so that the run has 6 or more checkpoints.
2. Choose the run in **Checkpoints of a Run**.
3. Press **Run**. You get three pictures with the same seed: the average over a **short** part (`beta` 0.5),
   over a
   **longer** one (0.9), and the **last** checkpoint as it is.
4. Use the file whose picture you like best. All are in `output/loras`.

`beta` is how much of the average so far is kept at each checkpoint: higher means a longer memory.
In place of `beta` you may set `sigma_rel` (for example 0.1): the width of the average as a part of the
whole run.
"""
    graph: Mapping[str, dict[str, Any]] = {
        "read me": note("Read me first", words),
        "run": node("MusubiRunCheckpoints", run="my_wan_lora", when="saved by step"),
        "short": node(
            "MusubiAverageLoras",
            "A short average",
            loras=link("run"),
            output_name="my_wan_lora_short",
            beta="0.5",
            overwrite=True,
        ),
        "long": node(
            "MusubiAverageLoras",
            "A longer average",
            loras=link("run"),
            output_name="my_wan_lora_long",
            beta="0.9",
            overwrite=True,
        ),
        "base": node("UNETLoader", unet_name=WAN_1_3B, weight_dtype="default"),
        "with short": node("LoraModelLoader", model=link("base"), lora=link("short"), strength_model=1.0),
        "with long": node("LoraModelLoader", model=link("base"), lora=link("long"), strength_model=1.0),
        "with last": node(
            "LoraLoaderModelOnly", model=link("base"), lora_name="my_wan_lora.safetensors", strength_model=1.0
        ),
        **_scene("a photo of my subject in a garden", width=480, height=480, length=1),
        **_drawn("short", "with short", "With the short average"),
        **_drawn("long", "with long", "With the longer average"),
        **_drawn("last", "with last", "With the last checkpoint"),
        **_saved("short", "beta 0.5"),
        **_saved("long", "beta 0.9"),
        **_saved("last", "The last checkpoint"),
    }
    names = ("short", "long", "last")
    columns = (
        Column("Read me", ("read me",), READ_ME),
        Column("1. Averages of a run", ("run", "short", "long")),
        Column("2. The model with each", ("base", "with short", "with long", "with last")),
        Column("What to draw", ("clip", "wish", "not", "empty", "vae")),
        Column("3. The same seed for all", tuple(f"sample {name}" for name in names)),
        Column(
            "4. Compare", tuple(f"{what} {name}" for name in names for what in ("decode", "save")), "#8a8"
        ),
    )
    return Example("ema_sweep_and_compare", graph, columns)


def convert_and_resize() -> Example:
    words = """
# Convert a LoRA, and make it smaller
Choose your file in each of the nodes and press **Run**.

- **Inspect LoRA or Model** says for which model a LoRA was made, its rank, and whether ComfyUI takes
  all of it.
- **Convert LoRA** writes the same LoRA with other names: for diffusers here. Nothing of it is lost.
- **Resize LoRA** keeps what matters and drops the rest. A LoRA of rank 32 often fits into rank 8, a quarter
  of
  the size. The picture shows how strong each direction is: where the line is flat near zero, nothing is
  lost.

New files are in `output/loras`. Files that exist are left alone unless `overwrite` is on.
"""
    lora = "my_hunyuan_lora.safetensors"
    graph = {
        "read me": note("Read me first", words),
        "inspect": node("MusubiInspectFile", file=lora),
        "norms": node("PreviewImage", "How strong each layer is", images=link("inspect", 1)),
        "convert": node(
            "MusubiConvertLora",
            lora_name=lora,
            output_name="my_hunyuan_lora_diffusers",
            target="diffusers",
            overwrite=True,
        ),
        "resize": node(
            "MusubiResizeLora",
            lora_name=lora,
            output_name="my_hunyuan_lora_small",
            new_rank=8,
            recipe="",
            overwrite=True,
        ),
        "values": node("PreviewImage", "How strong each direction is", images=link("resize", 3)),
    }
    columns = (
        Column("Read me", ("read me",), READ_ME),
        Column("Look at it", ("inspect", "norms")),
        Column("Other names", ("convert",)),
        Column("Smaller", ("resize", "values")),
    )
    return Example("convert_and_resize_a_lora", graph, columns)


def fp8_and_magcache() -> Example:
    words = """
# Draw with half the memory, in less time
- **Load Model in fp8** reads a normal bf16 or fp16 file and keeps it in 8 bits, with a scale for each small
  block of
  numbers. That takes half the memory, and the picture stays very close. LoRAs are merged in **before**
  rounding.
- **MagCache** skips steps in which the network would hardly change anything. The presets: *quality* skips
  few,
  *balanced* more. It knows Wan, HunyuanVideo, Flux and Qwen-Image by itself.

1. Choose your model, LoRA, text encoder and VAE. Without a LoRA, remove **LoRA List**.
2. Press **Run**. The console says how many steps were skipped.
3. Turn MagCache's `enabled` off and run again to compare: same seed, same prompt.

The fewer steps you draw with, the less there is to skip: below 10 steps leave MagCache off.
"""
    graph = {
        "read me": note("Read me first", words),
        "list": node("MusubiLoraList", lora_name="my_wan_lora.safetensors", strength=1.0),
        "model": node("MusubiLoadFp8Model", model_name=WAN_1_3B, loras=link("list")),
        "cache": node("MusubiMagCache", model=link("model"), enabled=True, preset="balanced"),
        **_scene("a fox runs through snow, wide shot", width=832, height=480, length=33),
        **_drawn("video", "cache", "KSampler", steps=30),
        "save video": node(
            "SaveAnimatedWEBP",
            images=link("decode video"),
            filename_prefix="musubi/fp8_and_magcache",
            fps=16.0,
            lossless=False,
            quality=85,
            method="default",
        ),
    }
    columns = (
        Column("Read me", ("read me",), READ_ME),
        Column("1. Model in fp8, LoRA merged in, MagCache", ("list", "model", "cache")),
        Column("2. What to draw", ("clip", "wish", "not", "empty", "vae")),
        Column("3. Draw", ("sample video", "decode video", "save video"), "#8a8"),
    )
    return Example("fp8_and_magcache", graph, columns)


TOOLS = (ema_sweep, convert_and_resize, fp8_and_magcache)
