"""A `.mlpackage`, as coremltools reads it."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil._deployment_compatibility import AvailableTarget
from coremltools.converters.mil.frontend.milproto import load as milproto
from coremltools.converters.mil.mil import types
from coremltools.proto import MIL_pb2

FEATURE_DTYPES = {65568: "fp32", 65552: "fp16", 131104: "int32", 65600: "fp64", 131080: "int8"}
DTYPES = dict(MIL_pb2.DataType.items())
DTYPE_NAMES = {
    number: {"FLOAT16": "fp16", "FLOAT32": "fp32", "FLOAT64": "fp64"}.get(name, name.lower())
    for name, number in DTYPES.items()
}


@dataclass(frozen=True)
class Feature:
    """An input or output."""

    name: str
    dtype: str
    shape: tuple

    def __str__(self):
        return f"{self.name} {self.dtype}{list(self.shape)}"


def tensor_type(value_type):
    """The element type and the shape of a MIL type; None if it is no tensor."""
    if value_type.WhichOneof("type") != "tensorType":
        return None
    tensor = value_type.tensorType
    return DTYPE_NAMES[tensor.dataType], tuple(dimension.constant.size for dimension in tensor.dimensions)


def signature(op):
    """An op's kind, parameters and results, written the same however the parameters are spelled."""
    parameters = []
    for name, value in sorted(op.inputs.items()):
        if isinstance(value, (list, tuple)):
            parameters.append(f"{name}={len(value)} values")
        elif value is not None and (value.val is not None or is_compressed(value)):
            parameters.append(f"{name}={canonical(op, name, value)}")
    return f"{op.op_type}({', '.join(parameters)}) {', '.join(map(typed, op.outputs))}"


def is_compressed(value):
    return value.op is not None and value.op.op_type.startswith("constexpr_")


def typed(value):
    return f"{types.builtin_to_string(value.dtype)}{list(value.shape)}"


def canonical(op, name, parameter):
    """A parameter in one spelling: integers, texts and scalars in full, weights by their type."""
    if parameter.val is None:
        return typed(parameter)
    value = np.asarray(parameter.val)
    if value.dtype.kind == "f" and value.size > 1:
        return typed(parameter)
    match op.op_type, name:
        case "reshape", "shape":
            return list(op.outputs[0].shape)
        case "transpose", "perm":
            value = value % op.x.rank
        case "slice_by_index", "end":
            value = np.where(op.end_mask.val, op.x.shape, value)
        case "slice_by_index", "end_mask":
            return "in end"
        case _, "axis" | "axes":
            value = value % op.outputs[0].rank
    return value.tolist()


class Package:
    def __init__(self, path):
        self.path = Path(path)
        self.model = ct.models.MLModel(str(path), skip_model_load=True)
        self.spec = self.model.get_spec()

    @property
    def weights(self):
        return self.path / "Data" / "com.apple.CoreML" / "weights"

    @property
    def function(self):
        return self.spec.mlProgram.functions["main"]

    @property
    def block(self):
        return self.function.block_specializations[self.function.opset]

    @cached_property
    def program(self):
        """The program in coremltools' own IR, with its type inference."""
        program = milproto.load(
            self.spec, specification_version=self.spec.specificationVersion, file_weights_dir=str(self.weights)
        )
        program.validate()
        return program

    def rewritten(self):
        """The differences after coremltools has written the program again, as its compression tools do."""
        again = ct.convert(
            self.program,
            convert_to="mlprogram",
            minimum_deployment_target=AvailableTarget(self.spec.specificationVersion),
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        [block] = again.get_spec().mlProgram.functions["main"].block_specializations.values()
        kinds = lambda block: Counter(op.type for op in block.operations if op.type != "const")
        if kinds(block) != kinds(self.block):
            yield f"coremltools writes it again with {kinds(block)}, not {kinds(self.block)}"

    def inputs(self):
        return [str(feature) for feature in self.features(self.spec.description.input)]

    def outputs(self):
        return [str(feature) for feature in self.features(self.spec.description.output)]

    @staticmethod
    def features(described):
        return [
            Feature(
                feature.name,
                FEATURE_DTYPES.get(feature.type.multiArrayType.dataType, "?"),
                tuple(feature.type.multiArrayType.shape),
            )
            for feature in described
        ]

    def results(self):
        """How often each op occurs with each set of parameters and types of results.

        Constants are left out: Apple's converter repeats them for each use.
        """
        ops = self.program.functions["main"].operations
        counted = [op for op in ops if op.op_type != "const" and not op.op_type.startswith("constexpr_")]
        return Counter(signature(op) for op in counted)

    @cached_property
    def build_info(self):
        """The texts that a converter leaves in a program."""
        entries = self.spec.mlProgram.attributes["buildInfo"].immediateValue.dictionary.values
        text = lambda value: value.immediateValue.tensor.strings.values[0]
        return {text(entry.key): text(entry.value) for entry in entries}
