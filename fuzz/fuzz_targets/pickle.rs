//! Any bytes as a file of PyTorch: no panic, and what is accepted can be read in full and is as long as its
//! type says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mixbit_formats::Torch;
use mixbit_mil::{Bytes, Weights};

fuzz_target!(|file: &[u8]| {
    let Ok(weights) = Torch::from_bytes(&Bytes::new(file.to_vec())) else { return };
    for name in weights.names() {
        let tensor = weights.get(name).expect("a name that is listed");
        let len = tensor.read().expect("no cast").len();
        assert_eq!(Some(len), tensor.ty().byte_len());
        // 8-bit floats are read as halves; an expanded tensor takes a megabyte more than the file at most.
        assert!(len <= 2 * (file.len() + (1 << 20)));
    }
});
