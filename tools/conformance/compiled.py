"""Checks that a compiled model agrees with its package, and has the metadata that Apple's and others' programs read.

The keys and the form of values are those of models that Apple's compiler made (fixtures/coreml/compiled).
"""

import json
import re
import struct
from collections import Counter

from coremltools.proto import Model_pb2

DTYPES = {"fp16": "Float16", "fp32": "Float32", "int32": "Int32"}
FILES = {"model.mil", "metadata.json", "coremldata.bin", "analytics/coremldata.bin", "weights/weight.bin"}
SYSTEMS = {
    7: {"iOS": "16.0", "macCatalyst": "16.0", "macOS": "13.0", "tvOS": "16.0", "visionOS": "1.0", "watchOS": "9.0"},
    8: {"iOS": "17.0", "macCatalyst": "17.0", "macOS": "14.0", "tvOS": "17.0", "visionOS": "1.0", "watchOS": "10.0"},
    9: {"iOS": "18.0", "macCatalyst": "18.0", "macOS": "15.0", "tvOS": "18.0", "visionOS": "2.0", "watchOS": "11.0"},
}
SYSTEMS_OF_OPS = {7: ["", "Ios16"], 8: ["", "Ios16", "Ios17"], 9: ["", "Ios16", "Ios17", "Ios18"]}
# Keys that every genuine model has, and optional ones.
ALWAYS = {
    "metadataOutputVersion",
    "specificationVersion",
    "generatedClassName",
    "modelType",
    "method",
    "inputSchema",
    "outputSchema",
    "stateSchema",
    "modelParameters",
    "isUpdatable",
    "availability",
    "mlProgramOperationTypeHistogram",
    "computePrecision",
    "userDefinedMetadata",
}
SOMETIMES = {"storagePrecision", "shortDescription", "version", "author", "license"}
FEATURE_KEYS = [
    "dataType",
    "formattedType",
    "hasShapeFlexibility",
    "isOptional",
    "name",
    "shape",
    "shortDescription",
    "type",
]
# Ops whose one form is older than iOS 16: the compiler names no version for them.
UNVERSIONED = {
    "concat": "Concat",
    "expand_dims": "ExpandDims",
    "pad": "Pad",
    "slice_by_index": "SliceByIndex",
    "split": "Split",
    "stack": "Stack",
    "transpose": "Transpose",
    "upsample_nearest_neighbor": "UpsampleNearestNeighbor",
}


def check(path, package):
    """The defects of a compiled model, as sentences. `package` is the same model's package."""
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    if files != FILES:
        yield f"has the files {sorted(files)}"
        return
    if (path / "weights" / "weight.bin").read_bytes() != (package.weights / "weight.bin").read_bytes():
        yield "the weight file is not the package's"
    yield from program(package, (path / "model.mil").read_text())
    yield from data(package, (path / "coremldata.bin").read_bytes())
    [metadata] = json.loads((path / "metadata.json").read_text())
    keys = set(metadata)
    if not ALWAYS <= keys <= ALWAYS | SOMETIMES:
        yield f"metadata.json lacks {sorted(ALWAYS - keys)} and has {sorted(keys - ALWAYS - SOMETIMES)}"
        return
    specification = package.spec.specificationVersion
    texts = package.spec.description.metadata
    expected = {
        "metadataOutputVersion": "3.0",
        "specificationVersion": specification,
        "modelType": {"name": "MLModelType_mlProgram"},
        "method": "predict",
        "stateSchema": [],
        "modelParameters": [],
        "isUpdatable": "0",
        "availability": SYSTEMS[specification],
        "userDefinedMetadata": dict(texts.userDefined),
        "shortDescription": texts.shortDescription,
        "version": texts.versionString,
        "author": texts.author,
        "license": texts.license,
        "inputSchema": [schema(package, feature) for feature in package.spec.description.input],
        "outputSchema": [schema(package, feature) for feature in package.spec.description.output],
    }
    for key, value in expected.items():
        if metadata[key] != value:
            yield f"metadata.json: {key} is {metadata[key]}, not {value}"
    yield from histogram(package, metadata["mlProgramOperationTypeHistogram"])


def program(package, text):
    """Checks that the ops, their order and their offsets in the weight file are the same."""
    version = "1.3" if package.spec.specificationVersion >= 9 else "1.0"
    if not text.startswith(f"program({version})\n"):
        yield f"model.mil starts with {text.partition(chr(10))[0]}"
    made = re.findall(r"^ +[^=]*\b(\w+) = (\w+)\(", text, re.MULTILINE)
    if made != [(op.outputs[-1].name, op.type) for op in package.block.operations]:
        yield "model.mil has other ops than the package"
    offsets = [int(offset) for offset in re.findall(r"offset = (?:tensor<uint64, \[\]>|uint64)\((\d+)\)", text)]
    blobs = [
        op.attributes["val"].blobFileValue.offset
        for op in package.block.operations
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    ]
    if offsets != blobs:
        yield "model.mil has other weights than the package"


def data(package, data):
    """`coremldata.bin`: a header, the specification's description, and 16 bytes for the function."""
    specification = package.spec.specificationVersion
    kind, form = struct.unpack_from("<II", data)
    name = data[0x24:0x2B]
    version, length = struct.unpack_from("<i", data, 0x2B)[0], struct.unpack_from("<Q", data, 0x4B)[0]
    expected = 502, 9 if specification >= 9 else 5, b"generic", specification, 0x53 + length + 16
    if (kind, form, name, version, len(data)) != expected:
        yield f"coremldata.bin has {(kind, form, name, version, len(data))}, not {expected}"
    elif Model_pb2.ModelDescription.FromString(data[0x53 : 0x53 + length]) != package.spec.description:
        yield "coremldata.bin has another description than the package"


def schema(package, described):
    [feature] = package.features([described])
    dtype = DTYPES[feature.dtype]
    entries = {
        "dataType": dtype,
        "formattedType": f"MultiArray ({dtype} {' × '.join(map(str, feature.shape))})",
        "hasShapeFlexibility": "0",
        "isOptional": "0",
        "name": feature.name,
        "shape": str(list(feature.shape)),
        "shortDescription": described.shortDescription,
        "type": "MultiArray",
    }
    assert sorted(entries) == FEATURE_KEYS
    return entries


def histogram(package, counted):
    """Every op but constants once, as `Ios16.reduceMean` or `Concat`; Mochi knows split attention by `Ios16.einsum`."""
    kinds = Counter(op.type for op in package.block.operations if op.type != "const")
    of_kind = Counter()
    for name, count in counted.items():
        system, _, op = name.rpartition(".")
        if system not in SYSTEMS_OF_OPS[package.spec.specificationVersion]:
            yield f"the histogram has {name}"
        of_kind[op[:1].lower() + op[1:]] += count
    camel = lambda kind: "".join([word.capitalize() if at else word for at, word in enumerate(kind.split("_"))])
    if of_kind != Counter({camel(kind): count for kind, count in kinds.items()}):
        yield f"the histogram counts {dict(of_kind)}, the program has {dict(kinds)}"
    if package.spec.specificationVersion == 7:
        for kind, name in UNVERSIONED.items():
            if kind in kinds and name not in counted:
                yield f"the histogram does not name {kind} {name}"
    if ("einsum" in kinds) != ("Ios16.einsum" in counted):
        yield "split attention can't be recognized by Ios16.einsum"
