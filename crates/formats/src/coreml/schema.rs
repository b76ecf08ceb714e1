//! Names, codes and field numbers of Core ML's protobuf schema, as far as mixbit reads or writes them.
//!
//! The schema is Apple's: `Model.proto`, `FeatureTypes.proto` and `MIL.proto` of coremltools. A module below
//! is a message; its constants are field numbers.

use mixbit_mil::{DType, Opset};

use super::ColorSpace;

/// The folder of a model's files in a specification.
pub(super) const MODEL_PATH: &str = "@model_path/";

/// The weight file of a model, in its folder.
pub(super) const WEIGHT_FILE: &str = "weights/weight.bin";

/// The first specification version that has the iOS 18 opset and elements narrower than a byte.
pub(super) const IOS_18: u32 = 9;

/// The specification's names of opsets.
const OPSETS: [(&str, Opset); 5] = [
    ("CoreML5", Opset::Ios15),
    ("CoreML6", Opset::Ios16),
    ("CoreML7", Opset::Ios17),
    ("CoreML8", Opset::Ios18),
    ("CoreML9", Opset::Ios26),
];

/// The specification's name of an opset.
pub(super) fn opset_name(opset: Opset) -> &'static str {
    OPSETS[opset as usize].0
}

/// The opset of that name.
pub(super) fn opset(name: &str) -> Option<Opset> {
    OPSETS.iter().find(|(known, _)| *known == name).map(|(_, opset)| *opset)
}

/// Codes of the color spaces of images.
pub(super) const COLOR_SPACES: [(u64, ColorSpace); 4] = [
    (10, ColorSpace::Grayscale),
    (20, ColorSpace::Rgb),
    (30, ColorSpace::Bgr),
    (40, ColorSpace::GrayscaleF16),
];

/// Codes of element types.
pub(super) struct Codes(&'static [(u64, DType)]);

/// Codes of the elements of MIL's tensors.
pub(super) const TENSOR_CODES: Codes = Codes(&[
    (1, DType::Bool),
    (2, DType::Str),
    (10, DType::F16),
    (11, DType::F32),
    (12, DType::F64),
    (13, DType::BF16),
    (21, DType::I8),
    (22, DType::I16),
    (23, DType::I32),
    (24, DType::I64),
    (25, DType::I4),
    (31, DType::U8),
    (32, DType::U16),
    (33, DType::U32),
    (34, DType::U64),
    (35, DType::U4),
    (36, DType::U2),
    (37, DType::U1),
    (38, DType::U6),
    (39, DType::U3),
]);

/// Codes of the elements of features.
pub(super) const FEATURE_CODES: Codes = Codes(&[
    (65568, DType::F32),
    (65552, DType::F16),
    (131_104, DType::I32),
    (65600, DType::F64),
    (131_080, DType::I8),
]);

/// Codes of the elements of blobs in a weight file.
pub(super) const BLOB_CODES: Codes = Codes(&[
    (1, DType::F16),
    (2, DType::F32),
    (3, DType::U8),
    (4, DType::I8),
    (5, DType::BF16),
    (6, DType::I16),
    (7, DType::U16),
    (8, DType::I4),
    (9, DType::U1),
    (10, DType::U2),
    (11, DType::U4),
    (12, DType::U3),
    (13, DType::U6),
    (14, DType::I32),
    (15, DType::U32),
]);

impl Codes {
    /// The code of an element type, if it has one.
    pub(super) fn of(&self, dtype: DType) -> Option<u64> {
        self.0.iter().find(|(_, known)| *known == dtype).map(|(code, _)| *code)
    }

    /// The element type of a code.
    pub(super) fn dtype(&self, code: u64) -> Option<DType> {
        self.0.iter().find(|(known, _)| *known == code).map(|(_, dtype)| *dtype)
    }
}

/// Declares messages as modules of field numbers.
macro_rules! messages {
    ($($(#[doc = $doc:literal])* $message:ident { $($field:ident = $number:literal),* $(,)? })*) => {
        $($(#[doc = $doc])* pub(super) mod $message {
            $(pub(in super::super) const $field: u32 = $number;)*
        })*
    };
}

messages! {
    /// An entry of a map.
    map_entry { KEY = 1, VALUE = 2 }

    /// `Model`.
    model {
        SPECIFICATION_VERSION = 1,
        DESCRIPTION = 2,
        IS_UPDATABLE = 10,
        // The kinds of model have the numbers from here on.
        FIRST_KIND = 200,
        PIPELINE = 202,
        ML_PROGRAM = 502,
    }
    /// `Pipeline`.
    pipeline { MODELS = 1, NAMES = 2 }

    /// `ModelDescription`.
    description {
        INPUT = 1,
        OUTPUT = 10,
        STATE = 13,
        FUNCTIONS = 20,
        DEFAULT_FUNCTION = 21,
        METADATA = 100,
    }
    /// `FunctionDescription`.
    function_description { NAME = 1, INPUT = 2, OUTPUT = 3, STATE = 6 }
    /// `Metadata`.
    metadata { SHORT_DESCRIPTION = 1, VERSION = 2, AUTHOR = 3, LICENSE = 4, USER_DEFINED = 100 }
    /// `FeatureDescription`.
    feature { NAME = 1, SHORT_DESCRIPTION = 2, TYPE = 3 }
    /// `FeatureType`.
    feature_type { IMAGE = 4, ARRAY = 5, LAST_KIND = 999, IS_OPTIONAL = 1000 }
    /// `ArrayFeatureType`.
    array {
        SHAPE = 1,
        DATA_TYPE = 2,
        ENUMERATED_SHAPES = 21,
        SHAPE_RANGE = 31,
        FIRST_DEFAULT = 41,
        LAST_DEFAULT = 61,
    }
    /// `ArrayFeatureType.EnumeratedShapes`.
    enumerated_shapes { SHAPES = 1 }
    /// `ArrayFeatureType.Shape`.
    shape { EXTENTS = 1 }
    /// `ArrayFeatureType.ShapeRange`.
    shape_range { SIZE_RANGES = 1 }
    /// `SizeRange`.
    size_range { LOWER_BOUND = 1, UPPER_BOUND = 2 }
    /// `ImageFeatureType`.
    image { WIDTH = 1, HEIGHT = 2, COLOR_SPACE = 3, ENUMERATED_SIZES = 21, SIZE_RANGE = 31 }

    /// `Program`.
    program { VERSION = 1, FUNCTIONS = 2, ATTRIBUTES = 4 }
    /// `Function`.
    function { INPUTS = 1, OPSET = 2, BLOCKS = 3 }
    /// `Block`.
    block { INPUTS = 1, OUTPUTS = 2, OPERATIONS = 3 }
    /// `Operation`.
    operation { TYPE = 1, INPUTS = 2, OUTPUTS = 3, BLOCKS = 4, ATTRIBUTES = 5 }
    /// `Argument`.
    argument { BINDINGS = 1 }
    /// `Argument.Binding`.
    binding { NAME = 1, VALUE = 2 }
    /// `NamedValueType`.
    named_type { NAME = 1, TYPE = 2 }
    /// `ValueType`.
    value_type { TENSOR = 1, LIST = 2, DICTIONARY = 4, STATE = 5 }
    /// `TensorType`.
    tensor_type { DATA_TYPE = 1, RANK = 2, DIMENSIONS = 3 }
    /// `Dimension`.
    dimension { CONSTANT = 1, UNKNOWN = 2 }
    /// `Dimension.ConstantDimension`.
    constant_dimension { SIZE = 1 }
    /// `Dimension.UnknownDimension`.
    unknown_dimension { IS_VARIADIC = 1 }
    /// `DictionaryType`.
    dictionary_type { KEY = 1, VALUE = 2 }
    /// `Value`.
    value { TYPE = 2, IMMEDIATE = 3, BLOB = 5 }
    /// `Value.ImmediateValue`.
    immediate { TENSOR = 1, DICTIONARY = 4 }
    /// `Value.BlobFileValue`.
    blob_value { FILE = 1, OFFSET = 2 }
    /// `TensorValue`.
    tensor_value {
        FLOATS = 1,
        INTS = 2,
        BOOLS = 3,
        STRINGS = 4,
        LONG_INTS = 5,
        DOUBLES = 6,
        BYTES = 7,
    }
    /// `TensorValue.RepeatedFloats` and its like.
    repeated { VALUES = 1 }
    /// `DictionaryValue`.
    dictionary { PAIRS = 1 }
    /// `DictionaryValue.KeyValuePair`.
    pair { KEY = 1, VALUE = 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_are_unique() {
        for opset in Opset::ALL {
            assert_eq!(super::opset(opset_name(opset)), Some(opset));
        }
        for codes in [TENSOR_CODES, FEATURE_CODES, BLOB_CODES] {
            for &(code, dtype) in codes.0 {
                assert_eq!((codes.of(dtype), codes.dtype(code)), (Some(code), Some(dtype)));
            }
        }
    }
}
