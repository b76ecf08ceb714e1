"""Records the content of packages that Apple's converter made.

    python record_apple.py PACKAGES PYTHON

PACKAGES holds `NAME.mlpackage`, `NAME.config.json` and, where given, `NAME.safetensors`, made from tiny random models
by Apple's converter (ml-stable-diffusion 1.1.0, coremltools 9.0, torch 2.5.1, diffusers 0.30.2, transformers 4.44.2).
The packages are too big for the repository; `apple.json` keeps what run.py compares: configurations, the names and
shapes of weights, inputs and outputs, and how often each op occurs with its parameters and types.

Runs in the environment of requirements.txt; PYTHON is an interpreter with diffusers and torch, asked for the tensors of
a UNet without weights.
"""

import json
import subprocess
import sys
from pathlib import Path

import coremltools as ct
from safetensors import safe_open

from package import Package

# The folders of a diffusers directory, each with the configuration and weights of a package.
MODELS = {
    "sd15": {"text_encoder": "sd15_text_encoder", "unet": "unet_sd15_split_einsum", "vae": "vae_decoder_fp16"},
    "sdxl": {"text_encoder_2": "sdxl_text_encoder_2_neweos", "unet": "unet_sdxl_original", "vae": "vae_decoder_fp16"},
    "sdxl-old-eos": {
        "text_encoder_2": "sdxl_text_encoder_2_iOS18",
        "unet": "unet_sdxl_original",
        "vae": "vae_decoder_fp16",
    },
}
CLASSES = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}
# Packages whose weights are described by others' too.
WEIGHTS = {
    "sdxl_text_encoder_2_iOS18": ["sdxl_text_encoder_2_neweos"],
    "vae_decoder_fp16": ["vae_decoder_fp16", "vae_encoder_fp16"],
}
CLIP_KEYS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "layer_norm_eps",
    "hidden_act",
    "bos_token_id",
    "eos_token_id",
    "model_type",
]
# Package, model, part, attention implementation, deployment target.
REFERENCES = [
    ("sd15_text_encoder", "sd15", "text_encoder", "SPLIT_EINSUM", "iOS16"),
    ("unet_sd15_split_einsum", "sd15", "unet", "SPLIT_EINSUM", "iOS16"),
    ("vae_decoder_fp16", "sd15", "vae_decoder", "SPLIT_EINSUM", "iOS16"),
    ("vae_encoder_fp16", "sd15", "vae_encoder", "SPLIT_EINSUM", "iOS16"),
    ("sdxl_text_encoder_2_neweos", "sdxl", "text_encoder_2", "SPLIT_EINSUM", "iOS16"),
    ("sdxl_text_encoder_2_iOS18", "sdxl-old-eos", "text_encoder_2", "SPLIT_EINSUM", "iOS18"),
    ("unet_sdxl_original", "sdxl", "unet", "ORIGINAL", "iOS16"),
    ("compressed/unet_sdxl_split_einsum__pal2", "sdxl", "unet", "SPLIT_EINSUM", "iOS16"),
    ("compressed/unet_sdxl_split_einsum_iOS18__pal3", "sdxl", "unet", "SPLIT_EINSUM", "iOS18"),
]


STATE_OF = """
import json, sys, diffusers
model = diffusers.UNet2DConditionModel.from_config(json.load(sys.stdin))
print(json.dumps({name: list(value.shape) for name, value in model.state_dict().items()}))
"""


def tensors(folder, name, config, python):
    paths = [folder / f"{other}.safetensors" for other in WEIGHTS.get(name, [name])]
    if not all(path.exists() for path in paths):
        command = [python, "-c", STATE_OF]
        asked = subprocess.run(command, input=json.dumps(config), capture_output=True, text=True, check=True)
        return json.loads(asked.stdout)
    shapes = {}
    for path in paths:
        with safe_open(path, "np") as file:
            shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}
    return shapes


def component(folder, part, name, python):
    config = json.loads((folder / f"{name}.config.json").read_text())
    shapes = tensors(folder, name, config, python)
    if part.startswith("text_encoder"):
        config = {key: config[key] for key in CLIP_KEYS}
    else:
        config = {"_class_name": CLASSES[part], **config}
    return {
        "class": CLASSES[part],
        "config": config,
        "tensors": {key: " ".join(map(str, shape)) for key, shape in sorted(shapes.items())},
    }


def reference(folder, name, model, part, attention, target):
    package = Package(folder / f"{name}.mlpackage")
    return {
        "name": name,
        "model": model,
        "part": part,
        "attention": attention,
        "target": target,
        "specification": package.spec.specificationVersion,
        "opset": package.function.opset,
        "inputs": package.inputs(),
        "outputs": package.outputs(),
        "results": dict(sorted(package.results().items())),
    }


def main():
    folder, python = Path(sys.argv[1]), sys.argv[2]
    components = {name: (part, name) for parts in MODELS.values() for part, name in parts.items()}
    recorded = {
        "coremltools": ct.__version__,
        "models": MODELS,
        "components": {name: component(folder, *source, python) for name, source in components.items()},
        "references": [reference(folder, *row) for row in REFERENCES],
    }
    path = Path(__file__).with_name("apple.json")
    path.write_text(json.dumps(recorded, indent=1) + "\n")


main()
