//! Models and packages that can't be opened.

use std::io;
use std::path::{Path, PathBuf};

use mixbit_diffusion::adapter::AdapterError;
use mixbit_diffusion::embedding::EmbeddingError;
use mixbit_diffusion::model::ModelError;
use mixbit_diffusion::original::OriginalError;
use thiserror::Error;

/// A model, package or weight file that can't be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A path that leads to nothing.
    #[error("{} is not there{}", path.display(), hint_for_absent(path))]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// No model was asked for, and none is built in.
    #[error("this build has no model in it: give a model's directory with --model")]
    NotGiven,
    /// A path at which no source finds a model.
    #[error("{} is no model that mixbit reads: {}", path.display(), reasons.join("; "))]
    Unknown {
        /// The path.
        path: PathBuf,
        /// The reason of each source, with its name.
        reasons: Vec<String>,
    },
    /// A file or directory that the system does not let read.
    #[error("can't read {}: {cause}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// A package, or a directory of them, without what a model needs.
    #[error("{}: {what}", path.display())]
    Package {
        /// The package or directory.
        path: PathBuf,
        /// The defect.
        what: String,
    },
    /// A model whose configuration, tokenizer or weights can't be used.
    #[error("{model}: {source}")]
    Model {
        /// The model's path or name.
        model: String,
        /// The defect.
        source: Box<ModelError>,
    },
    /// A file in an original layout that can't be used.
    #[error("{}: {source}", path.display())]
    Original {
        /// The file.
        path: PathBuf,
        /// The defect.
        source: Box<OriginalError>,
    },
    /// A LoRA that can't be used, or not with the model.
    #[error("{}: {source}", path.display())]
    Adapter {
        /// The file.
        path: PathBuf,
        /// The defect.
        source: Box<AdapterError>,
    },
    /// A textual inversion that can't be read, or does not fit the model.
    #[error("{}: {source}", path.display())]
    Embedding {
        /// The file.
        path: PathBuf,
        /// The defect.
        source: Box<EmbeddingError>,
    },
    /// A malformed file.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
}

/// Advice for a path that is not there and reads as a name that other tools download.
fn hint_for_absent(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_url = text.starts_with("http://") || text.starts_with("https://");
    let is_file = [".safetensors", ".ckpt", ".gguf", ".json"].iter().any(|end| text.ends_with(end));
    let is_hub_name = !is_file && text.matches('/').count() == 1 && !text.starts_with(['.', '/', '~']);
    match &*text {
        text if text.starts_with('~') => ": write your home directory in place of `~`".to_string(),
        _ if is_url => format!(": `mixbit pull {text}` downloads it, and prints the path"),
        text if is_hub_name => format!(
            ": if it is a name of the Hugging Face Hub, `mixbit pull {text}` downloads it, and prints the path"
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_other_tools_download_are_answered() {
        let message = |path: &str| OpenError::NotFound { path: path.into() }.to_string();
        assert!(message("stabilityai/sdxl").contains("mixbit pull stabilityai/sdxl"));
        assert!(message("https://huggingface.co/a/b").contains("mixbit pull https://huggingface.co/a/b"));
        assert!(message("~/models/x").contains("home directory"));
        for path in ["sdxl", "./models/sdxl", "/models/sdxl", "a/b/c", "a/b.ckpt"] {
            assert_eq!(message(path), format!("{path} is not there"));
        }
    }
}
