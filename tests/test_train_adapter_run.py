"""A whole training on real video files: resuming, stopping, what goes wrong, the command line, several processes."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_parts import FRAMES, SIZE, small_checkpoint, small_config, small_weights, write_clips

from magdiff_core.data.video_clips import Sampling
from magdiff_core.train.checkpoint import load_state

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def options(comfy_session, clips, cache, tmp_path):
    from magdiff_core.train.adapter_run import AdapterOptions

    sampling = Sampling(frames=FRAMES, size=SIZE, frame_rate=8.0)
    return AdapterOptions(
        clips, tmp_path / "out", 4, sampling=sampling, batch=2, rate=1e-3, cache=cache, save_steps=100, sample_steps=100
    )


class Killed(BaseException):
    """Not known to the loop: it has no chance to save."""


class Stop(Exception):
    pass


def run(options, resume=False, stop_after=None, with_error=Stop, **changes):
    from magdiff_core.train.adapter_run import Watcher
    from magdiff_core.train.adapter_run import run as run_training

    def after_step(step, loss):
        if step == stop_after:
            raise with_error

    watcher = Watcher(step=after_step, interruptions=(Stop,))
    return run_training(replace(options, resume=resume, **changes), small_checkpoint(), watcher=watcher)


@pytest.fixture
def no_samples(monkeypatch):
    from magdiff_core.train import adapter_run

    monkeypatch.setattr(adapter_run, "sample_sheet", lambda *_: torch.zeros(2, 2, 3))


@pytest.mark.parametrize("stage", ("text-to-video", "magdiff"))
def test_a_run_writes_adapter_samples_log_and_what_it_skipped(options, clips, tmp_path, stage):
    from PIL import Image

    from magdiff_core.host.adapter_file import load_adapter_file

    data = shutil.copytree(clips, tmp_path / "clips")
    (data / "bad.mp4").write_bytes(b"\0" * 999)
    (data / "bad.txt").write_text("x")
    (data / "silent.mp4").write_bytes(b"")
    path = run(options, data=data, stage=stage, steps=10, half=True, licence="CC0", base_name="small")
    skipped = (options.folder / "skipped.txt").read_text().splitlines()
    assert len(skipped) == 2 and "bad.mp4 cannot be read" in skipped[1] and "silent.txt" in skipped[0]
    loaded = load_adapter_file(str(path))
    assert loaded.config.licence == "CC0" and loaded.config.base == "small" and loaded.config.prediction == "v"
    assert loaded.config.trained_from == f"{stage}, 10 steps of 2, 3 clips of clips"
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    (picture,) = (options.folder / "samples").iterdir()
    columns = FRAMES + (stage == "magdiff")
    assert Image.open(picture).size == (columns * SIZE, 2 * SIZE)
    assert '"step": 10' in (options.folder / "log.jsonl").read_text()


def test_killed_or_stopped_runs_end_in_the_same_bits(options, tmp_path, no_samples):
    """The whole run, one that was stopped, and one that was killed after a save and had gone further."""
    final = []
    for name, events in (("whole", []), ("stopped", [(1, Stop), (3, Stop)]), ("killed", [(3, Killed)])):
        at = replace(options, folder=tmp_path / name, save_steps=2)
        for number, (step, error) in enumerate(events):
            with pytest.raises(error):
                run(at, resume=number > 0, stop_after=step, with_error=error)
        if name == "killed":
            assert load_state(at.folder / "state.pt")["step"] == 2
        path = run(at, resume=True)
        state = load_state(at.folder / "state.pt")
        final.append((load_file(path), state["parameters"], state["average"]["values"], state["extra"], state["generator"]))
        assert state["step"] == 4
    for other in final[1:]:
        for part, expected in zip(other, final[0]):
            if isinstance(part, dict):
                assert part.keys() == expected.keys()
                for key in part:
                    same = torch.equal(part[key], expected[key]) if torch.is_tensor(part[key]) else part[key] == expected[key]
                    assert same, key
            else:
                assert torch.equal(part, expected)


def test_an_adapter_is_never_half_written(options, tmp_path, no_samples, monkeypatch):
    from magdiff_core.train import adapter_stage

    path = run(options, steps=2, save_steps=1)
    before = path.read_bytes()

    def half_way(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(adapter_stage, "save_file", half_way)
    with pytest.raises(Killed):
        run(options, resume=True, save_steps=1)
    assert path.read_bytes() == before
    assert sorted(file.name for file in options.folder.iterdir() if file.is_file()) == [
        "adapter.safetensors", "skipped.txt", "state.pt"
    ]  # fmt: skip


def test_what_killed_runs_left_half_written_is_removed(options, no_samples):
    """A process that is killed while it saves cannot tidy up; eight gigabytes each time would fill the disk."""
    options.folder.mkdir()
    remains = [options.folder / f".{name}.123.part" for name in ("state.pt", "adapter.safetensors")]
    others = [options.folder / name for name in (".state.pt.part.txt", ".notes.123.part")]
    for file in remains + others:
        file.write_bytes(b"half")
    run(options, steps=1)
    assert not any(file.exists() for file in remains) and all(file.exists() for file in others)


def test_a_full_disk_stops_in_words_and_keeps_the_last_state(options, no_samples):
    run(options, steps=2)
    before = load_state(options.folder / "state.pt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*state.pt .*the one from before is still there.*make room"):
            run(options, resume=True, steps=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = load_state(options.folder / "state.pt")
    assert after["step"] == 2 and torch.equal(after["generator"], before["generator"])
    assert not list(options.folder.glob(".*part"))
    run(options, resume=True, steps=4)
    assert load_state(options.folder / "state.pt")["step"] == 4


@pytest.mark.parametrize("full", ("log.jsonl", "step_0000003.png"))
def test_a_full_disk_names_every_file_that_it_refuses(options, no_samples, full):
    """Log and sample pictures, too: the run stops there, and the state of the last save goes on."""
    run(options, steps=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(OSError, match=rf"cannot write .*{full} .*make room, then resume"):
            run(options, resume=True, steps=12, sample_steps=3 if full.endswith("png") else 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_state(options.folder / "state.pt")["step"] == 2
    run(options, resume=True, steps=3)
    assert load_state(options.folder / "state.pt")["step"] == 3


@pytest.mark.parametrize("what", ("loss", "gradients"))
def test_numbers_that_are_not_finite_stop_in_words_and_keep_the_last_state(options, no_samples, monkeypatch, what):
    from magdiff_core.train.engine import Engine

    run(options, steps=2)
    usual_run, usual_backward = Engine.run, Engine.backward
    if what == "loss":
        monkeypatch.setattr(Engine, "run", lambda self, *inputs: usual_run(self, *inputs) * float("nan"))
    else:
        monkeypatch.setattr(Engine, "backward", lambda self, loss, last: usual_backward(self, loss * float("inf"), last))
    message = rf"the .*{what} is .* at step 2: .*lower rate.*state.pt holds the weights of step 2"
    with pytest.raises(FloatingPointError, match=message):
        run(options, resume=True)
    state = load_state(options.folder / "state.pt")
    assert state["step"] == 2 and all(torch.isfinite(value).all() for value in state["parameters"].values())


def test_files_that_are_gone_or_damaged_are_named(options, cache, tmp_path, no_samples):
    with pytest.raises(FileNotFoundError, match="there is no folder or table"):
        run(options, data=tmp_path / "gone")
    own = replace(options, cache=tmp_path / "cache", steps=2)
    run(own)
    encoded = [file for file in sorted(own.cache.iterdir()) if not file.name.startswith("common")]
    from magdiff_core.train.adapter_cache import load

    encoded[0].write_bytes(b"broken")
    with pytest.raises(ValueError, match=rf"{encoded[0].name} is damaged .*delete it"):
        load(encoded[0])
    encoded[0].unlink()
    with pytest.raises(FileNotFoundError, match=rf"{encoded[0].name} is gone: .*--resume, which encodes it anew"):
        load(encoded[0])
    run(own, resume=True, steps=3)
    assert encoded[0].is_file()


def test_what_does_not_fit_is_refused_before_any_work(options, no_samples):
    with pytest.raises(ValueError, match="a batch of 3 cannot be cut into 2 parts"):
        run(options, batch=3, accumulate=2)
    run(options, steps=1)
    with pytest.raises(ValueError, match="holds a training already"):
        run(options)
    with pytest.raises(ValueError, match="a training with another batch and another seed"):
        run(options, resume=True, batch=1, seed=7)
    from magdiff_core.train.adapter_run import run as run_training

    with pytest.raises(ValueError, match="needs clip_vision"):
        run_training(replace(options, resume=True), replace(small_checkpoint(), clip_vision=None))


@pytest.fixture
def encoded(options, tmp_path, no_samples):
    """An adapter of one step; the files of three encoded clips and the one that they share."""
    path = run(options, steps=1, cache=tmp_path / "cache")
    (common,) = (tmp_path / "cache").glob("common-*")
    return path, sorted(set((tmp_path / "cache").glob("*.safetensors")) - {common}), common


def test_processes_share_one_batch(encoded):
    from magdiff_core.train.adapter_batches import ClipBatches

    _, files, _ = encoded
    empty = torch.zeros_like(load_file(files[0])["text"]).float()

    def draw(rank, processes):
        batches, generator = ClipBatches(files, empty, 4, 1, rank, processes), torch.Generator().manual_seed(2)
        return [batches.next(generator) for _ in range(3)]

    for whole, first, second in zip(draw(0, 1), draw(0, 2), draw(1, 2)):
        for name in ("latents", "noise", "timestep", "text"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(first, name), getattr(second, name)])), name
        assert torch.equal(whole.subjects["hidden"], torch.cat([first.subjects["hidden"], second.subjects["hidden"]]))


def test_every_clip_comes_once_a_round_and_prompts_are_dropped_at_the_paper_s_rate(encoded):
    from magdiff_core.train.adapter_batches import ClipBatches

    _, files, _ = encoded
    latents = [load_file(file)["latents"] for file in files]
    empty = torch.full_like(load_file(files[0])["text"], -7.0).float()
    batches, generator = ClipBatches(files, empty, 3, 1), torch.Generator().manual_seed(2)
    orders, dropped = set(), 0
    for _ in range(200):
        batch = batches.next(generator)
        order = tuple(next(n for n, known in enumerate(latents) if torch.equal(known, one)) for one in batch.latents)
        assert sorted(order) == [0, 1, 2]
        orders.add(order)
        dropped += sum(bool((text == -7.0).all()) for text in batch.text)
    assert len(orders) == 6 and dropped / 600 == pytest.approx(0.15, abs=0.04)


def test_subjects_are_encoded_as_the_nodes_do(options, clips, encoded):
    """Latents, tokens and pyramid in the cache are those of VAE Encode, Encode Subject Tokens and HFA Pyramid Encode."""
    from magdiff_core.data.video_clips import list_clips, read_clip
    from magdiff_core.host.adapter_file import load_adapter_file
    from magdiff_core.host.attach import apply_adapter
    from magdiff_core.host.call import PartStrengths
    from magdiff_core.host.conds import GENERATE
    from magdiff_core.host.encode import encode_subject_pyramid, encode_subject_tokens, subject_tokens
    from magdiff_core.host.training_encode import conditioning

    path, files, common_file = encoded
    loaded, common = small_checkpoint(), load_file(common_file)
    model = apply_adapter(loaded.model, load_adapter_file(str(path)), PartStrengths())
    (clip, *_), _ = list_clips(clips)
    frames, subject = read_clip(clip, options.sampling)
    latents = loaded.vae.encode(frames)
    cached = next(values for values in map(load_file, files) if torch.allclose(values["latents"], latents, atol=1e-5))
    rows = {name: value[None].float() for name, value in cached.items() if name not in ("latents", "text")}
    tokens, latents = conditioning(rows, common, "last", FRAMES)
    expected = subject_tokens(encode_subject_tokens(model, loaded.clip_vision, subject))
    assert tokens.black_entry is expected.black_entry is True
    assert torch.allclose(tokens.layers["last"], expected.layers["last"].float(), atol=1e-2)
    pyramid, _ = encode_subject_pyramid(loaded.vae, subject, GENERATE, SIZE, SIZE, FRAMES, "crop")
    assert latents.frames == FRAMES and latents.mode == GENERATE
    for level, other in zip(latents.levels, pyramid.levels):
        assert torch.allclose(level, other, atol=1e-4)


@pytest.fixture(scope="module")
def base_file(comfy_session, tmp_path_factory):
    from magdiff_core.host import own_checkpoint

    file = tmp_path_factory.mktemp("base") / "base.safetensors"
    own_checkpoint.save_own_checkpoint(file, small_weights(), small_config(), torch.float32)
    return file


def words(base_file, clips, out, *more):
    fixed = ["--size", str(SIZE), "--frames", str(FRAMES), "--batch", "2", "--rate", "1e-3", "--sample-steps", "100"]
    return ["adapter", "--base", str(base_file), "--data", str(clips), "--out", str(out), *fixed, *more]


def test_the_command_line_trains_stops_at_a_signal_and_goes_on(base_file, clips, tmp_path, no_samples, monkeypatch):
    import signal

    from magdiff_core.train import __main__, adapter_run

    main = __main__.main
    handler = signal.getsignal(signal.SIGTERM)
    main(words(base_file, clips, tmp_path / "whole", "--steps", "3"))
    with pytest.raises(SystemExit, match="ValueError: .*holds a training already"):
        main(words(base_file, clips, tmp_path / "whole", "--steps", "3"))
    with pytest.raises(SystemExit, match="FileNotFoundError: there is no file .*gone"):
        main(words(tmp_path / "gone", clips, tmp_path / "new", "--steps", "3"))

    drawn = adapter_run.ClipBatches.next

    def kill_in_the_second_step(self, generator):
        if self.drawn == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return drawn(self, generator)

    with monkeypatch.context() as patch:
        patch.setattr(adapter_run.ClipBatches, "next", kill_in_the_second_step)
        with pytest.raises(SystemExit, match="stopped; --resume goes on"):
            main(words(base_file, clips, tmp_path / "parts", "--steps", "3"))
    assert load_state(tmp_path / "parts" / "state.pt")["step"] == 2
    main(words(base_file, clips, tmp_path / "parts", "--steps", "3", "--resume"))
    whole, parts = (load_file(tmp_path / name / "adapter.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert signal.getsignal(signal.SIGTERM) is handler

    main(words(base_file, clips, tmp_path / "first", "--steps", "1", "--stage", "text-to-video"))
    main(words(base_file, clips, tmp_path / "second", "--steps", "1", "--adapter", str(tmp_path / "first" / "adapter.safetensors")))
    assert set(load_file(tmp_path / "second" / "adapter.safetensors")) == set(whole)


@pytest.mark.parametrize("sharded", (False, True), ids=("copies", "shards"))
def test_two_processes_train_what_one_does(base_file, clips, tmp_path, no_samples, sharded):
    """With a copy of the weights each; and with weights, moments and averages shared between them, resumed on the way."""
    pytest.importorskip("accelerate")
    from magdiff_core.train import __main__

    steps = ("--steps", "2", "--batch", "4", "--accumulate", "2")
    __main__.main(words(base_file, clips, tmp_path / "one", *steps))
    from magdiff_core.host.session import find_comfyui

    program = [str(ROOT / "tests" / "sharded_training.py")] if sharded else ["-m", "magdiff_core.train"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *program]
    environment = {
        **os.environ, "COMFYUI_PATH": str(find_comfyui()), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    for more in (["--steps", "1"], ["--resume"]) if sharded else ([],):
        arguments = words(base_file, clips, tmp_path / "two", *steps, "--cache", str(tmp_path / "one" / "cache"), *more)
        done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:
        assert torch.allclose(one[key], two[key], atol=2e-5), key
