//! The kinds of errors, from which a server's status codes and a program's exit codes follow.

use mixbit_analysis::analyze::{AnalyzeError, JournalError};
use mixbit_diffusion::adapter::AdapterError;
use mixbit_diffusion::arch::ArchError;
use mixbit_diffusion::embedding::EmbeddingError;
use mixbit_diffusion::model::{FileError, ModelError};
use mixbit_diffusion::original::OriginalError;
use mixbit_diffusion::random::RandomError;
use mixbit_diffusion::scheduler::SchedulerError;
use mixbit_diffusion::session::GenerateError;
use mixbit_diffusion::tokenizer::TokenizerError;
use mixbit_mil::WeightError;
use mixbit_packages::diff::DiffError;
use mixbit_packages::inspect::InspectError;
use mixbit_packages::package::{OutputError, PackageError, PlanError, VocabularyError};
use mixbit_packages::palettize::{CheckError, JobError, PalettizeError, TargetError};
use mixbit_packages::predict::PredictError;
use mixbit_packages::recipe::{MatchError, RecipeError};
use mixbit_packages::{ExistsError, OpenError};

use crate::hub::HubError;
use crate::loras::LoraError;
use crate::picture::PictureError;
use crate::request::RequestError;
use crate::synthetic::SyntheticError;

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
    /// A defect of mixbit.
    Internal,
}

/// An error with a kind.
pub trait Kind {
    /// The error's kind.
    fn kind(&self) -> ErrorKind;
}

impl Kind for std::io::Error {
    fn kind(&self) -> ErrorKind {
        match self.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
            _ => ErrorKind::Io,
        }
    }
}

impl Kind for FileError {
    fn kind(&self) -> ErrorKind {
        match self.downcast_ref::<mixbit_formats::Error>() {
            Some(error) => error.kind(),
            None => ErrorKind::Invalid,
        }
    }
}

impl Kind for mixbit_formats::Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Read { cause, .. } | Self::Write { cause, .. } | Self::Make { cause, .. } => {
                Kind::kind(cause)
            }
            Self::Stopped { .. } => ErrorKind::Cancelled,
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for mixbit_mil::Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownOp(_) => ErrorKind::Unsupported,
            Self::Weight(error) => error.kind(),
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for WeightError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Memory { .. } => ErrorKind::OutOfMemory,
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for mixbit_engine::Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Memory { .. } => ErrorKind::OutOfMemory,
            Self::Unsupported { .. } | Self::ElementType { .. } => ErrorKind::Unsupported,
            Self::Threads(_) => ErrorKind::Io,
            Self::Program(error) => error.kind(),
            Self::OutputMissing { .. } => ErrorKind::Internal,
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for mixbit_compress::Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Stopped(_) => ErrorKind::Cancelled,
            Self::Layer { source, .. } => source.kind(),
            Self::Mil(error) => error.kind(),
            Self::Threads { .. } => ErrorKind::Io,
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for ArchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownClass { .. } => ErrorKind::Unsupported,
            Self::Weight(error) => error.kind(),
            Self::Graph(error) => error.kind(),
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for TokenizerError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl Kind for SchedulerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownScheduler { .. }
            | Self::VariantAlone { .. }
            | Self::UnknownClass { .. }
            | Self::UnknownField { .. }
            | Self::OtherTraining { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for RandomError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl Kind for ModelError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::File(error) => error.kind(),
            Self::Pipeline { .. } => ErrorKind::Unsupported,
            Self::Network { source, .. } => source.kind(),
            Self::Mismatch { .. } => ErrorKind::Invalid,
            Self::Tokenizer { source, .. } => source.kind(),
            Self::Scheduler(error) => error.kind(),
        }
    }
}

impl Kind for GenerateError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoModel { .. } => ErrorKind::NotFound,
            Self::Model(error) => error.kind(),
            Self::Scheduler(error) => error.kind(),
            Self::Option { .. } | Self::Mismatch { .. } | Self::Output { .. } | Self::NotFinite { .. } => {
                ErrorKind::Invalid
            }
            Self::Prompt(error) => error.kind(),
            Self::Engine { source, .. } | Self::Tensor(source) => source.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }
}

impl Kind for EmbeddingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAnEmbedding { .. } | Self::Tensor { .. } => ErrorKind::Invalid,
            Self::OtherFamily { .. } => ErrorKind::Unsupported,
            Self::SameName { .. } => ErrorKind::Conflict,
            Self::Model(error) => error.kind(),
            Self::File(error) => error.kind(),
        }
    }
}

impl Kind for OriginalError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoNetwork { .. }
            | Self::NoAverages
            | Self::AveragesAlone
            | Self::Incomplete { .. }
            | Self::OtherBase { .. }
            | Self::Missing { .. }
            | Self::File(_) => ErrorKind::Invalid,
            Self::OtherNetwork { .. } | Self::Unusual { .. } | Self::Unknown { .. } => ErrorKind::Unsupported,
            Self::Network { source, .. } => source.kind(),
        }
    }
}

impl Kind for AdapterError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::NoAdapter { .. }
            | Self::Malformed { .. }
            | Self::OtherModel { .. }
            | Self::NoMatch { .. } => ErrorKind::Invalid,
            Self::Weight(error) => error.kind(),
            Self::Model(error) => error.kind(),
            Self::File(error) => error.kind(),
        }
    }
}

impl Kind for OpenError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::NotGiven => ErrorKind::NotFound,
            Self::Unknown { .. } => ErrorKind::Unsupported,
            Self::Read { cause, .. } => Kind::kind(cause),
            Self::Package { .. } => ErrorKind::Invalid,
            Self::Model { source, .. } => source.kind(),
            Self::Original { source, .. } => source.kind(),
            Self::Adapter { source, .. } => source.kind(),
            Self::Embedding { source, .. } => source.kind(),
            Self::Format(error) => error.kind(),
        }
    }
}

impl Kind for RecipeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::File { source, .. } => source.kind(),
            Self::Io(error) => error.kind(),
            Self::NoRecipe { .. } => ErrorKind::NotFound,
            Self::Scheme { source, .. } => source.kind(),
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for MatchError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl Kind for PlanError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Model(error) => error.kind(),
            Self::NoPart { .. } => ErrorKind::NotFound,
            Self::Class { .. } | Self::Chunks { .. } | Self::Misfit { .. } => ErrorKind::Invalid,
        }
    }
}

impl Kind for PackageError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Plan(error) => error.kind(),
            Self::Graph { .. } => ErrorKind::Internal,
            Self::Format(error) => error.kind(),
        }
    }
}

impl Kind for OutputError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Plan(error) => error.kind(),
            Self::Format(error) => error.kind(),
            Self::NoFunction { .. } | Self::NoOutput { .. } => ErrorKind::Internal,
            Self::Engine(error) => error.kind(),
        }
    }
}

impl Kind for VocabularyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Model(error) => error.kind(),
            Self::Absent => ErrorKind::NotFound,
            Self::Malformed { .. } => ErrorKind::Invalid,
        }
    }
}

impl Kind for ExistsError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Conflict
    }
}

impl Kind for PalettizeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Target { .. } | Self::Compressed { .. } => ErrorKind::Conflict,
            Self::Compress(error) => error.kind(),
            Self::Mil(error) => error.kind(),
            Self::NoFunction => ErrorKind::Invalid,
        }
    }
}

impl Kind for TargetError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Input { .. } => ErrorKind::Conflict,
            Self::Layers { cause, .. } => cause.kind(),
            Self::Model(error) => error.kind(),
            Self::Plan { cause, .. } => cause.kind(),
            Self::Package(error) => error.kind(),
            Self::Vocabulary(error) => error.kind(),
            Self::Open(error) => error.kind(),
            Self::Format(error) => error.kind(),
        }
    }
}

impl Kind for CheckError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Format(error) => error.kind(),
            Self::Graph(error) => error.kind(),
            Self::Weight(error) => error.kind(),
            Self::Stopped(_) => ErrorKind::Cancelled,
            Self::Layers { .. } | Self::Differs { .. } => ErrorKind::Internal,
        }
    }
}

impl Kind for JobError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Target(error) => error.kind(),
            Self::NoRecipe { .. } | Self::NoNames { .. } => ErrorKind::NotFound,
            Self::Mismatch { cause, .. } => cause.kind(),
            Self::NoUnet | Self::Chunks { .. } => ErrorKind::Invalid,
            Self::Like(error) => error.kind(),
            Self::Exists(error) | Self::Bundle { cause: error } => error.kind(),
            Self::NoCompiledName { .. } | Self::Compiled { .. } => ErrorKind::Invalid,
            Self::Palettize { cause, .. } => cause.kind(),
            Self::Check { cause, .. } => cause.kind(),
            Self::Format(error) => error.kind(),
        }
    }
}

impl Kind for PredictError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Format(error) => error.kind(),
            Self::NoFunction { .. } => ErrorKind::NotFound,
            Self::Missing { .. } | Self::Unknown { .. } | Self::Type { .. } | Self::Range { .. } => {
                ErrorKind::Invalid
            }
            Self::Engine(error) => error.kind(),
        }
    }
}

impl Kind for InspectError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(error) => error.kind(),
            Self::Kind { .. } | Self::Zip { .. } => ErrorKind::Unsupported,
            Self::Package(error) => error.kind(),
            Self::Tensor { source, .. } => source.kind(),
        }
    }
}

impl Kind for DiffError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Inspect(error) => error.kind(),
            Self::NoLike { .. } => ErrorKind::NotFound,
            Self::Graph(error) => error.kind(),
            Self::Weight(error) => error.kind(),
            Self::Stopped(_) => ErrorKind::Cancelled,
        }
    }
}

impl Kind for AnalyzeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Compressed { .. } | Self::Earlier { .. } => ErrorKind::Conflict,
            Self::Journal(error) => error.kind(),
            Self::Generate(error) => error.kind(),
            Self::Engine(error) => error.kind(),
            Self::Compress(error) => error.kind(),
            Self::Graph(error) => error.kind(),
            Self::NoValue { .. } => ErrorKind::Internal,
            _ => ErrorKind::Invalid,
        }
    }
}

impl Kind for JournalError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => Kind::kind(source),
            Self::OtherAnalysis { .. } | Self::Busy { .. } => ErrorKind::Conflict,
            Self::Format(error) => error.kind(),
            Self::Header { .. } | Self::Line { .. } => ErrorKind::Invalid,
        }
    }
}

impl Kind for SyntheticError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Config { source, .. } => source.kind(),
            Self::NoTextEncoder => ErrorKind::Invalid,
            Self::Library { .. } | Self::NoPlace { .. } => ErrorKind::Unsupported,
            Self::Format(error) => error.kind(),
        }
    }
}

impl Kind for HubError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Offline { .. } | Self::Repository { .. } | Self::Revision { .. } | Self::File { .. } => {
                ErrorKind::NotFound
            }
            Self::Tilde { .. } | Self::Name { .. } | Self::Setting { .. } | Self::Choice { .. } => {
                ErrorKind::Invalid
            }
            Self::Checksum { .. } | Self::Size { .. } | Self::Reply { .. } => ErrorKind::Invalid,
            Self::Gated { .. } | Self::Denied { .. } | Self::Certificate { .. } => ErrorKind::Io,
            Self::Network { .. } | Self::Status { .. } => ErrorKind::Io,
            Self::Disk { .. } | Self::Full { .. } => ErrorKind::Io,
            Self::Io { cause, .. } => Kind::kind(cause),
            Self::Stopped { .. } => ErrorKind::Cancelled,
            Self::Format(error) => error.kind(),
        }
    }
}

impl Kind for LoraError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { cause, .. } => Kind::kind(cause),
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Several { .. } | Self::Tag { .. } => ErrorKind::Invalid,
        }
    }
}

impl Kind for PictureError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(error) => error.kind(),
            Self::Read { cause, .. } => Kind::kind(cause),
            Self::NotPng { .. } => ErrorKind::Unsupported,
            Self::Damaged { .. } => ErrorKind::Invalid,
            Self::Absent { .. } => ErrorKind::NotFound,
        }
    }
}

impl Kind for RequestError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Json(_) | Self::Value { .. } => ErrorKind::Invalid,
            Self::Scheduler(error) => error.kind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn an_error_has_the_kind_of_its_cause() {
        let missing = || mixbit_formats::Error::Read {
            path: PathBuf::from("unet"),
            cause: io::ErrorKind::NotFound.into(),
        };
        let in_model =
            OpenError::Model { model: "m".into(), source: Box::new(ModelError::File(Box::new(missing()))) };
        assert_eq!(in_model.kind(), ErrorKind::NotFound);
        assert_eq!(JobError::Target(TargetError::Format(missing())).kind(), ErrorKind::NotFound);
        let memory = || mixbit_engine::Error::Memory { needed: 3.0 };
        let engine = GenerateError::Engine { network: "unet".into(), source: memory() };
        assert_eq!(engine.kind(), ErrorKind::OutOfMemory);
        assert_eq!(AnalyzeError::Generate(engine).kind(), ErrorKind::OutOfMemory);
        let stopped = mixbit_formats::Error::Stopped { path: PathBuf::from("Unet.mlpackage") };
        assert_eq!(PackageError::Format(stopped).kind(), ErrorKind::Cancelled);
    }
}
