//! What CI runs, in one command.

use std::fmt;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::repository;

/// A command line and the variables that it is run with.
struct Step {
    what: String,
    variables: &'static [(&'static str, &'static str)],
    command: Vec<String>,
}

impl Step {
    fn new(what: &str, command: &str) -> Self {
        let command = command.split_whitespace().map(str::to_string).collect();
        Step { what: what.to_string(), variables: &[], command }
    }

    fn command(&self) -> anyhow::Result<Command> {
        let (program, arguments) = self.command.split_first().context("a step has no command")?;
        let mut command = Command::new(program);
        command.args(arguments).envs(self.variables.iter().copied()).current_dir(repository());
        Ok(command)
    }
}

/// As it can be given to a shell.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.variables {
            write!(f, "{name}='{value}' ")?;
        }
        f.write_str(&self.command.join(" "))
    }
}

/// Runs every step, up to the first that fails.
///
/// # Errors
/// The first step that fails, with the command to repeat it.
pub(crate) fn run() -> anyhow::Result<()> {
    let start = Instant::now();
    let readme = fs::read_to_string(repository().join("README.md")).context("README.md can't be read")?;
    let mut steps = vec![
        Step::new("formatting", "cargo fmt --all --check"),
        Step::new("lints", "cargo clippy --workspace --all-targets -- -D warnings"),
    ];
    steps.extend(test_commands(&readme)?.into_iter().map(|command| Step::new("tests", command)));
    steps.push(Step::new("documentation examples", "cargo test --workspace --doc"));
    steps.push(Step {
        variables: &[("RUSTDOCFLAGS", "-D warnings")],
        ..Step::new("documentation", "cargo doc --workspace --no-deps")
    });
    for step in &steps {
        run_step(step)?;
    }
    let deny = Step::new("licences, bans and sources", "cargo deny check bans licenses sources");
    match is_available(&Step::new("cargo-deny", "cargo deny --version"))? {
        true => run_step(&deny)?,
        false => {
            println!("--- {}: SKIPPED, cargo-deny is not installed (cargo install cargo-deny)", deny.what)
        }
    }
    println!("--- all passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The README's test commands, which `.ci/run` runs too.
fn test_commands(readme: &str) -> anyhow::Result<Vec<&str>> {
    let commands: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with("cargo test "))
        .collect();
    if commands.is_empty() {
        bail!("README.md names no test command: a line of four spaces and `cargo test …`");
    }
    Ok(commands)
}

fn run_step(step: &Step) -> anyhow::Result<()> {
    println!("--- {}: {step}", step.what);
    let start = Instant::now();
    let status = step.command()?.status().with_context(|| format!("can't run `{step}`"))?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{}: FAILED after {seconds:.0} s ({status}); to repeat it: {step}", step.what);
    }
    println!("--- {}: passed in {seconds:.0} s", step.what);
    Ok(())
}

fn is_available(step: &Step) -> anyhow::Result<bool> {
    let status = step.command()?.stdout(Stdio::null()).stderr(Stdio::null()).status();
    Ok(status.is_ok_and(|status| status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_commands_are_the_indented_ones() {
        let readme =
            "Run `cargo test`.\n\n    cargo test --workspace\n    cargo run\n    cargo test -p mil\n";
        assert_eq!(test_commands(readme).unwrap(), ["cargo test --workspace", "cargo test -p mil"]);
        assert!(test_commands("cargo test --workspace").is_err());
    }

    #[test]
    fn the_readme_names_a_test_command() {
        let readme = fs::read_to_string(repository().join("README.md")).unwrap();
        assert!(!test_commands(&readme).unwrap().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_failing_step_says_how_to_repeat_it() {
        let step = Step { variables: &[("A", "b c")], ..Step::new("nothing", "false") };
        let error = run_step(&step).unwrap_err().to_string();
        assert!(error.starts_with("nothing: FAILED after"), "{error}");
        assert!(error.ends_with("to repeat it: A='b c' false"), "{error}");
    }

    #[test]
    fn absent_programs_are_not_available() {
        assert!(is_available(&Step::new("cargo", "cargo --version")).unwrap());
        assert!(!is_available(&Step::new("none", "cargo no-such-subcommand")).unwrap());
        assert!(!is_available(&Step::new("none", "no-such-program-anywhere")).unwrap());
    }
}
