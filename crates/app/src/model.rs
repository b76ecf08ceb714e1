//! Finding models.

use std::path::Path;

use anyhow::Context;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_packages::bundle::Bundle;
use mixbit_packages::source::{DiffusersModel, directory_name};

/// A model that is ready to run, and its name for people.
///
/// `path` is a directory in the diffusers layout, or one of Core ML packages; without it, the model in the binary is
/// meant. `variant` chooses among the weights of the former.
///
/// # Errors
/// If there is no model that can be run.
pub fn load(path: Option<&Path>, variant: Option<&str>) -> anyhow::Result<(DiffusionModel, String)> {
    if let Some(path) = path.filter(|path| Bundle::is_at(path)) {
        let model = Bundle::open(path)?.model();
        return Ok((model.with_context(|| path.display().to_string())?, directory_name(path)));
    }
    let files = open_or_demo(path, variant)?;
    let model = DiffusionModel::from_files(&files).with_context(|| files.name().to_string())?;
    Ok((model, files.name().to_string()))
}

/// The model in the binary; `None` if it was built without.
///
/// # Errors
/// If its files are malformed.
pub fn demo() -> Result<Option<DiffusersModel>, mixbit_formats::Error> {
    demo::files().map(|files| DiffusersModel::from_files("mixbit demo", files)).transpose()
}

/// Opens a directory, or the model in the binary if there is none.
///
/// # Errors
/// If the directory holds no model, or the binary was built without one.
pub fn open_or_demo(path: Option<&Path>, variant: Option<&str>) -> anyhow::Result<DiffusersModel> {
    match path {
        Some(path) => Ok(DiffusersModel::open(path, variant)?),
        None => demo()?.context("this build has no model in it: give a model's directory with --model"),
    }
}

#[cfg(not(feature = "demo-model"))]
mod demo {
    use mixbit_mil::Bytes;

    pub(super) fn files() -> Option<Vec<(String, Bytes)>> {
        None
    }
}

#[cfg(feature = "demo-model")]
mod demo {
    use mixbit_mil::Bytes;

    macro_rules! files {
        ($($path:literal),* $(,)?) => {
            [$(($path, include_bytes!(concat!("../../../models/demo/", $path)).as_slice())),*]
        };
    }

    pub(super) fn files() -> Option<Vec<(String, Bytes)>> {
        let files = files![
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "text_encoder_2/config.json",
            "text_encoder_2/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "tokenizer_2/merges.txt",
            "tokenizer_2/special_tokens_map.json",
            "tokenizer_2/tokenizer_config.json",
            "tokenizer_2/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        Some(files.map(|(path, bytes)| (path.to_string(), Bytes::new(bytes))).into())
    }
}
