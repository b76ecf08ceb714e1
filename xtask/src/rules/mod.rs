//! Rules about the repository's text that no compiler checks: dependencies, `unsafe`, circles, paths in
//! documents.

mod circles;
mod dependencies;
mod documents;
mod modules;
mod unsafety;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::repository;

/// A rule, and the violations it finds in the repository.
struct Rule {
    name: &'static str,
    check: fn(&Repository) -> anyhow::Result<Vec<String>>,
}

const RULES: &[Rule] = &[
    Rule { name: "dependencies between crates", check: dependencies::check },
    Rule { name: "unsafe code", check: unsafety::check },
    Rule { name: "circles of files", check: circles::check },
    Rule { name: "documents", check: documents::check },
];

/// The repository's root and its files, ignored ones excluded.
struct Repository {
    root: PathBuf,
    /// Paths relative to the root, with `/` between components.
    files: Vec<String>,
}

impl Repository {
    fn open(root: PathBuf) -> anyhow::Result<Self> {
        let output = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(&root)
            .output()
            .context("git can't be run")?;
        ensure!(output.status.success(), "git can't list the files of {}", root.display());
        let listed = String::from_utf8(output.stdout).context("a path that is not UTF-8")?;
        let files = listed.lines().filter(|path| root.join(path).is_file()).map(str::to_string).collect();
        Ok(Repository { root, files })
    }

    /// The files below a folder that have an extension.
    fn files<'a>(&'a self, folder: &'a str, extension: &'a str) -> impl Iterator<Item = &'a str> {
        self.files.iter().map(String::as_str).filter(move |path| {
            path.starts_with(folder) && Path::new(path).extension().is_some_and(|found| found == extension)
        })
    }

    fn read(&self, path: &str) -> anyhow::Result<String> {
        std::fs::read_to_string(self.root.join(path)).with_context(|| format!("{path} can't be read"))
    }
}

/// Checks every rule and prints the violations.
///
/// # Errors
/// If a rule is violated or can't be checked.
pub(crate) fn run() -> anyhow::Result<()> {
    let repository = Repository::open(repository())?;
    let mut violations = 0;
    for rule in RULES {
        let found = (rule.check)(&repository).with_context(|| format!("rule \"{}\"", rule.name))?;
        for violation in &found {
            eprintln!("{}: {violation}", rule.name);
        }
        violations += found.len();
    }
    if violations > 0 {
        bail!("{violations} violations of the repository's rules, listed above");
    }
    Ok(())
}
