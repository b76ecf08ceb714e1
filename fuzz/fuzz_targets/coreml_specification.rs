//! Any bytes as the specification of a package: no panic, and what is accepted is a valid program whose
//! constants can be read and decoded in full.
#![no_main]

use mixbit_formats::coreml::from_files;
use libfuzzer_sys::fuzz_target;
use mixbit_mil::{Bytes, Constant, Def};

const WEIGHTS: &[u8] = include_bytes!(
    "../../fixtures/coreml/encodings/ios18_palette4_groups8_scaled.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
);
const MANIFEST: &[u8] = br#"{"fileFormatVersion":"1.0.0","itemInfoEntries":{"A":{"path":"m"}},"rootModelIdentifier":"A"}"#;

fuzz_target!(|file: &[u8]| {
    let files = [("Manifest.json", MANIFEST), ("Data/m", file), ("Data/weights/weight.bin", WEIGHTS)];
    let files = files.map(|(name, bytes)| (name.to_string(), Bytes::new(bytes.to_vec())));
    let Ok(model) = from_files("fuzz", files) else { return };
    for function in &model.program.functions {
        mixbit_mil::verify(function).expect("what is read is valid");
        let Ok(decoded) = mixbit_mil::constexpr::decoded(function) else { continue };
        for value in decoded.values() {
            // A small file may describe a large result of a sparse or empty encoding.
            if let Def::Const(Constant::Weight(weight)) = &value.def
                && weight.ty().byte_len().is_some_and(|len| len < 1 << 20)
            {
                assert_eq!(weight.read().ok().map(|bytes| bytes.len()), value.ty.byte_len());
            }
        }
    }
});
