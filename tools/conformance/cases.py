"""The conversions to check: every model, attention implementation, deployment target and form."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree

import numpy as np
from safetensors.numpy import save_file

import weights

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = ROOT / "fixtures" / "pipelines"
NETWORKS = ROOT / "fixtures" / "models"
DEMO = ROOT / "crates" / "app" / "demo"
ATTENTION = ["ORIGINAL", "SPLIT_EINSUM", "SPLIT_EINSUM_V2"]
TARGETS = {"macOS13": 7, "macOS14": 8, "macOS15": 9}
UNETS = ["--convert-unet"]


@dataclass(frozen=True)
class Case:
    """One run of `mixbit convert`."""

    model: Path
    attention: str = "SPLIT_EINSUM"
    target: str = "macOS13"
    latent: tuple = None
    batch_one: bool = False
    chunked: bool = False
    compiled: bool = False
    controlnet: Path = None
    refiner: Path = None
    parts: list = field(default_factory=list)

    def flags(self):
        flags = [*self.parts, "--attention-implementation", self.attention, "--min-deployment-target", self.target]
        if self.latent:
            flags += ["--latent-h", str(self.latent[0]), "--latent-w", str(self.latent[1])]
        if self.controlnet:
            flags += ["--unet-support-controlnet", "--convert-controlnet", str(self.controlnet)]
        if self.refiner:
            flags += ["--refiner-version", str(self.refiner)]
        flags += ["--unet-batch-one"] if self.batch_one else []
        flags += ["--chunk-unet"] if self.chunked else []
        return flags + (["--bundle-resources-for-swift-cli"] if self.compiled else [])

    def __str__(self):
        described = {"--attention-implementation", "--min-deployment-target"}
        return " ".join([self.model.name, *(Path(flag).name for flag in self.flags() if flag not in described)])


def all_cases(scratch):
    """Every case; models that no fixture has are made in `scratch`."""
    models = [PIPELINES / name for name in ["sd15", "sd21", "sdxl", "refiner"]] + [DEMO]
    for model in models:
        for target in TARGETS:
            yield Case(model, target=target, compiled=True)
            for attention in ATTENTION:
                for form in [{}, {"batch_one": True}, {"chunked": True}]:
                    yield Case(model, attention, target, **form, parts=UNETS)
    # More than 512 queries, which SPLIT_EINSUM_V2 splits; sizes that are no square, and odd ones.
    for model in [PIPELINES / "sd15", PIPELINES / "sdxl"]:
        for latent in [(32, 32), (24, 40), (18, 14)]:
            for attention in ATTENTION:
                yield Case(model, attention, latent=latent, parts=UNETS)
        yield Case(model, latent=(12, 20))
    sd15 = with_unet_of(scratch, "sd15", "controlnet")
    pairs = [(sd15, NETWORKS / "controlnet"), (xl_for_controlnet(scratch), NETWORKS / "controlnet-sdxl")]
    for model, controlnet in pairs:
        for attention in ATTENTION:
            yield Case(model, attention, controlnet=controlnet, compiled=True, parts=UNETS)
            yield Case(model, attention, controlnet=controlnet, chunked=True, batch_one=True, parts=UNETS)
    for checker in ["safety-checker", "safety-checker-names4"]:
        model = with_safety_checker(scratch, checker)
        for target in TARGETS:
            yield Case(model, target=target, compiled=True)
        yield Case(model, latent=(12, 20))
    xl = xl_for_refiner(scratch)
    for chunked in (False, True):
        yield Case(xl, refiner=PIPELINES / "refiner", chunked=chunked, compiled=True, parts=UNETS)


def with_safety_checker(scratch, checker):
    """A model with a safety checker of the fixtures."""
    model = scratch / f"sd15-{checker}"
    copytree(PIPELINES / "sd15", model)
    copytree(NETWORKS / checker, model / "safety_checker")
    file = model / "model_index.json"
    index = json.loads(file.read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    file.write_text(json.dumps(index))
    return model


def with_unet_of(scratch, name, controlnet):
    """A model with the UNet that a ControlNet of the fixtures is for."""
    model = scratch / f"{name}-controlled"
    copytree(PIPELINES / name, model)
    copytree(NETWORKS / f"{controlnet}-unet", model / "unet", dirs_exist_ok=True)
    return model


def xl_for_refiner(scratch):
    """An XL model with the second text encoder of the fixtures' refiner, whose pooled output its UNet takes."""
    model = scratch / "sdxl-refined"
    copytree(PIPELINES / "sdxl", model)
    for component in ["text_encoder_2", "tokenizer_2"]:
        copytree(PIPELINES / "refiner" / component, model / component, dirs_exist_ok=True)
    pooled = json.loads((model / "text_encoder_2" / "config.json").read_text())["projection_dim"]
    config = model / "unet" / "config.json"
    unet = json.loads(config.read_text())
    added = pooled + 6 * unet["addition_time_embed_dim"]
    config.write_text(json.dumps(unet | {"projection_class_embeddings_input_dim": added}))
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = weights.load(file)
    embedding = "add_embedding.linear_1.weight"
    tensors[embedding] = np.ascontiguousarray(tensors[embedding][:, :added])
    save_file(tensors, file)
    return model


def xl_for_controlnet(scratch):
    """An XL model whose text has as many channels as the ControlNet in the fixtures asks for."""
    model = with_unet_of(scratch, "sdxl", "controlnet-sdxl")
    unet = json.loads((model / "unet" / "config.json").read_text())
    pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
    config = model / "text_encoder_2" / "config.json"
    text = json.loads(config.read_text()) | {"projection_dim": pooled}
    config.write_text(json.dumps(text))
    file = model / "text_encoder_2" / "model.safetensors"
    tensors = weights.load(file)
    tensors["text_projection.weight"] = np.zeros((pooled, text["hidden_size"]), np.float16)
    save_file(tensors, file)
    return model
