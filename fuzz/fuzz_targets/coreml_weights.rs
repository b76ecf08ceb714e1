//! Any bytes as the weight file of a package: no panic, and what is accepted is as long as its type says.
#![no_main]

use mixbit_formats::coreml::from_files;
use libfuzzer_sys::fuzz_target;
use mixbit_mil::{Bytes, Constant, Def};

const SPECIFICATION: &[u8] = include_bytes!(
    "../../fixtures/coreml/encodings/ios18_palette4_groups8_scaled.mlpackage/Data/com.apple.CoreML/model.mlmodel"
);
const MANIFEST: &[u8] = br#"{"fileFormatVersion":"1.0.0","itemInfoEntries":{"A":{"path":"m"}},"rootModelIdentifier":"A"}"#;

fuzz_target!(|file: &[u8]| {
    let files = [("Manifest.json", MANIFEST), ("Data/m", SPECIFICATION), ("Data/weights/weight.bin", file)];
    let files = files.map(|(name, bytes)| (name.to_string(), Bytes::new(bytes.to_vec())));
    let Ok(model) = from_files("fuzz", files) else { return };
    for value in model.program.functions.iter().flat_map(|function| function.values()) {
        if let Def::Const(Constant::Weight(weight)) = &value.def {
            assert_eq!(Some(weight.read().expect("no cast").len()), value.ty.byte_len());
        }
    }
});
