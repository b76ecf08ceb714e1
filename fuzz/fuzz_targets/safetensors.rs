//! Any bytes as a safetensors file: no panic, and what is accepted can be read in full and is as long as its
//! type says.
#![no_main]

use mixbit_formats::SafeTensors;
use libfuzzer_sys::fuzz_target;
use mixbit_mil::{Bytes, Weights};

fuzz_target!(|file: &[u8]| {
    let Ok(weights) = SafeTensors::from_bytes(Bytes::new(file.to_vec())) else { return };
    let mut total = 0;
    for name in weights.names() {
        let tensor = weights.get(name).expect("a name that is listed");
        let len = tensor.read().expect("no cast").len();
        assert_eq!(Some(len), tensor.ty().byte_len());
        total += len;
    }
    assert!(total + 8 <= file.len());
});
