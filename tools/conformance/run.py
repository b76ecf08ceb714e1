"""Converts tiny models with mixbit and compares the packages with Apple's converter's.

    python run.py MIXBIT [WORD]

MIXBIT is the binary. WORD selects the cases whose description has it. Passing cases are counted only.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

logging.disable(logging.WARNING)
os.environ["TQDM_DISABLE"] = "1"

import apple
import compiled
import interfaces
import lint
import palettized
import weights
from cases import PIPELINES, TARGETS, all_cases
from package import Package

COMPILED = {
    "text_encoder": "TextEncoder",
    "text_encoder_2": "TextEncoder2",
    "unet": "Unet",
    "refiner": "UnetRefiner",
    "control-unet": "ControlledUnet",
    "vae_decoder": "VAEDecoder",
    "vae_encoder": "VAEEncoder",
    "safety_checker": "SafetyChecker",
}


@dataclass
class Part:
    """The expected content of a case's package, or of its two chunks."""

    interface: tuple
    checkpoint: dict
    compiled: str
    version: str
    is_cut: bool = False


class Model:
    """A diffusers directory: configurations and weights."""

    def __init__(self, path):
        self.path = path
        self.is_xl = json.loads((path / "model_index.json").read_text())["_class_name"].startswith("StableDiffusionXL")

    def has(self, component):
        return (self.path / component).is_dir()

    def config(self, component):
        return json.loads((self.path / component / "config.json").read_text())

    def weights(self, component):
        [file] = (self.path / component).glob("*.safetensors")
        return weights.load(file)

    @property
    def pooled(self):
        if not self.has("text_encoder_2"):
            return self.config("text_encoder")["hidden_size"]
        return self.config("text_encoder_2")["projection_dim"]


def convert(mixbit, model, flags, output):
    command = [mixbit, "convert", "--quiet", "--model", model, "--name", "tiny", "--output", output, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(map(str, command))}`: {done.stderr.strip()}")


def expected(case):
    """The parts that a case writes, by the package's name."""
    model = Model(case.model)
    parts = {}
    prefix = "Stable_Diffusion_version_tiny_"
    sample = model.config("unet")["sample_size"]
    size = case.latent or (sample, sample)
    batch = 1 if case.batch_one else 2

    def add(part, interface, source, component, version="tiny", is_cut=False):
        parts[prefix + part] = Part(interface, source.weights(component), COMPILED[part], version, is_cut)

    if not case.parts:
        for component, has_projection in [("text_encoder", False), ("text_encoder_2", True)]:
            if model.has(component):
                interface = interfaces.text_encoder(model.config(component), model.is_xl, has_projection)
                add(component, interface, model, component)
        vae = model.config("vae")
        # For XL, Apple's converter writes the encoder in fp32 whatever the autoencoder's configuration.
        encoder = "fp32" if model.is_xl else "fp16"
        decoder = encoder if vae["force_upcast"] else "fp16"
        add("vae_decoder", interfaces.vae_decoder(vae, size, decoder), model, "vae")
        add("vae_encoder", interfaces.vae_encoder(vae, size, encoder), model, "vae")
        if model.has("safety_checker"):
            interface = interfaces.safety_checker(model.config("safety_checker"), size)
            add("safety_checker", interface, model, "safety_checker")
    unets = [("unet", model, "tiny")]
    unets += [("control-unet", model, "tiny")] if case.controlnet else []
    unets += [("refiner", Model(case.refiner), case.refiner.name)] if case.refiner else []
    for part, source, version in unets:
        takes_residuals = part == "control-unet"
        interface = interfaces.unet(source.config("unet"), source.pooled, batch, size, takes_residuals)
        add(part, interface, source, "unet", version, case.chunked)
    if case.controlnet:
        config = json.loads((case.controlnet / "config.json").read_text())
        [file] = case.controlnet.glob("*.safetensors")
        name = case.controlnet.name
        title = "".join(word.capitalize() for word in name.split("-"))
        interface = interfaces.controlnet(config, model.pooled, batch, size)
        parts[f"ControlNet_{name}"] = Part(interface, weights.load(file), f"controlnet/{title}", name)
    return parts


def check_case(mixbit, case):
    """The number of a case's packages, and their defects."""
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        try:
            convert(mixbit, case.model, case.flags(), output)
        except RuntimeError as error:
            return 0, [f"{case}: {error}"]
        parts = expected(case)
        halves = lambda name: [f"{name}_chunk{index}" for index in (1, 2)]
        names = [halves(name) if part.is_cut else [name] for name, part in parts.items()]
        written = {path.stem for path in output.glob("*.mlpackage")}
        if written != {name for group in names for name in group}:
            return 0, [f"{case}: wrote {sorted(written)}"]
        for group, part in zip(names, parts.values()):
            packages = [Package(output / f"{name}.mlpackage") for name in group]
            found = list(check_part(packages, case, part))
            if case.compiled:
                for index, package in enumerate(packages, 1):
                    suffix = f"Chunk{index}" if len(packages) > 1 else ""
                    path = output / "Resources" / f"{part.compiled}{suffix}.mlmodelc"
                    found += compiled.check(path, package)
            problems += [f"{case}: {group[0]}: {problem}" for problem in found]
        return len(written), problems


def check_part(packages, case, part):
    """The defects of a part: one package, or its two chunks."""
    used = set()
    for package in packages:
        specification = package.spec.specificationVersion
        if specification != TARGETS[case.target]:
            yield f"has specification version {specification}"
        version = package.spec.description.metadata.versionString
        if version != part.version:
            yield f"is of the model {version}, not {part.version}"
        yield from lint.lint(package)
        try:
            package.program
        except Exception as error:
            yield f"coremltools can't load the program: {type(error).__name__}: {error}"
            continue
        if case.compiled:
            yield from package.rewritten()
        found, problems = weights.compare(package, part.checkpoint)
        used |= found
        yield from problems
    yield from unused(packages, part.checkpoint.keys() - used)
    inputs, outputs = part.interface
    first, last = packages[0], packages[-1]
    if last is not first:
        boundary = first.outputs()
        if not {line.split()[1].partition("[")[0] for line in boundary} <= {"fp32", "int32"}:
            yield f"the boundary is {boundary}"
        between = [line for line in last.inputs() if line not in set(map(str, inputs))]
        if sorted(between) != sorted(boundary):
            yield f"the first half gives {boundary}, the second takes {between}"
        taken = [line for line in first.inputs() + last.inputs() if line not in boundary]
        if set(taken) != set(map(str, inputs)):
            yield f"takes {taken}, Apple's {list(map(str, inputs))}"
    elif first.inputs() != list(map(str, inputs)):
        yield f"takes {first.inputs()}, Apple's {list(map(str, inputs))}"
    if last.outputs() != list(map(str, outputs)):
        yield f"gives {last.outputs()}, Apple's {list(map(str, outputs))}"


def unused(packages, names):
    """Tensors of the checkpoint that a part lacks."""
    about = packages[0].path.stem
    is_other_half = {
        "vae_decoder": ("encoder.", "quant_conv."),
        "vae_encoder": ("decoder.", "post_quant_conv."),
    }
    others = next((prefixes for part, prefixes in is_other_half.items() if about.endswith(part)), ())
    left = [name for name in names if not name.startswith(others) and not name.endswith("position_ids")]
    if left:
        yield f"leaves out the weights {sorted(left)}"


def check_reference(mixbit, reference):
    """The differences between a package and Apple's of the same configuration."""
    with tempfile.TemporaryDirectory() as folder:
        model, output = Path(folder) / "model", Path(folder) / "output"
        apple.write_model(reference["model"], model)
        flags = ["--attention-implementation", reference["attention"], "--min-deployment-target", reference["target"]]
        try:
            convert(mixbit, model, flags, output)
        except RuntimeError as error:
            return 1, [f"{reference['name']}: {error}"]
        package = Package(output / f"Stable_Diffusion_version_tiny_{reference['part']}.mlpackage")
        return 1, [f"{reference['name']}: {difference}" for difference in apple.differences(reference, package)]


def main():
    mixbit, word = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(os.cpu_count()) as pool:
        cases = [case for case in all_cases(Path(scratch)) if word in str(case)]
        references = [reference for reference in apple.RECORDED["references"] if word in reference["name"]]
        done = [pool.submit(check_reference, mixbit, reference) for reference in references]
        done += [pool.submit(check_case, mixbit, case) for case in cases]
        if word in "palettized":
            done.append(pool.submit(palettized.check, mixbit, PIPELINES / "sd15"))
        count, failures = 0, 0
        for future in done:
            packages, problems = future.result()
            count += packages
            failures += bool(problems)
            for problem in problems:
                print(problem, flush=True)
    for reference in references:
        for why in sorted({difference.why for difference in apple.ON_PURPOSE.get(reference["name"], [])}):
            print(f"{reference['name']}: otherwise than Apple's on purpose: {why}")
    seconds = time.monotonic() - start
    compared = f"{count} packages of {len(done)} conversions, {len(references)} of them beside Apple's"
    print(f"{compared}, in {seconds:.0f} s: {failures} conversions with differences")
    return 1 if failures or not done else 0


if __name__ == "__main__":
    sys.exit(main())
