//! Any bytes as an `.npz` archive and as an `.npy` array: no panic, and what is accepted is as long as its
//! type says.
#![no_main]

use mixbit_formats::npy::{Npz, parse_npy};
use libfuzzer_sys::fuzz_target;
use mixbit_mil::{Bytes, Weights};

fuzz_target!(|file: &[u8]| {
    let bytes = Bytes::new(file.to_vec());
    let archive = Npz::from_bytes(bytes.clone());
    let members =
        archive.iter().flat_map(|archive| archive.names().into_iter().filter_map(|name| archive.get(name)));
    for array in members.chain(parse_npy("array", bytes).ok()) {
        assert_eq!(Some(array.read().expect("no cast").len()), array.ty().byte_len());
    }
});
