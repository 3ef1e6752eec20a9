"""Turn a workflow as the page saves it into the API format that ComfyUI's /prompt takes.

The page does the same when Run is pressed.  Only what our example workflows use is covered: plain nodes, links and
widgets; anything else is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# the last one is a choice that may bring inputs of its own; our workflows leave it at one without any
_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
_NOTES = ("Note", "MarkdownNote")


def is_api_format(workflow: dict[str, Any]) -> bool:
    return "nodes" not in workflow and all(isinstance(node, dict) and "class_type" in node for node in workflow.values())


def load(file: Path, object_info: dict[str, Any]) -> dict[str, Any]:
    """The workflow in `file`, whichever of the two formats it is in, in the API format."""
    workflow = json.loads(file.read_text("utf-8"))
    return workflow if is_api_format(workflow) else to_api(workflow, object_info)


def widget_names(info: dict[str, Any]) -> list[str | None]:
    """Input ids of a node's widgets in the order of ``widgets_values``; None stands for "control after generate".

    `info` is the node's entry of /object_info.
    """
    names: list[str | None] = []
    order = info.get("input_order") or {kind: list(fields) for kind, fields in info["input"].items()}
    for kind in ("required", "optional"):
        for name in order.get(kind, ()):
            spec = info["input"][kind][name]
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            if not (isinstance(spec[0], list) or spec[0] in _WIDGET_TYPES) or options.get("forceInput"):
                continue
            names.append(name)
            if options.get("control_after_generate") or (spec[0] == "INT" and name in ("seed", "noise_seed")):
                names.append(None)
    return names


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """Convert `workflow` (page format); `object_info` is the server's answer to /object_info.

    Raises ValueError for a node that the server does not know, for subgraphs and for bypassed or muted nodes.
    """
    if (workflow.get("definitions") or {}).get("subgraphs"):
        raise ValueError("workflows with subgraphs are not covered")
    links = {link[0]: link for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in _NOTES:
            continue
        if kind not in object_info:
            raise ValueError(f"node {node['id']} is a {kind}, which the server does not know")
        if node.get("mode", 0) != 0:
            raise ValueError(f"node {node['id']} ({kind}) is muted or bypassed, which is not covered")
        inputs: dict[str, Any] = {}
        names = widget_names(object_info[kind])
        values = node.get("widgets_values") or []
        if isinstance(values, dict):
            inputs.update(values)
        else:
            inputs.update((name, value) for name, value in zip(names, values) if name is not None)
        for entry in node.get("inputs", ()):
            if entry.get("link") is not None:
                _, source, slot, *_ = links[entry["link"]]
                inputs[entry["name"]] = [str(source), slot]
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs, "_meta": {"title": node.get("title", kind)}}
    return prompt
