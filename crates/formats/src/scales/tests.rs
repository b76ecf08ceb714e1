use super::*;
use crate::safetensors::tests::file;
use crate::{Checkpoint, Error, TensorFile};
use mixbit_mil::{Bytes, Weights};
use mixbit_testkit::{Failures, Scratch};

/// A tensor of a test's file: its name, type, shape and bytes.
type Tensor<'a> = (&'a str, &'a str, &'a [usize], &'a [u8]);

/// A form of scales: its name, shape and bytes, and the products.
type Case<'a> = (&'a str, &'a [usize], &'a [u8], [f32; 8]);

/// 2, 4, 8 and 16 in f32.
const FLOATS: [u8; 16] = [0, 0, 0, 64, 0, 0, 128, 64, 0, 0, 0, 65, 0, 0, 128, 65];

/// Ones and minus ones of e4m3, and 448.
const E4M3: [u8; 8] = [0x38, 0x7e, 0x38, 0x38, 0xb8, 0x38, 0x38, 0x38];

fn open(tensors: &[Tensor<'_>]) -> Result<TensorFile, Error> {
    TensorFile::from_bytes("x.safetensors".as_ref(), Bytes::new(file(tensors)))
}

fn values(file: &dyn Weights, name: &str) -> Vec<f32> {
    let weight = file.get(name).unwrap();
    assert_eq!(weight.ty().dtype, DType::F32);
    weight.read().unwrap().as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect()
}

#[test]
fn scales_of_all_shapes_are_applied() {
    let cases: [Case<'_>; 6] = [
        ("one", &[], &FLOATS[..4], [2., 896., 2., 2., -2., 2., 2., 2.]),
        ("one in a vector", &[1], &FLOATS[..4], [2., 896., 2., 2., -2., 2., 2., 2.]),
        ("rows", &[2], &FLOATS[..8], [2., 896., 2., 2., -4., 4., 4., 4.]),
        ("rows of one column", &[2, 1], &FLOATS[..8], [2., 896., 2., 2., -4., 4., 4., 4.]),
        ("columns", &[1, 2], &FLOATS[..8], [2., 896., 4., 4., -2., 2., 4., 4.]),
        ("blocks", &[2, 2], &FLOATS, [2., 896., 4., 4., -8., 8., 16., 16.]),
    ];
    for end in ["scale_weight", "weight_scale"] {
        for (what, shape, bytes, expected) in cases {
            let scale = format!("x.{end}");
            let weights =
                open(&[("x.weight", "F8_E4M3", &[2, 4], &E4M3), (&scale, "F32", shape, bytes)]).unwrap();
            assert_eq!(weights.names(), ["x.weight"], "{what}");
            assert_eq!(values(&weights, "x.weight"), expected, "{what}");
            let weight = weights.get("x.weight").unwrap();
            assert_eq!((weight.stored_type_name(), weight.stored_len()), ("fp8 (e4m3)", 8 + bytes.len()));
            assert!(weights.get(&scale).is_none());
        }
    }
    let convolution = open(&[
        ("x.weight", "I8", &[2, 1, 2, 2], &[1, 2, 3, 4, 255, 6, 7, 8]),
        ("x.weight_scale", "F32", &[2, 1, 1, 1], &FLOATS[..8]),
    ]);
    let expected = [2., 4., 6., 8., -4., 24., 28., 32.];
    assert_eq!(values(&convolution.unwrap(), "x.weight"), expected);
}

#[test]
fn helpers_are_hidden_and_other_tensors_stay() {
    let json = br#"{"format": "float8_e5m2", "full_precision_matrix_mult": true}"#;
    let weights = open(&[
        ("scaled_fp8", "F8_E5M2", &[0], &[]),
        ("model.diffusion_model.scaled_fp8", "F8_E5M2", &[0], &[]),
        ("x.weight", "F8_E5M2", &[1], &[0x3c]),
        ("x.bias", "F32", &[1], &FLOATS[..4]),
        ("x.weight_scale", "F32", &[], &FLOATS[4..8]),
        ("x.input_scale", "F32", &[], &FLOATS[..4]),
        ("x.scale_input", "F32", &[], &FLOATS[..4]),
        ("x.comfy_quant", "U8", &[json.len()], json),
        ("y.weight_scale", "F32", &[], &FLOATS[..4]),
        ("plain.weight", "F8_E5M2", &[1], &[0x3c]),
    ]);
    let weights = weights.unwrap();
    assert_eq!(weights.names(), ["plain.weight", "x.bias", "x.weight", "y.weight_scale"]);
    assert_eq!(values(&weights, "x.weight"), [4.0]);
    assert_eq!(weights.get("plain.weight").unwrap().ty().dtype, DType::F16);
}

#[test]
fn a_scale_may_be_in_another_shard() {
    let scratch = Scratch::new();
    scratch.file("one.safetensors", &file(&[("x.weight", "F8_E4M3", &[1], &[0x38])]));
    scratch.file("two.safetensors", &file(&[("x.weight_scale", "F32", &[], &FLOATS[..4])]));
    let index = br#"{"weight_map": {"x.weight": "one.safetensors", "x.weight_scale": "two.safetensors"}}"#;
    let weights = Checkpoint::open(&scratch.file("model.safetensors.index.json", index)).unwrap();
    assert_eq!(weights.names(), ["x.weight"]);
    assert_eq!(values(&weights, "x.weight"), [2.0]);
}

#[test]
fn formats_that_are_not_known_are_refused_by_name() {
    let weight: Tensor<'_> = ("x.weight", "F8_E4M3", &[2, 4], &E4M3);
    let described = |json: &str| open(&[weight, ("x.comfy_quant", "U8", &[json.len()], json.as_bytes())]);
    let scaled = |dtype: &str, shape: &[usize], len: usize| {
        open(&[weight, ("x.weight_scale", dtype, shape, &[0; 64][..len])])
    };
    let metadata = |text: &str| {
        let entry = serde_json::json!({ "__metadata__": { DESCRIPTIONS: text } }).to_string();
        let bytes = [&(entry.len() as u64).to_le_bytes(), entry.as_bytes()].concat();
        TensorFile::from_bytes("x.safetensors".as_ref(), Bytes::new(bytes))
    };
    let state = "x.weight.quant_state.bitsandbytes__nf4";
    let cases = [
        (described(r#"{"format": "nvfp4"}"#), "layer `x` is quantized as nvfp4, which is not supported"),
        (described(r#"{"format": "mxfp8"}"#), "quantized as mxfp8"),
        (described(r#"{"format": "int8_tensorwise", "convrot": true}"#), "int8_tensorwise with rotations"),
        (described(r#"{"format": "a\nb"}"#), "quantized as a\\nb, which"),
        (described("{"), "the quantization of layer `x` can't be read"),
        (described(&" ".repeat(5000)), "can't be read: it is of type"),
        (described("{}"), ""),
        (
            scaled("F32", &[3], 12),
            "`x.weight_scale` of type tensor<fp32, [3]> does not scale a weight of type",
        ),
        (scaled("F32", &[2, 3], 24), "does not scale"),
        (scaled("F32", &[2, 0], 0), "does not scale"),
        (scaled("F32", &[0], 0), "does not scale"),
        (scaled("U8", &[2, 1], 2), "does not scale"),
        (open(&[weight, ("x.weight_scale_2", "F32", &[], &[0; 4])]), "quantized as NVFP4"),
        (open(&[("x.weight", "U8", &[2], &[0; 2]), (state, "U8", &[1], b"{")]), "bitsandbytes nf4"),
        (
            open(&[("x.weight", "U8", &[2], &[0; 2]), ("x.weight_scale", "F32", &[], &[0; 4])]),
            "does not scale",
        ),
        (metadata(r#"{"layers": {"y": {"format": "nvfp4"}}}"#), "layer `y` is quantized as nvfp4"),
        (metadata(r#"{"format_version": "1.0", "layers": {"y": {"format": "float8_e4m3fn"}}}"#), ""),
        (metadata("3"), "key `_quantization_metadata` can't be read"),
        (metadata(&"[".repeat(1 << 16)), "key `_quantization_metadata` can't be read"),
    ];
    let mut failures = Failures::new("formats of scales");
    for (opened, expected) in cases {
        let message = opened.map_or_else(|error| error.to_string(), |_| String::new());
        failures.case(expected, || match expected {
            "" if !message.is_empty() => Err(message),
            _ if !message.contains(expected) || message.contains('\n') => Err(message),
            _ => Ok(()),
        });
    }
    failures.finish();
}
