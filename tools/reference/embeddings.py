"""Textual inversions in every form, and diffusers' prompt embeddings with them. See fixtures/README.md."""

import shutil

import common
import torch
from common import write_cases, write_tensors

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

common.quiet()

SEED = 20261201
FOLDER = common.area("embeddings")

# Channels of the text encoders of fixtures/pipelines, and the number of vectors of each word.
SD15, XL = 16, (16, 24)


def vectors(name, count, channels):
    """Vectors that half precision holds, so that every element type has the same."""
    return common.representable(0.5 * torch.randn(count, channels, generator=torch.Generator().manual_seed(
        SEED + sum(name.encode()) * 1000 + count * 100 + channels)))



def web_ui(tensor, name):
    """The web UI's own form."""
    return {
        "string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": name, "step": 499,
        "sd_checkpoint": "0123abcd", "sd_checkpoint_name": "tiny",
    }


def write():
    """Writes the files, and gives for each what is in it: the vectors by text encoder."""
    files = {}

    def put(name, writer, *tensors):
        writer(FOLDER / name)
        (FOLDER / name).chmod(0o644)
        files[name] = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]

    def torch_file(content, **options):
        return lambda path: torch.save(content, path, **options)

    def safetensors(content, metadata=None):
        return lambda path: save_file(content, str(path), metadata=metadata)

    one, four = vectors("one", 1, SD15), vectors("four", 4, SD15)
    put("bad-hands 5.pt", torch_file(web_ui(four, "bad_hands_old_name")), four)
    put("Easy_Neg.v1.pt", torch_file(web_ui(one.half(), "easy"), _use_new_zipfile_serialization=False), one)
    first = torch.nn.ParameterDict({"*": torch.nn.Parameter(four.clone())})
    trainer = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": first}
    put("trainer.pt", torch_file(trainer), four)
    put("learned_embeds.bin", torch_file({"<cat-toy>": one[0]}), one)
    put("toys.safetensors", safetensors({"<toys>": four}), four)
    put("params.safetensors", safetensors({"emb_params": four.half()}, {"name": "other"}), four)
    clip_l, clip_g = vectors("xl", 3, XL[0]), vectors("xl", 3, XL[1])
    put("xl-style.safetensors", safetensors({"clip_l": clip_l, "clip_g": clip_g}), clip_l, clip_g)
    put("pivotal.safetensors", safetensors({"text_encoders_0": clip_l, "text_encoders_1": clip_g}),
        clip_l, clip_g)
    put("second.pt", torch_file({"clip_g": clip_g[:1].clone()}), clip_g[:1])
    wide = vectors("wide", 2, 1024)
    put("wide.safetensors", safetensors({"emb_params": wide.half()}), wide)
    return files


# Prompts with diffusers' word for the file in place of `{}`, and the file.
SD15_CASES = [
    ("learned_embeds.bin", "<cat-toy>", "a {} on a red circle"),
    ("bad-hands 5.pt", "<bad-hands>", "{}"),
    ("bad-hands 5.pt", "<bad-hands>", "a red circle, {}, a blue square"),
    ("Easy_Neg.v1.pt", "<easy>", "({})"),
    ("trainer.pt", "<trainer>", "a {} {}"),
    ("toys.safetensors", "<toys>", "the {}"),
    ("params.safetensors", "<params>", "{}, a circle"),
    ("bad-hands 5.pt", "<bad-hands>", "a " * 73 + "{} red"),
]
XL_CASES = [
    ("xl-style.safetensors", "<xl-style>", "a red circle in {}"),
    ("pivotal.safetensors", "<pivotal>", "{}"),
]


def sd15(files):
    """Prompt embeddings as `encode_prompt` makes them: the word in the prompt, and in the negative prompt."""
    for index, (name, token, prompt) in enumerate(SD15_CASES):
        pipe = StableDiffusionPipeline.from_pretrained(
            common.FIXTURES / "pipelines/sd15", torch_dtype=torch.float32)
        pipe.load_textual_inversion({token: files[name][0].clone()}, token=token)
        text = prompt.replace("{}", token)
        results = pipe.encode_prompt(text, "cpu", 1, True, negative_prompt=text)
        key = f"sd15/{index}"
        yield {"model": "sd15", "file": name, "prompt": prompt, "key": key}, {
            f"{key}/prompt": results[0], f"{key}/negative": results[1]}


def sdxl(files):
    """Prompt embeddings and the pooled ones of Stable Diffusion XL."""
    for index, (name, token, prompt) in enumerate(XL_CASES):
        pipe = StableDiffusionXLPipeline.from_pretrained(
            common.FIXTURES / "pipelines/sdxl", torch_dtype=torch.float32)
        first, second = files[name]
        for vectors_, encoder, tokenizer in (
            (first, pipe.text_encoder, pipe.tokenizer), (second, pipe.text_encoder_2, pipe.tokenizer_2),
        ):
            pipe.load_textual_inversion(
                {token: vectors_.clone()}, token=token, text_encoder=encoder, tokenizer=tokenizer)
        text = prompt.replace("{}", token)
        results = pipe.encode_prompt(text, device="cpu", do_classifier_free_guidance=True, negative_prompt=text)
        key = f"sdxl/{index}"
        yield {"model": "sdxl", "file": name, "prompt": prompt, "key": key}, {
            f"{key}/prompt": results[0], f"{key}/negative": results[1], f"{key}/pooled": results[2]}


def main():
    shutil.rmtree(FOLDER)
    FOLDER.mkdir()
    files = write()
    cases, tensors = [], {}
    for make in (sd15, sdxl):
        for case, results in make(files):
            cases.append(case)
            tensors |= results
    assert all(torch.equal(tensors[f"{case['key']}/prompt"], tensors[f"{case['key']}/negative"]) for case in cases)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("/negative")}
    write_tensors(FOLDER / "expected.safetensors", tensors)
    record = common.meta("embeddings.py", SEED, "torch", "diffusers", "transformers", "safetensors")
    counts = {name: [list(tensor.shape) for tensor in content] for name, content in files.items()}
    write_cases(FOLDER, record, cases, files=counts)


if __name__ == "__main__":
    main()
