//! Any bytes as MIL text: no panic, and what is accepted is a valid program that prints to a text of the same
//! program.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mixbit_mil::text::{Blob, parse};
use mixbit_mil::{Bytes, WeightRef};

/// Zeros of at most a megabyte for every weight, under the name that a displayed program gives it.
fn zeros(blob: Blob) -> Result<WeightRef, String> {
    let len = blob.ty.byte_len().filter(|&len| len < 1 << 20).ok_or("too large")?;
    let name = blob.path.strip_prefix("@checkpoint/").unwrap_or(blob.name);
    WeightRef::new(name, blob.ty.clone(), Bytes::new(vec![0u8; len])).map_err(|error| error.to_string())
}

fuzz_target!(|file: &[u8]| {
    let Ok(text) = std::str::from_utf8(file) else { return };
    let Ok(program) = parse(text, &mut zeros) else { return };
    program.functions.iter().for_each(|function| mixbit_mil::verify(function).expect("what is parsed is valid"));
    let printed = program.to_string();
    let again = parse(&printed, &mut zeros).expect("what is printed parses");
    assert_eq!(again.to_string(), printed);
});
