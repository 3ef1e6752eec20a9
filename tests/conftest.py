"""Fixtures that need ComfyUI, and the option --no-skips."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Both the clone and ComfyUI have a top-level `nodes`; ComfyUI's must be found first, however pytest was started.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT] + [str(ROOT)]
# A run in the background starts with Ctrl-C ignored, which the programs that tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="count a skipped test as a failure")


def pytest_configure(config: pytest.Config) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # end as with Ctrl-C, so that fixtures stop their servers
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)


def pytest_sessionfinish(session: pytest.Session) -> None:
    skipped = _skipped(session.config)
    if session.config.getoption("--no-skips") and skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--no-skips") and _skipped(config):
        terminalreporter.write_line("--no-skips: the skipped tests above make this run fail", red=True)


def _skipped(config: pytest.Config) -> list:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("skipped", []) if reporter else []


@pytest.fixture(scope="session")
def comfy_session(tmp_path_factory: pytest.TempPathFactory):
    """ComfyUI's libraries in this process, on the CPU, with a temporary base directory.

    Gives the module magdiff_core.host.session; afterwards `import comfy`, `folder_paths` and `nodes` are ComfyUI's.
    """
    from dev.server import make_base
    from magdiff_core.host import session

    session.start(make_base(tmp_path_factory.mktemp("in-process"), None), ("--cpu",))
    return session


@pytest.fixture(scope="session")
def pack(comfy_session) -> dict[str, type]:
    """Our node classes by node id, loaded by ComfyUI's own loader."""
    return comfy_session.load_pack(ROOT)


@pytest.fixture(scope="module")
def rig(comfy_session):
    """The module tests/tiny_run.py: the tiny model, adapters and conditioning for it, and runs of it."""
    import tiny_run

    return tiny_run


@pytest.fixture(scope="module")
def base(rig):
    """The tiny model without an adapter, one for all tests of a file."""
    return rig.tiny_model()


@pytest.fixture(scope="module")
def adapted(rig, base):
    """`base` with an adapter, every part on."""
    return rig.adapted(base)


@pytest.fixture(scope="module")
def vanilla(rig, base):
    """The latent that `base` makes."""
    return rig.run(base, *rig.prompts())


@pytest.fixture(scope="module")
def full(rig, adapted):
    """The latent that `adapted` makes of the whole conditioning."""
    return rig.run(adapted, *rig.wired())


@pytest.fixture
def little_memory(comfy_session, monkeypatch: pytest.MonkeyPatch):
    """Every load gets a budget of `share` of the model's size, as core does with little VRAM."""
    from comfy.model_patcher import ModelPatcher

    load, offloaded = ModelPatcher.load, []

    def apply(share):
        def partial(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
            budget = int(self.model_size() * share)
            load(self, device_to, lowvram_model_memory=budget, force_patch_weights=force_patch_weights, full_load=False)
            offloaded.append((type(self.model).__name__, self.model.model_lowvram, self.model.lowvram_patch_counter))

        monkeypatch.setattr(ModelPatcher, "load", partial)
        return offloaded

    return apply


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A running ComfyUI with our pack; its path has a space and a letter outside ASCII on purpose."""
    from comfy_server import RunningServer

    running = RunningServer(tmp_path_factory.mktemp("server") / "base with ü")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The browser's own folder, kept between tests: with what it has cached the page opens much faster."""
    return tmp_path_factory.mktemp("browser") / "profile"


@pytest.fixture
def page(server, browser_profile: Path, tmp_path: Path):
    """ComfyUI's page in a newly started headless browser, ready for use; fails at the end if a script raised.

    Skipped when there is no Chrome, Chromium or Edge.  See tests/browser/driver.py for what to do with it.
    """
    from browser import driver

    from dev import browser

    chrome = browser.find()
    if chrome is None:
        pytest.skip("SKIPPED: no Chrome, Chromium or Edge found (CHROME_PATH names one)")
    with driver.launched(chrome, browser_profile) as opened:
        driver.open_app(opened, server.url)
        yield opened
        screenshots = os.environ.get("MAGDIFF_SCREENSHOTS")
        if screenshots:
            Path(screenshots).mkdir(parents=True, exist_ok=True)
            opened.screenshot(path=str(Path(screenshots) / f"{tmp_path.name}.png"))
        assert not opened.script_errors, opened.script_errors
