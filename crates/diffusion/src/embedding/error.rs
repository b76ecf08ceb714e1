//! Embeddings that can't be used.

use thiserror::Error;

use crate::model::{FileError, ModelError};

/// Why a textual inversion can't be read, or added to a model.
#[derive(Debug, Error)]
pub enum EmbeddingError {
    /// A file of something else.
    #[error("it is no textual inversion: {what}")]
    NotAnEmbedding {
        /// The file's content.
        what: String,
    },
    /// A tensor that is no list of vectors.
    #[error("its tensor `{tensor}` {what}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// The defect.
        what: String,
    },
    /// Vectors that no text encoder of the model takes.
    #[error("it was made for {made_for}, and this model's text encoders take vectors of {takes} channels")]
    OtherFamily {
        /// The models that take its vectors.
        made_for: String,
        /// The channels of the model's text encoders.
        takes: String,
    },
    /// Two embeddings of one name.
    #[error("another embedding has the name `{name}` too: name one of them with --embedding FILE=NAME")]
    SameName {
        /// The name.
        name: String,
    },
    /// A model whose text encoders can't be extended.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model's file that can't be read.
    #[error(transparent)]
    File(FileError),
}
