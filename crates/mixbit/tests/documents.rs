//! The commands of the README and of the guide in `docs/guide`.
//!
//! Fenced blocks marked `sh` are run, in the order of a page, in a scratch directory and home of the page's
//! own. `MODEL` is a path to a tiny checkpoint there, `fixtures/pipelines/sdxl`; [`SMALL`] makes pictures
//! small and steps few. Blocks marked `console` install, download or take gigabytes: they are not run but
//! counted, by [`NOT_RUN`]. Commands and options that a page names within its text are looked up in the help.

#![cfg(unix)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mixbit_testkit::{Failures, Scratch, copy_tree, fixture_root};

type Error = Box<dyn std::error::Error>;

/// The blocks of each page that can't run here; of a page that is not listed, none.
const NOT_RUN: [(&str, usize); 5] = [
    ("README.md", 1),
    ("docs/guide/install.md", 6),
    ("docs/guide/models.md", 5),
    ("docs/guide/shrinking.md", 1),
    ("docs/guide/troubleshooting.md", 2),
];

/// Languages of blocks that are no commands.
const OTHER: [&str; 2] = ["python", "swift"];

/// The page with the options of Apple's scripts in its text.
const OF_APPLE: &str = "docs/guide/apple-options.md";

/// An option that gets another value, so that a command takes little time.
struct Small {
    command: &'static str,
    /// The option's names.
    names: &'static [&'static str],
    value: &'static str,
    /// True if the option is added where it is absent.
    is_added: bool,
}

const fn small(command: &'static str, names: &'static [&'static str], value: &'static str) -> Small {
    Small { command, names, value, is_added: true }
}

const SMALL: [Small; 6] = [
    small("generate", &["--steps", "--num-inference-steps"], "2"),
    Small { is_added: false, ..small("generate", &["--size"], "64x64") },
    small("compare", &["--steps"], "2"),
    small("analyze", &["--steps"], "2"),
    small("analyze", &["--effort"], "low"),
    small("bench", &["--runs"], "1"),
];

/// A fenced block.
struct Block {
    line: usize,
    language: String,
    text: String,
}

/// A page with its text.
struct Page {
    name: String,
    text: String,
}

fn repository() -> PathBuf {
    fixture_root().join("..")
}

/// The README and the pages of the guide.
fn pages() -> Vec<Page> {
    let guide = fs::read_dir(repository().join("docs/guide")).unwrap();
    let files = guide.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.map(|file| format!("docs/guide/{file}")).collect();
    names.push("README.md".to_string());
    names.sort();
    let page = |name: String| Page { text: fs::read_to_string(repository().join(&name)).unwrap(), name };
    names.into_iter().map(page).collect()
}

impl Page {
    fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines().enumerate();
        while let Some((index, line)) = lines.next() {
            let Some(language) = line.strip_prefix("```") else { continue };
            let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
            let text = inside.collect::<Vec<_>>().join("\n");
            blocks.push(Block { line: index + 1, language: language.to_string(), text });
        }
        blocks
    }

    /// The code spans outside blocks.
    fn spans(&self) -> Vec<&str> {
        let mut is_inside = false;
        let mut spans = Vec::new();
        for line in self.text.lines() {
            match line.starts_with("```") {
                true => is_inside = !is_inside,
                false if !is_inside => spans.extend(line.split('`').skip(1).step_by(2)),
                false => {}
            }
        }
        spans
    }
}

/// A script with the values of [`SMALL`].
fn made_small(script: &str) -> String {
    let lines = script.replace("\\\n", " ");
    lines.lines().map(made_small_line).collect::<Vec<_>>().join("\n")
}

fn made_small_line(line: &str) -> String {
    let mut line = line.to_string();
    for Small { command, names, value, is_added } in &SMALL {
        let call = format!("mixbit {command} ");
        let Some(at) = line.find(&call).filter(|at| *at == 0 || line[..*at].ends_with("| ")) else {
            continue;
        };
        let found = names.iter().find_map(|name| {
            let name = format!(" {name} ");
            line.find(&name).map(|at| at + name.len())
        });
        match found {
            Some(start) => {
                let end = line[start..].find(' ').map_or(line.len(), |length| start + length);
                line.replace_range(start..end, value);
            }
            None if *is_added => line.insert_str(at + call.len(), &format!("{} {value} ", names[0])),
            None => {}
        }
    }
    line
}

/// A script with a path in place of `MODEL`, as people give one: in a directory, with a space.
fn with_a_path(script: &str) -> String {
    script.replace("MODEL", "\"models/a model\"").replace("MIXBIT_\"models/a model\"", "MIXBIT_MODEL")
}

/// Runs a script that must succeed.
fn run(script: &str, home: &Path) -> Result<(), Error> {
    let binary = Path::new(env!("CARGO_BIN_EXE_mixbit")).parent().ok_or("the binary has no directory")?;
    let mut path = OsString::from(binary);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", script]).current_dir(home).env("HOME", home).env("PATH", path);
    let output = shell.env_remove("MIXBIT_MODEL").stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{script}\n{}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

#[test]
fn commands_on_pages_run() {
    let mut failures = Failures::new("documents");
    for page in pages() {
        let scratch = Scratch::new();
        copy_tree(&fixture_root().join("pipelines/sdxl"), &scratch.path().join("models/a model")).unwrap();
        for block in page.blocks().into_iter().filter(|block| block.language == "sh") {
            let place = format!("{}:{}", page.name, block.line);
            failures.case(&place, || run(&with_a_path(&made_small(&block.text)), scratch.path()));
        }
    }
    failures.finish();
}

#[test]
fn blocks_that_do_not_run_are_counted() {
    let expected: BTreeMap<&str, usize> = NOT_RUN.into_iter().collect();
    let mut failures = Failures::new("blocks");
    for page in pages() {
        failures.case(&page.name, || -> Result<(), Error> {
            let blocks = page.blocks();
            for Block { line, language, .. } in &blocks {
                let is_known = OTHER.contains(&&**language) || ["sh", "console"].contains(&&**language);
                assert!(is_known, "line {line}: a block of commands is `sh` or `console`, not `{language}`");
            }
            let count = blocks.iter().filter(|block| block.language == "console").count();
            assert_eq!(count, expected.get(&*page.name).copied().unwrap_or(0), "blocks that do not run");
            let hidden = page.text.lines().find(|line| line.starts_with("    mixbit "));
            assert_eq!(hidden, None, "commands are in fenced blocks");
            Ok(())
        });
    }
    failures.finish();
}

/// The words of a command's help.
fn help(command: &str) -> Result<BTreeSet<String>, Error> {
    let mut mixbit = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    let output = mixbit.args([command, "--help"]).output()?;
    if !output.status.success() {
        return Err(format!("there is no command `{command}`").into());
    }
    let text = String::from_utf8(output.stdout)?;
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c));
    Ok(words.map(str::to_string).collect())
}

#[test]
fn commands_and_options_in_text_are_there() {
    let mut commands: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut failures = Failures::new("options");
    let pages = pages();
    for page in &pages {
        let spans = page.spans().into_iter().filter_map(|span| span.strip_prefix("mixbit "));
        // `mixbit help COMMAND`.
        let spans = spans.map(|span| span.strip_prefix("help").unwrap_or(span).trim());
        for span in spans.filter(|span| !span.is_empty()) {
            let command = span.split(' ').next().unwrap_or_default();
            failures.case(&format!("{}: {span}", page.name), || -> Result<(), Error> {
                if !commands.contains_key(command) {
                    commands.insert(command.to_string(), help(command)?);
                }
                let known = &commands[command];
                let lacks = span.split(' ').find(|word| word.starts_with("--") && !known.contains(*word));
                lacks.map_or(Ok(()), |option| Err(format!("{command} has no option {option}").into()))
            });
        }
    }
    let known: BTreeSet<&String> = commands.values().flatten().collect();
    for page in pages.iter().filter(|page| page.name.starts_with("docs/guide/") && page.name != OF_APPLE) {
        for option in page.spans().into_iter().filter(|span| span.starts_with("--")) {
            let name = option.split(' ').next().unwrap_or_default();
            failures.case(&format!("{}: {option}", page.name), || match known.contains(&name.to_string()) {
                true => Ok(()),
                false => Err(format!("no command has the option {name}")),
            });
        }
    }
    failures.finish();
}

#[test]
fn scripts_are_made_small() {
    for (typed, small) in [
        ("mixbit generate \"x\" --model M", "mixbit generate --steps 2 \"x\" --model M"),
        ("mixbit generate x --size 512x512 --steps 25", "mixbit generate x --size 64x64 --steps 2"),
        ("echo x | mixbit generate - > a", "echo x | mixbit generate --steps 2 - > a"),
        ("mixbit convert \\\n--size 512x512", "mixbit convert  --size 512x512"),
        ("mixbit analyze merge --effort high", "mixbit analyze --steps 2 merge --effort low"),
        ("a lighthouse\nmixbit doctor", "a lighthouse\nmixbit doctor"),
    ] {
        assert_eq!(made_small(typed), small);
    }
}
