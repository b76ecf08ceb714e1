//! The sources of models that a program opens: those of packages, and the demo model in the binary.

use std::path::Path;

use mixbit_diffusion::model::DiffusionModel;
use mixbit_packages::bundle::Bundle;
use mixbit_packages::source::{
    CORE_ML, DIFFUSERS, OpenOptions, OpenedModel, Opening, Probe, SINGLE_FILE, Source,
};
use mixbit_packages::{Assumption, OpenError};

use crate::demo;

/// Every source, in the order in which they are tried.
pub static SOURCES: [&Source; 4] = [&CORE_ML, &SINGLE_FILE, &DIFFUSERS, &DEMO];

/// The demo model, where no path is given.
pub static DEMO: Source = Source { name: "the demo model", is_checkpoint: true, probe: probe_demo };

/// Opens the model at a path; without one, the demo model.
///
/// # Errors
/// [`OpenError`], with the reason of each source if no one finds a model.
pub fn open(path: Option<&Path>, options: &OpenOptions) -> Result<OpenedModel, OpenError> {
    mixbit_packages::source::open(path, options, SOURCES)
}

/// Opens a checkpoint, which can be converted, as [`open`] does.
///
/// # Errors
/// [`OpenError`].
pub fn open_checkpoint(path: Option<&Path>, options: &OpenOptions) -> Result<OpenedModel, OpenError> {
    if let Some(path) = path.filter(|path| Bundle::is_at(path) && !path.join("model_index.json").is_file()) {
        let what =
            "it holds packages, which are converted already: `mixbit palettize` makes smaller ones of them";
        return Err(OpenError::Package { path: path.to_path_buf(), what: what.to_string() });
    }
    let checkpoints = SOURCES.into_iter().filter(|source| source.is_checkpoint);
    mixbit_packages::source::open(path, options, checkpoints)
}

/// A model that is ready to run.
pub struct LoadedModel {
    /// The model.
    pub model: DiffusionModel,
    /// Its name for people.
    pub name: String,
    /// The findings and additions of opening it.
    pub opening: Opening,
    /// Bytes of compressed weights that the LoRAs make it hold uncompressed.
    pub unpacked_bytes: usize,
    /// Assumptions where its files are silent.
    pub assumptions: Vec<Assumption>,
}

/// Opens a model as [`open`] does, ready to run.
///
/// # Errors
/// [`OpenError`].
pub fn load(path: Option<&Path>, options: &OpenOptions) -> Result<LoadedModel, OpenError> {
    let opened = open(path, options)?;
    let (model, assumptions) = (opened.model()?, opened.assumptions()?);
    let (name, opening) = (opened.name().to_string(), opened.opening().clone());
    Ok(LoadedModel { model, name, opening, unpacked_bytes: opened.unpacked_bytes()?, assumptions })
}

fn probe_demo(path: Option<&Path>, _: &OpenOptions) -> Result<Probe, OpenError> {
    if path.is_some() {
        return Ok(Probe::Skipped);
    }
    Ok(match demo::open()? {
        Some(files) => Probe::Found(OpenedModel::new(demo::NAME, files)),
        None => Probe::Declined("this build has none".to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_source_reads_is_refused_with_reasons() {
        let scratch = mixbit_testkit::Scratch::new();
        let refused = |path: &Path| open(Some(path), &OpenOptions::default()).err().unwrap();
        let error = refused(scratch.path());
        assert!(matches!(&error, OpenError::Unknown { reasons, .. } if reasons.len() == 3), "{error}");
        assert!(matches!(refused(&scratch.path().join("absent")), OpenError::NotFound { .. }));
    }
}
