"""Writes heldout.json: 100 captions of compositions that training never saw, with the objects that the pictures
must show."""

from __future__ import annotations

import argparse
import json
import pathlib
import random

import scenes

# Captions of each kind: two objects whose pair is held out, two objects of which one has a held-out colour
# and shape, one object of held-out colour and shape.
COUNTS = {"pair": 60, "object in pair": 24, "object": 16}


def _kinds(rng: random.Random, kind: str) -> list[tuple[str, str]]:
    def any_object() -> tuple[str, str]:
        return rng.choice(list(scenes.COLOURS)), rng.choice(scenes.SHAPES)

    held_out = sorted(scenes.HELD_OUT_OBJECTS)
    if kind == "object":
        return [rng.choice(held_out)]
    while True:
        if kind == "pair":
            drawn = [any_object(), any_object()]
            fits = scenes.held_out(drawn) and not any(item in scenes.HELD_OUT_OBJECTS for item in drawn)
        else:
            drawn = [rng.choice(held_out), any_object()]
            rng.shuffle(drawn)
            fits = True
        # Two objects of one colour and shape would not test which attribute belongs to which.
        if fits and drawn[0] != drawn[1]:
            return drawn


def captions(seed: int = 77) -> list[dict]:
    """The evaluation's records, in the order of heldout.json."""
    rng = random.Random(seed)
    records, seen = [], set()
    for kind, count in COUNTS.items():
        while count:
            scene = scenes.sample_scene(rng, _kinds(rng, kind), jitter=False)
            caption = scenes.plain_caption(scene)
            if caption in seen:
                continue
            seen.add(caption)
            count -= 1
            objects = [
                {
                    "colour": item.colour,
                    "shape": item.shape,
                    "size": item.size or "medium",
                    "position": item.position,
                    "centre": list(item.centre),
                    "radius": item.radius,
                }
                for item in scene.objects
            ]
            records.append({"caption": caption, "kind": kind, "seed": len(records), "background": scene.background, "objects": objects})
    return records


def document() -> dict:
    """heldout.json's content."""
    return {
        "side": scenes.SIDE,
        "colours": scenes.COLOURS,
        "shapes": {shape: None if shape == "circle" else scenes._POLYGONS[shape].round(6).tolist() for shape in scenes.SHAPES},
        "rule": "Training contains no object of held_out_objects, and no pair of objects for which the 32-bit FNV-1a hash of "
        "'colour shape+colour shape' (the two in alphabetical order) is 0 modulo held_out_pair_modulus.",
        "held_out_objects": sorted(map(list, scenes.HELD_OUT_OBJECTS)),
        "held_out_pair_modulus": scenes.HELD_OUT_PAIR_MODULUS,
        "captions": captions(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    content = document()
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "captions"]
    lines.append('  "captions": [\n' + ",\n".join("    " + json.dumps(record) for record in content["captions"]) + "\n  ]")
    parser.parse_args().output.write_text("{\n" + ",\n".join(lines) + "\n}\n")
