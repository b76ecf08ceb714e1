"""Compares a package's weights with the checkpoint's."""

import json

import coremltools.optimize as cto
import numpy as np

# The build information's list of checkpoint names.
NAMES = "mixbit-weights"


def checkpoint_names(package):
    """The checkpoint's names by the constants' names."""
    return json.loads(package.build_info.get(NAMES, "{}")).get("main", {})


def compare(package, checkpoint):
    """The checkpoint's tensors in a package, and their defects.

    `checkpoint` has arrays by name. Weights are the checkpoint's bit for bit, cast to the constant's type: the same
    elements in the same order, where linear layers have become convolutions too.
    """
    # From two elements on: coremltools fails at smaller ones that are in a list, such as the inputs of
    # `stack`.
    stored = cto.coreml.get_weights_metadata(package.model, weight_threshold=2)
    found, problems = set(), []
    # A constant with the checkpoint's own name is absent from the list.
    names = {constant: constant for constant in stored if constant in checkpoint} | checkpoint_names(package)
    for constant, name in names.items():
        if constant not in stored:
            problems.append(f"weight {constant} is not there")
        elif name not in checkpoint:
            problems.append(f"weight {constant} is called {name}, which the checkpoint does not have")
        else:
            found.add(name)
            value = stored[constant].val
            expected = checkpoint[name].astype(value.dtype)
            if value.size != expected.size or value.tobytes() != expected.tobytes():
                problems.append(f"weight {name} is not the checkpoint's")
    return found, problems


def load(path):
    """A safetensors file's tensors; bfloat16, which NumPy lacks, as fp32."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + at for at in entry["data_offsets"])
            dtype = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "BF16": "<u2"}[entry["dtype"]]
            value = np.frombuffer(data[begin:end], dtype)
            if entry["dtype"] == "BF16":
                value = (value.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = value.reshape(entry["shape"])
    return tensors
