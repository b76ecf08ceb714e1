"""MIL ops with conventions of their own, computed by coremltools' value inference.

    python tools/reference/mil_ops.py

Needs an environment of its own: coremltools 9.0 with NumPy below 2 (`pip install 'coremltools==9.0' 'numpy<2'`).
Writes `fixtures/ops/coremltools.json`, in the form of `ops.py`'s.
"""

import importlib.metadata
import json
import platform
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb

SEED = 20261123
OUT = Path(__file__).resolve().parents[2] / "fixtures" / "ops" / "coremltools.json"
random = np.random.default_rng(SEED)
cases = []


def values(*shape, low=-2, high=2):
    """Random multiples of 1/64 between the bounds."""
    return (random.integers(low * 64, high * 64 + 1, shape) / 64).astype(np.float32)


def tensor(value):
    value = np.asarray(value)
    number = lambda x: int(x) if float(x).is_integer() else float(f"{x:.9g}")
    dtypes = {"f": {}, "i": {"dtype": "int32"}, "b": {"dtype": "bool"}}
    return {"shape": list(value.shape), "values": [number(x) for x in value.flatten().tolist()]} | dtypes[value.dtype.kind]


def add(op, inputs, **attributes):
    """A case: tensors by MIL's names, a list of them for a variadic input."""
    inputs = {name: tuple(value) if isinstance(value, list) else value for name, value in inputs.items()}
    results = []

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=ct.target.iOS17)
    def program(unused):
        result = getattr(mb, op)(**inputs, **attributes)
        results.extend(result if isinstance(result, (list, tuple)) else [result])
        return mb.identity(x=unused)

    if any(result.val is None for result in results):
        raise ValueError(f"coremltools does not say what {op} gives")
    plain = lambda value: value.item() if isinstance(value, np.generic) else value
    encode = lambda value: [tensor(item) for item in value] if isinstance(value, tuple) else tensor(value)
    cases.append(
        {
            "op": op,
            "inputs": {name: encode(value) for name, value in inputs.items()},
            "constants": [],
            "attributes": {name: plain(value) for name, value in attributes.items()},
            "outputs": [tensor(result.val) for result in results],
        }
    )


def slices():
    x = values(3, 4, 5)
    for attributes in [
        {"begin": [0, 1, 2], "end": [2, 3, 5]},
        {"begin": [-2, 0, -4], "end": [-1, 4, -1]},
        {"begin": [0, 3, 4], "end": [3, 0, 0], "stride": [2, -1, -2]},
        {"begin": [0, -1, 3], "end": [2, 0, 0], "stride": [1, -1, -2], "end_mask": [False, True, True]},
        {"begin": [1, 2, 2], "end": [2, 4, 4], "begin_mask": [True, False, True]},
        {"begin": [1, 0, 0], "end": [9, 9, 2], "stride": [1, 3, 1]},
        {"begin": [-1, 0, 0], "end": [0, 4, 3], "squeeze_mask": [True, False, False]},
        {"begin": [2, 1, 0], "end": [3, 2, 5], "squeeze_mask": [True, True, False]},
    ]:
        add("slice_by_index", {"x": x}, **attributes)
    for begin, size in [([0, 1, 2], [2, 1, 3]), ([-1, 0, -3], [1, -1, 2]), ([1, 0, 0], [-1, 4, -1])]:
        add("slice_by_size", {"x": x}, begin=begin, size=size)


def rearrangements():
    x = values(2, 3, 4)
    add("split", {"x": x}, split_sizes=[1, 3], axis=-1)
    add("split", {"x": x}, num_splits=3, axis=1)
    add("tile", {"x": x}, reps=[2, 1, 3])
    add("reshape", {"x": x}, shape=[0, 2, -1])
    add("reshape", {"x": x}, shape=[-1, 6])
    add("transpose", {"x": x}, perm=[-1, 0, 1])
    add("expand_dims", {"x": x}, axes=[0, -1, 2])
    add("squeeze", {"x": values(1, 3, 1, 2)}, axes=[-2])
    add("squeeze", {"x": values(1, 3, 1, 2)})
    add("concat", {"values": [values(2, 1), values(2, 3), values(2, 2)]}, axis=-1)
    add("stack", {"values": [values(2, 3), values(2, 3)]}, axis=-1)
    add("pad", {"x": x}, pad=[1, 2, 0, 1], mode="constant", constant_val=np.float32(0.5))
    for axis in [0, 1, -1]:
        add("gather", {"x": x, "indices": np.int32([[1, -1], [0, 1]])}, axis=axis)
    add("gather", {"x": x, "indices": np.int32(-2)}, axis=2)


def reductions():
    x = values(2, 3, 4)
    for op in ["max", "mean", "min", "prod", "sum", "sum_square", "l2_norm"]:
        add(f"reduce_{op}", {"x": x}, axes=[0, -1], keep_dims=False)
        add(f"reduce_{op}", {"x": x}, axes=[1], keep_dims=True)
        add(f"reduce_{op}", {"x": x})
    for op in ["argmax", "argmin"]:
        add(f"reduce_{op}", {"x": x}, axis=1, keep_dims=False)
        add(f"reduce_{op}", {"x": x})


def elements():
    x = values(2, 9, low=-4, high=4)
    for op in ["abs", "ceil", "exp", "floor", "round", "sign", "square", "gelu", "relu", "sigmoid", "softmax", "tanh"]:
        add(op, {"x": x})
    positive = np.abs(x) + np.float32(0.25)
    for op in ["inverse", "log", "rsqrt"]:
        add(op, {"x": positive})
        add(op, {"x": positive}, epsilon=np.float32(0.5))
        # epsilon alone is what the op sees of 0.
        add(op, {"x": np.zeros(1, np.float32)})
    y = values(9, low=1, high=3)
    for op in ["add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum", "greater", "less_equal"]:
        add(op, {"x": x, "y": y})
    whole, divisors = np.int32([7, -7, 7, -7, 6]), np.int32([2, 2, -2, -2, 3])
    for op in ["add", "mul", "floor_div", "mod", "equal"]:
        add(op, {"x": whole, "y": divisors})
    add("select", {"cond": np.array([[True], [False]]), "a": x, "b": -x})
    for dtype in ["int32", "bool", "fp16"]:
        add("cast", {"x": x}, dtype=dtype)
    add("cast", {"x": whole}, dtype="fp32")
    add("layer_norm", {"x": x}, axes=[-1], epsilon=np.float32(1e-3))


slices()
rearrangements()
reductions()
elements()
packages = {name: importlib.metadata.version(name) for name in ["coremltools", "numpy"]}
meta = {
    "script": "tools/reference/mil_ops.py",
    "seed": SEED,
    "python": platform.python_version(),
    "machine": platform.machine(),
    "versions": packages,
}
OUT.parent.mkdir(parents=True, exist_ok=True)
lines = ",\n  ".join(json.dumps(case, allow_nan=False) for case in cases)
OUT.write_text('{\n "meta": ' + json.dumps(meta) + ',\n "cases": [\n  ' + lines + "\n ]\n}\n", encoding="utf-8")
