"""The toy world of the demo model: what a scene is, how it is drawn, how it is described.

A scene is a plain background and one or two objects. An object has a colour, a shape, a size and a position.
`draw` renders a scene as 128x128 RGB, `Captioner.caption` describes it in one of several wordings, and
`held_out` says whether a composition is kept out of training.

Signed distances are in pixels, negative inside; coverage of a pixel is `clip(0.5 - distance, 0, 1)`, with the pixel's
centre at (column + 0.5, row + 0.5).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import numpy as np

SIDE = 128

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (20, 150, 50),
    "blue": (30, 60, 230),
    "yellow": (250, 225, 20),
    "orange": (255, 135, 0),
    "purple": (120, 20, 160),
    "pink": (255, 140, 195),
    "cyan": (0, 200, 225),
    "brown": (120, 70, 25),
    "black": (10, 10, 10),
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
}

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart")

# Radius in pixels. An object whose caption names no size is medium.
RADII = {"small": 15.5, "medium": 19.5, "large": 24.0}

POSITIONS: dict[str, tuple[float, float]] = {
    "left": (32.0, 64.0),
    "right": (96.0, 64.0),
    "top": (64.0, 32.0),
    "bottom": (64.0, 96.0),
    "center": (64.0, 64.0),
    "top left": (32.0, 32.0),
    "top right": (96.0, 32.0),
    "bottom left": (32.0, 96.0),
    "bottom right": (96.0, 96.0),
}

# Colour and shape pairs that no training scene contains.
HELD_OUT_OBJECTS = frozenset(
    {
        ("orange", "star"),
        ("purple", "diamond"),
        ("cyan", "triangle"),
        ("green", "heart"),
        ("pink", "square"),
        ("brown", "circle"),
    }
)
# Of the unordered pairs of (colour, shape), one in this many never occurs in training.
HELD_OUT_PAIR_MODULUS = 8

# Centres are moved by up to this many pixels per axis and radii scaled by up to this share, in training
# scenes only.
POSITION_JITTER = 2.5
RADIUS_JITTER = 0.05


@dataclasses.dataclass(frozen=True)
class Object:
    """One object; `centre` and `radius` are in pixels, and `size` is None where the caption must not name one."""

    colour: str
    shape: str
    size: str | None
    position: str
    centre: tuple[float, float]
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background colour name and one or two objects."""

    background: str
    objects: tuple[Object, ...]


def _polygon(shape: str) -> np.ndarray:
    """Vertices of `shape` at radius 1, y downwards, shape [n, 2]."""
    if shape == "square":
        return 0.87 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    if shape == "diamond":
        return np.array([(0, -1.18), (0.95, 0), (0, 1.18), (-0.95, 0)], float)
    if shape == "triangle":
        angles = np.radians([-90, 30, 150])
        return 1.2 * np.stack([np.cos(angles), np.sin(angles)], 1)
    if shape == "star":
        angles = np.radians(-90 + 36 * np.arange(10))
        radius = np.where(np.arange(10) % 2 == 0, 1.25, 0.48)
        return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    if shape == "heart":
        t = 2 * math.pi * np.arange(32) / 32
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x, -y - 1.5], 1) / 15.0
    raise ValueError(f"shape {shape} has no polygon")


_POLYGONS = {shape: _polygon(shape) for shape in SHAPES if shape != "circle"}


def signed_distance(shape: str, radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance in pixels from points relative to the shape's centre to its outline, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    vertices = _POLYGONS[shape] * radius
    best = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(vertices, np.roll(vertices, -1, 0)):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        best = np.minimum(best, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (px < ex * py / ey)
    distance = np.sqrt(best)
    return np.where(inside, -distance, distance)


def coverage(shape: str, centre: tuple[float, float], radius: float, side: int = SIDE) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The shape's coverage in [0, 1] over its bounding window, and that window (rows, columns)."""
    reach = 1.35 * radius + 1.0
    x0, x1 = max(0, int(centre[0] - reach)), min(side, int(centre[0] + reach) + 1)
    y0, y1 = max(0, int(centre[1] - reach)), min(side, int(centre[1] + reach) + 1)
    x = (np.arange(x0, x1, dtype=np.float32) + 0.5 - centre[0])[None, :]
    y = (np.arange(y0, y1, dtype=np.float32) + 0.5 - centre[1])[:, None]
    x, y = np.broadcast_arrays(x, y)
    return np.clip(0.5 - signed_distance(shape, radius, x, y), 0.0, 1.0), (slice(y0, y1), slice(x0, x1))


def draw(scene: Scene, side: int = SIDE) -> np.ndarray:
    """The scene as uint8 RGB, shape [side, side, 3]."""
    image = np.empty((side, side, 3), np.float32)
    image[:] = COLOURS[scene.background]
    for item in scene.objects:
        alpha, window = coverage(item.shape, item.centre, item.radius, side)
        colour = np.array(COLOURS[item.colour], np.float32)
        image[window] += alpha[..., None] * (colour - image[window])
    return np.rint(image).astype(np.uint8)


def fnv1a(text: str) -> int:
    """32-bit FNV-1a of the text's UTF-8 bytes."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def held_out(objects: list[tuple[str, str]]) -> bool:
    """Whether a scene of these (colour, shape) objects is kept out of training.

    It is when one of them is in HELD_OUT_OBJECTS, or when there are two and the FNV-1a hash of
    "colour shape+colour shape" (the two in alphabetical order) is 0 modulo HELD_OUT_PAIR_MODULUS.
    """
    if any(item in HELD_OUT_OBJECTS for item in objects):
        return True
    if len(objects) == 1:
        return False
    key = "+".join(sorted(f"{colour} {shape}" for colour, shape in objects))
    return fnv1a(key) % HELD_OUT_PAIR_MODULUS == 0


def _fits(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether objects given as (size, position) leave a gap between them."""
    (ax, ay), (bx, by) = POSITIONS[first[1]], POSITIONS[second[1]]
    return math.hypot(ax - bx, ay - by) >= 1.1 * (RADII[first[0]] + RADII[second[0]]) + 4.0


_PAIRS = list(itertools.permutations(POSITIONS, 2))
_PLAIN_PAIRS = [("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top")]


def _place(rng: random.Random, colour: str, shape: str, size: str | None, position: str, jitter: bool) -> Object:
    x, y = POSITIONS[position]
    radius = RADII[size or "medium"]
    if jitter:
        x += rng.uniform(-POSITION_JITTER, POSITION_JITTER)
        y += rng.uniform(-POSITION_JITTER, POSITION_JITTER)
        radius *= 1.0 + rng.uniform(-RADIUS_JITTER, RADIUS_JITTER)
    return Object(colour, shape, size, position, (x, y), radius)


def sample_scene(rng: random.Random, kinds: list[tuple[str, str]] | None = None, jitter: bool = True) -> Scene:
    """A random scene; `kinds` fixes its (colour, shape) objects, else training compositions are drawn."""
    while kinds is None:
        count = 1 if rng.random() < 0.3 else 2
        drawn = [(rng.choice(list(COLOURS)), rng.choice(SHAPES)) for _ in range(count)]
        if not held_out(drawn):
            kinds = drawn
    taken = {colour for colour, _ in kinds}
    background = "white" if "white" not in taken and rng.random() < 0.3 else rng.choice([c for c in COLOURS if c not in taken])
    sizes = [rng.choice(("small", "large", None)) for _ in kinds]
    if len(kinds) == 1:
        places = [rng.choice(list(POSITIONS))]
    else:
        named = [size or "medium" for size in sizes]
        options = _PLAIN_PAIRS if rng.random() < 0.5 else _PAIRS
        places = rng.choice([pair for pair in options if _fits((named[0], pair[0]), (named[1], pair[1]))])
    objects = tuple(_place(rng, c, s, size, where, jitter) for (c, s), size, where in zip(kinds, sizes, places))
    return Scene(background, objects)


def busy_scene(rng: random.Random) -> Scene:
    """A crowd of overlapping objects: the autoencoder's training data, which has more edges to learn from."""
    objects = tuple(
        Object(
            rng.choice(list(COLOURS)),
            rng.choice(SHAPES),
            None,
            "center",
            (rng.uniform(0, SIDE), rng.uniform(0, SIDE)),
            rng.uniform(10, 30),
        )
        for _ in range(rng.randint(3, 8))
    )
    return Scene(rng.choice(list(COLOURS)), objects)


SIZE_WORDS = {"small": ("small", "small", "small", "little", "tiny"), "large": ("large", "large", "large", "big", "huge")}


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _colour_word(rng: random.Random, colour: str) -> str:
    return "grey" if colour == "gray" and rng.random() < 0.3 else colour


def _object_phrase(rng: random.Random, item: Object) -> str:
    words = [_colour_word(rng, item.colour), item.shape]
    if item.size is not None:
        words.insert(0, rng.choice(SIZE_WORDS[item.size]))
    return f"{_article(words[0])} {' '.join(words)}"


def _position_phrase(rng: random.Random, position: str) -> str:
    if position == "center":
        return rng.choice(("at the center", "in the center", "in the middle"))
    if " " in position:
        vertical, horizontal = position.split()
        other = {"top": "upper", "bottom": "lower"}[vertical]
        return rng.choice(
            (
                f"at the {vertical} {horizontal}",
                f"at the {vertical} {horizontal}",
                f"in the {vertical} {horizontal} corner",
                f"in the {vertical} {horizontal}",
                f"at the {other} {horizontal}",
            )
        )
    return rng.choice((f"at the {position}", f"at the {position}", f"at the {position}", f"on the {position}", f"on the {position} side"))


def _background_phrase(rng: random.Random, background: str) -> str:
    colour = _colour_word(rng, background)
    article = _article(colour)
    return rng.choice((f"on {article} {colour} background", f"on {article} {colour} background", f"on {colour}", f"against {article} {colour} background"))


_RELATIONS = {
    ("left", "right"): ("to the left of", "left of", "next to", "beside"),
    ("right", "left"): ("to the right of", "right of"),
    ("top", "bottom"): ("above", "over"),
    ("bottom", "top"): ("below", "under"),
}


def caption(rng: random.Random, scene: Scene) -> str:
    """One of the scene's descriptions. What it leaves out has a default: a white background, one object at the center,
    two objects at the left and the right."""
    phrases = [_object_phrase(rng, item) for item in scene.objects]
    places = tuple(item.position for item in scene.objects)
    if places in _RELATIONS and rng.random() < 0.3:
        body = f"{phrases[0]} {rng.choice(_RELATIONS[places])} {phrases[1]}"
    elif places in (("center",), ("left", "right")) and rng.random() < 0.25:
        body = " and ".join(phrases)
    else:
        located = [f"{phrase} {_position_phrase(rng, place)}" for phrase, place in zip(phrases, places)]
        body = rng.choice((" and ", " and ", ", ")).join(located)
    if scene.background == "white" and rng.random() < 0.4:
        return body
    if rng.random() < 0.1:
        colour = _colour_word(rng, scene.background)
        return f"{_article(colour)} {colour} background with {body}"
    return f"{body} {_background_phrase(rng, scene.background)}"


def plain_caption(scene: Scene) -> str:
    """The one wording that names everything, used for evaluation."""
    parts = []
    for item in scene.objects:
        words = ([item.size] if item.size else []) + [item.colour, item.shape]
        parts.append(f"{_article(words[0])} {' '.join(words)} at the {item.position}")
    return f"{' and '.join(parts)} on {_article(scene.background)} {scene.background} background"


WORDS = (
    "a an and on in at to of the with background next beside above below over under against "
    "left right top bottom upper lower center middle corner side "
    "small little tiny large big huge grey "
    + " ".join(COLOURS) + " " + " ".join(SHAPES)
).split() + [","]
