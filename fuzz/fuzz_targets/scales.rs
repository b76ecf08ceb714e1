//! Any bytes as a file of tensors with scales, in any format: no panic, and what is accepted can be read in
//! full.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mixbit_formats::TensorFile;
use mixbit_mil::{Bytes, Weights};

fuzz_target!(|file: &[u8]| {
    let file = Bytes::new(file.to_vec());
    let Ok(weights) = TensorFile::from_bytes(Path::new("fuzz.safetensors"), file) else { return };
    for name in weights.names() {
        let tensor = weights.get(name).expect("a name that is listed");
        assert_eq!(Some(tensor.read().expect("no cast").len()), tensor.ty().byte_len());
    }
});
