//! The demo model in the binary: coloured shapes at 64x64 pixels, without any download.

use mixbit_packages::source::DiffusersModel;

/// The model's name for people.
pub const NAME: &str = "mixbit demo";

/// Opens the model in the binary; `None` if it was built without.
///
/// # Errors
/// If its files are malformed: a defect of the build.
#[cfg(not(feature = "demo-model"))]
pub fn open() -> Result<Option<DiffusersModel>, mixbit_formats::Error> {
    Ok(None)
}

/// Opens the model in the binary; `None` if it was built without.
///
/// # Errors
/// If its files are malformed: a defect of the build.
#[cfg(feature = "demo-model")]
pub fn open() -> Result<Option<DiffusersModel>, mixbit_formats::Error> {
    let files = FILES.iter().map(|&(path, bytes)| (path.to_string(), mixbit_mil::Bytes::new(bytes)));
    DiffusersModel::from_files(NAME, files).map(Some)
}

#[cfg(feature = "demo-model")]
macro_rules! file {
    ($path:literal) => {
        ($path, include_bytes!(concat!("../demo/", $path)))
    };
}

/// Every file by its path in the model's directory.
#[cfg(feature = "demo-model")]
static FILES: &[(&str, &[u8])] = &[
    file!("model_index.json"),
    file!("scheduler/scheduler_config.json"),
    file!("text_encoder/config.json"),
    file!("text_encoder/model.safetensors"),
    file!("text_encoder_2/config.json"),
    file!("text_encoder_2/model.safetensors"),
    file!("tokenizer/merges.txt"),
    file!("tokenizer/special_tokens_map.json"),
    file!("tokenizer/tokenizer_config.json"),
    file!("tokenizer/vocab.json"),
    file!("tokenizer_2/merges.txt"),
    file!("tokenizer_2/special_tokens_map.json"),
    file!("tokenizer_2/tokenizer_config.json"),
    file!("tokenizer_2/vocab.json"),
    file!("unet/config.json"),
    ("unet/diffusion_pytorch_model.safetensors", mixbit_demo_unet::WEIGHTS),
    file!("vae/config.json"),
    file!("vae/diffusion_pytorch_model.safetensors"),
];
