"""A custom node for tests of the dashboard: tells and obeys like a training, and computes nothing.

Its numbers and pictures are the same every time.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class MusubiStagedJob(io.ComfyNode):
    """See `acting`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MusubiStagedJob",
            display_name="Staged job",
            category="musubi/tests",
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Int.Input("steps", default=200),
                io.Float.Input("pause", default=0.02, step=0.001),
                io.Int.Input("sample_every", default=50, max=1_000_000),
                io.String.Input("ending", default="finish"),
                io.String.Input("name", default="staged"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> float:
        """Never the same: it runs again each time."""
        return float("nan")

    @classmethod
    def execute(cls, steps: int, pause: float, sample_every: int, ending: str, name: str) -> io.NodeOutput:
        from .acting import act

        act(cls.hidden.unique_id, name, steps, pause, sample_every, ending)
        return io.NodeOutput(ui={"text": ["done"]})


class StagedExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [MusubiStagedJob]


async def comfy_entrypoint() -> StagedExtension:
    return StagedExtension()
