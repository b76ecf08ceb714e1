//! The opening of the model of a command.

use std::path::Path;

use mixbit_app::source::{LoadedModel, load};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_packages::source::OpenOptions;

use super::progress::Progress;

/// The model of a path, or the demo model, and its name. Warnings say what was assumed where its files are
/// silent.
///
/// # Errors
/// If it can't be opened.
pub(super) fn open(
    path: Option<&Path>,
    options: &OpenOptions,
    progress: &Progress,
) -> anyhow::Result<(DiffusionModel, String)> {
    let LoadedModel { model, name, assumptions } = load(path, options)?;
    assumptions.iter().for_each(|assumption| progress.say(format_args!("warning: {assumption}")));
    Ok((model, name))
}
