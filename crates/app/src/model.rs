//! Finding models.

use std::path::Path;

use anyhow::Context;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_packages::bundle::Bundle;
use mixbit_packages::source::{DiffusersModel, directory_name};

use crate::demo;

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

/// Opens a directory, or the model in the binary if there is none.
///
/// # Errors
/// If the directory holds no model, or the binary was built without one.
pub fn open_or_demo(path: Option<&Path>, variant: Option<&str>) -> anyhow::Result<DiffusersModel> {
    match path {
        Some(path) => Ok(DiffusersModel::open(path, variant)?),
        None => demo::open()?.context("this build has no model in it: give a model's directory with --model"),
    }
}
