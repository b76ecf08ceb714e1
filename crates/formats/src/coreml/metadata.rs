//! `metadata.json` of a compiled model, which apps read for shapes and for the kind of attention.

use std::collections::{BTreeMap, BTreeSet};

use mixbit_mil::{Arg, DType, Def, Function, OpView, Opset, TensorType, ValueId};
use serde_json::{Map, Value, json};

use super::{Feature, Model};

/// The oldest systems that run a specification version, from version 6 on.
const AVAILABILITY: [[&str; 6]; 5] = [
    ["15.0", "15.0", "12.0", "15.0", "1.0", "8.0"],
    ["16.0", "16.0", "13.0", "16.0", "1.0", "9.0"],
    ["17.0", "17.0", "14.0", "17.0", "1.0", "10.0"],
    ["18.0", "18.0", "15.0", "18.0", "2.0", "11.0"],
    ["26.0", "26.0", "26.0", "26.0", "26.0", "26.0"],
];
const SYSTEMS: [&str; 6] = ["iOS", "macCatalyst", "macOS", "tvOS", "visionOS", "watchOS"];

/// Ops that have one version only, which the compiler does not name.
const UNVERSIONED: [&str; 12] = [
    "concat",
    "expand_dims",
    "pad",
    "resize_nearest_neighbor",
    "slice_by_index",
    "slice_by_size",
    "split",
    "squeeze",
    "stack",
    "tile",
    "transpose",
    "upsample_nearest_neighbor",
];

/// Ops that changed with iOS 17.
const CHANGED_IN_17: [&str; 37] = [
    "add",
    "batch_norm",
    "cast",
    "clip",
    "conv",
    "equal",
    "expand_dims",
    "floor_div",
    "gather",
    "gather_nd",
    "greater",
    "greater_equal",
    "instance_norm",
    "inverse",
    "layer_norm",
    "leaky_relu",
    "less",
    "less_equal",
    "linear",
    "log",
    "matmul",
    "maximum",
    "minimum",
    "mod",
    "mul",
    "not_equal",
    "pow",
    "real_div",
    "reduce_argmax",
    "reduce_argmin",
    "reshape",
    "rsqrt",
    "slice_by_index",
    "slice_by_size",
    "squeeze",
    "sub",
    "transpose",
];

/// The JSON text of a model. `stored` tells whether a constant is in the weight file.
pub(super) fn write(model: &Model, stored: &dyn Fn(ValueId) -> bool) -> String {
    let main = model.program.main();
    let version = model.specification_version as usize;
    let availability = SYSTEMS.iter().zip(AVAILABILITY[version.clamp(6, 10) - 6]);
    let mut out = json!({
        "metadataOutputVersion": "3.0",
        "specificationVersion": version,
        "generatedClassName": model.class,
        "modelType": { "name": "MLModelType_mlProgram" },
        "method": "predict",
        "inputSchema": model.inputs.iter().map(schema).collect::<Vec<_>>(),
        "outputSchema": model.outputs.iter().map(schema).collect::<Vec<_>>(),
        "stateSchema": [],
        "modelParameters": [],
        "isUpdatable": "0",
        "availability": availability.map(|(system, from)| (system.to_string(), from.into())).collect::<Map<_, _>>(),
        "mlProgramOperationTypeHistogram": main.map(histogram).unwrap_or_default(),
        "computePrecision": main.map(compute_precision).unwrap_or_default(),
        "userDefinedMetadata": model.metadata.user_defined,
    });
    let storage = main.map(|main| storage_precision(main, stored)).unwrap_or_default();
    let metadata = &model.metadata;
    let optional = [
        ("storagePrecision", &storage),
        ("shortDescription", &metadata.short_description),
        ("version", &metadata.version),
        ("author", &metadata.author),
        ("license", &metadata.license),
    ];
    for (key, value) in optional.into_iter().filter(|(_, value)| !value.is_empty()) {
        out[key] = Value::from(value.as_str());
    }
    format!("{:#}\n", Value::Array(vec![out]))
}

fn schema(feature: &Feature) -> Value {
    let TensorType { dtype, shape } = &feature.ty;
    let extents: Vec<String> = shape.iter().map(usize::to_string).collect();
    json!({
        "name": feature.name,
        "type": "MultiArray",
        "dataType": precision(*dtype),
        "formattedType": format!("MultiArray ({} {})", precision(*dtype), extents.join(" × ")),
        "shape": format!("[{}]", extents.join(", ")),
        "hasShapeFlexibility": "0",
        "isOptional": if feature.optional { "1" } else { "0" },
        "shortDescription": feature.description,
    })
}

/// The compiler's name of an element type.
fn precision(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "Bool",
        DType::Str => "String",
        DType::F16 => "Float16",
        DType::BF16 => "BFloat16",
        DType::F32 => "Float32",
        DType::F64 => "Double",
        DType::I4 => "Int4",
        DType::I8 => "Int8",
        DType::I16 => "Int16",
        DType::I32 => "Int32",
        DType::I64 => "Int64",
        DType::U1 => "UInt1",
        DType::U2 => "UInt2",
        DType::U3 => "UInt3",
        DType::U4 => "UInt4",
        DType::U6 => "UInt6",
        DType::U8 => "UInt8",
        DType::U16 => "UInt16",
        DType::U32 => "UInt32",
        DType::U64 => "UInt64",
    }
}

/// The number of ops of each type, by the compiler's name.
fn histogram(function: &Function) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for op in function.ops() {
        *counts.entry(versioned_name(&function.view(op))).or_insert(0) += 1;
    }
    counts
}

/// The compiler's name of an op, such as `Ios16.reduceMean`: the opset of its form, and the op.
fn versioned_name(op: &OpView) -> String {
    let mut words = op.kind().split('_');
    let mut name = words.next().unwrap_or_default().to_string();
    words.for_each(|word| name.push_str(&capitalized(word)));
    let opset = op.function().opset;
    let since = match op.kind() {
        "constexpr_lut_to_dense" | "constexpr_sparse_to_dense" if !op.has_attributes() => Opset::Ios18,
        kind if opset >= Opset::Ios17 && CHANGED_IN_17.contains(&kind) => Opset::Ios17,
        kind if UNVERSIONED.contains(&kind) => Opset::Ios15,
        _ => op.op().def.since.max(Opset::Ios16),
    };
    match since {
        Opset::Ios15 => capitalized(&name),
        since => format!("Ios{}.{name}", &since.name()[3..]),
    }
}

fn capitalized(word: &str) -> String {
    let first = word.chars().next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(word.chars().skip(1)).collect()
}

/// The element types of all results and constants.
fn compute_precision(function: &Function) -> String {
    let results = function.ops().iter().flat_map(|op| op.outputs.iter().copied());
    let constants = function
        .ops()
        .iter()
        .filter(|op| !op.def.is_constexpr())
        .flat_map(|op| op.args.iter().flat_map(Arg::values).copied())
        .filter(|&id| matches!(function.value(id).def, Def::Const(_)));
    let types = results.chain(constants).map(|id| function.value(id).ty.dtype);
    mixed(
        types
            .filter(|dtype| !matches!(dtype, DType::Str | DType::Bool))
            .map(|dtype| precision(dtype).to_string()),
    )
}

/// The storage of the constants in the weight file.
fn storage_precision(function: &Function, stored: &dyn Fn(ValueId) -> bool) -> String {
    let mut kinds = Vec::new();
    for op in function.ops() {
        let view = function.view(op);
        for (param, arg) in op.def.params.iter().zip(&op.args) {
            for &id in arg.values().iter().filter(|&&id| stored(id)) {
                kinds.push(match (op.def.name, param.name) {
                    ("constexpr_lut_to_dense", "indices") => {
                        format!("Palettized ({} bits)", palette_bits(&view).unwrap_or(8))
                    }
                    ("constexpr_sparse_to_dense", _) => "Sparse".to_string(),
                    _ => precision(function.value(id).ty.dtype).to_string(),
                });
            }
        }
    }
    mixed(kinds.into_iter())
}

/// The bits of an index into the palette of an op.
fn palette_bits(op: &OpView) -> Option<usize> {
    let lut = op.ty("lut").ok()?;
    let entries = if op.has_attributes() { lut.shape.first() } else { lut.shape.get(lut.rank() - 2) };
    entries.map(|entries| entries.ilog2() as usize)
}

fn mixed(kinds: impl Iterator<Item = String>) -> String {
    let kinds: BTreeSet<String> = kinds.collect();
    match kinds.len() {
        0 | 1 => kinds.into_iter().collect(),
        _ => format!("Mixed ({})", kinds.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use mixbit_mil::{Builder, Literal};

    use super::*;

    #[test]
    fn ops_are_named_as_the_compiler_does() {
        let names = |opset: Opset| {
            let mut b = Builder::new("main", opset);
            let x = b.input("x", TensorType::new(DType::F16, [1, 2])).unwrap();
            let y = b.op("mul").arg("x", x).arg("y", 2.0).add().unwrap();
            let y = b.op("reduce_mean").arg("x", y).arg("axes", [1]).arg("keep_dims", true).add().unwrap();
            let y = b.op("transpose").arg("x", y).arg("perm", [0, 1]).add().unwrap();
            let y = b.op("einsum").arg("values", [x, y]).arg("equation", "ab,ac->ac").add().unwrap();
            let lut = Literal::from_bytes(TensorType::new(DType::F16, [2]), vec![0; 4]).unwrap();
            let shape = Literal::from_bytes(TensorType::new(DType::U32, [1]), vec![8, 0, 0, 0]).unwrap();
            let indices = Literal::from_bytes(TensorType::new(DType::U8, [1]), vec![0]).unwrap();
            let op = b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut);
            let w = op.arg("shape", shape).add().unwrap();
            let function = b.finish(&[y, w]).unwrap();
            let names: Vec<String> =
                function.ops().iter().map(|op| versioned_name(&function.view(op))).collect();
            names.join(" ")
        };
        assert_eq!(
            names(Opset::Ios16),
            "Ios16.mul Ios16.reduceMean Transpose Ios16.einsum Ios16.constexprLutToDense"
        );
        assert_eq!(
            names(Opset::Ios18),
            "Ios17.mul Ios16.reduceMean Ios17.transpose Ios16.einsum Ios16.constexprLutToDense"
        );
    }
}
