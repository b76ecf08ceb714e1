"""Packages of the configurations that Apple's converter was run on, and the allowed differences.

`apple.json` (written by record_apple.py) describes Apple's packages; `write_model` gives a configuration random weights
in the diffusers layout, for mixbit to convert, and `differences` compares the results.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import numpy as np
from safetensors.numpy import save_file

SEED = 20261123
RECORDED = json.loads(Path(__file__).with_name("apple.json").read_text())
TOKENIZER = Path(__file__).parents[2] / "fixtures" / "pipelines" / "sd15" / "tokenizer"
PIPELINES = {"sd15": "StableDiffusionPipeline"}
SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"}
WEIGHT_FILES = {"text_encoder": "model", "text_encoder_2": "model"}


@dataclass
class Difference:
    """A difference on purpose: results that only Apple's package has, and only mixbit's."""

    why: str
    apples: Counter
    ours: Counter


def sinusoids(count, channels):
    """The sinusoids of `count` numbers: of timesteps, or of sizes."""
    half = channels // 2

    def ops(dtype):
        row = f"{dtype}[{count}, {half}]"
        part = lambda at: f"slice_by_index(begin=[0, {at}], end=[{count}, {at + half}], end_mask=in end) {row}"
        both = f"concat(axis=1, interleave=False, values=2 values) {dtype}[{count}, {channels}]"
        column = f"expand_dims(axes=[1]) {dtype}[{count}, 1]"
        phase = f"mul(y={dtype}[1, {half}]) {row}"
        return [column, phase, f"sin() {row}", f"cos() {row}", both, part(0), part(half), both]

    casts = [f"cast(dtype=fp32) fp32[{count}]", f"cast(dtype=fp16) fp16[{count}, {channels}]"]
    return Difference(
        why="sinusoids stay fp32: Apple's fp16 frequencies are wrong by up to 0.24 rad at timestep 1000",
        apples=Counter(ops("fp16")),
        ours=Counter(ops("fp32") + casts),
    )


def positive_tokens(vocabulary, length):
    """From iOS 17 on, coremltools wraps negative indices around and narrows indices to 16 bits."""
    row = f"[1, {length}]"
    return Difference(
        why="ids of tokens are never negative: they are not wrapped around, and stay int32",
        apples=Counter(
            {
                f"cast(dtype=int32) int32{row}": 1,
                f"cast(dtype=int16) int16{row}": 2,
                "cast(dtype=uint16) uint16[1, 2]": 1,
                f"greater_equal(y=0) bool{row}": 1,
                f"add(y={vocabulary}) int32{row}": 1,
                f"select() int32{row}": 1,
            }
        ),
        ours=Counter(),
    )


ON_PURPOSE = {
    "unet_sd15_split_einsum": [sinusoids(2, 32)],
    "unet_sdxl_original": [sinusoids(2, 32), sinusoids(12, 16)],
    "compressed/unet_sdxl_split_einsum__pal2": [sinusoids(2, 32), sinusoids(12, 16)],
    "compressed/unet_sdxl_split_einsum_iOS18__pal3": [sinusoids(2, 32), sinusoids(12, 16)],
    "sdxl_text_encoder_2_iOS18": [positive_tokens(1000, 77)],
}


def write_model(name, folder):
    """Writes a model of `apple.json` with random weights."""
    parts = RECORDED["models"][name]
    pipeline = PIPELINES.get(name, "StableDiffusionXLPipeline")
    index = {"_class_name": pipeline, "scheduler": ["diffusers", SCHEDULER["_class_name"]]}
    random = np.random.default_rng(SEED)
    for part, component in parts.items():
        component = RECORDED["components"][component]
        library = "transformers" if part.startswith("text_encoder") else "diffusers"
        index[part] = [library, component["class"]]
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(component["config"]))
        shapes = {key: tuple(map(int, shape.split())) for key, shape in component["tensors"].items()}
        tensors = {key: random.standard_normal(shape).astype(np.float16) for key, shape in shapes.items()}
        weights = WEIGHT_FILES.get(part, "diffusion_pytorch_model")
        save_file(tensors, folder / part / f"{weights}.safetensors")
        if part.startswith("text_encoder"):
            copytree(TOKENIZER, folder / part.replace("text_encoder", "tokenizer"))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(index))


def differences(reference, package):
    """The differences between a package and Apple's, as sentences."""
    found = []
    expected = {
        "specification version": reference["specification"],
        "opset": reference["opset"],
        "inputs": reference["inputs"],
        "outputs": reference["outputs"],
    }
    actual = {
        "specification version": package.spec.specificationVersion,
        "opset": package.function.opset,
        "inputs": package.inputs(),
        "outputs": package.outputs(),
    }
    for what, apples in expected.items():
        if actual[what] != apples:
            found.append(f"{what}: {actual[what]}, Apple's has {apples}")
    apples, ours = Counter(reference["results"]), package.results()
    for difference in ON_PURPOSE.get(reference["name"], []):
        apples.subtract(difference.apples)
        apples.update(difference.ours)
    for result in sorted(apples.keys() | ours.keys()):
        if apples[result] != ours[result]:
            found.append(f"{ours[result]} times {result}, Apple's would have {apples[result]}")
    return found
