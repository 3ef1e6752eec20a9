"""What `python dev.py demo` does once its server runs: the example workflows, photographs, a contact sheet, a table.

Run by hand: python dev.py run -m benchmarks.demo --server URL --out DIR
Exit status: 0 when all of it ran, 1 when something did not; the text says what.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.mini.__main__ import describe
from benchmarks.photos import PHOTOS, segment_prompt
from benchmarks.sheet import SheetRow, draw_sheet
from dev import workflow
from dev.client import ComfyClient, ExecutionFailed, PromptRefused
from dev.report import progress, say
from magdiff_core.data import procedural
from magdiff_core.metrics.clip import ClipMeasures, measure_clip
from magdiff_core.metrics.region import region_psnr
from magdiff_core.metrics.subject import Template

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
EXAMPLES = ("generate_small", "edit_small")
OTHERS_SEED = 7
"""Draws the 7 subjects that the given one is told from."""


class DemoError(Exception):
    """Something that the user can act on."""


@dataclass(frozen=True)
class Made:
    """What one workflow made. clip: as decoded; saved: as saved (an edit's subject is pasted back by then); decoded: the
    source through the autoencoder alone. Frames are `[F, h, w, 3]` in 0..1, subject_mask `[F or 1, h, w]`."""

    prompt: str
    source: Tensor
    subject_mask: Tensor
    decoded: Tensor
    clip: Tensor
    saved: Tensor

    @property
    def is_edit(self) -> bool:
        return len(self.source) > 1


def check_models(object_info: dict) -> None:
    """Raises DemoError naming the model files that the server's lists lack."""
    from benchmarks.mini.pipeline import ADAPTER, CHECKPOINT

    missing = []
    for node, field, name in (("MagDiffLoadCheckpoint", "checkpoint", CHECKPOINT), ("MagDiffApplyAdapter", "adapter", ADAPTER)):
        if node not in object_info:
            raise DemoError(f"the server does not know the node {node}: this pack is not loaded there")
        choice = object_info[node]["input"]["required"][field]
        names = choice[0] if isinstance(choice[0], list) else choice[1].get("options", [])
        if name not in names:
            missing.append(name)
    if missing:
        raise DemoError(
            f"{' and '.join(missing)} missing: put the small model into {ROOT / 'models'} "
            "(it comes with the repository: git checkout -- models)"
        )


def _only(prompt: dict, kind: str) -> str:
    found = [key for key, node in prompt.items() if node["class_type"] == kind]
    if len(found) != 1:
        raise DemoError(f"the workflow has {len(found)} nodes {kind}, the demo needs one")
    return found[0]


def add_probes(prompt: dict) -> dict:
    """The prompt with previews of what is measured and shown: source, mask, clip, saved clip, the autoencoder alone."""
    segment, decode, save = (_only(prompt, kind) for kind in ("MagDiffSubjectSegment", "VAEDecode", "SaveAnimatedWEBP"))
    source, vae = prompt[segment]["inputs"]["images"], prompt[decode]["inputs"]["vae"]
    preview = lambda images: {"class_type": "PreviewImage", "inputs": {"images": images}}  # noqa: E731
    return prompt | {
        "probe_source": preview(source),
        "probe_as_image": {"class_type": "MaskToImage", "inputs": {"mask": [segment, 1]}},
        "probe_mask": preview(["probe_as_image", 0]),
        "probe_clip": preview([decode, 0]),
        "probe_saved": preview(prompt[save]["inputs"]["images"]),
        "probe_latent": {"class_type": "VAEEncode", "inputs": {"pixels": source, "vae": vae}},
        "probe_decode": {"class_type": "VAEDecode", "inputs": {"samples": ["probe_latent", 0], "vae": vae}},
        "probe_decoded": preview(["probe_decode", 0]),
    }


def _upload_inputs(client: ComfyClient, prompt: dict) -> None:
    for node in prompt.values():
        for field in ("image", "file", "video"):
            name = node["inputs"].get(field)
            if isinstance(name, str) and (WORKFLOWS / "input" / name).is_file():
                node["inputs"][field] = client.upload_image(WORKFLOWS / "input" / name)


def _prompt_text(prompt: dict) -> str:
    """The text that reaches the sampler as positive: followed upstream to its CLIPTextEncode."""
    node = prompt[_only(prompt, "MagDiffSampler")]
    while node["class_type"] != "CLIPTextEncode":
        node = prompt[node["inputs"]["positive"][0]]
    return node["inputs"]["text"]


def _frames(client: ComfyClient, entry: dict, node: str) -> Tensor:
    files = [file for file in client.files(entry) if file["node"] == node]
    pictures = [np.asarray(Image.open(io.BytesIO(client.view(file))).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(pictures)).float() / 255


def _watcher(prompt: dict, show: Callable[[str], None]) -> Callable[[str, dict], None]:
    """Shows which node works, and how far it is, from the server's messages."""

    def title(node: str) -> str:
        return prompt[node].get("_meta", {}).get("title") or prompt[node]["class_type"] if node in prompt else node

    def on_event(kind: str, data: dict) -> None:
        if kind == "executing" and data.get("node"):
            show(title(data["node"]))
        elif kind == "progress_state":
            for node, state in data.get("nodes", {}).items():
                if state.get("state") == "running" and state.get("max", 1) > 1:
                    show(f"{title(node)} {state['value']:.0f} of {state['max']:.0f}")

    return on_event


def _queue(client: ComfyClient, prompt: dict, title: str) -> dict:
    with progress(title) as line:
        try:
            return client.queue(prompt, _watcher(prompt, line.show))
        except PromptRefused as error:
            raise DemoError(f"{title}: the server refused the workflow:\n{error}") from error
        except ExecutionFailed as error:
            raise DemoError(f"{title}: {error.node_type} failed: {error.exception_message}") from error


def run_example(client: ComfyClient, object_info: dict, name: str, out: Path) -> Made:
    """Queues `workflows/<name>.json` as it is, plus previews for the measurements; saves its clip into `out`."""
    prompt = workflow.load(WORKFLOWS / f"{name}.json", object_info)
    _upload_inputs(client, prompt)
    text, probed = _prompt_text(prompt), add_probes(prompt)
    entry = _queue(client, probed, f'{name}: "{text}"')
    clips = [file for file in client.files(entry) if file["type"] == "output"]
    if not clips:
        raise DemoError(f"{name} saved no clip")
    for file in clips:
        (out / (name + Path(file["filename"]).suffix)).write_bytes(client.view(file))
    probe = lambda node: _frames(client, entry, f"probe_{node}")  # noqa: E731
    return Made(text, probe("source"), probe("mask")[..., 0], probe("decoded"), probe("clip"), probe("saved"))


def expected(prompt: str) -> tuple[int, int, int] | None:
    """Motion, background colour and pattern that a prompt of the small model names, as indices; None for other prompts."""
    names = "|".join
    pattern = (
        rf"({names(procedural.MOTIONS)}) (?:over|on) an? ({names(procedural.COLOURS)}) ({names(procedural.PATTERNS)}) "
        r"(?:background|floor)"
    )
    found = re.search(pattern, prompt)
    if not found:
        return None
    return (
        procedural.MOTIONS.index(found[1]),
        procedural.COLOURS.index(found[2]),
        procedural.PATTERNS.index(found[3]),
    )


def measure(made: Made) -> tuple[ClipMeasures, float | None, float | None]:
    """Measurements of a clip, and for an edit the PSNR of the kept region before pasting, with the autoencoder's own."""
    others = procedural.sample(7, torch.Generator().manual_seed(OTHERS_SEED), "test")
    pictures, masks = procedural.render(others, 1)
    candidates = [Template(made.source[0], made.subject_mask[0])]
    candidates += [Template(pictures[i, 0], masks[i, 0]) for i in range(len(others))]
    found = measure_clip(made.clip, candidates)
    if not made.is_edit:
        return found, None, None
    kept = (made.subject_mask > 0.99).float()
    return found, region_psnr(made.clip, made.source, kept)[0], region_psnr(made.decoded, made.source, kept)[0]


def _answer(right: bool | None, text: str) -> str:
    return text if right is None else f"{text} ({'as asked' if right else 'not as asked'})"


def report(name: str, made: Made) -> tuple[list[str], dict, str]:
    """The lines of the table for one clip, the same for results.json, and one line for the sheet."""
    found, kept, ceiling = measure(made)
    asked = expected(made.prompt)
    motion = procedural.MOTIONS[found.motion] if found.motion >= 0 else "no subject found"
    colour, pattern = procedural.COLOURS[found.background_colour], procedural.PATTERNS[found.pattern]
    lines = [
        f"{name}: {made.prompt}",
        f"  motion          {_answer(asked and found.motion == asked[0], motion)}",
        f"  background      {_answer(asked and found.background_colour == asked[1], colour)}",
        f"  pattern         {_answer(asked and found.pattern == asked[2], pattern)}",
        f"  subject         {'the given one' if found.nearest == 0 else 'another one'} is nearest of 8, "
        f"RMSE {found.subject_rmse:.3f}",
    ]
    if kept is not None:
        lines.append(f"  kept region     {kept:.1f} dB before pasting back; the autoencoder alone {ceiling:.1f} dB")
    data = {"prompt": made.prompt, **asdict(found), "kept_psnr": kept, "autoencoder_psnr": ceiling}
    return lines, data, describe(asdict(found))


def run_photos(client: ComfyClient, object_info: dict) -> list[SheetRow]:
    """Subject Segment on real photographs, by box and points."""
    info = object_info["MagDiffSubjectSegment"]
    defaults = {}
    for field, spec in info["input"]["required"].items():
        options = spec[1] if len(spec) > 1 else {}
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        if "default" in options or choices:
            defaults[field] = options.get("default", choices[0] if choices else None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for photo in PHOTOS:
            uploaded = client.upload_image(photo.save(Path(folder)))
            prompt = segment_prompt(photo, uploaded, defaults)
            prompt["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["picture", 0]}}
            entry = _queue(client, prompt, f"Subject Segment on a photograph ({photo.name})")
            picture, mask, cut = (_frames(client, entry, node)[0] for node in ("shown", "mask", "cut"))
            text = f"photograph: {photo.name}\npicture, mask, subject on black\n{100 * mask.mean():.0f} % of the picture"
            rows.append(SheetRow(picture, [mask, cut], text))
    return rows


def run(client: ComfyClient, out: Path) -> int:
    """Makes and shows everything in the folder `out`; returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    lines, results, rows, failures = [], {}, [], []
    try:
        object_info = client.object_info()
    except OSError as error:
        say(f"error: no ComfyUI answers at {client.url}: {error}")
        return 1
    try:
        check_models(object_info)
        for name in EXAMPLES:
            made = run_example(client, object_info, name, out)
            text, results[name], words = report(name, made)
            lines += [*text, ""]
            cut = made.source[0] * made.subject_mask[0, ..., None]
            rows.append(SheetRow(None, [], name))
            if made.is_edit:
                rows.append(SheetRow(None, made.source, "the clip that is edited"))
            rows.append(SheetRow(cut, made.clip, f"asked: {made.prompt}\nfound: {words}"))
            if made.is_edit:
                rows.append(SheetRow(None, made.saved, "as saved: the subject is pasted back"))
    except (DemoError, OSError) as error:
        failures.append(str(error))
    try:
        photographs = run_photos(client, object_info)
        rows += [SheetRow(None, [], "Subject Segment on photographs"), *photographs]
    except (DemoError, OSError) as error:
        failures.append(str(error))
    if rows:
        draw_sheet(rows, out / "sheet.png")
    (out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    say(f"\nMeasured on the clips, {time.monotonic() - started:.0f} s in all:\n")
    for line in lines:
        say(line)
    for file in sorted(out.iterdir()):
        say(f"  {file}")
    for failure in failures:
        say(f"\nerror: {failure}")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--server", required=True, help="address of a ComfyUI with this pack")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "demo")
    options = parser.parse_args()
    try:
        return run(ComfyClient(options.server), options.out)
    except KeyboardInterrupt:
        return 130  # whoever started this says so


if __name__ == "__main__":
    sys.exit(main())
