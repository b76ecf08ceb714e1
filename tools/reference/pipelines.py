"""Whole tiny models in the diffusers layout, and the results of diffusers' pipelines. See fixtures/README.md."""

import collections
import functools
import json
import shutil

import common
import torch
from common import write_cases, write_json, write_tensors

import pipeline_configs as configs
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from models import Draws, randomize
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from tokenizer import byte_characters, published

common.quiet()

SEED = 20261123
START, END = "<|startoftext|>", "<|endoftext|>"
PIPELINES = {
    "StableDiffusionPipeline": StableDiffusionPipeline,
    "StableDiffusionXLPipeline": StableDiffusionXLPipeline,
    "StableDiffusionXLImg2ImgPipeline": StableDiffusionXLImg2ImgPipeline,
}


def joined(pieces, pair):
    """The pieces of a word after a merge."""
    result = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


@functools.cache
def vocabulary():
    """A CLIP vocabulary of a few hundred tokens: bytes, and merges of the most frequent pairs of a few words."""
    words = [[*word[:-1], word[-1] + "</w>"] for word in configs.CORPUS.split()]
    merges = []
    while len(merges) < configs.MERGES:
        counts = collections.Counter(pair for word in words for pair in zip(word, word[1:]))
        # The library's own trainer breaks ties by hash order, differently in each run.
        pair = max(sorted(counts), key=counts.get)
        merges.append(pair)
        words = [joined(word, pair) for word in words]
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *(left + right for left, right in merges), START, END]
    assert len(set(tokens)) == len(tokens)
    return {token: index for index, token in enumerate(tokens)}, [" ".join(pair) for pair in merges]


def write_tokenizer(folder, pad, layout):
    """Tokenizer files as published (`vocab.json` and `merges.txt`), or as transformers 5 saves them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokens, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(tokens) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", published(pad))
    loaded = CLIPTokenizer.from_pretrained(folder)
    if layout == "tokenizer.json":
        shutil.rmtree(folder)
        loaded.save_pretrained(folder)
        loaded = CLIPTokenizer.from_pretrained(folder)
    return loaded


def text_encoder(folder, name, config, projection):
    size = len(vocabulary()[0])
    settings = {
        **configs.TEXT, "vocab_size": size, "bos_token_id": size - 2, **config,
        "eos_token_id": size - 1 if config.get("eos_token_id") == "end" else 2,
    }
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    model = randomize(kind(CLIPTextConfig(**settings)), Draws(f"{folder}/{name}"), torch.float16)
    return model.to(torch.float16)


def build(name, entry):
    """Saves a pipeline's folder and reads it back in f32."""
    folder = common.area("pipelines") / name
    shutil.rmtree(folder, ignore_errors=True)
    components = {}
    for part, config in entry["text"].items():
        tokenizer = part.replace("text_encoder", "tokenizer")
        components[part] = text_encoder(name, part, config, part in entry.get("projected", ()))
        components[tokenizer] = write_tokenizer(folder / tokenizer, entry["pad"][tokenizer], entry["layout"])
    for part in entry.get("absent", ()):
        components[part] = None
    unet = UNet2DConditionModel(**{**configs.UNET, **entry["unet"]})
    components["unet"] = randomize(unet, Draws(f"{name}/unet"), torch.float16).to(torch.float16)
    vae = AutoencoderKL(**{**configs.AUTOENCODER, **entry["vae"]})
    components["vae"] = randomize(vae, Draws(f"{name}/vae"), torch.float16).to(torch.float16)
    scheduler = {**entry["scheduler"]}
    components["scheduler"] = getattr(diffusers, scheduler.pop("_class_name"))(**scheduler)
    kind = PIPELINES[entry["pipeline"]]
    pipe = kind(**components, **entry["options"])
    pipe.save_pretrained(folder, safe_serialization=True)
    for part in (p for p in components if p.startswith("tokenizer") and components[p] is not None):
        write_tokenizer(folder / part, entry["pad"][part], entry["layout"])
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    again = kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True, **entry.get("load", {}))
    again.set_progress_bar_config(disable=True)
    return again


class Noise:
    """Stands in for `randn_tensor`, and keeps the drawn noise."""

    def __init__(self, draws):
        self.draws = draws
        self.given = []
        self.replay = None

    def __call__(self, shape, generator=None, device=None, dtype=None, layout=None):
        if self.replay is None:
            self.given.append(self.draws(*shape))
            return self.given[-1].to(dtype)
        return self.replay.pop(0).to(dtype)


def run(pipe, arguments, noise, output="latent"):
    """The final latents of a call, with the noise of its stochastic steps."""
    modules = [__import__(type(part).__module__, fromlist=["x"]) for part in (pipe, pipe.scheduler)]
    originals = [(m, m.randn_tensor) for m in modules if hasattr(m, "randn_tensor")]
    for module, _ in originals:
        module.randn_tensor = noise
    try:
        return pipe(**arguments, output_type=output).images
    finally:
        for module, original in originals:
            module.randn_tensor = original


def swap(pipe, scheduler):
    """Replaces the scheduler as a user does, by class and overrides; none is the model's own."""
    if scheduler is None:
        return
    overrides = {key: value for key, value in scheduler.items() if key != "_class_name"}
    pipe.scheduler = getattr(diffusers, scheduler["_class_name"]).from_config(pipe.own_scheduler, **overrides)


def draw(pipe, name, case, draws):
    """One call: its entry for cases.json, and its tensors."""
    arguments = dict(case["arguments"])
    pipe.scheduler = type(pipe.own).from_config(pipe.own_scheduler)
    swap(pipe, case.get("scheduler"))
    height, width = case["size"]
    images = arguments.get("num_images_per_prompt", 1)
    shape = (images, pipe.unet.config.in_channels, height // 8, width // 8)
    start = draws(*shape)
    inputs = {"image": start} if case.get("image") else {"latents": start, "height": height, "width": width}
    noise = Noise(draws)
    latents = run(pipe, {**arguments, **{k: v.clone() if torch.is_tensor(v) else v for k, v in inputs.items()}}, noise)
    assert torch.isfinite(latents).all(), case
    again = Noise(draws)
    again.replay = list(noise.given)
    first = start * (1 + 1e-6)
    moved = run(pipe, {**arguments, **inputs, ("image" if case.get("image") else "latents"): first}, again)
    sensitivity = float((moved - latents).abs().max() / latents.abs().max()) / 1e-6
    tensors = {"start": start.to(torch.float16), "latents": latents}
    if noise.given:
        tensors["noise"] = torch.stack(noise.given).to(torch.float16)
    if case.get("decode"):
        tensors["image"] = decode(pipe, latents)
        again.replay = list(noise.given)
        finished = run(pipe, {**arguments, **inputs}, again, "pt")
        assert torch.allclose((tensors["image"] / 2 + 0.5).clamp(0, 1), finished, rtol=0, atol=1e-6)
    if case.get("embeddings"):
        tensors |= embeddings(pipe, arguments)
    entry = {
        "key": f"{name}/{case['name']}", "dir": name, "pipeline": type(pipe).__name__, "width": width, "height": height,
        "scheduler": case.get("scheduler"),
        "scheduler_config": {**json.loads(pipe.scheduler.to_json_string())},
        "arguments": arguments, "start_is": "image latents" if case.get("image") else "unit noise",
        "noise_draws": len(noise.given), "sensitivity": round(sensitivity, 2), "tensors": sorted(tensors),
    }
    return entry, tensors


def decode(pipe, latents):
    """The image before it is clamped to [-1, 1]."""
    config = pipe.vae.config
    scaled = latents / config.scaling_factor
    if config.latents_mean:
        mean, deviation = (torch.tensor(v).view(1, 4, 1, 1) for v in (config.latents_mean, config.latents_std))
        scaled = latents * deviation / config.scaling_factor + mean
    with torch.no_grad():
        image = pipe.vae.decode(scaled).sample
    return image


def embeddings(pipe, arguments):
    """The pipeline's embeddings of the call's prompts."""
    if isinstance(pipe, StableDiffusionPipeline):
        parts = pipe.encode_prompt(
            arguments["prompt"], "cpu", 1, True, negative_prompt=arguments.get("negative_prompt")
        )
        names = ("prompt_embeds", "negative_prompt_embeds")
    else:
        parts = pipe.encode_prompt(
            prompt=arguments["prompt"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
            negative_prompt=arguments.get("negative_prompt"),
        )
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: part.detach() for name, part in zip(names, parts)}


def without_infinities(value):
    """JSON has no infinity; readers of published files see these defaults as absent fields."""
    if isinstance(value, dict):
        return {k: without_infinities(v) for k, v in value.items() if v not in (float("inf"), -float("inf"), "-Infinity")}
    return value


def main():
    folder = common.area("pipelines")
    cases, tensors = [], {}
    for name, entry in configs.PIPELINES.items():
        pipe = build(name, entry)
        pipe.own, pipe.own_scheduler = pipe.scheduler, pipe.scheduler.config
        for case in entry["cases"]:
            draws = Draws(f"{name}/{case['name']}")
            described, found = draw(pipe, name, case, draws)
            assert described["key"] not in {existing["key"] for existing in cases}, described["key"]
            cases.append(without_infinities(described))
            tensors |= {f"{described['key']}/{part}": values for part, values in found.items()}
    write_tensors(folder / "results.safetensors", tensors)
    record = common.meta("pipelines.py", SEED, "torch", "diffusers", "transformers", "tokenizers")
    write_cases(folder, record, cases)
    print(f"{len(cases)} cases, greatest sensitivity {max(case['sensitivity'] for case in cases)}")


if __name__ == "__main__":
    main()
