"""Writes the averaged weights as a diffusers StableDiffusionXLPipeline directory in f16, and checks that it loads.

The files are laid out and named as published SDXL checkpoints have them, `text_model.` prefixes and vocab.json with
merges.txt included, which newer versions of transformers would not write themselves.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from safetensors.torch import save_file

import model as demo
import scenes
import tokenizer as words

CLASSES = {
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def averaged_modules(work: pathlib.Path, tokenizer: words.WordTokenizer) -> tuple[dict[str, torch.nn.Module], dict]:
    """The modules with their averaged weights, and the training state."""
    saved = torch.load(work / "model.pt", map_location="cpu", weights_only=True)
    modules = demo.build(tokenizer)
    for name, module in modules.items():
        module.load_state_dict(saved["modules"][name])
        with torch.no_grad():
            for key, value in module.named_parameters():
                value.copy_(saved["ema"][f"{name}.{key}"])
    return modules, saved["state"]


def save_text_encoder(module: torch.nn.Module, folder: pathlib.Path) -> None:
    """config.json and model.safetensors, tensors named as published checkpoints name them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in module.config.to_dict().items() if key not in ("transformers_version", "dtype")}
    config |= {"architectures": [type(module).__name__], "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {}
    for key, value in module.named_parameters():
        named = key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"
        tensors[named] = value.detach().half().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def export(work: pathlib.Path, output: pathlib.Path) -> dict:
    """Writes the pipeline and returns the training state."""
    tokenizer = words.WordTokenizer()
    modules, state = averaged_modules(work, tokenizer)
    for name in ("text_encoder", "text_encoder_2"):
        save_text_encoder(modules[name], output / name)
    modules["unet"].half().to(memory_format=torch.contiguous_format).save_pretrained(output / "unet")
    vae = AutoencoderKL.from_pretrained(work / "vae").half().to(memory_format=torch.contiguous_format)
    vae.save_pretrained(output / "vae")
    EulerDiscreteScheduler(**demo.SCHEDULER).save_pretrained(output / "scheduler")
    words.save(output / "tokenizer", words.EOS)
    words.save(output / "tokenizer_2", "!")
    index = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": diffusers.__version__}
    # mixbit's defaults; diffusers ignores keys that begin with an underscore.
    index |= {"_mixbit": {"guidance_scale": 3.0, "steps": 25}}
    index |= {"feature_extractor": [None, None], "force_zeros_for_empty_prompt": True, "image_encoder": [None, None]} | CLASSES
    (output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for config in (output / "unet/config.json", output / "vae/config.json"):
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)
        config.write_text(json.dumps(content, indent=2) + "\n")
    return state


def check(output: pathlib.Path, work: pathlib.Path) -> None:
    """Loads the directory with diffusers and compares token ids and prompt embeddings with those of training."""
    pipe = StableDiffusionXLPipeline.from_pretrained(output, torch_dtype=torch.float32, add_watermarker=False)
    tokenizer = words.WordTokenizer()
    modules, _ = averaged_modules(work, tokenizer)
    rng = random.Random(5)
    for _ in range(1000):
        caption = scenes.caption(rng, scenes.sample_scene(rng))
        for ids, published in zip(tokenizer.encode(caption), (pipe.tokenizer, pipe.tokenizer_2)):
            other = published(caption, padding="max_length", max_length=words.LENGTH, truncation=True).input_ids
            assert ids == other, f"{caption!r}: {ids} in training, {other} from the exported tokenizer"
    ids = tuple(torch.tensor([side]) for side in tokenizer.encode(caption))
    with torch.no_grad():
        states, pooled = demo.condition(modules, ids)
        exported, _, exported_pooled, _ = pipe.encode_prompt(caption, device="cpu", do_classifier_free_guidance=True)
    for ours, theirs in ((states, exported), (pooled, exported_pooled)):
        assert (ours - theirs).abs().max() < 0.02 * ours.abs().max(), "the exported text encoders differ from the trained ones"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="the directory of checkpoints")
    args = parser.parse_args()
    print(export(args.work, args.output))
    check(args.output, args.work)
    sizes = {path.name: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in sorted(args.output.iterdir()) if path.is_dir()}
    print(sizes, "total", sum(sizes.values()))
