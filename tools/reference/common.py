"""Shared parts of the fixture scripts: the fixtures' place and format, and the record of versions."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

# The random sources and the order of sums must not depend on the machine's load.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"


def quiet():
    """Silences the warnings and the progress bars of diffusers and transformers."""
    import warnings

    import diffusers
    from transformers.utils import logging

    warnings.filterwarnings("ignore")
    for log in (logging, diffusers.utils.logging):
        log.set_verbosity_error()
        log.disable_progress_bar()


def meta(script, seed, *packages):
    """The `meta` entry of a `cases.json`: script, seed, versions and machine, to make the files again."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "script": f"tools/reference/{script}",
        "seed": seed,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": versions,
    }


def area(name):
    """The folder `fixtures/<name>`, made if absent."""
    folder = FIXTURES / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path, value, indent=1):
    """Writes JSON that any parser reads: NaN and infinities are refused."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def write_cases(folder, record, cases, **more):
    """Writes `cases.json`: `meta`, the area's other entries, and one case a line."""
    head = json.dumps({"meta": record, **more}, indent=1, allow_nan=False)
    lines = (json.dumps(case, allow_nan=False) for case in cases)
    text = head[: head.rindex("\n")] + ',\n "cases": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    (folder / "cases.json").write_text(text, encoding="utf-8")


def write_tensors(path, tensors):
    """Writes a safetensors file, in the order of the names so that a rerun gives the same bytes."""
    save_file({name: tensors[name].detach().contiguous().clone() for name in sorted(tensors)}, str(path))
    Path(path).chmod(0o644)


def representable(tensor, dtype=torch.float16):
    """The nearest values that `dtype` holds, in the tensor's own type."""
    return tensor.to(dtype).to(tensor.dtype)
