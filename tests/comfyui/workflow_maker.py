"""Workflow files of ComfyUI's front end (format 0.4) from graphs by name, and back.

A graph in API form names its inputs; a workflow file lists the values of the widgets by place. What is at
which place, `/object_info` tells, so the files follow the nodes' schemas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Graph: TypeAlias = Mapping[str, Mapping[str, Any]]  # nodes in API form by name; notes among them
Info: TypeAlias = Mapping[str, Mapping[str, Any]]  # of /object_info

NOTE = "MarkdownNote"
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
AFTER_GENERATE = "fixed"  # the widget behind a seed
WIDTH, GAP, TITLE, ROW, SOCKET, TEXT, FEW_LINES = 420, 60, 40, 24, 20, 140, 80  # pixels
NOTE_LINE, NOTE_LETTERS = 22, 60  # height of a line of a note in pixels, letters in it


@dataclass(frozen=True, slots=True)
class Column:
    """A group of nodes below each other."""

    title: str
    nodes: tuple[str, ...]
    color: str = "#3f789e"


@dataclass(frozen=True, slots=True)
class Example:
    """A workflow to share."""

    name: str  # of the file, without ending
    graph: Graph
    columns: tuple[Column, ...]


def is_link(value: Any) -> bool:
    return isinstance(value, list)


def _is_widget(spec: Any) -> bool:
    forced = len(spec) > 1 and spec[1].get("forceInput")
    return not forced and (isinstance(spec[0], list) or spec[0] in WIDGETS)


def _walk(
    declared: Mapping[str, Any], value_of: Callable[[str, Any], Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(name, declaration, value) of each widget in the order of the front end.

    The name is "" for the widget behind a seed. value_of: is asked in that order; its answer decides which
    widgets follow a dynamic choice.
    """
    for part in ("required", "optional"):
        for short, spec in declared.get(part, {}).items():
            kind, about = spec[0], spec[1] if len(spec) > 1 else {}
            if not _is_widget(spec):
                continue
            name = prefix + short
            value = value_of(name, spec)
            yield name, spec, value
            if kind == DYNAMIC:
                chosen = next(one["inputs"] for one in about["options"] if one["key"] == value)
                yield from _walk(chosen, value_of, f"{name}.")
            if about.get("control_after_generate", False):
                yield "", spec, value_of("", spec)


def _default(name: str, spec: Any) -> Any:
    about = spec[1] if len(spec) > 1 else {}
    if name == "":
        return AFTER_GENERATE
    if "default" in about:
        return about["default"]
    options = spec[0] if isinstance(spec[0], list) else about.get("options")
    first: Any = options[0] if options else None
    return first["key"] if spec[0] == DYNAMIC else first


def widget_values(about: Mapping[str, Any], given: Mapping[str, Any]) -> list[Any]:
    """What a workflow file stores of a node: the values of its widgets by place."""

    def value_of(name: str, spec: Any) -> Any:
        value = given.get(name)
        return _default(name, spec) if value is None or is_link(value) else value

    return [value for _, _, value in _walk(about["input"], value_of)]


def widget_inputs(about: Mapping[str, Any], values: list[Any]) -> dict[str, Any]:
    """The reverse: input by name. Values of widgets that this ComfyUI does not have yet are passed over."""
    waiting = iter(values)
    return {name: value for name, _, value in _walk(about["input"], lambda *_: next(waiting)) if name}


def workflow_of(example: Example, info: Info) -> dict[str, Any]:
    """The workflow file of an example. The same graph and schemas give the same file."""
    numbers = {name: place for place, name in enumerate(example.graph, start=1)}
    nodes = {name: _node(numbers[name], node, info) for name, node in example.graph.items()}
    links = _connect(example.graph, numbers, nodes)
    groups = _lay_out(example, nodes, info)
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _node(number: int, node: Mapping[str, Any], info: Info) -> dict[str, Any]:
    """A node without place and links."""
    kind = node["class_type"]
    made = {"id": number, "type": kind, "flags": {}, "order": number - 1, "mode": 0, "properties": {}}
    made |= {"pos": [0, 0], "size": [WIDTH, 0], "inputs": [], "outputs": []}
    if kind == NOTE:
        return {**made, "title": node["title"], "widgets_values": [node["text"]], "color": "#432"}
    about = info[kind]
    names = about.get("output_name") or about["output"]
    made["outputs"] = [
        {"name": name, "type": type_, "links": [], "slot_index": slot}
        for slot, (name, type_) in enumerate(zip(names, about["output"], strict=True))
    ]
    made["properties"] = {"Node name for S&R": kind}
    if "title" in node:
        made["title"] = node["title"]
    return {**made, "widgets_values": widget_values(about, node["inputs"])}


def _sockets(about: Mapping[str, Any]) -> int:
    """How many inputs are no widgets."""
    parts = (about["input"].get(part, {}) for part in ("required", "optional"))
    return sum(not _is_widget(spec) for part in parts for spec in part.values())


def _connect(graph: Graph, numbers: Mapping[str, int], nodes: Mapping[str, Any]) -> list[list[Any]]:
    """Give each node its sockets, and return all links."""
    links: list[list[Any]] = []
    for name, node in graph.items():
        for socket, value in node.get("inputs", {}).items():
            if not is_link(value):
                continue
            source, slot = value
            output = nodes[source]["outputs"][slot]
            link = len(links) + 1
            target = nodes[name]["inputs"]
            links.append([link, numbers[source], slot, numbers[name], len(target), output["type"]])
            output["links"].append(link)
            target.append({"name": socket, "type": output["type"], "link": link})
    return links


def _lay_out(example: Example, nodes: Mapping[str, dict[str, Any]], info: Info) -> list[dict[str, Any]]:
    """Place the nodes column by column. Returns a frame for each column."""
    groups = []
    for place, column in enumerate(example.columns):
        left, top = place * (WIDTH + GAP), 0
        for name in column.nodes:
            height = _height(example.graph[name], info)
            nodes[name] |= {"pos": [left, top], "size": [WIDTH, height]}
            top += height + TITLE + 20
        frame = [left - 15, -90, WIDTH + 30, top + 70]
        groups.append(
            {"title": column.title, "bounding": frame, "color": column.color, "font_size": 24, "flags": {}}
        )
    return groups


def _height(node: Mapping[str, Any], info: Info) -> int:
    if node["class_type"] == NOTE:
        rows = sum(1 + len(line) // NOTE_LETTERS for line in node["text"].splitlines())
        return max(120, NOTE_LINE * rows + TITLE)
    about = info[node["class_type"]]
    rows, texts = 0, 0
    values = {name: value for name, value in node["inputs"].items() if not is_link(value)}

    def value_of(name: str, spec: Any) -> Any:
        return values.get(name, _default(name, spec))

    for _, spec, _ in _walk(about["input"], value_of):
        if len(spec) > 1 and spec[1].get("multiline"):
            texts += FEW_LINES if spec[1].get("advanced") else TEXT
        else:
            rows += 1
    sockets = max(_sockets(about), len(about["output"]))
    shows = TEXT if about.get("output_node") else 0
    return SOCKET * sockets + ROW * rows + texts + shows + 10


def prompt_of(workflow: Mapping[str, Any], info: Info) -> dict[str, Any]:
    """What the front end queues for a workflow file: its graph in API form."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] == NOTE:
            continue
        inputs = widget_inputs(info[node["type"]], node["widgets_values"])
        inputs |= {one["name"]: sources[one["link"]] for one in node["inputs"] if one["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
