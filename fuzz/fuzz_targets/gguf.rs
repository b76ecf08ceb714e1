//! Any bytes as a GGUF file: no panic, and what is accepted can be read in full and is as long as its type
//! says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mixbit_formats::Gguf;
use mixbit_mil::{Bytes, Weights};

fuzz_target!(|file: &[u8]| {
    let Ok(weights) = Gguf::from_bytes(&Bytes::new(file.to_vec())) else { return };
    for name in weights.names() {
        let tensor = weights.get(name).expect("a name that is listed");
        let len = tensor.read().expect("no cast").len();
        assert_eq!(Some(len), tensor.ty().byte_len());
        // Q2_K has 84 bytes for 256 elements of f32.
        assert!(len <= 13 * file.len());
    }
});
