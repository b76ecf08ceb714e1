//! Files in an original layout that can't be used.

use thiserror::Error;

use crate::arch::ArchError;
use crate::model::FileError;

/// Why a file in an original layout is no model.
#[derive(Debug, Error)]
pub enum OriginalError {
    /// No network was found.
    #[error("it holds no network of Stable Diffusion{}", first.as_ref().map_or(String::new(), |name| format!(
        " (its first tensor is `{name}`)"
    )))]
    NoNetwork {
        /// The first tensor's name.
        first: Option<String>,
    },
    /// Running averages were asked for.
    #[error("it has no running averages (`model_ema.`) that --use-ema could take")]
    NoAverages,
    /// It has running averages, and no other UNet.
    #[error("its UNet is there as running averages (`model_ema.`) alone: take them with --use-ema")]
    AveragesAlone,
    /// A network that the family lacks.
    #[error("it holds a {component}, which {family} has not")]
    OtherNetwork {
        /// The network's folder.
        component: String,
        /// The family, for people.
        family: &'static str,
    },
    /// A structure whose configuration can't be told from the tensors.
    #[error(
        "its {component} has {what}, and no published {family} has: give a directory of its configurations, in the \
         diffusers layout, with --config DIR"
    )]
    Unusual {
        /// The network's folder.
        component: String,
        /// The nearest family, for people.
        family: &'static str,
        /// The property that no family has.
        what: String,
    },
    /// Networks are missing.
    #[error(
        "it is a part of a model ({kind}) and lacks {}: name a model that has the rest with --base MODEL",
        missing.join(", ")
    )]
    Incomplete {
        /// The missing networks' folders.
        missing: Vec<String>,
        /// What the file is.
        kind: String,
    },
    /// The model that completes the file is of another architecture.
    #[error("it is {kind}, and the model of --base is another architecture")]
    OtherBase {
        /// What the file is.
        kind: String,
    },
    /// Tensors of a network are missing.
    #[error(
        "its {component} lacks {count} tensors, such as `{first}`: the file is incomplete, or --config is another's"
    )]
    Missing {
        /// The network's folder.
        component: String,
        /// The first tensor, by its name in the file.
        first: String,
        /// The number of tensors.
        count: usize,
    },
    /// A network has tensors that its architecture has not.
    #[error(
        "its {component} has {count} tensors that the architecture has not, such as `{first}`: it is another one"
    )]
    Unknown {
        /// The network's folder.
        component: String,
        /// The first tensor, by its name in the file.
        first: String,
        /// The number of tensors.
        count: usize,
    },
    /// A network's configuration can't be used.
    #[error("{component}: {source}")]
    Network {
        /// The network's folder.
        component: String,
        /// The cause.
        source: ArchError,
    },
    /// A configuration that completes the file can't be read.
    #[error(transparent)]
    File(FileError),
}
