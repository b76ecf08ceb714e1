"""Plants defects in packages, one at a time, and fails if the checks miss one.

    python planted.py MIXBIT
"""

import logging
import os
import re
import struct
import sys
import tempfile
from pathlib import Path
from shutil import copytree

logging.disable(logging.WARNING)
os.environ["TQDM_DISABLE"] = "1"

import apple
import compiled
from cases import Case, PIPELINES, UNETS
from package import Package
from run import check_part, convert, expected

CASE = Case(PIPELINES / "sd15", parts=UNETS, compiled=True)
NAME = "Stable_Diffusion_version_tiny_unet"


def first(spec, kind):
    block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
    return next(op for op in block.operations if op.type == kind)


def weight(spec, name):
    block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
    return next(op for op in block.operations if op.outputs[0].name == name)


def rename(spec, old, new):
    function = spec.mlProgram.functions["main"]
    for op in next(iter(function.block_specializations.values())).operations:
        for output in op.outputs:
            if output.name == old:
                output.name = new
                op.attributes["name"].immediateValue.tensor.strings.values[0] = new
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.name == old:
                    binding.name = new


def opset(spec, name):
    function = spec.mlProgram.functions["main"]
    [old] = function.block_specializations
    function.block_specializations[name].CopyFrom(function.block_specializations[old])
    del function.block_specializations[old]
    function.opset = name


def wrong_shape(spec):
    first(spec, "conv").outputs[0].type.tensorType.dimensions[1].constant.size += 1


def wrong_dtype(spec):
    first(spec, "silu").outputs[0].type.tensorType.dataType = 11


def undefined(spec):
    first(spec, "silu").inputs["x"].arguments[0].name = "nowhere"


def reserved(spec):
    rename(spec, "conv_in", "tensor")


def dotted(spec):
    rename(spec, "conv_in", "conv.in")


def feature_type(spec):
    spec.description.input[0].type.multiArrayType.dataType = 65568


def feature_name(spec):
    spec.description.output[0].name = "noise"


def later_op(spec):
    first(spec, "silu").type = "scaled_dot_product_attention"


def too_new(spec):
    spec.specificationVersion = 8


def newer_opset(spec):
    opset(spec, "CoreML8")


def other_version(spec):
    spec.description.metadata.versionString = "2"


def no_license(spec):
    spec.description.metadata.license = ""


def swapped(spec):
    one, other = weight(spec, "conv_in_bias"), weight(spec, "conv_norm_out_bias")
    a, b = one.attributes["val"].blobFileValue, other.attributes["val"].blobFileValue
    a.offset, b.offset = b.offset, a.offset


def between_blobs(spec):
    weight(spec, "conv_in_weight").attributes["val"].blobFileValue.offset += 64


def unused_weight(spec):
    weight(spec, "conv_in_bias").attributes["val"].CopyFrom(weight(spec, "conv_norm_out_bias").attributes["val"])


SPECIFICATION = [
    wrong_shape,
    wrong_dtype,
    undefined,
    reserved,
    dotted,
    feature_type,
    feature_name,
    later_op,
    too_new,
    newer_opset,
    other_version,
    no_license,
    swapped,
    between_blobs,
    unused_weight,
]


def count(data):
    data[0] += 1


def short(data):
    del data[-2:]


def bit(data):
    data[128] ^= 1


def sentinel(data):
    data[64] ^= 1


def stored_dtype(data):
    struct.pack_into("<I", data, 68, 2)


WEIGHTS = [count, short, bit, sentinel, stored_dtype]

METADATA = [
    ("Ios16.einsum", "Ios16.matmul"),
    (r'"shape": "\[2, 4', '"shape": "[1, 4'),
    ('"timestep"', '"time"'),
    (" × ", " x "),
    ('"iOS": "16.0"', '"iOS": "17.0"'),
    ('"SliceByIndex"', '"Ios16.sliceByIndex"'),
    ('"storagePrecision"', '"stored"'),
]


def problems(package):
    return list(check_part([package], CASE, expected(CASE)[NAME]))


def with_specification(path, change):
    package = Package(path)
    change(package.spec)
    file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    file.write_bytes(package.spec.SerializeToString())
    return problems(Package(path))


def with_weights(path, change):
    file = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)
    return problems(Package(path))


PROGRAM = [
    (r"program\(1.0\)", "program(1.3)"),
    (r" = silu\(", " = gelu("),
    (r"offset = tensor<uint64, \[\]>\(64\)", "offset = tensor<uint64, []>(128)"),
]


def with_text(path, package, name, old, new):
    file = path / name
    text = file.read_text()
    changed = re.sub(old, new, text)
    assert changed != text, f"{old} is not there"
    file.write_text(changed)
    return list(compiled.check(path, package))


def with_data(path, package, at):
    file = path / "coremldata.bin"
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    return list(compiled.check(path, package))


REFERENCE = next(reference for reference in apple.RECORDED["references"] if reference["name"] == "sd15_text_encoder")


def with_parameter(path, kind, parameter, change):
    """A package beside Apple's of the same configuration, with one constant changed."""
    package = Package(path)
    name = first(package.spec, kind).inputs[parameter].arguments[0].name
    change(weight(package.spec, name).attributes["val"].immediateValue.tensor)
    return apple.differences(REFERENCE, package)


def epsilon(tensor):
    tensor.bytes.values = struct.pack("<e", 1e-3)


def axis(tensor):
    tensor.ints.values[0] -= 1


def transposed(tensor):
    tensor.bools.values[0] ^= True


PARAMETERS = [(epsilon, "layer_norm", "epsilon"), (axis, "softmax", "axis"), (transposed, "matmul", "transpose_y")]


def main():
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        convert(sys.argv[1], CASE.model, CASE.flags(), folder)
        good, good_compiled = folder / f"{NAME}.mlpackage", folder / "Resources" / "Unet.mlmodelc"
        assert not problems(Package(good)), "the package has defects without planting any"

        def plant(name, original, check):
            nonlocal missed
            copy = folder / "planted" / str(len(list(folder.glob("planted/*")))) / original.name
            copytree(original, copy)
            try:
                found = check(copy)
            except Exception as error:
                found = [f"{type(error).__name__}: {error}"]
            missed += not found
            print(f"{name}: {found[0][:110] if found else 'NOT FOUND'}")

        for change in SPECIFICATION:
            plant(change.__name__, good, lambda path: with_specification(path, change))
        for change in WEIGHTS:
            plant(change.__name__, good, lambda path: with_weights(path, change))
        for old, new in METADATA:
            plant(old, good_compiled, lambda path: with_text(path, Package(good), "metadata.json", old, new))
        for old, new in PROGRAM:
            plant(old, good_compiled, lambda path: with_text(path, Package(good), "model.mil", old, new))
        for at in (4, 0x24, 0x2B, 0x60):
            plant(f"coremldata.bin {at:#x}", good_compiled, lambda path: with_data(path, Package(good), at))
        apple.write_model(REFERENCE["model"], folder / "model")
        convert(sys.argv[1], folder / "model", ["--convert-text-encoder"], folder / "reference")
        same = folder / "reference" / f"Stable_Diffusion_version_tiny_{REFERENCE['part']}.mlpackage"
        assert not apple.differences(REFERENCE, Package(same)), "the package is not as Apple's"
        for change, kind, parameter in PARAMETERS:
            plant(change.__name__, same, lambda path: with_parameter(path, kind, parameter, change))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
