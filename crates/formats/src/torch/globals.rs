//! The functions and classes that a pickle of weights may name.
//!
//! None is ever called. Those of PyTorch's tensors and of plain containers are understood. Classes of what
//! trainers leave beside the weights stand for opaque values. Everything else is refused.

use mixbit_mil::DType;

use crate::float8::Float8;

/// A function or class of a pickle, by its meaning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    /// `_rebuild_tensor` and its successors. `is_untyped`: the element type is an argument of its own.
    Tensor {
        is_untyped: bool,
    },
    /// A function whose first argument is the tensor.
    Parameter,
    /// A function of a function and its arguments, for tensors with attributes.
    FromType,
    /// A function that makes a tensor of a kind that is not supported.
    Unsupported(&'static str),
    /// A class of storages: their elements, or bytes.
    Storage(Option<&'static Element>),
    /// An element type.
    Element(&'static Element),
    Dict,
    List,
    Tuple,
    /// A class or function of opaque values.
    Opaque,
    /// `copyreg.__newobj__` and its like, whose first argument is the class.
    NewObject,
}

/// An element type of PyTorch.
#[derive(Debug, PartialEq)]
pub(super) struct Element {
    /// The name in PyTorch.
    pub(super) name: &'static str,
    /// The storage's class without `Storage`, if it has one.
    storage: &'static str,
    /// The bytes of an element.
    pub(super) size: usize,
    pub(super) read_as: ReadAs,
}

/// The way to read elements.
#[derive(Debug, PartialEq)]
pub(super) enum ReadAs {
    Plain(DType),
    Float8(Float8),
    Unsupported(&'static str),
}

const fn plain(name: &'static str, storage: &'static str, size: usize, dtype: DType) -> Element {
    Element { name, storage, size, read_as: ReadAs::Plain(dtype) }
}

const fn unsupported(name: &'static str, storage: &'static str, size: usize, kind: &'static str) -> Element {
    Element { name, storage, size, read_as: ReadAs::Unsupported(kind) }
}

static ELEMENTS: [Element; 26] = [
    plain("float32", "Float", 4, DType::F32),
    plain("float16", "Half", 2, DType::F16),
    plain("bfloat16", "BFloat16", 2, DType::BF16),
    plain("float64", "Double", 8, DType::F64),
    plain("int64", "Long", 8, DType::I64),
    plain("int32", "Int", 4, DType::I32),
    plain("int16", "Short", 2, DType::I16),
    plain("int8", "Char", 1, DType::I8),
    plain("uint8", "Byte", 1, DType::U8),
    plain("bool", "Bool", 1, DType::Bool),
    plain("uint16", "", 2, DType::U16),
    plain("uint32", "", 4, DType::U32),
    plain("uint64", "", 8, DType::U64),
    Element { name: "float8_e4m3fn", storage: "", size: 1, read_as: ReadAs::Float8(Float8::E4M3) },
    Element { name: "float8_e5m2", storage: "", size: 1, read_as: ReadAs::Float8(Float8::E5M2) },
    unsupported("float8_e4m3fnuz", "", 1, "of type float8_e4m3fnuz"),
    unsupported("float8_e5m2fnuz", "", 1, "of type float8_e5m2fnuz"),
    unsupported("float8_e8m0fnu", "", 1, "of type float8_e8m0fnu"),
    unsupported("float4_e2m1fn_x2", "", 1, "of type float4_e2m1fn_x2"),
    unsupported("complex64", "ComplexFloat", 8, "complex"),
    unsupported("complex128", "ComplexDouble", 16, "complex"),
    unsupported("quint8", "QUInt8", 1, "quantized (quint8)"),
    unsupported("qint8", "QInt8", 1, "quantized (qint8)"),
    unsupported("qint32", "QInt32", 4, "quantized (qint32)"),
    unsupported("quint4x2", "QUInt4x2", 1, "quantized (quint4x2)"),
    unsupported("quint2x4", "QUInt2x4", 1, "quantized (quint2x4)"),
];

/// The functions and classes that are understood, with their modules.
const KNOWN: &[(&str, &str, Global)] = &[
    ("torch._utils", "_rebuild_tensor", Global::Tensor { is_untyped: false }),
    ("torch._utils", "_rebuild_tensor_v2", Global::Tensor { is_untyped: false }),
    ("torch._utils", "_rebuild_tensor_v3", Global::Tensor { is_untyped: true }),
    ("torch._utils", "_rebuild_parameter", Global::Parameter),
    ("torch._utils", "_rebuild_parameter_with_state", Global::Parameter),
    ("torch._tensor", "_rebuild_from_type_v2", Global::FromType),
    ("torch._utils", "_rebuild_sparse_tensor", Global::Unsupported("sparse")),
    ("torch._utils", "_rebuild_sparse_csr_tensor", Global::Unsupported("sparse")),
    ("torch._utils", "_rebuild_qtensor", Global::Unsupported("quantized")),
    ("torch._utils", "_rebuild_nested_tensor", Global::Unsupported("nested")),
    ("torch._utils", "_rebuild_wrapper_subclass", Global::Unsupported("a subclass of tensors")),
    ("torch._utils", "_rebuild_meta_tensor_no_storage", Global::Unsupported("without data (meta)")),
    ("torch.storage", "UntypedStorage", Global::Storage(None)),
    ("torch", "UntypedStorage", Global::Storage(None)),
    ("torch", "Size", Global::Tuple),
    ("torch", "device", Global::Opaque),
    ("torch", "Tensor", Global::Opaque),
    ("torch.serialization", "_get_layout", Global::Opaque),
    ("collections", "OrderedDict", Global::Dict),
    ("collections", "defaultdict", Global::Dict),
    ("collections", "Counter", Global::Opaque),
    ("collections", "deque", Global::Opaque),
    ("_codecs", "encode", Global::Opaque),
    ("argparse", "Namespace", Global::Opaque),
    ("copy_reg", "_reconstructor", Global::NewObject),
    ("copyreg", "_reconstructor", Global::NewObject),
    ("copyreg", "__newobj__", Global::NewObject),
    ("copyreg", "__newobj_ex__", Global::NewObject),
    ("copy_reg", "__newobj__", Global::NewObject),
    ("numpy", "ndarray", Global::Opaque),
    ("numpy", "dtype", Global::Opaque),
    ("numpy", "bool_", Global::Opaque),
    ("uuid", "UUID", Global::Opaque),
    ("typing", "Any", Global::Opaque),
    ("types", "SimpleNamespace", Global::Opaque),
    ("datetime", "date", Global::Opaque),
    ("datetime", "datetime", Global::Opaque),
    ("datetime", "time", Global::Opaque),
    ("datetime", "timedelta", Global::Opaque),
    ("datetime", "timezone", Global::Opaque),
];

/// Python's own types, in `builtins` or `__builtin__`.
const BUILTINS: [(&str, Global); 16] = [
    ("dict", Global::Dict),
    ("list", Global::List),
    ("tuple", Global::Tuple),
    ("set", Global::Opaque),
    ("frozenset", Global::Opaque),
    ("bool", Global::Opaque),
    ("int", Global::Opaque),
    ("long", Global::Opaque),
    ("float", Global::Opaque),
    ("complex", Global::Opaque),
    ("str", Global::Opaque),
    ("unicode", Global::Opaque),
    ("bytes", Global::Opaque),
    ("bytearray", Global::Opaque),
    ("object", Global::Opaque),
    ("slice", Global::Opaque),
];

/// Functions of NumPy that rebuild scalars and arrays, by the last part of their module.
const NUMPY: [(&str, &str); 3] =
    [("multiarray", "scalar"), ("multiarray", "_reconstruct"), ("numeric", "_frombuffer")];

/// Scalar types of NumPy.
const NUMPY_SCALARS: [&str; 14] = [
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "str_", "bytes_", "generic",
];

/// Packages whose classes are opaque: what trainers leave beside the weights.
const OPAQUE: [&str; 10] = [
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "pathlib",
    "torch.nn",
    "torch.optim",
    "torch.torch_version",
    "numpy.dtypes",
];

/// The meaning of a function or class; `None` if it is refused.
pub(super) fn resolve(module: &str, name: &str) -> Option<Global> {
    let known = KNOWN.iter().find(|(in_module, known, _)| *in_module == module && *known == name);
    if let Some((_, _, global)) = known {
        return Some(*global);
    }
    match module {
        "builtins" | "__builtin__" => {
            BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, global)| *global)
        }
        "torch" | "torch.cuda" => of_torch(name),
        "numpy" => NUMPY_SCALARS.contains(&name).then_some(Global::Opaque),
        _ => is_opaque(module, name).then_some(Global::Opaque),
    }
}

/// A storage's class or an element type.
fn of_torch(name: &str) -> Option<Global> {
    if let Some(storage) = name.strip_suffix("Storage") {
        let element = ELEMENTS.iter().find(|element| element.storage == storage && !storage.is_empty())?;
        return Some(Global::Storage(Some(element)));
    }
    ELEMENTS.iter().find(|element| element.name == name).map(Global::Element)
}

fn is_opaque(module: &str, name: &str) -> bool {
    let numpy = module.strip_prefix("numpy.core.").or_else(|| module.strip_prefix("numpy._core."));
    if let Some(part) = numpy {
        return NUMPY.contains(&(part, name));
    }
    // Classes, not functions: a name with a dot could lead through a module to anything.
    let is_class = name.split('.').all(|part| part.trim_start_matches('_').starts_with(char::is_uppercase));
    let is_in = |package: &str| {
        module.strip_prefix(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    is_class && OPAQUE.iter().any(|package| is_in(package))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_trainers_are_opaque_and_functions_are_refused() {
        for (module, name) in [
            ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
            ("lightning.pytorch.utilities.parsing", "AttributeDict"),
            ("omegaconf.dictconfig", "DictConfig"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.dtypes", "Float64DType"),
            ("numpy", "float64"),
            ("pathlib", "PosixPath"),
            ("datetime", "timedelta"),
            ("torch.nn.modules.container", "ParameterDict"),
            ("torch.torch_version", "TorchVersion"),
        ] {
            assert_eq!(resolve(module, name), Some(Global::Opaque), "{module}.{name}");
        }
        for (module, name) in [
            ("os", "system"),
            ("posix", "system"),
            ("nt", "system"),
            ("builtins", "eval"),
            ("builtins", "getattr"),
            ("__builtin__", "exec"),
            ("subprocess", "Popen"),
            ("torch", "load"),
            ("torch.hub", "load"),
            ("torch.storage", "_load_from_bytes"),
            ("webbrowser", "open"),
            ("runpy", "run_path"),
            ("importlib", "import_module"),
            ("pytorch_lightning", "os.system"),
            ("pytorch_lightning.utilities", "Foo.os.system"),
            ("pytorch_lightning_evil", "Model"),
            ("pathlib", "os"),
            ("numpy.testing._private.utils", "runstring"),
            ("numpy", "load"),
            ("omegaconf", ""),
            ("datetime", "sys.modules"),
            ("__main__", "Config"),
            ("", ""),
        ] {
            assert_eq!(resolve(module, name), None, "{module}.{name}");
        }
    }

    #[test]
    fn storages_have_their_elements() {
        let size = |name| match resolve("torch", name) {
            Some(Global::Storage(Some(element))) => element.size,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!([size("HalfStorage"), size("LongStorage"), size("BoolStorage")], [2, 8, 1]);
        assert_eq!(resolve("torch", "Storage"), None);
        assert!(matches!(resolve("torch", "float8_e5m2"), Some(Global::Element(_))));
    }
}
