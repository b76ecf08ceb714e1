"""Core ML packages in every weight encoding, and the weights that coremltools decodes.

    python tools/reference/coreml.py

Needs an environment of its own: coremltools 9.0 with NumPy below 2 (`pip install 'coremltools==9.0' 'numpy<2'`).
Writes `fixtures/coreml/encodings/*.mlpackage`, `pipeline.mlpackage` and `cases.json` in `fixtures/coreml/`; the
packages of whole networks beside them are from Apple's own converter.
"""

import json
import platform
import shutil
from pathlib import Path

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.milproto.load import load as load_program
from coremltools.converters.mil.mil import types

SEED = 20261123
ROOT = Path(__file__).resolve().parents[2] / "fixtures" / "coreml"
OUT, IN = 16, 32


def network(target):
    """A 3x3 and a 1x1 convolution, whose weights the methods below compress."""
    random = np.random.default_rng(SEED)
    half = lambda *shape: random.standard_normal(shape).astype(np.float16)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, IN, 2, 2), dtype=types.fp16)], opset_version=target)
    def program(x):
        x = mb.conv(x=x, weight=half(OUT, IN, 3, 3), pad_type="same", name="wide")
        return mb.conv(x=x, weight=half(8, OUT, 1, 1), name="y")

    return ct.convert(
        program,
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )


def palette(weight, nbits):
    """A palette by quantiles: coremltools' own k-means needs scikit-learn."""
    steps = (np.arange(2**nbits) + 0.5) / 2**nbits
    lut = np.quantile(weight.astype(np.float32), steps).astype(weight.dtype)
    return lut, np.abs(weight.astype(np.float32).reshape(-1, 1) - lut.astype(np.float32)).argmin(1).astype(np.uint8)


def palettized(model, nbits):
    def lut(weight):
        table, indices = palette(weight, nbits)
        return table, indices.reshape(weight.shape)

    config = cto.coreml.OpPalettizerConfig(mode="custom", lut_function=lut, weight_threshold=0)
    return cto.coreml.palettize_weights(model, cto.coreml.OptimizationConfig(global_config=config))


def grouped(model, nbits, **options):
    config = cto.coreml.OpPalettizerConfig(
        mode="uniform", nbits=nbits, granularity="per_grouped_channel", weight_threshold=0, **options
    )
    return cto.coreml.palettize_weights(model, cto.coreml.OptimizationConfig(global_config=config))


def linear(model, joint=False, **options):
    config = cto.coreml.OpLinearQuantizerConfig(weight_threshold=0, **options)
    config = cto.coreml.OptimizationConfig(global_config=config)
    return cto.coreml.linear_quantize_weights(model, config, joint_compression=joint)


def pruned(model):
    config = cto.coreml.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0)
    return cto.coreml.prune_weights(model, cto.coreml.OptimizationConfig(global_config=config))


IOS16 = {f"palette{nbits}": (lambda model, nbits=nbits: palettized(model, nbits)) for nbits in (1, 2, 4, 6, 8)} | {
    "linear_int8_symmetric": lambda model: linear(model, mode="linear_symmetric"),
    "linear_uint8": lambda model: linear(model, mode="linear", dtype="uint8"),
    "sparse": pruned,
}
IOS18 = {f"palette{nbits}": (lambda model, nbits=nbits: palettized(model, nbits)) for nbits in (1, 2, 3, 4, 6, 8)} | {
    "palette4_groups8": lambda model: grouped(model, 4, group_size=8),
    "palette3_groups4_axis1": lambda model: grouped(model, 3, group_size=4, channel_axis=1),
    "palette4_groups8_scaled": lambda model: grouped(model, 4, group_size=8, enable_per_channel_scale=True),
    "palette4_int8": lambda model: linear(grouped(model, 4, group_size=8), joint=True, granularity="per_tensor"),
    "linear_int4_blocks8": lambda model: linear(model, dtype="int4", granularity="per_block", block_size=8),
    "linear_uint4_blocks16": lambda model: linear(
        model, mode="linear", dtype="uint4", granularity="per_block", block_size=16
    ),
    "linear_int8": lambda model: linear(model, mode="linear_symmetric"),
    "sparse": pruned,
}


def pipeline(model):
    """The network and a second one on its output, as one package."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 8, 2, 2), dtype=types.fp16)], opset_version=ct.target.iOS16)
    def second(y):
        return mb.mul(x=y, y=np.arange(8, dtype=np.float16).reshape(1, 8, 1, 1), name="z")

    second = ct.convert(
        second,
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    return ct.utils.make_pipeline(model, second)


def fnv(data):
    """FNV-1a with 64 bits: a checksum that a test computes in three lines."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def decode(op):
    """The value that coremltools decodes a constexpr op to; none for a palette that another op makes."""
    made = {name: var.op for name, var in op.inputs.items() if hasattr(var, "op") and var.op is not None}
    if op.op_type == "constexpr_lut_to_dense" and made.get("lut") and made["lut"].op_type.startswith("constexpr_"):
        axis = op.vector_axis.val if op.vector_axis is not None else None
        return op.decompress(op.indices.val, decode(made["lut"]), axis)
    return op.materialized_val_inference()


def weights(path):
    model = ct.models.MLModel(str(path), skip_model_load=True)
    program = load_program(
        model_spec=model.get_spec(),
        specification_version=model.get_spec().specificationVersion,
        file_weights_dir=model.weights_dir,
    )
    ops = [op for op in program.functions["main"].operations if op.op_type.startswith("constexpr_")]
    values = {op.outputs[0].name: np.ascontiguousarray(decode(op)) for op in ops}
    return {name: {"shape": list(value.shape), "fnv": fnv(value.tobytes())} for name, value in values.items()}


def main():
    encodings = ROOT / "encodings"
    shutil.rmtree(encodings, ignore_errors=True)
    encodings.mkdir(parents=True)
    for name, target, methods in [("ios16", ct.target.iOS16, IOS16), ("ios18", ct.target.iOS18, IOS18)]:
        for method, compress in methods.items():
            compress(network(target)).save(str(encodings / f"{name}_{method}.mlpackage"))
    # Applied to the network with a palette, in coremltools' order.
    pipeline(palettized(network(ct.target.iOS16), 4)).save(str(ROOT / "pipeline.mlpackage"))
    cases = [
        {"package": str(path.relative_to(ROOT)), "decoded": weights(path)}
        for path in sorted([*ROOT.glob("*__*.mlpackage"), *encodings.glob("*.mlpackage")])
    ]
    meta = {
        "script": "tools/reference/coreml.py",
        "seed": SEED,
        "coremltools": ct.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    (ROOT / "cases.json").write_text(json.dumps({"meta": meta, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
