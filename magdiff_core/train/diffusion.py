"""Last stage of the small model: UNet, adapter and text encoder together, from scratch.

The paper starts from a text-to-video model and freezes most of it. There is no such model of this size, so everything is
trained at once: a departure, like v-prediction with zero terminal SNR (a background of one colour fills the whole clip, and with
the usual schedule its mean shows through the strongest noise, so sampling from pure noise would follow the noise instead
of the prompt).
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import torch
from torch import autocast

from ..host import own_checkpoint
from ..host.conds import EDIT as EDIT_MODE
from ..host.conds import GENERATE as GENERATE_MODE
from ..host.conds import SubjectLatents, SubjectTokens
from ..host.training import TrainingModel, encode_pictures, encode_text, token_ids
from . import autoencoder as autoencoder_stage
from . import image_stream, subject_encoder
from .alignments import ALL, Alignments
from .batches import EDIT, GENERATE, MOTION, PATTERN, PROMPTS, REPLACE, TOKENS, Batch, BatchSource, draw_batch
from .checkpoint import MovingAverage
from .export import ADAPTER_PREFIX, read_files, write_files
from .loop import Schedule, train
from .new_adapter import adapter_config, new_adapter_weights
from .optimizer import MuonAndAdamW
from .word_readout import WordReadout

logger = logging.getLogger("magdiff")

IMAGE_VALUE_GAIN = 3.0
"""As `own_checkpoint.CROSS_ATTENTION_GAIN`, for the values of the image tokens, whose part the subject latent shares."""
STRONG_NOISE = 900
STRONG_SHARE = 0.15
"""Share of the timesteps that is drawn from `STRONG_NOISE` to 999. A still background covers thousands of latent pixels, so
its colour can be read off the noisy input below that: only above it does the prompt matter, and sampling starts there.
The weak noise matters as well: what is wrong at its end stays in the clip. Measured after 24492 steps, of which few batches saw
timesteps below 250: given a true clip with the noise of 241, the clean latents of the background were off by 0.027 (mean square,
variance 0.9), of the subjects of edits (three in ten replacements) by 0.094, although subject latents are off by 0.03 alone."""
EVEN_FROM = {PROMPTS: 900, PATTERN: 960, TOKENS: 700, MOTION: 800, REPLACE: 500}
"""Batches of these kinds draw their timesteps evenly from this one on. A subject is small: where it goes and what it is can be read
off the input below 700 and 500. A still pattern can be read off the input up to 960, where sampling begins."""

PROMPT_BATCHES = 150
"""Batches at the start that hold prompts and strong noise alone. Measured: the background follows the prompt after 100 of
them. A model that begins with subjects and all noises learns to do without prompts and was still doing so after 1800."""


def draw_timesteps(count: int, generator: torch.Generator, kind: str = GENERATE) -> torch.Tensor:
    """`[count]` in 0..999: `STRONG_SHARE` above `STRONG_NOISE`, the others below it, both evenly.

    Batches of a kind in `EVEN_FROM` get no timestep below the one there, and all others evenly.
    """
    draw = torch.rand(count, generator=generator)
    if kind in EVEN_FROM:
        return (EVEN_FROM[kind] + (1000 - EVEN_FROM[kind]) * draw).long()
    strong = torch.rand(count, generator=generator) < STRONG_SHARE
    return torch.where(strong, STRONG_NOISE + (1000 - STRONG_NOISE) * draw, STRONG_NOISE * draw).long()


NOT_INSIDE = ("embedding.", "input_blocks.0.0.", "diffusion_model.out.", "conv_z.", "word_readout.")
"""Parts of the names of matrices that Muon is not meant for: tables and the first and last layers. Measured for all others, on the
same 100 batches from the same weights at a rate of 7e-4, the last 60 of them: the loss of generated clips is 6.7 % lower than with
AdamW alone (standard error 0.7), of edits 6.2 % (0.6); a step takes a tenth longer."""

WORD_WEIGHT = 0.05
"""Weight of the loss of `WordReadout`."""
READOUT_PREFIX = "word_readout."
"""Before the names of its parameters; no file holds them."""


class Stage:
    """The trainable parts, put together as a loaded checkpoint with an adapter."""

    def __init__(
        self,
        config: dict,
        autoencoder: torch.nn.Module | None = None,
        seed: int = 0,
        encoder: dict[str, torch.Tensor] | None = None,
        start: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None,
        alphas: tuple[float, float] | None = None,
    ) -> None:
        """`autoencoder`, `encoder`: of the stages before, else untrained. What they hold stays frozen, the Resampler too.

        `start`: checkpoint and adapter to go on from (`read_files`), which hold both of them. `alphas`: as in `Alignments`.
        """
        torch.manual_seed(seed)
        self.config = config
        weights = own_checkpoint.fresh_state_dict(config)
        if autoencoder is not None:
            weights |= {own_checkpoint.VAE_PREFIX + name: value for name, value in autoencoder.state_dict().items()}
        if start is not None:
            weights |= start[0]
        prefix = own_checkpoint.UNET_PREFIX
        unet = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        token_width = config["unet"]["context_dim"]
        self.adapter_config = adapter_config(
            config["image_encoder"]["hidden_size"], token_width // config["unet"]["num_head_channels"],
            config["latent_scale"], config["prediction"],
        )  # fmt: skip
        gain = own_checkpoint.CROSS_ATTENTION_GAIN
        adapter_weights = new_adapter_weights(unet, self.adapter_config, token_width, gain["to_k"], IMAGE_VALUE_GAIN)
        if start is not None:
            adapter_weights |= start[1]
        self.loaded = own_checkpoint.assemble(weights, config)
        self.training = TrainingModel(self.loaded.model, adapter_weights, self.adapter_config)
        self.modules = own_checkpoint.modules_of(self.loaded)
        for prefix in (own_checkpoint.TEXT_PREFIX, own_checkpoint.IMAGE_PREFIX):
            # ComfyUI holds encoders in half precision, which is too coarse for an optimiser
            self.modules[prefix].float().requires_grad_(prefix == own_checkpoint.TEXT_PREFIX)
        self.words = WordReadout(len(config["text_encoder"]["words"]), token_width)
        self.training.adapter.projector.requires_grad_(False)
        if alphas is not None:
            self._hold_alphas(*alphas)
        if encoder is not None:
            subject_encoder.put(encoder, self.modules[own_checkpoint.IMAGE_PREFIX], self.training.adapter.projector)
            image_stream.start_loud(self.loaded, self.training.adapter)

    def _hold_alphas(self, text: float, image: float) -> None:
        streams = self.training.adapter.apa
        for stream in (streams.find(site) for site in streams.sites):
            for alpha, value in ((stream.alpha_text, text), (stream.alpha_image, image)):
                torch.nn.init.constant_(alpha.requires_grad_(False), value)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by file key (adapter keys behind `ADAPTER_PREFIX`)."""
        modules = {**self.modules, ADAPTER_PREFIX: self.training.adapter, READOUT_PREFIX: self.words}
        return {
            prefix + name: parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def state_dicts(self, values: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Weights of the checkpoint and of the adapter with `values` in place of the trained ones."""
        checkpoint = {
            prefix + name: value for prefix, module in self.modules.items() for name, value in module.state_dict().items()
        }
        adapter = dict(self.training.adapter.state_dict())
        for name, value in values.items():
            if name.startswith(ADAPTER_PREFIX):
                adapter[name.removeprefix(ADAPTER_PREFIX)] = value
            elif not name.startswith(READOUT_PREFIX):
                checkpoint[name] = value
        return checkpoint, adapter


def loss_of_batch(stage: Stage, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """Mean square error of v at a random timestep a clip (`draw_timesteps`), weighed by the batch, plus that of `WordReadout`."""
    clean = batch.latents * stage.config["latent_scale"]
    clips = len(clean)
    row = torch.arange(clips) // batch.group
    timestep = draw_timesteps(clips, generator, batch.kind)[row]
    noise = torch.randn(clean.shape, generator=generator)[row]
    signal, spread = (share[:, None, None, None, None] for share in stage.training.signal_and_noise(timestep))
    tokens = latents = None
    with autocast("cpu", torch.bfloat16):
        ids = [token_ids(stage.loaded, prompt) for prompt in batch.prompts]
        context = encode_text(stage.loaded, ids)
        if batch.pictures is not None:
            # the black picture is the same in every row: it is encoded once
            pictures = torch.cat([batch.pictures[:, :-1].flatten(0, 1), batch.pictures[:1, -1]])
            with torch.no_grad():
                hidden = encode_pictures(stage.loaded, pictures)
            subject, dark = hidden[:-1].unflatten(0, (clips, -1)), hidden[-1].expand(clips, 1, -1, -1)
            tokens = SubjectTokens({"last": torch.cat([subject, dark], 1)}, black_entry=True)
        if batch.pyramid is not None:
            mode = EDIT_MODE if batch.kind in (EDIT, REPLACE) else GENERATE_MODE
            latents = SubjectLatents(batch.pyramid, clean.shape[1], mode)
        result = stage.training.predict(signal * clean + spread * noise, timestep, context, tokens, latents)
    error = (result.float() - (signal * noise - spread * clean)).square()
    words = stage.words.loss(context, torch.tensor(ids))
    return (error * batch.weight).mean() / batch.weight.mean() + WORD_WEIGHT * words


def run(
    folder: Path,
    autoencoder: Path | None = None,
    encoder: Path | None = None,
    start_from: Path | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 8,
    rate: float = 8e-4,
    seed: int = 0,
    resume: bool = False,
    decay_from: float = 2 / 3,
    warm_up: int = 100,
    alignments: Alignments = ALL,
    config: dict | None = None,
) -> None:
    """Writes the two model files into `folder` at each save.

    `autoencoder`, `encoder`: `autoencoder.pt` and `subject_encoder.pt` of the stages before. Instead of both `start_from`: a
    folder with the two model files, whose training goes on with a fresh optimiser.

    Raises:
        ValueError: neither both nor `start_from`, or all of them.
        OSError: a file is missing.
    """
    config = config or own_checkpoint.MINI_CONFIG
    if start_from is not None and not (autoencoder or encoder):
        stage = Stage(config, seed=seed, start=read_files(start_from), alphas=alignments.alphas)
        vae = stage.loaded.vae.first_stage_model.float()
    elif start_from is None and autoencoder and encoder:
        vae = autoencoder_stage.load(autoencoder, config["autoencoder"])
        stage = Stage(config, vae, seed, subject_encoder.load(encoder), alphas=alignments.alphas)
    else:
        raise ValueError("give --autoencoder and --encoder to begin, or --start-from alone to go on from a pair of model files")

    def draw(generator: torch.Generator, number: int) -> Batch:
        if start_from is None and number < PROMPT_BATCHES:
            return draw_batch(vae, 2 * batch, generator, PROMPTS)  # of two frames, so not more work
        return draw_batch(vae, batch, generator, alignments=alignments)

    source = BatchSource(draw)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        return loss_of_batch(stage, source.next(generator), generator)

    def export(average: MovingAverage, step: int) -> None:
        write_files(folder, *stage.state_dicts(average.values), config, stage.adapter_config)
        logger.info("wrote the model files of step %d", step)

    train(
        stage.parameters(), loss_of, Schedule(rate, steps, seconds, warm_up, decay_from), folder, seed, resume, export,
        source.state_dict, source.load_state_dict, make_optimizer=functools.partial(MuonAndAdamW, apart=NOT_INSIDE),
    )  # fmt: skip
