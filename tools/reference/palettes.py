"""The palettes that coremltools makes of small tensors, at every width.

    python tools/reference/palettes.py

Needs an environment of its own: coremltools 9.0 with NumPy below 2, scikit-learn and kmeans1d
(`pip install 'coremltools==9.0' 'numpy<2' scikit-learn kmeans1d safetensors`). Writes `fixtures/palettes/`.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
from coremltools.models.neural_network.quantization_utils import _get_kmeans_lookup_table_and_weight
from safetensors.numpy import save_file

SEED = 20261123
ROOT = Path(__file__).resolve().parents[2] / "fixtures" / "palettes"
WIDTHS = [1, 2, 3, 4, 6, 8]


def tensors(random):
    """From 10,000 elements on coremltools clusters exactly (kmeans1d), below by scikit-learn."""
    yield "normal", random.standard_normal((24, 40, 3, 3))
    yield "normal-large", 0.02 * random.standard_normal((64, 160))
    yield "heavy-tails", random.standard_t(3, (48, 96))
    yield "two-scales", np.concatenate([random.standard_normal(2000), 30 * random.standard_normal(40)]).reshape(60, 34)
    yield "few-values", random.integers(-9, 10, (16, 64)) / 8
    yield "subnormal", 1e-7 * random.standard_normal((32, 64))
    yield "one-value", np.full((8, 8), 0.25)


def main():
    random = np.random.default_rng(SEED)
    ROOT.mkdir(parents=True, exist_ok=True)
    stored, cases = {}, []
    for name, values in tensors(random):
        weight = values.astype(np.float16)
        stored[name] = weight
        for bits in WIDTHS:
            if len(np.unique(weight)) < 2:
                continue
            lut, indices = _get_kmeans_lookup_table_and_weight(bits, weight)
            lut = lut.astype(np.float16).reshape(-1)
            found = lut.astype(np.float64)[indices.reshape(-1)]
            error = float(np.mean((found - weight.reshape(-1).astype(np.float64)) ** 2))
            cases.append({"tensor": name, "bits": bits, "error": error})
    save_file(stored, ROOT / "tensors.safetensors")
    versions = {package: version(package) for package in ["coremltools", "numpy", "scikit-learn", "kmeans1d"]}
    document = {"seed": SEED, "python": platform.python_version(), "versions": versions, "cases": cases}
    (ROOT / "cases.json").write_text(json.dumps(document, indent=1) + "\n")


main()
