//! Errors of an analysis.

use std::io;
use std::path::PathBuf;

use mixbit_diffusion::session::GenerateError;
use thiserror::Error;

/// Why a model can't be analyzed.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message names each field")]
pub enum AnalyzeError {
    /// The analysis was cancelled. It continues from its measurements when it is started again.
    #[error("stopped")]
    Cancelled,
    /// Invalid option: one prompt or none.
    #[error("two prompts at least are needed: one to measure on and one to verify with")]
    TooFewPrompts,
    /// Invalid option: no scheme.
    #[error("there is no width to choose")]
    NoSchemes,
    /// Invalid option: every layer is smaller than the minimum.
    #[error("no layer has more than {min_size} weights; give a smaller --min-size")]
    NoLayers { min_size: usize },
    /// Invalid option: no state to measure on.
    #[error("there is no state to measure on")]
    NoPoints,
    /// Invalid option: a state after the end of its run.
    #[error("evaluation {evaluation} is past the last of {steps} steps")]
    PastTheEnd { evaluation: usize, steps: usize },
    /// A conflict: a recipe of an earlier analysis is of another model.
    #[error(
        "the recipe `{recipe}` of the earlier analysis has a layer `{layer}`, which is not among the analyzed: \
         give another --output"
    )]
    Earlier { recipe: String, layer: String },
    /// Unsupported: a layer of the model is compressed.
    #[error("layer `{layer}` is compressed already: analyze the model that it was made from")]
    Compressed { layer: String },
    /// The measurements can't be read or kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The model can't draw the images that are measured on.
    #[error(transparent)]
    Generate(GenerateError),
    /// A segment of the network can't be compiled or run.
    #[error(transparent)]
    Engine(mixbit_engine::Error),
    /// A layer's weights can't be compressed.
    #[error(transparent)]
    Compress(#[from] mixbit_compress::Error),
    /// The network's graph or a weight can't be used.
    #[error(transparent)]
    Graph(#[from] mixbit_mil::Error),
    /// The network lacks a value that it is measured by.
    #[error("the network has no value `{name}` of floats")]
    NoValue { name: String },
}

impl From<GenerateError> for AnalyzeError {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Cancelled => AnalyzeError::Cancelled,
            error => AnalyzeError::Generate(error),
        }
    }
}

impl From<mixbit_engine::Error> for AnalyzeError {
    fn from(error: mixbit_engine::Error) -> Self {
        match error {
            mixbit_engine::Error::Cancelled => AnalyzeError::Cancelled,
            error => AnalyzeError::Engine(error),
        }
    }
}

impl From<mixbit_mil::Stopped> for AnalyzeError {
    fn from(_: mixbit_mil::Stopped) -> Self {
        AnalyzeError::Cancelled
    }
}

/// Why the measurements of an analysis can't be read or kept.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message names each field")]
pub enum JournalError {
    /// The directory can't be made.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
    /// The system refuses a directory or a file.
    #[error("{} can't be {what}: {source}", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
    /// A conflict: the directory has measurements of another analysis.
    #[error(
        "{} holds measurements {difference}: give another --output, or delete it",
        path.display()
    )]
    OtherAnalysis { path: PathBuf, difference: String },
    /// A conflict: another process makes the same measurements.
    #[error(
        "{} is being written by another run: wait for it, or give another --shard or --output",
        path.display()
    )]
    Busy { path: PathBuf },
    /// The first line of a file is no header.
    #[error("{}: its first line does not say what was measured: {source}", path.display())]
    Header { path: PathBuf, source: serde_json::Error },
    /// A line of a file is no measurement.
    #[error("{}: line {line} is no measurement: {source}", path.display())]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
}
