"""Checks of a package that coremltools does not make, though Core ML or its users may."""

import struct
from collections import Counter

from coremltools.converters.mil._deployment_compatibility import AvailableTarget
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from coremltools.converters.mil.mil.passes.defs.preprocess import NameSanitizer
from coremltools.libmodelpackage import ModelPackage

from package import tensor_type

OPSETS = {7: "CoreML6", 8: "CoreML7", 9: "CoreML8"}
WEIGHT_FILE = "@model_path/weights/weight.bin"
ALIGNMENT = 64
SENTINEL = 0xDEADBEEF
# The weight file's codes, which are not MIL's, and the bits of an element.
STORED = {
    "fp16": (1, 16),
    "fp32": (2, 32),
    "uint8": (3, 8),
    "int8": (4, 8),
    "int16": (6, 16),
    "uint16": (7, 16),
    "int4": (8, 4),
    "uint1": (9, 1),
    "uint2": (10, 2),
    "uint4": (11, 4),
    "uint3": (12, 3),
    "uint6": (13, 6),
    "int32": (14, 32),
    "uint32": (15, 32),
}


def lint(package):
    """The defects, as sentences."""
    checks = [manifest, versions, identifiers, description, metadata, weight_file]
    return [problem for check in checks for problem in check(package)]


def manifest(package):
    if not ModelPackage.isValid(str(package.path)):
        yield "the manifest is not valid"


def versions(package):
    specification, function = package.spec.specificationVersion, package.function
    opset = OPSETS.get(specification)
    if function.opset != opset:
        yield f"opset {function.opset} in specification version {specification}, which has {opset}"
    if list(function.block_specializations) != [function.opset]:
        yield f"blocks for {list(function.block_specializations)}, not for {function.opset}"
    target = next(target for target in AvailableTarget if target.value == specification)
    for kind in {op.type for op in package.block.operations}:
        if not any(since.value <= target.value for since in SSAOpRegistry.core_ops[kind]):
            yield f"op {kind} is not in {opset}"


def identifiers(package):
    names = Counter(value.name for value in package.function.inputs)
    for op in package.block.operations:
        names.update(output.name for output in op.outputs)
        label = op.attributes["name"].immediateValue.tensor.strings.values
        if list(label) != [op.outputs[0].name]:
            yield f"op {op.outputs[0].name} is called {list(label)}"
    for name, count in names.items():
        if NameSanitizer().sanitize_name(name) != name:
            yield f"`{name}` is not an identifier, or reserved"
        if count > 1:
            yield f"`{name}` is defined {count} times"


def description(package):
    types = {value.name: tensor_type(value.type) for value in package.function.inputs}
    described = package.features(package.spec.description.input)
    if [feature.name for feature in described] != list(types):
        yield f"inputs {[feature.name for feature in described]} are described, the function has {list(types)}"
    for op in package.block.operations:
        types.update((output.name, tensor_type(output.type)) for output in op.outputs)
    outputs = package.features(package.spec.description.output)
    names, given = [feature.name for feature in outputs], list(package.block.outputs)
    if names != given:
        yield f"outputs {names} are described, the block has {given}"
    for feature in described + outputs:
        if types.get(feature.name) != (feature.dtype, feature.shape):
            yield f"{feature} is described, the function has {types.get(feature.name)}"


def metadata(package):
    texts = package.spec.description.metadata
    for field in ["shortDescription", "versionString", "author", "license"]:
        if not getattr(texts, field):
            yield f"the metadata has no {field}"


def weight_file(package):
    """The storage format of MILBlob, version 2."""
    references = {}
    for op in package.block.operations:
        values = [*op.attributes.values()]
        values += [binding.value for argument in op.inputs.values() for binding in argument.arguments]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                file = value.blobFileValue
                if file.fileName != WEIGHT_FILE:
                    yield f"{op.outputs[0].name} lies in {file.fileName}"
                references.setdefault(file.offset, []).append((op.outputs[0].name, tensor_type(value.type)))
    path = package.weights / "weight.bin"
    if not path.exists():
        if references:
            yield "there is no weight file"
        return
    data = path.read_bytes()
    count, version, *reserved = struct.unpack_from("<II7Q", data)
    if version != 2 or any(reserved):
        yield f"the weight file's header is of version {version}, with {reserved}"
    blobs, end = {}, ALIGNMENT
    for _ in range(count):
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if offset + 64 > len(data):
            yield f"the weight file has {len(blobs)} blobs, its header says {count}"
            return
        sentinel, dtype, size, start, padding, *reserved = struct.unpack_from("<IIQQQ4Q", data, offset)
        if sentinel != SENTINEL or start != offset + 64 or any(reserved) or any(data[end:offset]):
            yield f"the blob at {offset} is not where it should be"
            return
        blobs[offset] = dtype, size, padding
        end = start + size
    if end != len(data):
        yield f"the weight file has {len(data)} bytes, its {count} blobs end at {end}"
    if blobs.keys() != references.keys():
        yield f"blobs at {sorted(blobs.keys() ^ references.keys())} are not both stored and used"
    for offset, users in references.items():
        for name, (dtype, shape) in users:
            code, bits = STORED[dtype]
            elements = 1
            for extent in shape:
                elements *= extent
            size = -(-elements * bits // 8)
            expected = code, size, 8 * size - elements * bits if bits < 8 else 0
            if blobs.get(offset, expected) != expected:
                yield f"{name} {dtype}{list(shape)} is stored as {blobs[offset]}, not {expected}"
