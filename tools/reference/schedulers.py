"""Trajectories of every scheduler, from diffusers. See fixtures/README.md for the format.

With names of `CLASSES` as arguments, only these are made anew, and `later` in cases.json records the run.
"""

import contextlib
import copy
import functools
import json
import math
import sys
import warnings

import common
import torch
from common import write_cases, write_tensors
from safetensors.torch import load_file

import diffusers

warnings.filterwarnings("ignore")
diffusers.utils.logging.set_verbosity_error()

SEED = 20261123
SHAPE = (2, 2, 2, 2)
DRAWS = 64

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm-multistep": "DPMSolverMultistepScheduler",
    "dpm-singlestep": "DPMSolverSinglestepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2-ancestral": "KDPM2AncestralDiscreteScheduler",
    "dpmpp-sde": "DPMSolverSDEScheduler",
    "sa-solver": "SASolverScheduler",
    "tcd": "TCDScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "edm-euler": "EDMEulerScheduler",
    "edm-multistep": "EDMDPMSolverMultistepScheduler",
    "ipndm": "IPNDMScheduler",
    "ddim-parallel": "DDIMParallelScheduler",
    "ddpm-parallel": "DDPMParallelScheduler",
}
# Distilled models, with few steps.
DISTILLED = ("lcm", "tcd")
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SIGMAS = (None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


@functools.cache
def fields(kind):
    """The configuration fields of a class, with their defaults."""
    return dict(getattr(diffusers, CLASSES[kind])().config)


def base(kind):
    """Stable Diffusion's configuration, in the fields that the class has."""
    config = {**STABLE_DIFFUSION, "steps_offset": 1}
    if kind == "pndm":
        config["skip_prk_steps"] = True
    if kind.startswith(("ddim", "ddpm")):
        config["clip_sample"] = False
    if kind.startswith("ddim") or kind in ("lcm", "pndm"):
        config["set_alpha_to_one"] = False
    known = fields(kind)
    return {name: value for name, value in config.items() if name in known}


def product(kind):
    """Spacing × prediction type × sigma option, where the class has them."""
    known = fields(kind)
    predictions = PREDICTIONS[:2] if kind == "pndm" else PREDICTIONS
    if "prediction_type" not in known:
        predictions = (None,)
    for spacing in SPACINGS if "timestep_spacing" in known else (None,):
        for prediction in predictions:
            for sigmas in (option for option in SIGMAS if option is None or option in known):
                config = {"prediction_type": prediction} if prediction else {}
                if spacing:
                    config["timestep_spacing"] = spacing
                if sigmas:
                    config[sigmas] = True
                name = "-".join(filter(None, (spacing, prediction, sigmas))) or "default"
                yield name, config


def betas():
    """Beta schedules other than Stable Diffusion's."""
    yield "linear-betas", {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
    yield "cosine-betas", {"beta_schedule": "squaredcos_cap_v2"}
    yield "few-training-steps", {"num_train_timesteps": 200}
    yield "trained-betas", {"trained_betas": [0.0005 + 0.0001 * i for i in range(100)], "num_train_timesteps": 100}


def flags(kind):
    """The options that are not part of the full product, one or two at a time."""
    known = fields(kind)
    options = [
        ("clip_sample", {"clip_sample": True}),
        ("clip_sample-range", {"clip_sample": True, "clip_sample_range": 0.5}),
        ("clip_sample-v", {"clip_sample": True, "prediction_type": "v_prediction"}),
        ("set_alpha_to_one", {"set_alpha_to_one": True}),
        ("no-offset", {"steps_offset": 0}),
        ("thresholding", {"thresholding": True}),
        ("thresholding-ratio", {"thresholding": True, "dynamic_thresholding_ratio": 0.6, "sample_max_value": 1.5}),
        ("interpolation-log", {"interpolation_type": "log_linear"}),
        ("continuous", {"timestep_type": "continuous", "use_karras_sigmas": True, "prediction_type": "v_prediction"}),
        ("sigma-range", {"sigma_min": 0.05, "sigma_max": 12.0, "use_karras_sigmas": True}),
        ("sigma-range-exponential", {"sigma_min": 0.05, "sigma_max": 12.0, "use_exponential_sigmas": True}),
        ("final-sigma-min", {"final_sigmas_type": "sigma_min"}),
        ("timestep-scaling", {"timestep_scaling": 5.0}),
        ("original-steps", {"original_inference_steps": 100}),
        ("shift", {"shift": 3.0}),
        ("shift-below-1", {"shift": 0.5}),
        ("shift-terminal", {"shift": 3.0, "shift_terminal": 0.1}),
        ("stochastic", {"stochastic_sampling": True}),
        ("edm-range", {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0, "rho": 5.0}),
        ("edm-exponential", {"sigma_schedule": "exponential"}),
        ("edm-exponential-v", {"sigma_schedule": "exponential", "prediction_type": "v_prediction"}),
    ]
    for spacing in SPACINGS:
        zero = {"rescale_betas_zero_snr": True, "timestep_spacing": spacing, "prediction_type": "v_prediction"}
        options.append((f"zero-snr-{spacing}", zero))
    for name, config in options:
        if all(field in known for field in config):
            yield name, config
    if kind == "sa-solver":
        yield "lambda-min-clipped", {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}
    if kind == "ddpm":
        for variance in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"):
            yield f"variance-{variance}", {"variance_type": variance, "clip_sample": True}
        yield "sigmoid-betas", {"beta_schedule": "sigmoid"}


def solvers(kind):
    """The solver options of the DPM-Solver family and UniPC."""
    if kind == "unipc":
        for solver in ("bh1", "bh2"):
            for order in (1, 2, 3):
                for lower in (True, False):
                    config = {"solver_type": solver, "solver_order": order, "lower_order_final": lower}
                    yield f"{solver}-order{order}-{'lower' if lower else 'full'}", config
        yield "predict-epsilon", {"predict_x0": False, "final_sigmas_type": "sigma_min"}
        yield "predict-epsilon-bh1-order3", {
            "predict_x0": False, "solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min",
        }
        yield "no-corrector", {"disable_corrector": [0, 1, 2]}
        yield "final-sigma-min-order3", {"solver_order": 3, "final_sigmas_type": "sigma_min"}
        return
    if kind == "deis":
        for order in (1, 2, 3):
            for lower in (True, False):
                config = {"solver_order": order, "lower_order_final": lower}
                yield f"order{order}-{'lower' if lower else 'full'}", config
        yield "order3-karras", {"solver_order": 3, "use_karras_sigmas": True}
    if kind == "sa-solver":
        for algorithm in ("data_prediction", "noise_prediction"):
            for predictor, corrector in ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (3, 3), (2, 4)):
                for lower in (True, False):
                    config = {
                        "algorithm_type": algorithm, "predictor_order": predictor, "corrector_order": corrector,
                        "lower_order_final": lower,
                    }
                    yield f"{algorithm}-{predictor}-{corrector}-{'lower' if lower else 'full'}", config
    if kind == "edm-multistep":
        for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
            for order in (1, 2, 3):
                for solver in ("midpoint", "heun"):
                    for lower in (True, False):
                        config = {
                            "algorithm_type": algorithm, "solver_order": order, "solver_type": solver,
                            "lower_order_final": lower,
                        }
                        yield f"{algorithm}-order{order}-{solver}-{'lower' if lower else 'full'}", config
            yield f"{algorithm}-euler-at-final", {"algorithm_type": algorithm, "euler_at_final": True}
            yield f"{algorithm}-sigma-min", {"algorithm_type": algorithm, "final_sigmas_type": "sigma_min"}
    if not kind.startswith("dpm-"):
        return
    multistep = kind == "dpm-multistep"
    algorithms = ["dpmsolver++", "sde-dpmsolver++", "dpmsolver"] + (["sde-dpmsolver"] if multistep else [])
    for algorithm in algorithms:
        for order in (1, 2, 3):
            for solver in ("midpoint", "heun"):
                for lower in (True, False):
                    config = {
                        "algorithm_type": algorithm, "solver_order": order, "solver_type": solver,
                        "lower_order_final": lower,
                    }
                    if not algorithm.endswith("++"):
                        config["final_sigmas_type"] = "sigma_min"
                    yield f"{algorithm}-order{order}-{solver}-{'lower' if lower else 'full'}", config
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        for prediction in PREDICTIONS:
            for sigmas in (None, "use_karras_sigmas"):
                config = {"algorithm_type": algorithm, "prediction_type": prediction}
                config |= {sigmas: True} if sigmas else {}
                yield "-".join(filter(None, (algorithm, prediction, sigmas))), config
        yield f"{algorithm}-sigma-min", {"algorithm_type": algorithm, "final_sigmas_type": "sigma_min"}
        if multistep:
            yield f"{algorithm}-euler-at-final", {"algorithm_type": algorithm, "euler_at_final": True}
            yield f"{algorithm}-euler-at-final-karras", {
                "algorithm_type": algorithm, "euler_at_final": True, "use_karras_sigmas": True,
            }
    yield "lambda-min-clipped", {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}


def cases_of(kind):
    """Name, configuration, steps and the run's own arguments of every case of a class."""
    lcm = kind in DISTILLED
    usual = 4 if lcm else 10
    known = fields(kind)
    if kind.endswith("-parallel"):
        # The step is that of the other class.
        for steps in (1, 4, 10):
            yield f"steps-n{steps}", {}, steps, {}
        yield "clip_sample-v-n10", {"clip_sample": True, "prediction_type": "v_prediction"}, 10, {}
        yield "begin4-n10", {}, 10, {"begin_index": 4}
        return
    for name, config in product(kind):
        yield f"{name}-n{usual}", config, usual, {}
    for name, config in (*betas(), *flags(kind)):
        if any(field not in known for field in config) or kind == "ipndm":
            continue
        if lcm and name in ("few-training-steps", "trained-betas"):
            config = {**config, "original_inference_steps": 20}
        yield f"{name}-n{usual}", config, usual, {}
    for name, config in solvers(kind):
        yield f"{name}-n8", config, 8, {}
    for steps in (1, 2, 3, 8, 15) if lcm else (1, 2, 3, 4, 5, 14, 15, 20, 25, 30, 50):
        yield f"steps-n{steps}", {}, steps, {}
    if "use_karras_sigmas" in known:
        for steps in (1, 2, 5, 20, 25, 50):
            yield f"karras-n{steps}", {"use_karras_sigmas": True}, steps, {}
    if "timestep_spacing" in known:
        for steps in (5, 20, 50) if not lcm else (3,):
            for spacing in SPACINGS:
                yield f"{spacing}-n{steps}", {"timestep_spacing": spacing}, steps, {}
    if kind == "ddim":
        for eta in (0.3, 1.0):
            yield f"eta{eta}-n10", {}, 10, {"eta": eta}
        yield "eta1-clipped-n10", {"clip_sample": True, "prediction_type": "v_prediction"}, 10, {"eta": 1.0}
    if kind == "tcd":
        for eta in (0.3, 1.0):
            for name, config in (("", {}), ("-v", {"prediction_type": "v_prediction"})):
                yield f"eta{eta}{name}-n4", config, 4, {"eta": eta}
    # In the middle of a step, the ancestral DPM2 ends at NaN.
    begins = {"ipndm": (), "dpm2-ancestral": (4, 8)}.get(kind, (2,) if lcm else (4, 9))
    for begin in begins:
        yield f"begin{begin}-n{usual}", {}, usual, {"begin_index": begin}
    if kind.startswith("dpm-"):
        sde = {"algorithm_type": "sde-dpmsolver++"}
        yield "sde-begin4-n10", sde, 10, {"begin_index": 4}
        for steps in (5, 20, 25):
            yield f"sde-karras-n{steps}", {**sde, "use_karras_sigmas": True}, steps, {}


class Noise:
    """Stands in for `randn_tensor`: gives out the stored draws in order."""

    def __init__(self, draws):
        self.draws = draws
        self.count = 0

    def __call__(self, shape, generator=None, device=None, dtype=None, layout=None):
        assert tuple(shape) == SHAPE
        self.count += 1
        return self.draws[self.count - 1].to(dtype)


class BrownianPath:
    """Stands in for `BrownianTreeNoiseSampler`: a Brownian path whose increments are the stored draws. A second
    interval from the same level contains the first."""

    def __init__(self, draws):
        self.draws = draws
        self.last = None

    def __call__(self, sigma, sigma_next):
        level, reached, path = sigma, sigma, 0.0
        if self.last and self.last[0] == float(sigma):
            _, reached, path = self.last
        path = path + self.draws(SHAPE, dtype=torch.float64) * (reached - sigma_next).double().sqrt()
        self.last = (float(level), sigma_next, path)
        return path / (level - sigma_next).double().sqrt()


@contextlib.contextmanager
def patched(scheduler, noise):
    """Gives the scheduler the stored noise instead of a generator's."""
    module = __import__(type(scheduler).__module__, fromlist=["x"])
    stored = {"randn_tensor": noise, "BrownianTreeNoiseSampler": lambda *_: BrownianPath(noise)}
    originals = {name: getattr(module, name) for name in stored if hasattr(module, name)}
    for name in originals:
        setattr(module, name, stored[name])
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def model(scaled, timestep, constant):
    """The pseudo-model that takes the UNet's place."""
    return (0.3 + 0.2 * (float(timestep) / 1000.0)) * scaled + 0.1 * constant


def prediction_of(scheduler, output):
    """The predicted clean sample, where the class returns it."""
    for name in ("pred_original_sample", "denoised"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    config = scheduler.config
    if config.get("algorithm_type", "").endswith("++") or config.get("predict_x0"):
        return scheduler.model_outputs[-1]
    return None


def new_run(kind, config, steps):
    """A scheduler before its first step. Some classes take a second to be made, so it is a copy."""
    return copy.deepcopy(prepared(kind, json.dumps(config), steps))


@functools.lru_cache(maxsize=4)
def prepared(kind, config, steps):
    scheduler = getattr(diffusers, CLASSES[kind])(**json.loads(config))
    scheduler.set_timesteps(steps)
    return scheduler


def doubled(timesteps):
    return len(timesteps) > 1 and float(timesteps[0]) == float(timesteps[1])


def run(kind, config, steps, arguments, shared):
    """One trajectory: the entry for cases.json, and its tensors."""
    scheduler = new_run(kind, config, steps)
    begin = arguments.get("begin_index", 0)
    # Without a begin index, diffusers takes the second of two equal timesteps for the first.
    heun = kind == "heun"
    if kind == "tcd":
        # diffusers' pipelines pass 0; the class's own default is another.
        arguments = {"eta": 0.0, **arguments}
    if begin or (doubled(scheduler.timesteps) and not heun):
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps
    if begin:
        level = timesteps[begin : begin + 1].repeat(SHAPE[0])
        sample = noised(scheduler, shared["original"], level, shared["start"])
    else:
        sample = shared["start"] * float(init_noise_sigma(scheduler))
    first, noise = sample, Noise(shared["noise"])
    inputs, samples, predictions = [], [], []
    extra = {key: value for key, value in arguments.items() if key == "eta"}
    with patched(scheduler, noise):
        for timestep in timesteps[begin:]:
            scaled = sample
            if hasattr(scheduler, "scale_model_input"):
                scaled = scheduler.scale_model_input(sample, timestep)
            output = scheduler.step(model(scaled, timestep, shared["constant"]), timestep, sample, **extra)
            prediction = prediction_of(scheduler, output)
            sample = output.prev_sample.to(torch.float64)
            if not torch.isfinite(sample).all():
                break
            inputs.append(scaled.to(torch.float64))
            samples.append(sample)
            if prediction is not None:
                predictions.append(prediction.to(torch.float64))
    if not samples:
        return None
    tensors = {
        "timesteps": timesteps.to(torch.float64),
        "start": first.to(torch.float64),
        "inputs": torch.stack([inputs[0], inputs[-1]]),
        "samples": torch.stack(samples),
    }
    if len(predictions) == len(samples):
        tensors["predictions"] = torch.stack(predictions)
    if getattr(scheduler, "sigmas", None) is not None:
        tensors["sigmas"] = scheduler.sigmas.to(torch.float64)
    entry = {
        "class": CLASSES[kind],
        "num_inference_steps": steps,
        "begin_index": begin,
        "eta": arguments.get("eta", 0.0),
        "init_noise_sigma": float(init_noise_sigma(scheduler)),
        "noise_draws": noise.count,
        "finite_steps": len(samples),
        "steps": len(timesteps) - begin,
        "input_steps": [0, len(samples) - 1],
    }
    levels = [] if kind == "ipndm" else sorted({0, len(timesteps) // 2, len(timesteps) - 1})
    entry["add_noise_indices"] = levels
    if levels:
        tensors["noised"] = torch.stack([add_noise(kind, config, steps, index, shared) for index in levels])
    entry["config"] = config_file(scheduler)
    return entry, tensors


def add_noise(kind, config, steps, index, shared):
    """The clean sample with the noise of evaluation `index`, as image-to-image pipelines add it."""
    scheduler = new_run(kind, config, steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
    level = scheduler.timesteps[index : index + 1].repeat(SHAPE[0])
    return noised(scheduler, shared["original"], level, shared["start"]).to(torch.float64)


def noised(scheduler, original, level, noise):
    """The sample with noise; flow matching has another method for it."""
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(original, noise, level)
    return scheduler.scale_noise(original, level, noise)


def init_noise_sigma(scheduler):
    """The scale of the first noise, 1 where the class does not say it."""
    return getattr(scheduler, "init_noise_sigma", 1.0)


def config_file(scheduler):
    """What `save_pretrained` writes to `scheduler_config.json`."""
    config = json.loads(scheduler.to_json_string())
    # JSON has no infinity; readers of published files see this default as an absent field.
    return {k: v for k, v in config.items() if not (isinstance(v, float) and math.isinf(v)) and v != "-Infinity"}


def kept(folder, kinds, shared):
    """What a run of some classes keeps: the tensors and cases of the others, and the record of earlier runs."""
    old = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "trajectories.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in shared.items()), "the shared tensors differ"
    is_kept = lambda key: key.split("/")[0] not in kinds
    tensors = {key: tensor for key, tensor in tensors.items() if is_kept(key)}
    return tensors, [case for case in old["cases"] if is_kept(case["key"])], {
        "meta": old["meta"],
        "later": old.get("later", []),
    }


def main():
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape):
        return common.representable(torch.randn(*shape, generator=generator)).to(torch.float64)

    shared = {
        "start": draw(*SHAPE),
        "constant": draw(*SHAPE),
        "original": draw(*SHAPE),
        "noise": draw(DRAWS, *SHAPE),
    }
    kinds = sys.argv[1:] or list(CLASSES)
    folder = common.area("schedulers")
    record = common.meta("schedulers.py", SEED, "torch", "diffusers", "numpy", "scipy")
    if sys.argv[1:]:
        tensors, cases, more = kept(folder, kinds, shared)
        more["later"].append({**record, "classes": kinds})
        record = more.pop("meta")
    else:
        tensors, cases, more = dict(shared), [], {}
    refused = []
    for kind in kinds:
        for name, config, steps, arguments in cases_of(kind):
            if kind == "dpm2-ancestral" and steps == 2:
                # The difference of nearly equal squares: its middle level depends on the last bit of PyTorch's
                # square root, which is another on another CPU.
                continue
            key = f"{kind}/{name}"
            config = {**base(kind), **config}
            try:
                result = run(kind, config, steps, arguments, shared)
            except (ValueError, NotImplementedError, IndexError, AssertionError, ZeroDivisionError, AttributeError,
                    RuntimeError, TypeError, UnboundLocalError) as error:
                refused.append(f"{key}: {type(error).__name__}: {error}".replace("\n", " ")[:160])
                continue
            if result is None:
                refused.append(f"{key}: not finite from the first step")
                continue
            entry, found = result
            assert all(existing["key"] != key for existing in cases), key
            cases.append({"key": key, **entry})
            tensors |= {f"{key}/{name}": tensor for name, tensor in found.items()}
    order = list(CLASSES)
    cases.sort(key=lambda case: order.index(case["key"].split("/")[0]))
    write_tensors(folder / "trajectories.safetensors", tensors)
    write_cases(folder, record, cases, **more)
    print(f"{len(cases)} cases")
    for line in refused:
        print("refused:", line)


if __name__ == "__main__":
    main()
