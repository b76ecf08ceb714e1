//! Who may depend on whom.

use std::collections::BTreeMap;

use super::Repository;
use crate::packages::{Package, packages};

/// A crate of the workspace and the others that it may use, all without the prefix `mixbit-`.
struct Row {
    name: &'static str,
    uses: &'static [&'static str],
    /// Those that only its tests may use, besides [`FOR_TESTS`].
    tests_use: &'static [&'static str],
}

/// The crates from the bottom to the top: each uses only rows above it.
const CRATES: &[Row] = &[
    Row { name: "testkit", uses: &[], tests_use: &[] },
    Row { name: "mil", uses: &[], tests_use: &[] },
    Row { name: "kernels", uses: &[], tests_use: &[] },
    Row { name: "formats", uses: &["mil"], tests_use: &["engine", "engine-cpu"] },
    Row { name: "compress", uses: &["mil"], tests_use: &[] },
    Row { name: "engine", uses: &["mil"], tests_use: &[] },
    Row { name: "op-suite", uses: &["engine", "mil", "testkit"], tests_use: &[] },
    Row { name: "engine-cpu", uses: &["engine", "kernels", "mil"], tests_use: &[] },
    Row { name: "diffusion", uses: &["engine", "mil"], tests_use: &["engine-cpu", "formats"] },
    Row {
        name: "packages",
        uses: &["compress", "diffusion", "engine", "formats", "mil"],
        tests_use: &["engine-cpu"],
    },
    Row {
        name: "analysis",
        uses: &["compress", "diffusion", "engine", "formats", "mil", "packages"],
        tests_use: &["engine-cpu"],
    },
    Row { name: "demo-unet", uses: &[], tests_use: &[] },
    Row {
        name: "app",
        uses: &["analysis", "compress", "demo-unet", "diffusion", "engine", "formats", "mil", "packages"],
        tests_use: &["engine-cpu"],
    },
    Row { name: "server", uses: &["app"], tests_use: &["engine-cpu"] },
];

/// The packages that may use every crate of [`CRATES`] but those of [`INTERNAL`].
const TOP: &[&str] = &["mixbit", "xtask", "mixbit-examples"];

/// Crates that only the rows of [`CRATES`] may use, but for tests.
const INTERNAL: &[&str] = &["kernels"];

/// Crates that any crate's tests may use.
const FOR_TESTS: &[&str] = &["testkit", "op-suite"];

/// Crates of the registry that only some packages may use.
const RESTRICTED: &[(&str, &[&str])] = &[
    ("anyhow", &["mixbit", "xtask", "mixbit-examples"]),
    ("clap", &["mixbit", "xtask"]),
    ("clap_complete", &["mixbit"]),
    ("clap_mangen", &["mixbit"]),
    ("console", &["mixbit"]),
    ("ctrlc", &["mixbit"]),
    ("flate2", &["mixbit-formats"]),
    ("indicatif", &["mixbit"]),
    ("memmap2", &["mixbit-formats", "mixbit-kernels"]),
    ("proc-macro2", &["xtask"]),
    ("rten-simd", &["mixbit-kernels"]),
    ("rten-vecmath", &["mixbit-kernels"]),
    ("rustix", &["mixbit-formats"]),
    ("signal-hook", &["mixbit"]),
    ("tokenizers", &["mixbit-diffusion"]),
    ("ureq", &["mixbit-app"]),
];

/// The longest list of keywords that the registry takes.
const MAX_KEYWORDS: usize = 5;

/// Finds dependencies that the tables lack, and published packages without the registry's keys.
pub(super) fn check(repository: &Repository) -> anyhow::Result<Vec<String>> {
    Ok(violations(&packages(&repository.root)?))
}

fn violations(packages: &[Package]) -> Vec<String> {
    let published: BTreeMap<&str, bool> =
        packages.iter().map(|package| (package.name.as_str(), package.is_published())).collect();
    let mut found = Vec::new();
    for package in packages {
        let name = &package.name;
        if !TOP.contains(&name.as_str()) && row(name).is_none() {
            found.push(format!("{name} has no row in the table of xtask/src/rules/dependencies.rs"));
            continue;
        }
        found.extend(forbidden(package).into_iter().map(|other| format!("{name} must not use {other}")));
        if package.is_published() {
            found.extend(missing_keys(package).into_iter().map(|key| format!("{name} lacks `{key}`")));
            for other in &package.dependencies {
                let is_unpublished = published.get(other.name.as_str()) == Some(&false);
                if is_unpublished && !(other.is_for_tests() && other.req == "*") {
                    found.push(format!(
                        "{name} is published and {} is not: it may be a dev-dependency by path without a version",
                        other.name
                    ));
                }
            }
        }
    }
    found
}

fn row(name: &str) -> Option<&'static Row> {
    let name = name.strip_prefix("mixbit-")?;
    CRATES.iter().find(|row| row.name == name)
}

/// The dependencies that a package must not have.
fn forbidden(package: &Package) -> Vec<&str> {
    let mut forbidden = Vec::new();
    for dependency in &package.dependencies {
        let name = dependency.name.as_str();
        let is_allowed = match row(name) {
            Some(other) => may_use(&package.name, other.name, dependency.is_for_tests()),
            None => RESTRICTED
                .iter()
                .find(|(other, _)| *other == name)
                .is_none_or(|(_, users)| users.contains(&package.name.as_str())),
        };
        if !is_allowed {
            forbidden.push(name);
        }
    }
    forbidden
}

fn may_use(package: &str, other: &str, is_for_tests: bool) -> bool {
    let row = match row(package) {
        Some(row) => row,
        None => return TOP.contains(&package) && (is_for_tests || !INTERNAL.contains(&other)),
    };
    row.uses.contains(&other)
        || is_for_tests && (FOR_TESTS.contains(&other) || row.tests_use.contains(&other))
}

/// The keys that the registry asks for, or shows, and the package lacks.
fn missing_keys(package: &Package) -> Vec<&'static str> {
    let texts = [
        ("description", &package.description),
        ("repository", &package.repository),
        ("documentation", &package.documentation),
        ("readme", &package.readme),
        ("license", &package.license),
    ];
    let mut missing: Vec<&str> =
        texts.into_iter().filter(|(_, text)| text.is_none()).map(|(key, _)| key).collect();
    if package.keywords.is_empty() || package.keywords.len() > MAX_KEYWORDS {
        missing.push("keywords (1 to 5)");
    }
    if package.categories.is_empty() {
        missing.push("categories");
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependencies: Vec<_> = dependencies
            .iter()
            .map(|(name, kind)| serde_json::json!({"name": name, "req": "*", "kind": kind}))
            .collect();
        serde_json::from_value(serde_json::json!({
            "name": name, "version": "0.1.0", "dependencies": dependencies, "publish": [],
            "keywords": [], "categories": [],
        }))
        .unwrap()
    }

    #[test]
    fn the_table_has_no_circle() {
        for (index, row) in CRATES.iter().enumerate() {
            for used in row.uses {
                assert!(CRATES[..index].iter().any(|other| other.name == *used), "{} uses {used}", row.name);
            }
            for used in row.tests_use {
                assert!(CRATES.iter().any(|other| other.name == *used), "{}: {used} is unknown", row.name);
            }
        }
    }

    #[test]
    fn what_the_table_lacks_is_forbidden() {
        let formats = package("mixbit-formats", &[("mixbit-mil", None), ("mixbit-engine", Some("dev"))]);
        assert_eq!(violations(&[formats]), Vec::<String>::new());
        let formats = package("mixbit-formats", &[("mixbit-engine", None), ("anyhow", None)]);
        assert_eq!(
            violations(&[formats]),
            ["mixbit-formats must not use mixbit-engine", "mixbit-formats must not use anyhow"]
        );
        let binary = package("mixbit", &[("mixbit-app", None), ("mixbit-kernels", None), ("anyhow", None)]);
        assert_eq!(violations(&[binary]), ["mixbit must not use mixbit-kernels"]);
        assert_eq!(violations(&[package("mixbit-new", &[])]).len(), 1);
    }

    #[test]
    fn published_packages_have_the_registrys_keys_and_no_unpublished_dependency() {
        let mut mil = package("mixbit-mil", &[("mixbit-testkit", Some("dev"))]);
        mil.make_published();
        let testkit = package("mixbit-testkit", &[]);
        let found = violations(&[mil, testkit]);
        assert_eq!(found.len(), 7, "{found:?}");
        let mut mil = package("mixbit-mil", &[("mixbit-testkit", None)]);
        mil.make_published();
        let found = violations(&[mil, package("mixbit-testkit", &[])]);
        assert!(found.iter().any(|line| line.contains("without a version")), "{found:?}");
    }
}
