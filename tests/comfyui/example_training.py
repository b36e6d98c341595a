"""The example workflows that train."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from stage import link
from workflow_maker import NOTE, Column, Example

READ_ME = "#a1862a"


def node(kind: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    named = {"title": title} if title else {}
    return {"class_type": kind, "inputs": inputs, **named}


def note(title: str, text: str) -> dict[str, Any]:
    """A note in Markdown. The lines of a paragraph become one: the front end would show where they end."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        begins = not line or not lines or re.match(r"#|- |\d+\. ", line)
        if begins or not lines[-1] or lines[-1].startswith("#"):
            lines.append(line)
        else:
            lines[-1] += f" {line.strip()}"
    return {"class_type": NOTE, "title": title, "text": "\n".join(lines)}


HUNYUAN = {
    "dit": "hunyuan_video_t2v_720p_bf16.safetensors",
    "vae": "hunyuan_video_vae_bf16.safetensors",
    "architecture": "hunyuan_video",
    "architecture.text_encoder1": "llava_llama3_fp16.safetensors",
    "architecture.text_encoder2": "clip_l.safetensors",
}
WAN_PAIR = {
    "dit": "wan2.2_t2v_low_noise_14B_fp16.safetensors",
    "vae": "wan_2.1_vae.safetensors",
    "architecture": "wan",
    "architecture.task": "t2v-A14B",
    "architecture.t5": "umt5_xxl_fp16.safetensors",
    "architecture.dit_high_noise": "wan2.2_t2v_high_noise_14B_fp16.safetensors",
    "architecture.offload_inactive_dit": True,
    "architecture.expert_loras": "pair",
}
KONTEXT = {
    "dit": "flux1-dev-kontext.safetensors",
    "vae": "ae.safetensors",
    "architecture": "flux_kontext",
    "architecture.text_encoder1": "t5xxl_fp16.safetensors",
    "architecture.text_encoder2": "clip_l.safetensors",
}
WATCHING = """
## While it trains
- The side bar's **Training** tab shows the loss, the speed, the time left and the samples.
- The loss jumps from step to step; look at the smoothed line, and at the samples even more.
- **Cancel** saves everything. Queue again, and the run goes on exactly where it was.
- The finished file is in `output/loras`; every "Load LoRA" node lists it at once.
"""


def training(
    name: str,
    words: str,
    dataset: dict[str, Any],
    model: dict[str, Any],
    *,
    settings: dict[str, dict[str, Any]],
    **train: Any,
) -> Example:
    """data -> caches -> settings -> Train LoRA -> plot and samples.

    settings: nodes by input of Train LoRA.
    """
    graph = {
        "read me": note("Read me first", words),
        "data": dataset,
        "report": node("MusubiDatasetReport", dataset=link("data"), architecture=model["architecture"]),
        "model": node("MusubiTrainingModel", **model),
        "latents": node("MusubiCacheLatents", dataset=link("data"), model=link("model")),
        "texts": node("MusubiCacheText", dataset=link("data"), model=link("model")),
        **settings,
        "train": node(
            "MusubiTrainLora",
            model=link("model"),
            latents=link("latents"),
            texts=link("texts"),
            **{key: link(key) for key in settings},
            **train,
        ),
        "plot": node("PreviewImage", "The loss", images=link("train", 4)),
        "pictures": node("PreviewImage", "The samples", images=link("train", 5)),
        "watching": note("What you will see", WATCHING),
    }
    return Example(
        name,
        graph,
        (
            Column("Read me", ("read me",), READ_ME),
            Column("1. Your data and the model", ("data", "report", "model")),
            Column("2. Caches: made once, then reused", ("latents", "texts")),
            *_settings_columns(tuple(settings)),
            Column("4. Train", ("train", "watching")),
            Column("What comes out", ("plot", "pictures"), "#8a8"),
        ),
    )


def _settings_columns(names: tuple[str, ...]) -> tuple[Column, Column]:
    """The nodes of the settings in two columns: what is learned and how, and where it is kept and shown."""
    kept = tuple(name for name in names if name in ("memory", "saving", "sampling"))
    learned = tuple(name for name in names if name not in kept)
    return Column("3. Settings: what is learned", learned), Column("3. Settings: memory and files", kept)


def _settings(
    *, samples: str, memory: dict[str, Any], timesteps: dict[str, Any], rank: int
) -> dict[str, Any]:
    return {
        "network": node("MusubiNetwork", network_dim=rank, network_alpha=float(rank)),
        "optimizer": node("MusubiOptimizer", learning_rate=1e-4, lr_warmup_steps="20"),
        "timesteps": node("MusubiTimesteps", **timesteps),
        "memory": node("MusubiMemory", gradient_checkpointing=True, mixed_precision="bf16", **memory),
        "sampling": node("MusubiSamplePrompts", prompts=samples, sample_every_n_steps=250),
        "saving": node("MusubiSaving", save_every_n_steps=250, save_state=True, save_last_n_steps_state=250),
    }


def hunyuan_video() -> Example:
    words = """
# Train a HunyuanVideo LoRA from a folder
1. Put 10 to 50 pictures into a new folder `my_photos` inside ComfyUI's `input` folder. Beside each picture
   lies
   a text file of the same name that says what is seen: `dog.png` and `dog.txt`.
2. Choose the folder in **Image Folder Dataset**, and your model files in **Training Model**.
3. Press **Run**.

## Which files
- `diffusion_models/hunyuan_video_t2v_720p_bf16.safetensors`
- `vae/hunyuan_video_vae_bf16.safetensors`
- `text_encoders/llava_llama3_fp16.safetensors` and `clip_l.safetensors`

## If the memory is not enough
Set `blocks_to_swap` in **Memory and Speed** to 20, then 36, or `resolution` to 512. **Plan Training** tells
beforehand what
a run needs.

## Clips instead of pictures
Use **Video Folder Dataset**, with `target_frames` such as `1 25`.
"""
    samples = "a photo of my subject in a garden --w 512 --h 512 --f 1 --s 20 --d 1"
    return training(
        "train_hunyuan_video_from_a_folder",
        words,
        node("MusubiImageFolderDataset", folder="my_photos", resolution="768 768", enable_bucket=True),
        HUNYUAN,
        settings=_settings(
            samples=samples,
            memory={"fp8_base": True, "fp8_scaled": True, "blocks_to_swap": 20},
            timesteps={"timestep_sampling": "shift", "discrete_flow_shift": 7.0},
            rank=32,
        ),
        output_name="my_hunyuan_lora",
        max_train_steps=1500,
        seed=42,
    )


def wan_pair() -> Example:
    words = """
# Train a pair of LoRAs for Wan 2.2
Wan 2.2 A14B has **two networks**: one for high noise (what moves where), one for low noise (how it looks).
This
graph trains a LoRA for each in one run and saves **two files**.

1. Put pictures with text files into `input/my_photos`.
2. Choose both networks in **Training Model**: `dit` is the one for *low* noise, `dit_high_noise` the other.
3. Press **Run**.

## Which files
- `diffusion_models/wan2.2_t2v_low_noise_14B_fp16.safetensors`
- `diffusion_models/wan2.2_t2v_high_noise_14B_fp16.safetensors`
- `vae/wan_2.1_vae.safetensors` (also for Wan 2.2 A14B)
- `text_encoders/umt5_xxl_fp16.safetensors`

## Using the pair
Load each file with **Load LoRA** behind the network that it was trained for.

## Memory
`offload_inactive_dit` keeps the network that rests in the computer's own memory. Not enough? Raise
`blocks_to_swap` in **Memory and Speed**. To train one LoRA for both networks, set `expert_loras` to `shared`.
"""
    samples = "a video of my subject walking --w 480 --h 480 --f 1 --s 20 --d 1"
    return training(
        "train_wan22_pair",
        words,
        node("MusubiImageFolderDataset", folder="my_photos", resolution="640 640", enable_bucket=True),
        WAN_PAIR,
        settings=_settings(
            samples=samples,
            memory={"fp8_base": True, "fp8_scaled": True, "blocks_to_swap": 20},
            timesteps={"timestep_sampling": "shift", "discrete_flow_shift": 5.0},
            rank=16,
        ),
        output_name="my_wan_pair",
        max_train_steps=2000,
        seed=42,
    )


def kontext_pairs() -> Example:
    words = """
# Teach Flux Kontext an edit
Kontext changes a given picture. It learns an edit from **pairs**: the picture before, and the picture
after.

1. `input/edits_after` holds the pictures **after** the edit, each with a text file that says what to do:
   `dog.png` and `dog.txt` with "make it a pencil drawing".
2. `input/edits_before` holds the pictures **before** it under the **same names**: `dog.png`.
3. Choose your model files in **Training Model** and press **Run**. 20 to 50 pairs are a good start.

## Which files
- `diffusion_models/flux1-dev-kontext.safetensors`
- `vae/ae.safetensors`
- `text_encoders/t5xxl_fp16.safetensors` and `clip_l.safetensors`

**Dataset Report** shows which pictures found their partner. Look at it before a long run.
"""
    samples = "make it a pencil drawing --w 512 --h 512 --s 20 --d 1 --ci edits_before/1.png"
    return training(
        "train_kontext_edit_pairs",
        words,
        node(
            "MusubiImageFolderDataset",
            folder="edits_after",
            resolution="768 768",
            enable_bucket=True,
            control_directory="edits_before",
        ),
        KONTEXT,
        settings=_settings(
            samples=samples,
            memory={"fp8_base": True, "fp8_scaled": True, "blocks_to_swap": 10},
            timesteps={"timestep_sampling": "flux_shift"},
            rank=16,
        ),
        output_name="my_edit",
        max_train_steps=1500,
        seed=42,
    )


def continued() -> Example:
    words = """
# Continue a run
There are three ways, and this graph shows the settings for all of them.

## 1. A run that was cancelled
Open the graph it was started with and press **Run** again. With `resume` on *if possible* the run goes on
at the
very step where it ended, with the same result as if it had never stopped. Nothing else is needed.

## 2. A finished run that should train longer
Keep `output_name`, and raise `max_train_steps`. This needs the state of the end: `save_state_on_train_end`
in
**Saving and Validation** must have been on, as it is here.

## 3. A LoRA that someone else made
Choose it as `network_weights` in **Network**, with `dim_from_weights` on so that the rank fits. It is the
start of
a **new** run with a new `output_name`: its optimizer begins afresh.

To begin again from nothing, set `resume` to *start over*.
"""
    example = training(
        "continue_a_run",
        words,
        node("MusubiImageFolderDataset", folder="my_photos", resolution="768 768", enable_bucket=True),
        HUNYUAN,
        settings={
            "network": node("MusubiNetwork", network_dim=32, network_alpha=32.0),
            "optimizer": node("MusubiOptimizer", learning_rate=1e-4),
            "memory": node(
                "MusubiMemory",
                gradient_checkpointing=True,
                mixed_precision="bf16",
                fp8_base=True,
                fp8_scaled=True,
                blocks_to_swap=20,
            ),
            "saving": node(
                "MusubiSaving", save_every_n_steps=250, save_state=True, save_state_on_train_end=True
            ),
        },
        output_name="my_hunyuan_lora",
        max_train_steps=3000,
        seed=42,
        resume="if possible",
    )
    graph = {name: one for name, one in example.graph.items() if name != "pictures"}
    columns = [replace(one, nodes=tuple(n for n in one.nodes if n in graph)) for one in example.columns]
    return replace(example, graph=graph, columns=tuple(columns))


TRAINING = (hunyuan_video, wan_pair, kontext_pairs, continued)
