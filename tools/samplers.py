"""Writes tests/goldens/samplers.json: what diffusers' samplers make of a made-up model, for settings that no pipeline
of goldens has. Needs torch and diffusers:

    python tools/samplers.py tests/goldens/samplers.json

Call i of the model says (0.3 + 0.05 i) * shown + (0.5 - 0.02 i) * noise. Everything is f64, on a few values. Noise k is fresh[k].
"""
import json
import sys

import numpy as np
import torch
import diffusers

BASE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SIZE, FRESH = 6, 24
generator = torch.Generator().manual_seed(7)
draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float32).double()
x0, noise, fresh = draw(SIZE), draw(SIZE), draw(FRESH, SIZE)

# sampler, steps, class, settings of the class
CASES = [
    ("heun", 6, "HeunDiscreteScheduler", {}),
    ("heun", 6, "HeunDiscreteScheduler", dict(use_karras_sigmas=True)),
    ("heun", 5, "HeunDiscreteScheduler", dict(timestep_spacing="leading", steps_offset=1)),
    ("dpmpp_sde", 6, "DPMSolverSDEScheduler", {}),
    ("dpmpp_sde", 6, "DPMSolverSDEScheduler", dict(use_karras_sigmas=True)),
    ("dpmpp_sde", 5, "DPMSolverSDEScheduler", dict(timestep_spacing="trailing")),
    ("lcm", 4, "LCMScheduler", dict(clip_sample=False)),
    ("lcm", 7, "LCMScheduler", dict(clip_sample=False)),
    ("unipc", 8, "UniPCMultistepScheduler", {}),
    ("unipc", 8, "UniPCMultistepScheduler", dict(use_karras_sigmas=True)),
    ("unipc", 7, "UniPCMultistepScheduler", dict(timestep_spacing="trailing")),
    ("unipc", 1, "UniPCMultistepScheduler", {}),
    ("dpmpp_2m_sde", 8, "DPMSolverMultistepScheduler", dict(algorithm_type="sde-dpmsolver++")),
    ("dpmpp_2m", 20, "DPMSolverMultistepScheduler", dict(timestep_spacing="trailing")),
    ("dpmpp_2m", 1, "DPMSolverMultistepScheduler", {}),
    ("euler_a", 7, "EulerAncestralDiscreteScheduler", dict(timestep_spacing="leading", steps_offset=1)),
    ("euler", 7, "EulerDiscreteScheduler", dict(timestep_spacing="trailing")),
    ("ddim", 7, "DDIMScheduler", dict(timestep_spacing="linspace", clip_sample=False)),
    ("ddpm", 7, "DDPMScheduler", dict(timestep_spacing="trailing", clip_sample=False)),
    ("pndm", 7, "PNDMScheduler", dict(skip_prk_steps=True, timestep_spacing="trailing")),
    ("pndm", 3, "PNDMScheduler", dict(skip_prk_steps=True, set_alpha_to_one=True, steps_offset=1)),
]
ZERO_SNR = [
    ("ddim", 6, "DDIMScheduler", dict(clip_sample=False)),
    ("euler", 6, "EulerDiscreteScheduler", {}),
    ("dpmpp_2m", 6, "DPMSolverMultistepScheduler", {}),
    ("unipc", 6, "UniPCMultistepScheduler", {}),
]
CASES = [(*case[:3], dict(case[3], prediction_type=p)) for p in ("epsilon", "v_prediction") for case in CASES] + [
    (*case[:3], dict(case[3], prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    for case in ZERO_SNR
]


class Brownian:
    """The motion whose increments between a step's two calls are fresh[2i] and fresh[2i + 1], by their lengths."""

    def __init__(self, sigmas):
        self.sigmas = [float(s) for s in dict.fromkeys(sigmas.tolist())]

    def __call__(self, sigma, to):
        sigma, to = float(sigma), float(to)
        i = min(range(len(self.sigmas)), key=lambda i: abs(self.sigmas[i] - sigma))
        middle = (self.sigmas[i] * self.sigmas[i + 1]) ** 0.5
        there, on = (noise.reshape(1, SIZE, 1, 1) for noise in fresh[2 * i : 2 * i + 2])
        if abs(to - middle) < 1e-4 * middle:
            return there
        return ((sigma - middle) ** 0.5 * there + (middle - to) ** 0.5 * on) / (sigma - to) ** 0.5


def zero_snr(last):
    """The rescaled table in f64: diffusers goes through betas in f32, which moves it by 5e-6."""
    root = diffusers.DDIMScheduler(**BASE).alphas_cumprod.double().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return torch.cat([root[:-1] ** 2, torch.tensor([last], dtype=torch.float64)])


def run(steps, name, settings):
    scheduler = getattr(diffusers, name)(**BASE, **settings)
    for table in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        if isinstance(getattr(scheduler, table, None), torch.Tensor):
            setattr(scheduler, table, getattr(scheduler, table).double())
    if settings.get("rescale_betas_zero_snr"):
        scheduler.alphas_cumprod = zero_snr(0.0 if name == "DDIMScheduler" else 2**-24)
    scheduler.set_timesteps(steps)
    drawn = iter(fresh)
    for module in ("scheduling_euler_ancestral_discrete", "scheduling_lcm", "scheduling_dpmsolver_multistep", "scheduling_ddpm"):
        setattr(getattr(diffusers.schedulers, module), "randn_tensor", lambda shape, **_: next(drawn).reshape(shape))
    if name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler = Brownian(scheduler.sigmas)
    init = float(scheduler.init_noise_sigma)
    x, samples = (x0 * init).reshape(1, SIZE, 1, 1), []
    for i, t in enumerate(scheduler.timesteps):
        shown = scheduler.scale_model_input(x, t)
        output = (0.3 + 0.05 * i) * shown + (0.5 - 0.02 * i) * noise.reshape(1, SIZE, 1, 1)
        x = scheduler.step(output, t, x, return_dict=False)[0].double()
        samples.append(x.flatten().tolist())
    return dict(timesteps=[float(t) for t in scheduler.timesteps], init_noise_sigma=init, samples=samples)


def main():
    cases = []
    for sampler, steps, name, settings in CASES:
        cases.append(dict(sampler=sampler, steps=steps, config=dict(BASE, **settings), **run(steps, name, settings)))
    table = dict(
        versions=dict(torch=torch.__version__, diffusers=diffusers.__version__),
        x0=x0.tolist(), noise=noise.tolist(), fresh=fresh.tolist(), cases=cases,
    )
    round_trip = json.loads(json.dumps(table), parse_float=lambda s: float(np.format_float_positional(float(s), precision=10, fractional=False)))
    with open(sys.argv[1], "w") as file:
        file.write("{" + ",\n".join(f"{json.dumps(k)}: " + ("[\n" + ",\n".join(map(json.dumps, v)) + "]" if k == "cases" else json.dumps(v)) for k, v in round_trip.items()) + "}\n")


main()
