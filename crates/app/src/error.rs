//! The kinds of errors, from which a server's status codes and a program's exit codes follow.

use mixbit_diffusion::model::ModelError;
use mixbit_packages::OpenError;
use mixbit_packages::palettize::JobError;

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something that was named is not there.
    NotFound,
    /// A request or file is malformed, or out of range.
    Invalid,
    /// A request or file is well-formed and not supported.
    Unsupported,
    /// Something exists already that contradicts the request.
    Conflict,
    /// The work was cancelled.
    Cancelled,
    /// There is not enough memory.
    OutOfMemory,
    /// The system refused to read or write.
    Io,
}

/// An error with a kind.
pub trait Kind {
    /// The error's kind.
    fn kind(&self) -> ErrorKind;
}

impl Kind for mixbit_formats::Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Read { cause, .. } | Self::Write { cause, .. } | Self::Make { cause, .. } => {
                match cause.kind() {
                    std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                    std::io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
                    _ => ErrorKind::Io,
                }
            }
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for mixbit_engine::Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Memory { .. } => ErrorKind::OutOfMemory,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for ModelError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Pipeline { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for OpenError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::NotGiven => ErrorKind::NotFound,
            Self::Unknown { .. } => ErrorKind::Unsupported,
            Self::Read { .. } => ErrorKind::Io,
            Self::Package { .. } => ErrorKind::Invalid,
            Self::Model { source, .. } => source.kind(),
            Self::Format(error) => error.kind(),
        }
    }
}

impl Kind for JobError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Exists { .. } | Self::Unreadable { .. } => ErrorKind::Conflict,
            Self::NoRecipe { .. } | Self::NoNames { .. } => ErrorKind::NotFound,
            Self::Check { .. } => ErrorKind::Io,
            Self::Format(error) => error.kind(),
            _ => ErrorKind::Invalid,
        }
    }
}
