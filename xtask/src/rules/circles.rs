//! Files of a crate that use each other in a circle.
//!
//! A file uses another if it names an item that the other declares, directly or through a re-export. That a
//! module uses its own submodules does not count: apart from this the uses of a crate's files form no circle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use super::Repository;
use super::modules::Modules;

/// Uses of files by files, with one path that names each.
type Uses = BTreeMap<PathBuf, BTreeMap<PathBuf, String>>;

/// Finds the circles in every crate's library and binary.
pub(super) fn check(repository: &Repository) -> anyhow::Result<Vec<String>> {
    let mut circles = Vec::new();
    for folder in ["crates/", "xtask/"] {
        let roots = repository.files(folder, "rs");
        for root in roots.filter(|path| path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs")) {
            let uses = uses(&Modules::read(&repository.root.join(root))?);
            circles.extend(describe(&uses, &repository.root));
        }
    }
    Ok(circles)
}

fn uses(modules: &Modules) -> Uses {
    let mut uses = Uses::new();
    for reference in modules.references() {
        let (from, to) = (modules.module(reference.from), modules.module(reference.to));
        if from.file != to.file && !to.path.starts_with(&from.path) {
            uses.entry(from.file.clone()).or_default().entry(to.file.clone()).or_insert(reference.path);
        }
    }
    uses
}

/// One line for each group of files that reach each other: their number and the shortest circle among them.
fn describe(uses: &Uses, root: &Path) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut lines = Vec::new();
    for file in uses.keys() {
        if seen.contains(file) {
            continue;
        }
        let group: BTreeSet<&PathBuf> =
            reachable(uses, file).into_iter().filter(|other| reachable(uses, other).contains(file)).collect();
        let shortest = group.iter().filter_map(|member| shortest_circle(uses, member)).min_by_key(Vec::len);
        if let Some(circle) = shortest {
            lines.push(format!("{} files use each other: {}", group.len(), written(uses, &circle, root)));
        }
        seen.extend(group);
    }
    lines
}

/// A circle as `a.rs uses b.rs (path), which uses ..`.
fn written(uses: &Uses, circle: &[&PathBuf], root: &Path) -> String {
    let name = |file: &PathBuf| file.strip_prefix(root).unwrap_or(file).display().to_string();
    let mut text = name(circle[0]);
    for pair in circle.windows(2) {
        text += &format!(" uses {} (`{}`),", name(pair[1]), uses[pair[0]][pair[1]]);
    }
    text.trim_end_matches(',').replace("),", "), which")
}

fn reachable<'u>(uses: &'u Uses, file: &PathBuf) -> BTreeSet<&'u PathBuf> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&PathBuf> = uses.get(file).into_iter().flat_map(BTreeMap::keys).collect();
    while let Some(next) = open.pop() {
        if found.insert(next) {
            open.extend(uses.get(next).into_iter().flat_map(BTreeMap::keys));
        }
    }
    found
}

/// The shortest circle through a file, which is its first and its last element.
fn shortest_circle<'u>(uses: &'u Uses, file: &'u PathBuf) -> Option<Vec<&'u PathBuf>> {
    let mut seen = BTreeSet::new();
    let mut open = VecDeque::from([vec![file]]);
    while let Some(way) = open.pop_front() {
        for next in uses.get(*way.last()?).into_iter().flat_map(BTreeMap::keys) {
            let longer = [way.as_slice(), &[next]].concat();
            if next == file {
                return Some(longer);
            }
            if seen.insert(next) {
                open.push_back(longer);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The circles of a crate with these files.
    fn circles(name: &str, files: &[(&str, &str)]) -> Vec<String> {
        let root = std::env::temp_dir().join(format!("mixbit-xtask-circles-{}-{name}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = describe(&uses(&Modules::read(&root.join("lib.rs")).unwrap()), &root);
        fs::remove_dir_all(&root).unwrap();
        found
    }

    #[test]
    fn siblings_that_use_each_other_are_a_circle() {
        let found = circles(
            "siblings",
            &[
                ("lib.rs", "mod a;\nmod b;\npub use b::B;"),
                ("a.rs", "use crate::B;\npub struct A(B);"),
                ("b.rs", "pub struct B;\nfn f() { super::a::A::new(); }"),
            ],
        );
        assert_eq!(
            found,
            ["2 files use each other: a.rs uses b.rs (`crate::B`), which uses a.rs (`super::a::A::new`)"]
        );
    }

    #[test]
    fn a_module_and_its_submodules_are_none() {
        let found = circles(
            "own",
            &[
                ("lib.rs", "mod a;\npub struct Root;"),
                ("a/mod.rs", "mod x;\nmod y;\nuse x::X;\npub struct A(X, y::Y, super::Root);"),
                ("a/x.rs", "use super::A;\npub struct X(Box<A>);"),
                ("a/y.rs", "use super::x::X;\npub struct Y(X);"),
            ],
        );
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_submodule_can_close_a_circle_of_its_parent() {
        let found = circles(
            "parent",
            &[
                ("lib.rs", "mod a;\nmod b;"),
                ("a/mod.rs", "mod x;\nuse crate::b::B;\npub use x::X;\npub struct A(B);"),
                ("a/x.rs", "use super::A;\npub struct X(Box<A>);"),
                ("b.rs", "use crate::a::{X as Other};\npub struct B(Other);"),
            ],
        );
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("3 files"), "{found:?}");
    }

    #[test]
    fn tests_comments_and_texts_do_not_count() {
        let found = circles(
            "tests",
            &[
                ("lib.rs", "mod a;\nmod b;"),
                ("a.rs", "use crate::b::B;\npub struct A(B);"),
                (
                    "b.rs",
                    "// crate::a::A\npub struct B;\nconst T: &str = \"crate::a::A\";\n\
                     #[cfg(test)]\nuse crate::a::{A};\n#[cfg(test)]\nmod tests { use crate::a::A; }",
                ),
            ],
        );
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn files_of_path_attributes_are_read() {
        let found = circles(
            "paths",
            &[
                (
                    "lib.rs",
                    "#[cfg_attr(unix, path = \"x/a.rs\")]\n#[cfg_attr(not(unix), path = \"x/b.rs\")]\nmod cpu;\nmod c;",
                ),
                ("x/a.rs", "pub fn f() {}"),
                ("x/b.rs", "mod d;\npub fn f() { crate::c::g() }"),
                ("x/d.rs", "pub fn h() {}"),
                ("c.rs", "pub fn g() { crate::cpu::f() }"),
            ],
        );
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn imported_modules_and_globs_are_followed() {
        let found = circles(
            "globs",
            &[
                ("lib.rs", "mod a;\nmod b;\nmod all { pub use crate::a::*; }"),
                ("a.rs", "use crate::b;\npub fn f() { b::g() }"),
                ("b.rs", "use crate::all;\npub fn g() { all::f() }"),
            ],
        );
        assert_eq!(found, ["2 files use each other: a.rs uses b.rs (`b::g`), which uses a.rs (`all::f`)"]);
    }
}
