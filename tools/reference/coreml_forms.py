"""Core ML packages with more than one function of fixed shapes, and what coremltools and NumPy make of them.

    python tools/reference/coreml_forms.py

Needs the environment of `coreml.py` (coremltools 9.0). Writes `fixtures/coreml/forms/`: packages with flexible
shapes, several functions, an image input, specification 10, another default function, jointly compressed
weights, a pipeline; and `cases.json`, with the input shapes of each function of a package as coremltools reads
them, `<package>.npz` with an input and the output of a 1x1 convolution by NumPy in float64, `decoded.npz` with
the weights that jointly compressed packages decode to, by coremltools.
"""

import json
import platform
import shutil
from pathlib import Path

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol, types

SEED = 20261130
ROOT = Path(__file__).resolve().parents[2] / "fixtures" / "coreml" / "forms"
OUT, IN = 4, 8
RANDOM = np.random.default_rng(SEED)
WEIGHT = RANDOM.standard_normal((OUT, IN, 1, 1)).astype(np.float16)


def network(shape=(1, IN, 4, 4), target=ct.target.iOS18, inputs=None, weight=WEIGHT):
    @mb.program(input_specs=[mb.TensorSpec(shape=shape, dtype=types.fp16)], opset_version=target)
    def program(x):
        return mb.conv(x=x, weight=weight, name="y")

    return ct.convert(
        program,
        inputs=inputs,
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )


def flexible(extents):
    batch, channels = 1, IN
    return network(
        (batch, channels, get_new_symbol(), get_new_symbol()),
        inputs=[ct.TensorType("x", shape=extents, dtype=np.float16)],
    )


def image():
    weight = RANDOM.standard_normal((OUT, 3, 1, 1)).astype(np.float16)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 4, 4))], opset_version=ct.target.iOS16)
    def program(x):
        x = mb.cast(x=x, dtype="fp16")
        x = mb.conv(x=x, weight=weight)
        return mb.pixel_shuffle(x=x, upscale_factor=2, name="y")

    return ct.convert(
        program,
        inputs=[ct.ImageType("x", shape=(1, 3, 4, 4), color_layout=ct.colorlayout.RGB)],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )


def functions(default):
    """The same weights for two sizes, as two functions."""
    sizes = {"main": (1, IN, 4, 4), "large": (1, IN, 6, 6)}
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, shape in sizes.items():
        path = ROOT / f".{name}.mlpackage"
        network(shape).save(str(path))
        descriptor.add_function(str(path), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = default
    path = ROOT / f"functions_{default}.mlpackage"
    ct.utils.save_multifunction(descriptor, str(path))
    for name in sizes:
        shutil.rmtree(ROOT / f".{name}.mlpackage")


def pruned(model):
    config = cto.coreml.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0)
    return cto.coreml.prune_weights(model, cto.coreml.OptimizationConfig(global_config=config))


def sparse_palette(model):
    def lut(weight):
        kept = weight[weight != 0].astype(np.float32)
        table = np.concatenate([[0], np.quantile(kept, (np.arange(15) + 0.5) / 15)]).astype(weight.dtype)
        distance = np.abs(weight.astype(np.float32).reshape(-1, 1) - table.astype(np.float32))
        return table, distance.argmin(1).astype(np.uint8).reshape(weight.shape)

    config = cto.coreml.OpPalettizerConfig(mode="custom", lut_function=lut, weight_threshold=0)
    config = cto.coreml.OptimizationConfig(global_config=config)
    return cto.coreml.palettize_weights(pruned(model), config, joint_compression=True)


def sparse_int8(model):
    config = cto.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    config = cto.coreml.OptimizationConfig(global_config=config)
    return cto.coreml.linear_quantize_weights(pruned(model), config, joint_compression=True)


def shapes(path):
    """The input shapes of each function, in the form of the description."""
    spec = ct.utils.load_spec(str(path))

    def shape(feature):
        if feature.type.WhichOneof("Type") == "imageType":
            image = feature.type.imageType
            return {"image": [image.width, image.height, image.colorSpace]}
        array = feature.type.multiArrayType
        flexible = array.WhichOneof("ShapeFlexibility")
        if flexible == "shapeRange":
            return {"ranges": [[r.lowerBound, r.upperBound] for r in array.shapeRange.sizeRanges]}
        if flexible == "enumeratedShapes":
            return {"enumerated": [list(s.shape) for s in array.enumeratedShapes.shapes]}
        return list(array.shape)

    inputs = lambda description: {feature.name: shape(feature) for feature in description.input}
    functions = {f.name: inputs(f) for f in spec.description.functions} or {"main": inputs(spec.description)}
    return {
        "specification": spec.specificationVersion,
        "default": spec.description.defaultFunctionName,
        "models": len(spec.pipeline.models) if spec.WhichOneof("Type") == "pipeline" else 0,
        "functions": functions,
    }


def convolved(x):
    weight = WEIGHT[:, :, 0, 0].astype(np.float64)
    return np.einsum("bihw,oi->bohw", x.astype(np.float64), weight).astype(np.float32)


def decoded(path):
    """The weight of a package's convolution, decompressed by coremltools."""
    model = cto.coreml.decompress_weights(ct.models.MLModel(str(path), skip_model_load=True))
    constants = cto.coreml.get_weights_metadata(model, weight_threshold=0).values()
    return next(constant.val for constant in constants if constant.val.shape == WEIGHT.shape)


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    networks = {
        "fixed": lambda: network(),
        "range": lambda: flexible(
            ct.Shape((1, IN, ct.RangeDim(4, 16, default=4), ct.RangeDim(4, 32, default=4)))
        ),
        "enumerated": lambda: flexible(
            ct.EnumeratedShapes([(1, IN, 4, 4), (1, IN, 6, 6)], default=(1, IN, 4, 4))
        ),
        "image": image,
        "ios26": lambda: network(target=ct.target.iOS26),
        "sparse_palette": lambda: sparse_palette(network()),
        "sparse_int8": lambda: sparse_int8(network()),
    }
    for name, make in networks.items():
        make().save(str(ROOT / f"{name}.mlpackage"))
    for default in ["main", "large"]:
        functions(default)
    tail = RANDOM.standard_normal((2, OUT, 1, 1)).astype(np.float16)

    spec = mb.TensorSpec(shape=(1, OUT, 4, 4), dtype=types.fp16)

    @mb.program(input_specs=[spec], opset_version=ct.target.iOS18)
    def second(y):
        return mb.conv(x=y, weight=tail, name="z")

    second = ct.convert(
        second,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    ct.utils.make_pipeline(network(), second).save(str(ROOT / "pipeline.mlpackage"))

    for name, size in [("fixed", 4), ("large", 6)]:
        x = RANDOM.standard_normal((1, IN, size, size)).astype(np.float16)
        np.savez(ROOT / f"{name}.npz", x=x, y=convolved(x))
    sparse = ["sparse_palette", "sparse_int8"]
    np.savez(ROOT / "decoded.npz", **{name: decoded(ROOT / f"{name}.mlpackage") for name in sparse})
    meta = {
        "script": "tools/reference/coreml_forms.py",
        "seed": SEED,
        "python": platform.python_version(),
        "versions": {"coremltools": ct.__version__, "numpy": np.__version__},
    }
    packages = sorted(ROOT.glob("*.mlpackage"))
    cases = [{"package": path.name, **shapes(path)} for path in packages]
    text = json.dumps({"meta": meta, "cases": cases}, indent=1)
    (ROOT / "cases.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
