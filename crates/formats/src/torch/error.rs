use thiserror::Error;

use crate::shown::shown;
use crate::zip::ZipError;

/// The reason why a PyTorch file can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TorchError {
    /// A pickle that calls a function, or makes an object of a class, that has no place beside weights.
    #[error(
        "its pickle calls for `{}`, which can run code; mixbit ran nothing: don't open it with Python, and \
         get the model from a source that you trust, as safetensors",
        shown(name)
    )]
    Global {
        /// The function or class, with its module.
        name: String,
    },
    /// A malformed pickle.
    #[error("its pickle is malformed at byte {at}: {}", shown(what))]
    Pickle {
        /// The offset of the opcode in the pickle.
        at: usize,
        /// The fault.
        what: String,
    },
    /// A pickle with more opcodes or larger containers than its size or [`OPCODE_LIMIT`] justifies.
    #[error("its pickle is larger than any of weights: it has more than {OPCODE_LIMIT} steps")]
    TooLong,
    /// Dictionaries that hold each other, or that are nested too deeply.
    #[error("its dictionaries are nested in a circle, or more than {DEPTH_LIMIT} deep")]
    Nesting,
    /// Dictionaries that are shared so often that their tensors have more names than the file has room for.
    #[error("its dictionaries are shared so often that the names of its tensors outgrow the file")]
    Sharing,
    /// A damaged or unsupported archive.
    #[error("{problem}")]
    Archive {
        /// The fault.
        problem: String,
    },
    /// A file without its end.
    #[error("the file ends in {what}: was it cut off?")]
    CutOff {
        /// The part that is incomplete.
        what: &'static str,
    },
    /// A pickle that is not one of `torch.save`.
    #[error("the file is a Python pickle that `torch.save` did not write: save the weights as safetensors")]
    NotTorch,
    /// A TorchScript program.
    #[error(
        "the file is a TorchScript program, which holds code: save the model's state_dict as safetensors"
    )]
    TorchScript,
    /// Numbers in another byte order.
    #[error("the file was written on a big-endian machine, which is not supported: save it as safetensors")]
    ByteOrder,
    /// A file without tensors.
    #[error("the file holds no tensors by name: it is not a file of weights")]
    NoTensors,
    /// A kind of tensor that is not supported.
    #[error("tensor `{}` is {kind}, which is not supported: save it as a plain tensor", shown(tensor))]
    Unsupported {
        /// The tensor's name.
        tensor: String,
        /// The kind, with its article.
        kind: String,
    },
    /// A tensor whose parts contradict each other.
    #[error("tensor `{}`: {what}", shown(tensor))]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// The fault.
        what: String,
    },
}

/// The most opcodes of a pickle. Each takes up to 80 bytes of memory. Models have a tenth of them.
pub const OPCODE_LIMIT: usize = 1 << 21;

/// The most levels of dictionaries.
pub const DEPTH_LIMIT: usize = 64;

impl From<ZipError> for TorchError {
    fn from(problem: ZipError) -> Self {
        let problem = match problem {
            ZipError::Malformed(what) => format!("the archive is damaged: {what}"),
            ZipError::Encrypted => "the archive is encrypted, which is not supported".to_string(),
            ZipError::Compressed => {
                "the archive is compressed, and tensors are read in place: save it again with `torch.save`"
                    .to_string()
            }
        };
        TorchError::Archive { problem }
    }
}
