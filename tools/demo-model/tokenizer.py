"""Writes the demo model's CLIP tokenizer: byte-level BPE whose merges make each word of the captions one token."""

from __future__ import annotations

import json
import pathlib

from scenes import WORDS

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in CLIP's (and GPT-2's) vocabulary, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _apply(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    while True:
        known = [(ranks[pair], index) for index, pair in enumerate(zip(pieces, pieces[1:])) if pair in ranks]
        if not known:
            return pieces
        index = min(known)[1]
        pieces = pieces[:index] + [pieces[index] + pieces[index + 1]] + pieces[index + 2 :]


def build() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges. A later merge ranks below all earlier ones, so it can't break an earlier word."""
    ranks: dict[tuple[str, str], int] = {}
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces := _apply(pieces, ranks)) > 1:
            ranks[(pieces[0], pieces[1])] = len(ranks)
    characters = byte_characters()
    tokens = characters + [character + "</w>" for character in characters]
    tokens += [left + right for left, right in ranks] + [BOS, EOS]
    assert len(set(tokens)) == len(tokens)
    return {token: index for index, token in enumerate(tokens)}, list(ranks)


class WordTokenizer:
    """Ids of captions made of WORDS: equal to the real tokenizer's on them (export.py checks), and much faster."""

    def __init__(self) -> None:
        vocabulary, _ = build()
        self.ids = {word: vocabulary[word + "</w>"] for word in WORDS}
        self.bos, self.eos, self.size = vocabulary[BOS], vocabulary[EOS], len(vocabulary)
        # As published SDXL has it: the first tokenizer pads with the end token, the second with "!".
        self.pads = (self.eos, vocabulary["!"])

    def encode(self, caption: str) -> list[list[int]]:
        """Ids padded to LENGTH, for the first and the second text encoder."""
        ids = [self.bos, *(self.ids[word] for word in caption.replace(",", " ,").split()), self.eos]
        return [ids + [pad] * (LENGTH - len(ids)) for pad in self.pads]


def save(folder: pathlib.Path, pad: str) -> None:
    """Writes vocab.json, merges.txt and the two configuration files."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = build()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))

    def special(text: str, normalized: bool) -> dict:
        return {"content": text, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}

    added = {BOS: True, EOS: True, pad: pad == EOS}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(vocabulary[token]): special(token, normalized) | {"special": True} for token, normalized in sorted(added.items(), key=lambda item: vocabulary[item[0]])
        },
        "bos_token": BOS,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": EOS,
        "errors": "replace",
        "model_max_length": LENGTH,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": EOS,
    }
    specials = {"bos_token": special(BOS, True), "eos_token": special(EOS, True), "pad_token": pad, "unk_token": special(EOS, True)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")
