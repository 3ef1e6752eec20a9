"""Talk to a ComfyUI server: queue a prompt, follow it, fetch what it made.

Following needs aiohttp, which ComfyUI brings; everything else is Python's standard library.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


class PromptRefused(Exception):
    """The server did not accept a prompt; ``node_errors`` maps node ids to what is wrong with their inputs."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.error = answer.get("error", {})
        self.node_errors = answer.get("node_errors", {})
        super().__init__(json.dumps(answer, ensure_ascii=False, indent=1))


class ExecutionFailed(Exception):
    """A node raised while the prompt ran; carries the node and what it said."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.node_id = data.get("node_id")
        self.node_type = data.get("node_type")
        self.exception_type = data.get("exception_type")
        self.exception_message = str(data.get("exception_message", "")).strip()
        trace = "".join(data.get("traceback") or [])
        super().__init__(f"{self.node_type} (node {self.node_id}): {self.exception_message}\n{trace}")


def _nothing(kind: str, data: dict[str, Any]) -> None:
    pass


class ComfyClient:
    """HTTP and websocket client for one server at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def _request(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url + path, data=body)
        if body is not None:
            request.add_header("Content-Type", content_type)
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.read()

    def get(self, path: str) -> Any:
        """The decoded JSON that GET `path` gives."""
        return json.loads(self._request(path))

    def object_info(self) -> dict[str, Any]:
        return self.get("/object_info")

    def post(self, path: str, data: Any) -> Any:
        """The decoded JSON that POST `path` gives for the JSON `data`; None for an empty answer."""
        answer = self._request(path, json.dumps(data).encode())
        return json.loads(answer) if answer else None

    def upload_image(self, file: Path | str, name: str | None = None) -> str:
        """Upload a picture or film into the server's input folder; returns the name to put into a load node."""
        file = Path(file)
        name = name or file.name
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        edge = uuid.uuid4().hex
        head = (
            f'--{edge}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'
        )
        body = head.encode() + file.read_bytes() + f"\r\n--{edge}--\r\n".encode()
        answer = json.loads(self._request("/upload/image", body, f"multipart/form-data; boundary={edge}"))
        return "/".join(filter(None, [answer.get("subfolder"), answer["name"]]))

    def view(self, file: dict[str, str]) -> bytes:
        """The bytes of one file that a history entry names: a dict with filename, subfolder and type."""
        wanted = {key: file.get(key, "") for key in ("filename", "subfolder", "type")}
        return self._request("/view?" + urllib.parse.urlencode(wanted))

    def files(self, entry: dict[str, Any]) -> list[dict[str, str]]:
        """Every file that a history entry names, in the order of its nodes, each with its node id under "node"."""
        return [
            {**item, "node": node}
            for node, outputs in entry["outputs"].items()
            for group in outputs.values()
            if isinstance(group, list)
            for item in group
            if isinstance(item, dict) and "filename" in item
        ]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def free(self) -> None:
        """Ask the server to unload its models."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def queue(
        self, prompt: dict[str, Any], on_event: Callable[[str, dict[str, Any]], None] = _nothing, patience: float = 900.0
    ) -> dict[str, Any]:
        """Queue an API-format `prompt`, wait for its end and return its history entry.

        `on_event` gets every websocket message about it (kind, data), for example "executing" and "progress_state".
        Raises PromptRefused when the server does not accept it, ExecutionFailed when a node raises or somebody
        interrupts it, TimeoutError after `patience` seconds without any message, ConnectionError when the server goes.
        """
        result: list[Any] = []

        def work() -> None:
            try:
                result.append(asyncio.run(self._follow(prompt, on_event, patience)))
            except BaseException as error:  # handed to the caller's thread below
                result.append(error)

        # a thread of its own: the caller may already run an event loop (browser tests do)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.5)
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    async def _follow(
        self, prompt: dict[str, Any], on_event: Callable[[str, dict[str, Any]], None], patience: float
    ) -> dict[str, Any]:
        import aiohttp

        client = uuid.uuid4().hex
        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(
                f"{self.url}/ws?clientId={client}", max_msg_size=0
            ) as socket:
                async with session.post(self.url + "/prompt", json={"prompt": prompt, "client_id": client}) as reply:
                    answer = await reply.json()
                if reply.status != 200:
                    raise PromptRefused(answer)
                prompt_id = answer["prompt_id"]
                while True:
                    message = await socket.receive(timeout=patience)
                    if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
                        raise ConnectionError("the server closed the connection while a prompt ran")
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        continue
                    event = json.loads(message.data)
                    data = event.get("data") or {}
                    if data.get("prompt_id", prompt_id) != prompt_id:
                        continue
                    on_event(event["type"], data)
                    if event["type"] == "execution_error":
                        raise ExecutionFailed(data)
                    if event["type"] == "execution_interrupted":
                        raise ExecutionFailed({**data, "exception_message": "interrupted"})
                    if event["type"] == "execution_success":
                        break
        except aiohttp.ClientError as error:
            raise ConnectionError(f"no connection to {self.url}: {error}") from error
        for _ in range(100):
            # the entry is written just after the message was sent
            entry = await asyncio.to_thread(self.history, prompt_id)
            if entry is not None:
                return entry
            await asyncio.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} ended, but the server's history does not list it")
