//! The opening of the model of a command.

use std::path::Path;

use mixbit_app::source::{LoadedModel, load, open_checkpoint};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_packages::source::{OpenOptions, OpenedModel, Opening};

use super::lora;
use super::printable::visible_line;
use super::progress::Progress;

/// The model of a path, or the demo model, and its name. Says what kind of model it is, where its tensors
/// tell. Warnings say what was assumed where its files are silent.
///
/// # Errors
/// If it can't be opened.
pub(super) fn open(
    path: Option<&Path>,
    options: &OpenOptions,
    progress: &Progress,
) -> anyhow::Result<(DiffusionModel, String)> {
    let LoadedModel { model, name, .. } = loaded(path, options, progress)?;
    Ok((model, name))
}

/// The model of a path with all that is known of it. Says what [`open`] says.
///
/// # Errors
/// If it can't be opened.
pub(super) fn loaded(
    path: Option<&Path>,
    options: &OpenOptions,
    progress: &Progress,
) -> anyhow::Result<LoadedModel> {
    let loaded = load(path, options)?;
    say(&loaded.name, &loaded.opening, progress);
    lora::say_unpacked(loaded.unpacked_bytes, progress);
    loaded.assumptions.iter().for_each(|assumption| progress.say(format_args!("warning: {assumption}")));
    Ok(loaded)
}

/// The checkpoint of a path, or of the demo model. Says what kind of model it is, where its tensors tell.
///
/// # Errors
/// If it can't be opened, or holds packages.
pub(super) fn checkpoint(
    path: Option<&Path>,
    options: &OpenOptions,
    progress: &Progress,
) -> anyhow::Result<OpenedModel> {
    let model = open_checkpoint(path, options)?;
    say(model.name(), model.opening(), progress);
    Ok(model)
}

/// Says the kind of a model, the LoRAs and textual inversions that were added, and the files passed over.
pub(super) fn say(name: &str, opening: &Opening, progress: &Progress) {
    let Opening { kind, loras, embeddings, warnings } = opening;
    kind.iter().for_each(|kind| progress.say(format_args!("{name}: {kind}")));
    lora::say(loras, progress);
    embeddings.iter().for_each(|embedding| progress.say(visible_line(&embedding.to_string())));
    warnings.iter().for_each(|warning| progress.say(format_args!("warning: {}", visible_line(warning))));
}
