"""Scores pictures of the held-out captions from their pixels alone.

The algorithm, for a 128x128 RGB picture with values in [0, 255]:

1. Background: the per-channel median of the pixels of the outermost two rows and columns. It is right when the nearest
   palette colour (Euclidean distance in RGB) is the caption's.
2. Mask: the pixels whose Euclidean distance from the background is more than a threshold: 40% of the distance from the
   background to the nearest of the caption's object colours (palette values), at most 90 and at least 20.
3. Components: 8-connected regions of the mask of at least 60 pixels. Their number must be the number of objects,
   otherwise colour, position and shape all count as wrong.
4. A component's centre is the mean of its pixels' centres (column + 0.5, row + 0.5). With two components, of the two
   assignments to the caption's two objects take the one with the smaller sum of distances between centres.
5. Position is right when each component's centre is within 16 pixels of its object's `centre` on both axes.
6. Colour is right when the background is, and for each component the nearest palette colour to the per-channel median of
   its inner pixels (those whose four neighbours are in the component too) is its object's.
7. Shape is right when each component's best template is its object's shape. A shape's template is the set of pixels whose
   centre has a signed distance below 0 to the shape (`scenes.signed_distance`), with its area's radius: the radius
   sqrt(component area / area of the shape at radius 1), times each of 0.94, 1 and 1.06, with the shape's own centroid
   placed at the component's centre plus each of -1, 0 and 1 pixels on each axis. The best template has the largest
   intersection over union with the component; ties go to the earlier shape in SHAPES.

Usage: evaluate.py DIR draws with the diffusers pipeline in DIR; --truth scores ideal drawings, and --vae DIR ideal
drawings passed through an autoencoder.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

import scenes

MIN_AREA = 60
POSITION_TOLERANCE = 16.0
SCALES = (0.94, 1.0, 1.06)
SHIFTS = (-1.0, 0.0, 1.0)
PALETTE = {name: np.array(value, float) for name, value in scenes.COLOURS.items()}


def nearest_colour(rgb: np.ndarray) -> str:
    """The palette colour closest to `rgb`."""
    return min(PALETTE, key=lambda name: float(np.linalg.norm(PALETTE[name] - rgb)))


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected regions of at least MIN_AREA pixels, as masks, in scan order."""
    left, result = mask.copy(), []
    for y, x in zip(*np.nonzero(mask)):
        if not left[y, x]:
            continue
        region, stack = np.zeros_like(mask), [(y, x)]
        left[y, x] = False
        while stack:
            cy, cx = stack.pop()
            region[cy, cx] = True
            for ny in range(max(0, cy - 1), min(mask.shape[0], cy + 2)):
                for nx in range(max(0, cx - 1), min(mask.shape[1], cx + 2)):
                    if left[ny, nx]:
                        left[ny, nx] = False
                        stack.append((ny, nx))
        if region.sum() >= MIN_AREA:
            result.append(region)
    return result


def centre_of(region: np.ndarray) -> tuple[float, float]:
    """Mean pixel centre (x, y)."""
    y, x = np.nonzero(region)
    return x.mean() + 0.5, y.mean() + 0.5


def _unit(shape: str) -> tuple[float, float, float]:
    """Area at radius 1, and the centroid's offset from the shape's origin at radius 1."""
    if shape == "circle":
        return math.pi, 0.0, 0.0
    x, y = scenes._POLYGONS[shape].T
    x1, y1 = np.roll(x, -1), np.roll(y, -1)
    cross = x * y1 - x1 * y
    area = cross.sum() / 2
    return abs(area), ((x + x1) * cross).sum() / (6 * area), ((y + y1) * cross).sum() / (6 * area)


UNITS = {shape: _unit(shape) for shape in scenes.SHAPES}


def overlap(region: np.ndarray, shape: str) -> float:
    """The largest intersection over union of the region with the shape's templates."""
    cx, cy = centre_of(region)
    area, ox, oy = UNITS[shape]
    total = int(region.sum())
    # No template reaches beyond this window.
    reach = 1.4 * max(SCALES) * math.sqrt(total / area) + 3
    x0, y0 = max(0, int(cx - reach)), max(0, int(cy - reach))
    window = region[y0 : int(cy + reach) + 2, x0 : int(cx + reach) + 2]
    y, x = np.indices(window.shape)
    x, y = x + (x0 + 0.5), y + (y0 + 0.5)
    best = 0.0
    for scale in SCALES:
        radius = scale * math.sqrt(total / area)
        for dy in SHIFTS:
            for dx in SHIFTS:
                template = scenes.signed_distance(shape, radius, x - (cx + dx - ox * radius), y - (cy + dy - oy * radius)) < 0
                shared = int((template & window).sum())
                best = max(best, shared / (int(template.sum()) + total - shared))
    return best


def shape_of(region: np.ndarray) -> str:
    """The shape whose template fits best."""
    return max(scenes.SHAPES, key=lambda shape: overlap(region, shape))


def colour_of(image: np.ndarray, region: np.ndarray) -> str:
    """The palette colour of the region's inner pixels."""
    padded = np.pad(region, 1)
    inner = region & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return nearest_colour(np.median(image[inner if inner.any() else region], axis=0))


def measure(image: np.ndarray, record: dict) -> dict[str, bool]:
    """Checks the picture's colours, positions and shapes against the record."""
    image = image.astype(float)
    frame = np.ones(image.shape[:2], bool)
    frame[2:-2, 2:-2] = False
    background = np.median(image[frame], axis=0)
    wanted = record["objects"]
    gap = min(float(np.linalg.norm(PALETTE[item["colour"]] - background)) for item in wanted)
    mask = np.linalg.norm(image - background, axis=-1) > min(90.0, max(20.0, 0.4 * gap))
    found = components(mask)
    if len(found) != len(wanted):
        return {"colour": False, "position": False, "shape": False}
    if len(found) == 2:

        def cost(regions: list[np.ndarray]) -> float:
            return sum(math.dist(centre_of(region), item["centre"]) for region, item in zip(regions, wanted))

        found = min((found, found[::-1]), key=cost)
    centres = [centre_of(region) for region in found]
    return {
        "colour": nearest_colour(background) == record["background"]
        and all(colour_of(image, region) == item["colour"] for region, item in zip(found, wanted)),
        "position": all(
            max(abs(x - item["centre"][0]), abs(y - item["centre"][1])) <= POSITION_TOLERANCE for (x, y), item in zip(centres, wanted)
        ),
        "shape": all(shape_of(region) == item["shape"] for region, item in zip(found, wanted)),
    }


def ideal(record: dict) -> np.ndarray:
    """The drawing that the record describes."""
    objects = tuple(
        scenes.Object(item["colour"], item["shape"], None, item["position"], tuple(item["centre"]), item["radius"]) for item in record["objects"]
    )
    return scenes.draw(scenes.Scene(record["background"], objects))


def pipeline_source(folder: pathlib.Path, steps: int, guidance: float) -> Callable[[dict], np.ndarray]:
    """Draws with diffusers, one picture per record, its seed the record's."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)

    def draw(record: dict) -> np.ndarray:
        generator = torch.Generator().manual_seed(record["seed"])
        result = pipe(record["caption"], num_inference_steps=steps, guidance_scale=guidance, generator=generator, height=scenes.SIDE, width=scenes.SIDE)
        return np.asarray(result.images[0])

    return draw


def vae_source(folder: pathlib.Path) -> Callable[[dict], np.ndarray]:
    """Passes ideal drawings through an autoencoder."""
    import torch
    from diffusers import AutoencoderKL

    from train_vae import to_tensor

    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def draw(record: dict) -> np.ndarray:
        pixels = vae(to_tensor(ideal(record)[None], "cpu")).sample[0].permute(1, 2, 0)
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, nargs="?", help="an exported pipeline")
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--vae", type=pathlib.Path)
    captions = pathlib.Path(__file__).parents[2] / "crates/app/demo/heldout.json"
    parser.add_argument("--captions", type=pathlib.Path, default=captions)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--grid", type=pathlib.Path, help="write all pictures as one PNG")
    args = parser.parse_args()
    records = json.loads(args.captions.read_text())["captions"][: args.limit]
    if args.truth:
        source = ideal
    elif args.vae is not None:
        source = vae_source(args.vae)
    else:
        source = pipeline_source(args.model, args.steps, args.guidance_scale)
    images, totals = [], {"colour": 0, "position": 0, "colour and position": 0, "shape": 0, "all": 0}
    for record in records:
        images.append(source(record))
        result = measure(images[-1], record)
        result["colour and position"] = result["colour"] and result["position"]
        result["all"] = all(result.values())
        for key, right in result.items():
            totals[key] += right
        if not result["all"]:
            print("wrong:", ", ".join(key for key in ("colour", "position", "shape") if not result[key]), "|", record["caption"], flush=True)
    print(json.dumps({"captions": len(records)} | totals))
    if args.grid is not None:
        blank = [np.zeros_like(images[0])] * (-len(images) % 10)
        cells = images + blank
        Image.fromarray(np.vstack([np.hstack(cells[i : i + 10]) for i in range(0, len(cells), 10)])).save(args.grid)


if __name__ == "__main__":
    main()
