"""The processes behind dev.py: how tests, servers and what runs beside them end; the client, workflows, browser, shim."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comfy_server import ROOT, comfyui_folder, make_tree

from dev import browser, client, commands, cuda_shim, processes, server, workflow
from dev.report import DevError


@pytest.mark.parametrize(("option", "status"), [([], 0), (["--no-skips"], 1)])
def test_no_skips_makes_a_skipped_test_a_failure(tmp_path, option, status):
    (tmp_path / "test_it.py").write_text("import pytest\ndef test_a(): pytest.skip('why')\ndef test_b(): pass\n", "utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", *option, "test_it.py"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 passed, 1 skipped")  # pytest's own closing line stays the last


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_the_child_in_the_foreground_tidies_up_when_we_are_ended(tmp_path, number):
    child = """
import pathlib, time
try:
    print("up", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    pathlib.Path("tidied").write_text("yes")
"""
    code = f"""
import os, signal, sys
from pathlib import Path
from dev import commands, processes
signal.signal(signal.SIGTERM, commands._interrupt)
sys.exit(processes.run_in_foreground([sys.executable, "-c", {child!r}], os.environ, Path.cwd()))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"up\n"
    if number == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    else:
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert (tmp_path / "tidied").exists()


# -- server processes ---------------------------------------------------------------------------------------------

# Stands for ComfyUI: answers /system_stats, has a child process, writes both process ids into its base directory.
FAKE_MAIN = """
import http.server, json, os, pathlib, subprocess, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(options["--base-directory"], "pids.json").write_text(json.dumps([os.getpid(), child.pid]))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
print("fake ComfyUI is up", flush=True)
http.server.ThreadingHTTPServer((options["--listen"], int(options["--port"])), Answer).serve_forever()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until_gone(pids: list[int]) -> bool:
    for _ in range(100):
        if not any(map(alive, pids)):
            return True
        time.sleep(0.1)
    return False


def fake_server(tmp_path: Path, main: str = FAKE_MAIN, port: int = 0) -> server.ComfyServer:
    tree = make_tree(tmp_path / "a tree ü", main=main)
    base = server.make_base(tmp_path / "a base ü", None)
    return server.ComfyServer(tree, sys.executable, dict(os.environ), base, port)


def test_leaving_ends_the_server_and_its_children(tmp_path):
    with pytest.raises(KeyboardInterrupt), fake_server(tmp_path) as running:
        pids = json.loads((running.base / "pids.json").read_text())
        assert all(map(alive, pids))
        raise KeyboardInterrupt
    assert wait_until_gone(pids)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ctrl_c_on_serve_leaves_no_server_behind(tmp_path, number):
    tree = make_tree(tmp_path / "tree ü", main=FAKE_MAIN)
    code = f"""
import sys
from pathlib import Path
from dev import commands, environment
environment.Environment.prepare = lambda self, with_tools: None
environment.Environment.python_in = staticmethod(lambda venv: Path(sys.executable))
commands.make_base.__globals__["link_pack"] = lambda pack, custom_nodes: None
environment_made = commands.Environment
def in_scratch(tree):
    return environment_made(tree, state=Path({str(tmp_path / "state ü")!r}))
commands.Environment = in_scratch
sys.exit(commands.main(["serve", "--port", "0"]))
"""
    env = {**os.environ, "COMFYUI_PATH": str(tree), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    pid_file = tmp_path / "state ü" / "base" / "pids.json"
    for line in process.stdout:
        if "fake ComfyUI is up" in line:
            break
    pids = json.loads(pid_file.read_text())
    process.send_signal(getattr(signal, number))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert wait_until_gone(pids)


def test_a_dying_server_shows_the_end_of_its_log(tmp_path):
    main = "import sys\nfor n in range(100): print('line', n)\nprint('\\x1b[31mthe disk melted\\x1b[0m'); sys.exit(3)"
    with pytest.raises(DevError) as caught:
        fake_server(tmp_path, main).start()
    text = str(caught.value)
    assert "status 3" in text and "\nthe disk melted" in text and "line 99" in text and "line 9\n" not in text


def test_a_server_that_never_answers_is_given_up_and_ended(tmp_path):
    main = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    silent = fake_server(tmp_path, main)
    with pytest.raises(DevError, match="did not answer"):
        silent.start(patience=1.5)
    assert wait_until_gone([int((silent.base / "pid").read_text())])


def test_a_server_that_dies_ends_the_work_beside_it(tmp_path):
    main = FAKE_MAIN.replace("print(", "import threading; threading.Timer(1.5, os._exit, [7]).start()\nprint(")
    work = [sys.executable, "-c", "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"]
    with fake_server(tmp_path, main) as running:
        with pytest.raises(DevError, match="status 7(?s:.*)fake ComfyUI is up"):
            commands._run_beside(running, work, dict(os.environ), tmp_path)
    assert wait_until_gone([int((tmp_path / "pid").read_text())])


def test_work_that_fails_because_the_server_died_shows_the_servers_log(tmp_path):
    with fake_server(tmp_path) as running:
        running.process.kill()
        running.process.wait()
        with pytest.raises(DevError, match="ended with status(?s:.*)fake ComfyUI is up"):
            commands._run_beside(running, [sys.executable, "-I", "-S", "-c", "raise SystemExit(1)"], dict(os.environ), tmp_path)


def test_work_that_fails_beside_a_healthy_server_keeps_its_status(tmp_path):
    with fake_server(tmp_path) as running:
        assert commands._run_beside(running, [sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ), tmp_path) == 3


def test_a_pack_that_does_not_import_stops_the_start(tmp_path):
    failed = "print('Traceback: no module x'); print('0.0 seconds (IMPORT FAILED): custom_nodes/magdiff', flush=True)\n"
    with pytest.raises(DevError, match="could not import this pack"):
        fake_server(tmp_path, failed + FAKE_MAIN).start()


def test_a_taken_port_is_told_before_anything_is_started(tmp_path):
    with socket.socket() as other:
        other.bind((server.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        late = fake_server(tmp_path, port=port)
        with pytest.raises(DevError, match=rf"Port {port} cannot be used .*--port"):
            late.start()
        assert late.process is None
    server.check_port(port)


def test_server_command(tmp_path):
    made = fake_server(tmp_path, port=8123).command()
    options = dict(zip(made[2::2], made[3::2], strict=False))
    assert options["--listen"] == "127.0.0.1" and options["--port"] == "8123"
    assert options["--base-directory"] == str(tmp_path / "a base ü")
    assert options["--database-url"].startswith("sqlite:///") and "a base ü" in options["--database-url"]


def test_base_directory_is_ours_and_keeps_settings(tmp_path):
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("", "utf-8")
    base = server.make_base(tmp_path / "base", pack)
    settings = base / "user" / "default" / "comfy.settings.json"
    assert json.loads(settings.read_text()) == {"Comfy.TutorialCompleted": True}
    settings.write_text('{"mine": 1}')
    server.make_base(base, pack)  # a second time: the link is replaced, settings stay
    assert settings.read_text() == '{"mine": 1}'
    assert (base / "custom_nodes" / "magdiff" / "__init__.py").samefile(pack / "__init__.py")


def test_a_pack_is_copied_where_links_are_refused(tmp_path, monkeypatch):
    pack, nodes = tmp_path / "pack", tmp_path / "custom_nodes"
    (pack / "web").mkdir(parents=True)
    (pack / ".dev").mkdir()
    (pack / "web" / "a.js").write_text("1", "utf-8")
    nodes.mkdir()

    def refuse(*arguments, **options):
        raise OSError("no right to make links")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(server, "WINDOWS", False)
    for text in ("1", "2"):
        (pack / "web" / "a.js").write_text(text, "utf-8")
        place = server.link_pack(pack, nodes)
        assert (place / "web" / "a.js").read_text() == text and not (place / ".dev").exists()


def test_log_end(tmp_path):
    log = tmp_path / "log"
    assert processes.log_end(log) == ""
    log.write_bytes(b"one\ntw\xff\n\x1b[32mthree\x1b[0m\n")
    assert processes.log_end(log, 1) == "three" and "\N{REPLACEMENT CHARACTER}" in processes.log_end(log)


# -- browser, shim, workflows -------------------------------------------------------------------------------------


def test_chrome_path_is_taken_at_its_word(tmp_path):
    chrome = tmp_path / "chrome"
    chrome.write_text("")
    assert browser.find({"CHROME_PATH": str(chrome)}) == str(chrome)
    with pytest.raises(DevError, match="CHROME_PATH is .*none"):
        browser.find({"CHROME_PATH": str(tmp_path / "none")})


def test_without_a_browser_none_is_found(monkeypatch):
    monkeypatch.setattr(browser, "_places", lambda environ: iter(()))
    assert browser.find({}) is None


def test_shim_source_defines_exactly_what_is_missing():
    source = cuda_shim.stub_source({"_ZN3c104cuda3fooEv", "_ZN3c104cuda20CUDACachingAllocator9allocatorE"})
    assert 'void _ZN3c104cuda3fooEv(void) { refuse("_ZN3c104cuda3fooEv"); }' in source
    assert "void *_ZN3c104cuda20CUDACachingAllocator9allocatorE = 0;" in source


def test_without_a_compiler_the_shim_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_shim.shutil, "which", lambda name: None)
    with pytest.raises(DevError, match="apt install gcc"):
        cuda_shim.build(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


INFO = {
    "Maker": {"input": {"required": {
        "text": ["STRING", {}], "seed": ["INT", {"control_after_generate": True}], "kind": [["a", "b"], {}],
        "socket": ["FLOAT", {"forceInput": True}],
    }, "optional": {"more": ["COMBO", {"options": ["x"]}]}}},
    "Taker": {"input": {"required": {"image": ["IMAGE"], "size": ["INT", {}]}}},
}  # fmt: skip

PAGE = {
    "nodes": [
        {"id": 1, "type": "Maker", "widgets_values": ["hi", 7, "fixed", "b", "x"], "inputs": [{"name": "socket", "link": None}]},
        {"id": 2, "type": "Taker", "widgets_values": [3], "title": "the taker",
         "inputs": [{"name": "image", "link": 5}, {"name": "size", "widget": {"name": "size"}, "link": None}]},
        {"id": 3, "type": "MarkdownNote", "widgets_values": ["read me"]},
    ],
    "links": [[5, 1, 0, 2, 0, "IMAGE"]],
}  # fmt: skip


def test_workflow_conversion():
    assert workflow.to_api(PAGE, INFO) == {
        "1": {"class_type": "Maker", "inputs": {"text": "hi", "seed": 7, "kind": "b", "more": "x"}, "_meta": {"title": "Maker"}},
        "2": {"class_type": "Taker", "inputs": {"size": 3, "image": ["1", 0]}, "_meta": {"title": "the taker"}},
    }


def test_workflow_file_in_either_format(tmp_path):
    file = tmp_path / "w.json"
    for content in (PAGE, workflow.to_api(PAGE, INFO)):
        file.write_text(json.dumps(content), "utf-8")
        assert workflow.load(file, INFO) == workflow.to_api(PAGE, INFO)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"type": "Stranger"}, "Stranger, which the server does not know"), ({"mode": 4}, "muted or bypassed")],
)
def test_workflows_that_cannot_be_converted_are_refused(change, words):
    bad = {**PAGE, "nodes": [{**PAGE["nodes"][0], **change}]}
    with pytest.raises(ValueError, match=words):
        workflow.to_api(bad, INFO)


# -- the client against a real server -----------------------------------------------------------------------------


@pytest.mark.server
def test_queue_reports_progress_and_fetches_files(server, tmp_path):
    from PIL import Image

    picture = tmp_path / "grün 1.png"
    Image.new("RGB", (8, 6), (0, 200, 0)).save(picture)
    name = server.upload_image(picture)
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageScale", "inputs": {
            "image": ["1", 0], "upscale_method": "bilinear", "width": 16, "height": 12, "crop": "disabled"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "t"}},
    }  # fmt: skip
    events = []
    entry = server.queue(prompt, lambda kind, data: events.append(kind))
    assert entry["status"]["status_str"] == "success"
    assert "execution_start" in events and events[-1] == "execution_success"
    (file,) = server.files(entry)
    assert file["node"] == "3"
    with Image.open(io.BytesIO(server.view(file))) as made:
        assert made.size == (16, 12) and made.convert("RGB").getpixel((3, 3)) == (0, 200, 0)


@pytest.mark.server
def test_nothing_is_written_into_the_folders_of_the_comfyui_that_runs(server):
    """Pictures, settings, the database and logs go into the base directory; compiled files have a test of their own."""
    server.queue({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "mine"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    })  # fmt: skip
    server.post("/settings/Comfy.Magdiff.Test", 1)
    assert list((server.base / "output").glob("mine*.png")) and (server.base / "user" / "comfyui.db").is_file()
    written = [
        str(Path(folder, name))
        for folder, _, names in os.walk(comfyui_folder())
        for name in names
        if Path(folder).name != "__pycache__" and ROOT not in Path(folder, name).parents
        and os.path.getmtime(Path(folder, name)) >= server.started
    ]  # fmt: skip
    assert not written


@pytest.mark.server
def test_refused_prompts_and_failing_nodes_are_errors(server):
    with pytest.raises(client.PromptRefused) as refused:
        server.queue({"1": {"class_type": "EmptyImage", "inputs": {"width": -1, "height": 8, "batch_size": 1, "color": 0}},
                      "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})  # fmt: skip
    assert refused.value.node_errors["1"]["errors"][0]["type"] == "value_smaller_than_min"
    with pytest.raises(client.ExecutionFailed) as failed:
        server.queue({
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
            "2": {"class_type": "ImageCrop", "inputs": {"image": ["1", 0], "width": 4, "height": 4, "x": 0, "y": 0}},
            "3": {"class_type": "ImageToMask", "inputs": {"image": ["2", 0], "channel": "alpha"}},
            "4": {"class_type": "MaskPreview", "inputs": {"mask": ["3", 0]}},
        })  # fmt: skip
    assert failed.value.node_type == "ImageToMask" and failed.value.node_id == "3"
