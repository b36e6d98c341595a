"""Which noise levels are trained on, with a picture of their distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from musubi_core.training.options.timesteps import TimestepOptions

from ..inputs import config_from, inputs_of, values_from
from ..pictures import as_image
from ..schema import aliases, schema, validator
from ..shown import shown
from ..values import Settings, TimestepsType
from .groups import CATEGORY

NODE = "Timesteps"
NOT_HERE = ("show_timesteps",)  # the node always shows them


def timestep_settings(given: Mapping[str, Any]) -> Settings:
    """Raises ConfigError for an empty range or settings that a mode cannot follow."""
    config_from(TimestepOptions, given, where=NODE).check()
    return Settings(values=values_from(TimestepOptions, given, where=NODE))


class Timesteps(io.ComfyNode):
    """The distribution of noise levels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiTimesteps",
            display_name=NODE,
            category=CATEGORY,
            description="How noise levels are drawn and how much each counts, with a plot of both.",
            search_aliases=aliases("noise schedule", "sigma", "flow shift", "timestep sampling"),
            is_output_node=True,
            inputs=inputs_of(TimestepOptions, skip=NOT_HERE),
            outputs=[
                TimestepsType.Output("timesteps", tooltip="To Train LoRA."),
                io.Image.Output("plot", tooltip="Share of the draws over the noise levels."),
            ],
        )

    validate_inputs = validator(
        timestep_settings,
        *("timestep_sampling", "discrete_flow_shift", "min_timestep", "max_timestep", "qinglong_ratios"),
        *("preserve_distribution_shape", "num_timestep_buckets"),
    )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        from musubi_core.training.show_timesteps import plot

        found = timestep_settings(given)
        options = config_from(TimestepOptions, given, where=NODE)
        image = as_image(plot(options))
        return shown("\n".join(options.without_effect()), image, found, image)
