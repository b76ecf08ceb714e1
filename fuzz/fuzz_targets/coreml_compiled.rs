//! Any bytes as `coremldata.bin` and `metadata.json` of a compiled model, and as the `Manifest.json` of a
//! package: no panic, and what is accepted is a valid program.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mixbit_formats::coreml::from_files;
use mixbit_mil::Bytes;

const COMPILED: [(&str, &[u8]); 3] = [
    ("coremldata.bin", include_bytes!("../../fixtures/coreml/compiled/test_linear.mlmodelc/coremldata.bin")),
    ("metadata.json", include_bytes!("../../fixtures/coreml/compiled/test_linear.mlmodelc/metadata.json")),
    ("model.mil", include_bytes!("../../fixtures/coreml/compiled/test_linear.mlmodelc/model.mil")),
];

fuzz_target!(|file: &[u8]| {
    let any = |name: &str| (name.to_string(), Bytes::new(file.to_vec()));
    let fixed = |name: &str, bytes: &[u8]| (name.to_string(), Bytes::new(bytes.to_vec()));
    let [data, metadata, text] = COMPILED.map(|(name, bytes)| fixed(name, bytes));
    let models = [
        vec![any("coremldata.bin"), metadata.clone(), text.clone()],
        vec![data, any("metadata.json"), text],
        vec![any("Manifest.json"), fixed("Data/m", b"")],
    ];
    for files in models {
        let Ok(model) = from_files("fuzz", files) else { continue };
        for function in &model.program.functions {
            mixbit_mil::verify(function).expect("what is read is valid");
        }
    }
});
