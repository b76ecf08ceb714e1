//! The workspace's packages, and their archives for the registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::repository;

/// The largest archive that the registry takes, in bytes.
const MAX_ARCHIVE: u64 = 10 * 1024 * 1024;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

/// A package's name, its dependencies and the keys that the registry shows.
#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) description: Option<String>,
    pub(crate) keywords: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) repository: Option<String>,
    pub(crate) documentation: Option<String>,
    pub(crate) readme: Option<String>,
    pub(crate) license: Option<String>,
    pub(crate) version: String,
    /// The registries it may go to; none if it is not published.
    publish: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// The version that is required, `*` if the manifest names none.
    pub(crate) req: String,
    /// `dev`, `build`, or nothing.
    pub(crate) kind: Option<String>,
}

impl Package {
    pub(crate) fn is_published(&self) -> bool {
        self.publish.as_ref().is_none_or(|registries| !registries.is_empty())
    }

    #[cfg(test)]
    pub(crate) fn make_published(&mut self) {
        self.publish = None;
    }
}

impl Dependency {
    pub(crate) fn is_for_tests(&self) -> bool {
        self.kind.as_deref() == Some("dev")
    }
}

/// The arguments of `cargo xtask package`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compile every archive, as `cargo publish` does; takes some minutes
    #[arg(long)]
    verify: bool,
}

/// Packs the published packages, and prints the size of each archive.
///
/// # Errors
/// If a package can't be packed, or an archive is larger than the registry takes.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let root = repository();
    let metadata = metadata(&root)?;
    let mut command = Command::new("cargo");
    command.args(["package", "--quiet", "--workspace", "--allow-dirty"]).current_dir(&root);
    if !arguments.verify {
        command.arg("--no-verify");
    }
    for package in metadata.packages.iter().filter(|package| !package.is_published()) {
        command.args(["--exclude", &package.name]);
    }
    let status = command.status().context("cargo can't be run")?;
    ensure!(status.success(), "`cargo package` failed");
    let mut too_large = Vec::new();
    for package in metadata.packages.iter().filter(|package| package.is_published()) {
        let name = format!("{}-{}.crate", package.name, package.version);
        let archive = metadata.target_directory.join("package").join(&name);
        let size = fs::metadata(&archive).with_context(|| format!("{} is missing", archive.display()))?.len();
        println!("{size:>9} bytes  {name}");
        if size > MAX_ARCHIVE {
            too_large.push(name);
        }
    }
    if !too_large.is_empty() {
        bail!("larger than the registry's {MAX_ARCHIVE} bytes: {}", too_large.join(", "));
    }
    Ok(())
}

/// The packages of the workspace in a folder.
///
/// # Errors
/// If cargo can't read a manifest.
pub(crate) fn packages(root: &Path) -> anyhow::Result<Vec<Package>> {
    Ok(metadata(root)?.packages)
}

fn metadata(root: &Path) -> anyhow::Result<Metadata> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("cargo can't be run")?;
    ensure!(output.status.success(), "`cargo metadata` failed");
    serde_json::from_slice(&output.stdout).context("the output of `cargo metadata`")
}
