"""Noise schedules of adapters: against the sampling loop of the released VideoCrafter and DynamiCrafter code, written out."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy_session")

STEPS = 1000


def config(prediction="v", **schedule):
    from magdiff_core.adapter import AdapterConfig, ScheduleConfig

    return AdapterConfig(prediction=prediction, schedule=ScheduleConfig(**schedule))


def released_schedule(zero_snr: bool, base_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`a_t` and `s_t`: betas first, then rescaled, as the released code builds them."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    if zero_snr:
        root = torch.cumprod(1 - betas, 0).sqrt()
        first, last = root[0].clone(), root[-1].clone()
        root = (root - last) * first / (first - last)
        alphas = torch.cat((root[:1] ** 2, root[1:] ** 2 / root[:-1] ** 2))
        betas = 1 - alphas
    scale = torch.cat((torch.linspace(1.0, base_scale, 400, dtype=torch.float64), torch.full((STEPS,), base_scale)))
    return torch.cumprod(1 - betas, 0), scale[:STEPS].double()


def network(x: torch.Tensor, t: int) -> torch.Tensor:
    """Stands for the UNet."""
    return torch.tanh(0.7 * x + 0.3 * x.roll(1, -1)) * (1.0 + t / 2000)


def released_ddim(x, timesteps, prediction, zero_snr, base_scale) -> list[torch.Tensor]:
    """The latent after each step but the last, whose end differs (see `sampled`)."""
    alphas, scales = released_schedule(zero_snr, base_scale)
    latents = []
    for t, following in zip(timesteps, timesteps[1:], strict=False):
        out = network(x, t)
        root, noise = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        if prediction == "v":
            eps, x0 = root * out + noise * x, root * x - noise * out
        else:
            eps, x0 = out, (x - noise * out) / root
        x0 = x0 * (scales[following] / scales[t])
        x = alphas[following].sqrt() * x0 + (1 - alphas[following]).sqrt() * eps
        latents.append(x)
    return latents


def sampled(start, timesteps, sampling) -> list[torch.Tensor]:
    """ComfyUI's Euler step (its DDIM) over the same timesteps, in its own terms; latents as the network would see them."""
    from comfy.k_diffusion.sampling import sample_euler

    sigmas = sampling.sigmas[timesteps]

    def denoised(x, sigma, **kwargs):
        x_in = sampling.calculate_input(sigma, x)
        (t,) = set(sampling.timestep(sigma).tolist())
        return sampling.calculate_denoised(sigma, network(x_in, t), x)

    seen = []
    x = sampling.noise_scaling(sigmas[:1], start, torch.zeros_like(start), max_denoise=True)

    def keep(step):
        seen.append(sampling.calculate_input(step["sigma"][None], step["x"]))

    sample_euler(denoised, x, sigmas, callback=keep, disable=True)
    assert torch.allclose(seen[0], start, rtol=1e-5), "the network sees the noise as it is"
    return seen[1:]


@pytest.mark.parametrize(
    ("prediction", "zero_snr", "base_scale", "start"),
    [("v", True, 0.7, 999), ("v", True, 0.3, 999), ("eps", False, 0.7, 981), ("v", False, 1.0, 981), ("eps", False, 1.0, 981)],
)
def test_ddim_with_dynamic_rescale(prediction, zero_snr, base_scale, start):
    from magdiff_core.host.schedule import AdapterEps, AdapterV

    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    timesteps = list(range(start, 0, -98))
    given = config(prediction, zero_terminal_snr=zero_snr, base_scale=base_scale)
    sampling = (AdapterV if prediction == "v" else AdapterEps)(given.schedule).double()
    ours = sampled(noise, timesteps, sampling)
    wanted = released_ddim(noise, timesteps, prediction, zero_snr, base_scale)
    assert len(ours) == len(wanted) - 1 > 8
    for a, b in zip(ours, wanted, strict=False):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


def test_plain_schedules_are_cores():
    """Without a scale ours is core's: the linear betas of AnimateDiff, and zero terminal signal."""
    import comfy.model_sampling

    from magdiff_core.host.schedule import AdapterSampling

    class Settings:
        sampling_settings = {"beta_schedule": "sqrt_linear", "linear_start": 0.00085, "linear_end": 0.012}

    linear = comfy.model_sampling.ModelSamplingDiscrete(Settings)
    torch.testing.assert_close(AdapterSampling(config(beta="linear").schedule).sigmas, linear.sigmas, rtol=1e-5, atol=1e-6)
    zero = comfy.model_sampling.ModelSamplingDiscrete(zsnr=True)
    ours = AdapterSampling(config(zero_terminal_snr=True).schedule)
    torch.testing.assert_close(ours.sigmas[:-1], zero.sigmas[:-1], rtol=1e-3, atol=1e-6)
    assert ours.sigmas[-1].item() == pytest.approx(zero.sigmas[-1].item(), rel=1e-3) and ours.zsnr


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_without_a_scale_the_factors_are_cores(prediction):
    import comfy.model_sampling

    from magdiff_core.host.schedule import AdapterEps, AdapterV

    core_kind = comfy.model_sampling.EPS if prediction == "eps" else comfy.model_sampling.V_PREDICTION

    class Core(comfy.model_sampling.ModelSamplingDiscrete, core_kind):
        pass

    core, ours = Core(), (AdapterV if prediction == "v" else AdapterEps)(config(base_scale=1.0).schedule)
    x, out = torch.randn(4, 2), torch.randn(4, 2)
    # between the steps, and beyond both ends
    sigma = torch.tensor([0.05, 0.7, 3.3, 14.0])
    for name, args in (("calculate_input", (sigma, x)), ("calculate_denoised", (sigma, out, x))):
        torch.testing.assert_close(getattr(ours, name)(*args), getattr(core, name)(*args), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(ours.noise_scaling(sigma, x, out), core.noise_scaling(sigma, x, out.clone()))


def test_an_adapter_brings_its_schedule_and_takes_it_away(comfy_session):
    import tiny_run as run

    from magdiff_core.host.schedule import AdapterV

    base = run.tiny_model("v")
    loaded = run.adapter(base, prediction="v", schedule=config(zero_terminal_snr=True, base_scale=0.7).schedule)
    with_it = run.apply_adapter(base, loaded, run.PartStrengths())
    assert isinstance(with_it.get_model_object("model_sampling"), AdapterV)
    assert not isinstance(base.get_model_object("model_sampling"), AdapterV)
    off = run.apply_adapter(with_it, loaded, run.PartStrengths(temporal=0.0))
    assert not isinstance(off.get_model_object("model_sampling"), AdapterV)
    plain = run.apply_adapter(with_it, run.adapter(base, prediction="v"), run.PartStrengths())
    assert not isinstance(plain.get_model_object("model_sampling"), AdapterV)
    out = run.run(with_it, *run.wired(), steps=3)
    assert torch.isfinite(out).all()
    assert torch.equal(run.run(base, *run.prompts()), run.run(run.tiny_model("v"), *run.prompts())), "the base is untouched"


def test_a_schedule_that_another_node_set_is_back_when_ours_goes(comfy_session):
    import tiny_run as run
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    from magdiff_core.host.schedule import AdapterV

    base = ModelSamplingDiscrete().patch(run.tiny_model(), "v_prediction", True)[0]
    theirs = base.get_model_object("model_sampling")
    loaded = run.adapter(base, prediction="v", schedule=config(beta="linear").schedule)
    model = run.apply_adapter(base, loaded, run.PartStrengths())
    again = run.apply_adapter(model, loaded, run.PartStrengths(image_stream=0.5))
    for with_it in (model, again):
        assert isinstance(with_it.get_model_object("model_sampling"), AdapterV)
    for off in (run.PartStrengths(temporal=0.0), run.PartStrengths(0.0, 0.0, 0.0, 0.0)):
        assert run.apply_adapter(again, loaded, off).get_model_object("model_sampling") is theirs
    assert base.get_model_object("model_sampling") is theirs


def test_the_sampler_node_starts_where_the_weights_were_trained(comfy_session):
    import tiny_run as run

    from magdiff_core.host.sampling import sample, scheduler_of

    base = run.tiny_model("v")
    loaded = run.adapter(base, prediction="v", schedule=config(zero_terminal_snr=True).schedule)
    model = run.apply_adapter(base, loaded, run.PartStrengths())
    assert (scheduler_of(base), scheduler_of(model)) == ("ddim_uniform", "sgm_uniform")
    assert scheduler_of(run.apply_adapter(base, run.adapter(base, prediction="v"), run.PartStrengths())) == "ddim_uniform"
    positive, negative = run.wired()
    latent = {"samples": torch.zeros(run.FRAMES, 4, run.SIDE, run.SIDE)}
    ours = sample(model, positive, negative, latent, 3, 4, 5.0, 1.0)["samples"]
    import comfy.sample

    noise = comfy.sample.prepare_noise(latent["samples"], 3)
    stock = comfy.sample.sample(
        model, noise, 4, 5.0, "ddim", "sgm_uniform", positive, negative, latent["samples"], disable_pbar=True, seed=3
    )
    assert torch.equal(ours, stock)
