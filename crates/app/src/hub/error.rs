//! Errors of finding and downloading models.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a model could not be found or downloaded. Every message is one line.
#[derive(Debug, Error)]
pub enum HubError {
    /// A `~` that the shell left as it was.
    #[error(
        "`{argument}` begins with `~`, which the shell did not replace: write your home directory instead"
    )]
    Tilde {
        /// The argument.
        argument: String,
    },
    /// A name or link that can't be meant.
    #[error("`{name}`: {what}")]
    Name {
        /// The argument.
        name: String,
        /// The defect.
        what: String,
    },
    /// A setting of the environment that can't be used.
    #[error("{name}: {what}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// The defect.
        what: String,
    },
    /// Files that are not in the cache while the network must not be used.
    #[error("{name} is not downloaded: the cache has no {missing}, and --offline (or HF_HUB_OFFLINE) is set")]
    Offline {
        /// The model.
        name: String,
        /// The missing files.
        missing: String,
    },
    /// A repository that does not exist, or that is hidden.
    #[error(
        "`{name}` is not a path that exists, and {endpoint} has no such model, or hides it from {}{}",
        if *has_token { "your token" } else { "those without a token (set HF_TOKEN for a private one)" },
        near_names(near)
    )]
    Repository {
        /// The repository, `owner/name`.
        name: String,
        /// The Hub's address.
        endpoint: String,
        /// True if a token was sent.
        has_token: bool,
        /// Repositories with similar names.
        near: Vec<String>,
    },
    /// A branch, tag or commit that does not exist.
    #[error("{name} has no revision `{revision}`: {endpoint}/{name}/commits lists them")]
    Revision {
        /// The repository.
        name: String,
        /// The branch, tag or commit.
        revision: String,
        /// The Hub's address.
        endpoint: String,
    },
    /// A file that the repository does not have.
    #[error("{name} has no `{path}`{}", near_names(near))]
    File {
        /// The repository.
        name: String,
        /// The path in it.
        path: String,
        /// Paths with similar names.
        near: Vec<String>,
    },
    /// A repository whose conditions must be accepted first.
    #[error(
        "{name} is gated: accept its conditions at {endpoint}/{name}{}",
        if *has_token { " with the account of your token" }
        else { ", then set HF_TOKEN to a token of that account" }
    )]
    Gated {
        /// The repository.
        name: String,
        /// The Hub's address.
        endpoint: String,
        /// True if a token was sent.
        has_token: bool,
    },
    /// A token that is not accepted, or none where one is needed.
    #[error(
        "{host} refuses access to {name} ({status}): {}",
        if *has_token { format!("check {variable}, which is not accepted") }
        else { format!("set {variable} to a token that may read it") }
    )]
    Denied {
        /// The server.
        host: String,
        /// The model or file.
        name: String,
        /// The status code.
        status: u16,
        /// True if a token was sent.
        has_token: bool,
        /// The variable that holds the token.
        variable: &'static str,
    },
    /// Content that is not what the server announced.
    #[error(
        "{name}: its checksum is {found}, not {expected}: the download is damaged and was removed; try again"
    )]
    Checksum {
        /// The file.
        name: String,
        /// The announced SHA-256.
        expected: String,
        /// The SHA-256 of what came.
        found: String,
    },
    /// More or fewer bytes than the server announced.
    #[error("{name} has {found} bytes, not {expected}: the download is damaged and was removed; try again")]
    Size {
        /// The file.
        name: String,
        /// The announced size.
        expected: u64,
        /// The bytes that came.
        found: u64,
    },
    /// Less free disk than a download needs.
    #[error(
        "{name} needs {} more in {}, which has {} free: make room, or set HF_HOME to a larger disk",
        gigabytes(*needed), directory.display(), gigabytes(*free)
    )]
    Disk {
        /// The model.
        name: String,
        /// The cache.
        directory: PathBuf,
        /// The bytes to download.
        needed: u64,
        /// The bytes that are free.
        free: u64,
    },
    /// A disk that became full.
    #[error("the disk is full: {} can't be written; what is there is kept for another try", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// A server that could not be reached, or that broke off.
    #[error("{host} can't be reached: {what}")]
    Network {
        /// The server.
        host: String,
        /// The reason.
        what: String,
    },
    /// A server whose certificate is not accepted.
    #[error(
        "{host} can't be trusted: {what}; if a proxy reads what passes, SSL_CERT_FILE names its certificate"
    )]
    Certificate {
        /// The server.
        host: String,
        /// The reason.
        what: String,
    },
    /// A server's answer that is an error of its own.
    #[error(
        "{url} answers with status {status}{}",
        if *status == 429 { ": too many requests, try later" } else { "" }
    )]
    Status {
        /// The address.
        url: String,
        /// The status code.
        status: u16,
        /// The seconds to wait that the server asks for.
        wait: Option<u64>,
    },
    /// A server's answer that makes no sense, or that is hostile.
    #[error("{url}: {what}")]
    Reply {
        /// The address.
        url: String,
        /// The defect.
        what: String,
    },
    /// A repository with no model, or with several.
    #[error("{name}: {what}")]
    Choice {
        /// The repository.
        name: String,
        /// What there is, and how to choose.
        what: String,
    },
    /// The user stopped the download.
    #[error("stopped before {name} was complete; what is downloaded is kept: run it again to go on")]
    Stopped {
        /// The model or file.
        name: String,
    },
    /// The operating system refused.
    #[error("can't {action} {}: {cause}", path.display())]
    Io {
        /// The verb, such as `write`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        cause: io::Error,
    },
    /// A file of a model.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
}

impl HubError {
    /// True if the same request may succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            HubError::Network { .. } => true,
            HubError::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// True if the Hub gives no listing now, so that a model which was downloaded before serves.
    pub(super) fn is_for_cache(&self) -> bool {
        matches!(
            self,
            HubError::Network { .. }
                | HubError::Certificate { .. }
                | HubError::Status { .. }
                | HubError::Reply { .. }
                | HubError::Gated { .. }
                | HubError::Denied { .. }
                | HubError::Repository { .. }
        )
    }

    /// The error of an operation on a file.
    pub(super) fn io(action: &'static str, path: &std::path::Path, cause: io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                HubError::Full { path: path.to_path_buf() }
            }
            _ => HubError::Io { action, path: path.to_path_buf(), cause },
        }
    }
}

/// A size in the unit that fits it.
pub(super) fn gigabytes(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes < 1e5 => format!("{:.1} kB", bytes / 1e3),
        bytes if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.2} GB", bytes / 1e9),
    }
}

/// Advice with similar names.
fn near_names(near: &[String]) -> String {
    match near {
        [] => String::new(),
        names => format!("; there is {}", names.join(", ")),
    }
}
