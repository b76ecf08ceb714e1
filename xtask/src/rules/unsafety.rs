//! Where `unsafe` may be written.

use std::str::FromStr;

use anyhow::anyhow;
use proc_macro2::{TokenStream, TokenTree};

use super::Repository;

/// Paths that may hold `unsafe`: a crate, or one file of it.
const ALLOWED: &[&str] = &["crates/kernels/", "crates/formats/src/map.rs"];

/// Finds `unsafe` elsewhere, and crates that do not forbid it.
pub(super) fn check(repository: &Repository) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for path in repository.files("", "rs") {
        if is_allowed(path) {
            continue;
        }
        let text = repository.read(path)?;
        if has_unsafe(&text).map_err(|error| anyhow!("{path}: {error}"))? {
            violations
                .push(format!("{path} has `unsafe` code, which only {} may have", ALLOWED.join(" and ")));
        }
        if is_root(path) && !forbids(path, &text) {
            violations.push(format!("{path} lacks `#![forbid(unsafe_code)]`"));
        }
    }
    Ok(violations)
}

fn is_allowed(path: &str) -> bool {
    ALLOWED.iter().any(|allowed| path.starts_with(allowed))
}

fn is_root(path: &str) -> bool {
    path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs")
}

/// A crate with one allowed file can only deny it, since `forbid` has no exceptions.
fn forbids(path: &str, text: &str) -> bool {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let has_exception = ALLOWED.iter().any(|allowed| allowed.starts_with(folder));
    let level = if has_exception { "deny" } else { "forbid" };
    text.contains(&format!("#![{level}(unsafe_code)]"))
}

fn has_unsafe(text: &str) -> Result<bool, proc_macro2::LexError> {
    Ok(contains(TokenStream::from_str(text)?))
}

fn contains(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Group(group) => contains(group.stream()),
        TokenTree::Ident(word) => word == "unsafe",
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_keyword_counts() {
        assert!(has_unsafe("fn f() { g(|| unsafe { h() }) }").unwrap());
        assert!(has_unsafe("unsafe impl Send for A {}").unwrap());
        assert!(!has_unsafe("#![forbid(unsafe_code)]\n// unsafe\nconst A: &str = \"unsafe\";").unwrap());
    }

    #[test]
    fn a_crate_with_an_allowed_file_denies_it_elsewhere() {
        assert!(forbids("crates/formats/src/lib.rs", "#![deny(unsafe_code)]"));
        assert!(!forbids("crates/mil/src/lib.rs", "#![deny(unsafe_code)]"));
        assert!(forbids("crates/mil/src/lib.rs", "#![forbid(unsafe_code)]"));
    }
}
