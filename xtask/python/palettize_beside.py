"""Times coremltools' k-means palettes of tensors: palettize_beside.py FOLDER '{"name": bits, ...}'."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from coremltools.optimize.coreml._quantization_passes import palettize_weights


def tensors(folder):
    """The place of every tensor, by its name."""
    found = {}
    for path in Path(folder).glob("*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        found |= {name: (path, 8 + length, entry) for name, entry in header.items() if name != "__metadata__"}
    return found


def main():
    places, total, weights = tensors(sys.argv[1]), 0.0, 0
    for name, bits in json.loads(sys.argv[2]).items():
        path, base, entry = places[name]
        begin, end = entry["data_offsets"]
        value = np.fromfile(path, np.float16, (end - begin) // 2, offset=base + begin).reshape(entry["shape"])
        start = time.monotonic()
        palettize_weights.blockwise_compress(value, "KMEANS", nbits=bits, block_sizes=[0] * value.ndim)
        total += time.monotonic() - start
        weights += value.size
    print(f"coremltools: {weights / 1e6:.1f} million weights of some of these layers in {total:.1f} s")


if __name__ == "__main__":
    main()
