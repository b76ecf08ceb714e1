//! Any bytes as `model_index.json` and as a shard index: no panic.
#![no_main]

use mixbit_formats::Diffusers;
use libfuzzer_sys::fuzz_target;
use mixbit_mil::Bytes;

fuzz_target!(|file: &[u8]| {
    let names = ["model_index.json", "unet/diffusion_pytorch_model.safetensors.index.json"];
    let fixed: &[u8] = br#"{"_class_name": "P", "unet": ["diffusers", "U"]}"#;
    // Each as the model's index with the component after it, and as the shard index of a sound model.
    for contents in [[file, fixed], [fixed, file]] {
        let files = names.into_iter().zip(contents);
        let files = files.map(|(name, bytes)| (name.to_string(), Bytes::new(bytes.to_vec())));
        let Ok(model) = Diffusers::from_files("fuzz", files) else { continue };
        for name in model.components().keys() {
            let _ = model.weights(name, None);
        }
        let _ = model.weights("unet", Some("fp16"));
    }
});
