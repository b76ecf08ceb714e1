//! Rules of documents and comments: every path that a document names exists, no line is too long, and nothing
//! names a folder of one machine.

use std::path::Path;

use super::Repository;

/// The longest line of a document or a comment, in characters. Rows of tables and indented commands may be
/// longer.
const MAX_LINE: usize = 110;

/// Folders of one machine.
const MACHINE_FOLDERS: &[&str] = &["/root/", "/home/", "/work/", "/tmp/"];

/// Extensions of files that a document names without their folder.
const NAMED_EXTENSIONS: &[&str] = &["rs", "py", "sh", "md"];

/// Finds documents that name what is not there, long lines, and folders of one machine.
pub(super) fn check(repository: &Repository) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for document in repository.files("", "md") {
        let text = repository.read(document)?;
        for (number, line) in text.lines().enumerate() {
            let place = format!("{document}:{}", number + 1);
            for name in absent(repository, document, line) {
                violations.push(format!("{place}: `{name}` does not exist"));
            }
            if is_too_long(line) {
                violations.push(format!("{place}: longer than {MAX_LINE} characters"));
            }
        }
    }
    for path in repository.files("", "rs") {
        for (number, line) in repository.read(path)?.lines().enumerate() {
            if line.trim_start().starts_with("//") && line.chars().count() > MAX_LINE {
                violations.push(format!("{path}:{}: longer than {MAX_LINE} characters", number + 1));
            }
        }
    }
    violations.extend(machine_paths(repository)?);
    Ok(violations)
}

/// The lines of any text file that name a folder of one machine.
fn machine_paths(repository: &Repository) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for extension in ["md", "py", "rs", "sh", "toml", "yml"] {
        let files = repository.files("", extension);
        for path in files.filter(|path| *path != "xtask/src/rules/documents.rs") {
            for (number, line) in repository.read(path)?.lines().enumerate() {
                for folder in machine_folders(line) {
                    let number = number + 1;
                    violations.push(format!("{path}:{number}: names the folder {folder} of one machine"));
                }
            }
        }
    }
    Ok(violations)
}

fn is_too_long(line: &str) -> bool {
    let may_be_long = line.starts_with('|') || line.starts_with("    ") || line.starts_with("![");
    !may_be_long && line.chars().count() > MAX_LINE
}

fn machine_folders(line: &str) -> impl Iterator<Item = &'static str> {
    MACHINE_FOLDERS.iter().copied().filter(|folder| {
        line.match_indices(folder).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            before.is_none_or(|before| !before.is_alphanumeric() && !"._-/}$)".contains(before))
        })
    })
}

/// The files and folders that a line of a document names and that don't exist.
fn absent<'l>(repository: &Repository, document: &str, line: &'l str) -> Vec<&'l str> {
    let links = link_targets(line).filter(|target| !exists_beside(repository, document, target));
    let names = code_spans(line).filter(|span| is_path(span) && !exists_somewhere(repository, span));
    links.chain(names).collect()
}

/// The targets of Markdown links to files, without anchors.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', '#']).next()?;
        (!target.is_empty() && !target.contains(':')).then_some(target)
    })
}

fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// True if a code span is the path of a file or folder in this repository.
fn is_path(span: &str) -> bool {
    let is_plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let first = span.split('/').next().unwrap_or_default();
    let tops =
        [".ci", ".github", "crates", "docs", "examples", "fixtures", "fuzz", "models", "tools", "xtask"];
    let extension = Path::new(span).extension().and_then(|extension| extension.to_str());
    is_plain
        && (tops.contains(&first) && span.contains('/')
            || extension.is_some_and(|found| NAMED_EXTENSIONS.contains(&found)))
}

fn exists_beside(repository: &Repository, document: &str, target: &str) -> bool {
    let folder = Path::new(document).parent().unwrap_or(Path::new(""));
    repository.root.join(folder).join(target).exists()
}

/// True if a file or folder has this path, or a path that ends in it.
fn exists_somewhere(repository: &Repository, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    repository.files.iter().any(|file| {
        let mut from = 0;
        while let Some(at) = file[from..].find(path).map(|at| at + from) {
            let end = at + path.len();
            let begins = at == 0 || file.as_bytes()[at - 1] == b'/';
            let ends = end == file.len() || file.as_bytes()[end] == b'/';
            if begins && ends {
                return true;
            }
            from = at + 1;
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> Repository {
        let files = ["docs/README.md", "crates/mil/src/ops/mod.rs", "tools/qemu/run.sh"];
        Repository { root: crate::repository(), files: files.map(str::to_string).into() }
    }

    #[test]
    fn paths_of_files_and_folders_are_found_by_their_ends() {
        for path in ["crates/mil/src/ops/mod.rs", "ops/mod.rs", "crates/mil", "run.sh", "tools/qemu/"] {
            assert_eq!(absent(&repository(), "README.md", &format!("see `{path}` here")), [""; 0], "{path}");
        }
        for path in ["crates/mi", "s/mod.rs", "nothing.py", "tools/none/"] {
            assert_eq!(absent(&repository(), "README.md", &format!("see `{path}` here")), [path]);
        }
    }

    #[test]
    fn other_code_is_no_path() {
        for code in ["cargo test", "Model::run", "--size 512x512", "crates/<name>/src", "a/b", "*.rs", "1.95"]
        {
            assert_eq!(absent(&repository(), "README.md", &format!("see `{code}` here")), [""; 0], "{code}");
        }
    }

    #[test]
    fn links_lead_from_the_document() {
        let line = "[a](Cargo.toml) [b](docs/none.md#part) [c](https://example.org/x) [d](#below)";
        assert_eq!(absent(&repository(), "README.md", line), ["docs/none.md"]);
        assert_eq!(
            absent(&repository(), "docs/README.md", "[a](../Cargo.toml) [b](Cargo.toml)"),
            ["Cargo.toml"]
        );
    }

    #[test]
    fn folders_of_one_machine_are_found() {
        let found = |line: &str| machine_folders(line).collect::<Vec<_>>();
        assert_eq!(found("write to /tmp/sd15 or \"/work/x\""), ["/work/", "/tmp/"]);
        assert_eq!(found("$OUT/tmp/x https://example.org/home/x a/work/b"), [""; 0]);
    }

    #[test]
    fn tables_and_commands_may_be_long() {
        let words = "word ".repeat(30);
        assert!(is_too_long(&words));
        assert!(!is_too_long(&format!("| {words} |")));
        assert!(!is_too_long(&format!("    {words}")));
    }
}
