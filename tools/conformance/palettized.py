"""Checks that coremltools and mixbit decode palettized packages to the same weights, bit for bit.

coremltools decompresses a package that `mixbit palettize` wrote; `mixbit diff` then compares the two by the values that
their weights decode to.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import coremltools as ct
import coremltools.optimize as cto

WIDTHS = [1, 2, 3, 4, 6, 8]
METHODS = ["palette", "grouped-palette", "scaled-palette", "grouped-scaled-palette", "int8-palette"]
LATER = [f"{method}-{width}" for method in METHODS for width in WIDTHS] + ["linear-8", "linear-block-4"]
FIRST = [scheme for scheme in LATER if scheme.startswith("palette-") and scheme != "palette-3"] + ["linear-8"]
# Every scheme of a deployment target.
TARGETS = {"macOS13": FIRST, "macOS15": LATER}


def check(mixbit, model):
    """The number of compared packages, and their defects."""
    count, problems = 0, []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for target, schemes in TARGETS.items():
            run(mixbit, "convert", "--quiet", "--convert-unet", "--convert-text-encoder", "--model", model, "--output",
                folder / target, "--min-deployment-target", target)
            for scheme in schemes:
                # coremltools takes long for a UNet: one width of each method must suffice.
                part = "unet" if scheme.endswith("-4") or scheme == "linear-8" else "text_encoder"
                [package] = (folder / target).glob(f"*_{part}.mlpackage")
                written = folder / f"{target}-{scheme}.mlpackage"
                run(mixbit, "palettize", "--quiet", "--scheme", scheme, "--min-size", "64", "--model", package,
                    "--output", written)
                problems += [f"palettized, {target}, {scheme}: {problem}" for problem in compare(mixbit, written, folder)]
                count += 1
    return count, problems


def compare(mixbit, written, folder):
    """The weights that coremltools decodes differently."""
    decompressed = folder / "decompressed.mlpackage"
    try:
        loaded = ct.models.MLModel(str(written), skip_model_load=True)
        cto.coreml.decompress_weights(loaded).save(str(decompressed))
    except Exception as error:
        return [f"coremltools can't decompress it: {type(error).__name__}: {error}"]
    done = subprocess.run([mixbit, "diff", "--json", written, decompressed], capture_output=True, text=True)
    if done.returncode == 2:
        return [done.stderr.strip()]
    return differences(json.loads(done.stdout))


def differences(report):
    """The differing tensors of a report of `mixbit diff`; a report without compressed tensors is a defect too."""
    layers = [layer for part in report["parts"] for layer in part["layers"]]
    compressed = [layer for layer in layers if layer["encodings"][0] != layer["encodings"][1]]
    if len(compressed) < 10:
        yield f"only {len(compressed)} compressed weights were compared"
    yield from (f"{layer['name']} decodes to something else" for layer in layers if not layer["equal"])


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(map(str, command))}`: {done.stderr.strip()}")
