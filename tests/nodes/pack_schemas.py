"""Code that loads the pack in a real ComfyUI without a server, and tells what its nodes show."""

from __future__ import annotations

from pathlib import Path

PACK = Path(__file__).parents[2]
LOAD = """
import asyncio, importlib.util, json, sys, time, types
import aiohttp.web, nodes, comfy_api.latest
server = sys.modules["server"] = types.ModuleType("server")  # the real one would need a port
server.PromptServer = type("PromptServer", (), {{}})
name = "a-pack_x_1"
known, began = set(sys.modules), time.process_time()
spec = importlib.util.spec_from_file_location(name, {init!r}, submodule_search_locations=[{pack!r}])
pack = importlib.util.module_from_spec(spec)
sys.modules[name] = pack
spec.loader.exec_module(pack)
{first}
extension = pack.comfy_entrypoint()
classes = asyncio.run(extension.get_node_list())
seconds = time.process_time() - began
"""
TELL = """
found = {}
for one in classes:
    schema = one.GET_SCHEMA()
    inputs = {}
    for each in schema.inputs:
        for inner in each.get_all():
            inputs[inner.id] = dict(kind=inner.get_io_type(), **inner.as_dict())
    found[schema.node_id] = dict(
        display=schema.display_name, category=schema.category, description=schema.description,
        inputs=inputs, outputs=[[each.id, each.tooltip] for each in schema.outputs],
        v1=one.INPUT_TYPES(), aliases=getattr(schema, "search_aliases", None),
    )
new = sorted({module.split(".")[0] for module in set(sys.modules) - known} - sys.stdlib_module_names)
print(json.dumps(dict(found=found, new=new, seconds=seconds), default=str))
"""


def load(first: str = "") -> str:
    return LOAD.format(init=str(PACK / "__init__.py"), pack=str(PACK), first=first)
