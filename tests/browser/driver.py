"""Drive ComfyUI's page with playwright: open it, drop a workflow on the canvas, press Run, wait for the end."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--disable-features=OptimizationHints,MediaRouter",
    # nothing but the server under test can be reached; everything else fails at once
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip

_DROP = """([text, name, type]) => {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type}));
    const canvas = document.querySelector('#graph-canvas');
    const box = canvas.getBoundingClientRect();
    const where = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};
    for (const kind of ['dragenter', 'dragover', 'drop'])
        canvas.dispatchEvent(new DragEvent(kind, {...where, dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""

_END_OF_RUN = """() => {
    window.__runs = {};
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, event => { window.__runs[event.detail.prompt_id] = [kind, event.detail]; });
}"""


@contextmanager
def launched(chrome: str, profile: Path, width: int = 1600, height: int = 1000) -> Iterator[Any]:
    """A page of the headless browser `chrome` with the folder `profile`, without what earlier pages stored in it.

    The page gets an attribute `script_errors`: what its scripts threw and did not catch.
    """
    # stopped after each test: while it runs, this thread has an event loop and asyncio.run is refused elsewhere
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=chrome, headless=True, args=list(_FLAGS),
            viewport={"width": width, "height": height},
        )  # fmt: skip
        try:
            page = context.pages[0] if context.pages else context.new_page()
            page.script_errors = []
            page.on("pageerror", lambda error: page.script_errors.append(str(error)))
            yield page
            page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")  # or the next one opens this graph
        finally:
            context.close()


def open_app(page: Any, url: str, patience: float = 120) -> None:
    """Go to the server's page and wait until it can be used."""
    # not networkidle: the page keeps a websocket open
    page.goto(url, wait_until="domcontentloaded", timeout=patience * 1000)
    page.wait_for_function(
        "() => window.app?.graph && window.app?.extensionManager && document.querySelector('#graph-canvas')",
        timeout=patience * 1000,
    )
    page.wait_for_timeout(1000)
    page.evaluate(_END_OF_RUN)


def drop_file(page: Any, file: Path, patience: float = 30) -> None:
    """Drop `file` on the canvas as a user does and wait until the graph has changed.

    For a workflow use :func:`drop_workflow`, which checks that all of it arrived.
    """
    kind = mimetypes.guess_type(file.name)[0] or "application/json"
    before = page.evaluate("() => JSON.stringify(app.graph.serialize().nodes.map(node => [node.id, node.type]))")
    page.evaluate(_DROP, [base64.b64encode(file.read_bytes()).decode(), file.name, kind])
    page.wait_for_function(
        "before => JSON.stringify(app.graph.serialize().nodes.map(node => [node.id, node.type])) !== before",
        arg=before, timeout=patience * 1000,
    )  # fmt: skip


def drop_workflow(page: Any, file: Path, patience: float = 30) -> list[str]:
    """Drop a workflow file and return the types of the nodes that the canvas then holds.

    Raises AssertionError when the page knows one of them not (it draws such nodes red).
    """
    page.evaluate("() => app.graph.clear()")
    drop_file(page, file, patience)
    page.wait_for_timeout(500)
    unknown = page.evaluate(
        "() => app.graph._nodes.map(node => node.type).filter(type => !LiteGraph.registered_node_types[type])"
    )
    assert not unknown, f"{file.name}: the page does not know {unknown}"
    return page.evaluate("() => app.graph._nodes.map(node => node.type)")


def press_run(page: Any, patience: float = 300) -> str:
    """Press Run, wait until the prompt has ended well, and return its id (see the server's history).

    Raises AssertionError with the server's answer when it is refused or fails.
    """
    with page.expect_response(
        lambda reply: reply.url.endswith("/prompt") and reply.request.method == "POST", timeout=60_000
    ) as caught:
        page.get_by_test_id("queue-button").click()
    reply = caught.value
    assert reply.status == 200, f"the prompt was refused: {reply.text()}"
    prompt_id = reply.json()["prompt_id"]
    page.wait_for_function("id => window.__runs[id]", arg=prompt_id, timeout=patience * 1000)
    kind, detail = page.evaluate("id => window.__runs[id]", prompt_id)
    assert kind == "execution_success", f"{kind}: {detail.get('node_type')}: {detail.get('exception_message')}"
    return prompt_id


def use_new_renderer(page: Any, on: bool) -> None:
    """Switch between the canvas renderer and the new one; the server stores it, so switch back at the end."""
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", on)
    page.wait_for_timeout(500)


def set_widget(page: Any, node_type: str, widget: str, value: Any) -> None:
    """Set a widget of the first node of `node_type`; raises AssertionError when there is none."""
    found = page.evaluate(
        """([type, name, value]) => {
            const node = app.graph._nodes.find(node => node.type === type);
            const widget = node?.widgets?.find(widget => widget.name === name);
            if (!widget) return false;
            widget.value = value;
            widget.callback?.(value);
            return true;
        }""",
        [node_type, widget, value],
    )
    assert found, f"no widget {widget} on a node {node_type}"
