"""Ids of CLIP's tokenizer, from transformers. See fixtures/README.md for the format."""

import gzip
import importlib.metadata
import json
import shutil
import tempfile
from pathlib import Path

import common
from common import write_cases
from prompts import prompts

from transformers import CLIPTokenizer

SEED = 20261123
LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2
"""How many of the published merges CLIP's vocabulary has."""


def added(token, normalized):
    """A special token as published `tokenizer_config.json` files write it."""
    return {
        "__type": "AddedToken", "content": token, "lstrip": False, "normalized": normalized, "rstrip": False,
        "single_word": False,
    }


def published(pad):
    """`tokenizer_config.json` of Stable Diffusion 1 (padding with the end token) and of XL's second encoder (`!`)."""
    return {
        "add_prefix_space": False, "bos_token": added(START, True), "do_lower_case": True,
        "eos_token": added(END, True), "errors": "replace", "model_max_length": LENGTH, "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer", "unk_token": added(END, True),
    }


CONFIGS = {
    "plain": {"model_max_length": LENGTH},
    "sd15": published(END),
    "sdxl-2": published("!"),
}


def byte_characters():
    """The character that stands for each byte, in the order of CLIP's ids: printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def write_vocabulary(folder):
    """`vocab.json` and `merges.txt` from the merges that open_clip_torch carries."""
    package = importlib.metadata.distribution("open_clip_torch")
    packed = Path(package.locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")).read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[1 : MERGES + 1]
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(m.split()) for m in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens) == 49408
    text = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(text + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    licence = next(file for file in package.files if file.name == "LICENSE")
    shutil.copyfile(package.locate_file(licence), folder / "LICENSE-CLIP-vocabulary")


def load(folder, config):
    """The tokenizer that transformers reads from a folder of these files."""
    with tempfile.TemporaryDirectory() as name:
        for file in ("vocab.json", "merges.txt"):
            shutil.copyfile(folder / file, Path(name) / file)
        common.write_json(Path(name) / "tokenizer_config.json", config)
        return CLIPTokenizer.from_pretrained(name)


def main():
    folder = common.area("tokenizer")
    write_vocabulary(folder)
    tokenizers = {name: load(folder, config) for name, config in CONFIGS.items()}
    for name, tokenizer in tokenizers.items():
        print(name, type(tokenizer).__name__, repr(tokenizer.pad_token), tokenizer.model_max_length)
    # The published reference values of Apple's StableDiffusionTests.swift.
    assert tokenizers["plain"]("a photo of an astronaut riding a horse on mars").input_ids == [
        49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407,
    ]
    cases = []
    for group, prompt in prompts(SEED):
        entry = {"group": group, "prompt": prompt, "ids": {}, "padded": {}}
        for name, tokenizer in tokenizers.items():
            ids = tokenizer(prompt, verbose=False).input_ids
            padded = tokenizer(prompt, padding="max_length", max_length=LENGTH, truncation=True).input_ids
            assert len(padded) == LENGTH
            # Where a configuration changes nothing, its ids are those of the first.
            if ids != entry["ids"].get("plain"):
                entry["ids"][name] = ids
            if padded != entry["padded"].get("plain"):
                entry["padded"][name] = padded
        cases.append(entry)
    record = common.meta("tokenizer.py", SEED, "transformers", "tokenizers", "open_clip_torch")
    write_cases(folder, record, cases, length=LENGTH, tokenizers=CONFIGS)
    differing = {name: sum(name in case["ids"] for case in cases) for name in CONFIGS}
    print(f"{len(cases)} cases, ids that a configuration has of its own: {differing}")


if __name__ == "__main__":
    main()
