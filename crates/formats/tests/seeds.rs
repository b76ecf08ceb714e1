//! Files that the field's own libraries wrote (`fuzz/make_seeds.py`) are read.

use std::path::{Path, PathBuf};

use mixbit_formats::npy::{Npz, open_npy};
use mixbit_formats::{Diffusers, Error, SafeTensors};
use mixbit_mil::{DType, TensorType, WeightRef, Weights};

fn seed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name)
}

/// The seeds' first array: 0 to 5 in f16, as [2, 3].
fn assert_is_a(tensor: &WeightRef) {
    assert_eq!(tensor.ty(), &TensorType::new(DType::F16, [2, 3]));
    let f16_bits: Vec<u8> = [0u16, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500].map(u16::to_le_bytes).concat();
    assert_eq!(&*tensor.read().unwrap(), f16_bits);
}

/// The seeds' second array: 7 and -8 in i64.
fn assert_is_b(tensor: &WeightRef) {
    assert_eq!(tensor.ty(), &TensorType::new(DType::I64, [2]));
    assert_eq!(&*tensor.read().unwrap(), [7i64, -8].map(i64::to_le_bytes).concat());
}

#[test]
fn files_of_the_safetensors_library_are_read() {
    let weights = SafeTensors::open(&seed("safetensors/two-types")).unwrap();
    assert_is_a(&weights.get("a").unwrap());
    assert_is_b(&weights.get("b").unwrap());
    assert_eq!(weights.metadata()["format"], "pt");
    let weights = SafeTensors::open(&seed("safetensors/empty-and-scalar")).unwrap();
    assert_eq!(weights.require("e", &[0, 4]).unwrap().read().unwrap().len(), 0);
    assert_eq!(&*weights.require("s", &[]).unwrap().read().unwrap(), 1.5f32.to_le_bytes());
}

#[test]
fn hostile_seeds_are_refused() {
    for name in ["hole", "ten-gigabyte-header"] {
        let error = SafeTensors::open(&seed("safetensors").join(name)).unwrap_err();
        assert!(matches!(error, Error::SafeTensors { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn files_of_numpy_are_read() {
    let archive = Npz::open(&seed("npz/two-arrays")).unwrap();
    assert_eq!(archive.names(), ["a", "b"]);
    assert_is_a(&archive.get("a").unwrap());
    assert_is_b(&archive.get("b").unwrap());
    let array = open_npy(&seed("npz/one-array")).unwrap();
    assert_eq!(array.name(), "one-array");
    assert_is_a(&array);
    let message = Npz::open(&seed("npz/compressed")).unwrap_err().to_string();
    assert!(message.contains("array `a`: a compressed archive"), "{message}");
}

#[test]
fn a_pipeline_index_is_read() {
    let bytes = mixbit_mil::Bytes::new(std::fs::read(seed("model_index/pipeline")).unwrap());
    let model = Diffusers::from_files("seed", [("model_index.json".to_string(), bytes)]).unwrap();
    assert_eq!(model.component("unet").unwrap().class, "UNet2DConditionModel");
    assert_eq!(model.components()["safety_checker"], None);
    assert_eq!(model.options()["requires_safety_checker"], false);
}
