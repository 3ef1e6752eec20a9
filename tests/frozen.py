"""The frozen face of the nodes: what saved workflows rely on. ``python dev.py run tests/frozen.py`` adds what is new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "frozen_nodes.json"

RULES = """A node's id, the ids, order and types of its inputs, its combo values and its outputs may not change: workflows that
people saved would break. Allowed is: a new node; a new optional input after all others; a new output after all others; a new
combo value. After that run `python dev.py run tests/frozen.py` and commit tests/frozen_nodes.json."""


def face(node: type) -> dict[str, Any]:
    """What a V3 node class shows to a workflow: its inputs in order and its outputs."""
    schema = node.GET_SCHEMA()
    inputs = []
    for entry in schema.inputs:
        info = {"id": entry.id, "type": entry.get_io_type(), "optional": entry.optional}
        options = getattr(entry, "options", None)
        # lists of files differ from machine to machine
        if options and not any("." in str(option) for option in options) and list(map(str, options)) != ["none"]:
            info["options"] = [str(option) for option in options]
        inputs.append(info)
    return {"inputs": inputs, "outputs": [{"id": entry.id, "type": entry.get_io_type()} for entry in schema.outputs]}


def problems(frozen: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """What `current` breaks of `frozen` (node id -> face), in words; empty when nothing."""
    found = []
    for node, old in frozen.items():
        new = current.get(node)
        if new is None:
            found.append(f"{node} is gone")
            continue
        for number, entry in enumerate(old["inputs"]):
            now = new["inputs"][number] if number < len(new["inputs"]) else None
            if now is None or (now["id"], now["type"]) != (entry["id"], entry["type"]):
                found.append(f"{node}: input {number} was {entry['id']} ({entry['type']}), now {now and now['id']}")
            elif entry["optional"] and not now["optional"]:
                found.append(f"{node}: input {entry['id']} was optional")
            elif gone := [value for value in entry.get("options", ()) if value not in now.get("options", ())]:
                found.append(f"{node}: {entry['id']} lost {gone}")
        for added in new["inputs"][len(old["inputs"]) :]:
            if not added["optional"]:
                found.append(f"{node}: the new input {added['id']} must be optional")
        for number, entry in enumerate(old["outputs"]):
            now = new["outputs"][number] if number < len(new["outputs"]) else None
            if now is None or now["type"] != entry["type"]:
                found.append(f"{node}: output {number} was {entry['id']} ({entry['type']})")
    return found


def main() -> None:
    """Add what is new to the frozen file; refuse when something was broken."""
    from magdiff_core.host import session

    current = {name: face(node) for name, node in sorted(session.load_pack().items())}
    frozen = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    broken = problems(frozen, current)
    if broken:
        raise SystemExit("\n".join([*broken, RULES]))
    FILE.write_text(json.dumps(current, indent=1) + "\n", "utf-8")
    print(f"{FILE}: {len(current)} nodes")


if __name__ == "__main__":
    main()
