//! The command line.

mod advice;
mod analyze;
mod arguments;
mod backends;
mod bench;
mod colour;
mod compare;
mod convert;
mod diff;
mod doctor;
mod estimate;
mod generate;
mod hub;
mod input;
mod inspect;
mod interrupt;
mod memory;
mod metadata;
mod model_files;
mod models;
mod names;
mod next;
mod opening;
mod output;
mod palettize;
mod phases;
mod predict;
mod printable;
mod profile;
mod progress;
mod pull;
mod recipe;
mod stop;
mod summary;
mod table;
mod values;
mod verify;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use mixbit_formats::{make_directory, write_atomically};

use arguments::Understood;
use printable::one_line;

/// Stable Diffusion with mixed-bit palettization, on any machine.
#[derive(Debug, Parser)]
#[command(name = "mixbit", version, about, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// Use no network: take models that are there, and say what is missing
    #[arg(long, global = true, help_heading = "Network")]
    offline: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draw images from a prompt
    Generate(Box<generate::Arguments>),
    /// Measure how far each layer of a model can be compressed, and make recipes
    #[command(override_usage = "mixbit analyze [OPTIONS] --output DIR MODEL\n       \
                                mixbit analyze merge [OPTIONS] --output DIR MODEL")]
    Analyze(Box<analyze::Arguments>),
    /// Draw the same images with several models or recipes, beside each other
    Compare(Box<compare::Arguments>),
    /// Measure how fast a model runs on this machine
    #[command(override_usage = "mixbit bench [OPTIONS] [MODEL]")]
    Bench(Box<bench::Arguments>),
    /// Convert a model to Core ML packages
    #[command(override_usage = "mixbit convert [OPTIONS] MODEL")]
    Convert(Box<convert::Arguments>),
    /// Store a model's weights in fewer bits, as Core ML packages
    #[command(override_usage = "mixbit palettize [OPTIONS] --output PATH \
                                <--nbits N|--scheme NAME|--recipe FILE> MODEL")]
    Palettize(Box<palettize::Arguments>),
    /// Show what a model, a Core ML package or a weight file consists of
    Inspect(inspect::Arguments),
    /// Compare two models, Core ML packages or weight files
    Diff(diff::Arguments),
    /// Run a Core ML package on tensors of a NumPy archive
    Predict(predict::Arguments),
    /// Show the generation parameters that image files hold
    Metadata(metadata::Arguments),
    /// Download models of the Hugging Face Hub, or files by their links
    Pull(pull::Arguments),
    /// List the models that are downloaded, or remove some
    Models(models::Arguments),
    /// Show what this CPU computes in, the memory, versions and caches
    Doctor(doctor::Arguments),
    /// Print the completions of a shell, to be put where it looks for them
    #[command(after_help = completions_help())]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages into a directory
    #[command(after_help = "For `man mixbit`: mixbit man ~/.local/share/man/man1")]
    Man {
        /// Where `mixbit.1` and a page for each command are written; made if it is not there
        directory: PathBuf,
    },
}

/// The shells with the places of their completions.
const COMPLETIONS: [(Shell, &str); 5] = [
    (Shell::Bash, "mixbit completions bash > ~/.local/share/bash-completion/completions/mixbit"),
    (Shell::Zsh, "mixbit completions zsh > DIR/_mixbit, where DIR is one of those in $fpath"),
    (Shell::Fish, "mixbit completions fish > ~/.config/fish/completions/mixbit.fish"),
    (Shell::PowerShell, "mixbit completions powershell >> $PROFILE"),
    (Shell::Elvish, "mixbit completions elvish >> ~/.config/elvish/rc.elv"),
];

/// The command for each shell.
fn completions_help() -> String {
    COMPLETIONS.map(|(shell, command)| format!("  {shell}: {command}")).join("\n")
}

/// Prints the completions of a shell; on a terminal also where they go.
fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mixbit", &mut script);
    print_line(String::from_utf8_lossy(&script).trim_end())?;
    let place = COMPLETIONS.iter().find(|(other, _)| *other == shell).filter(|_| stdout().is_terminal());
    place.into_iter().for_each(|(_, command)| progress::print_line(format_args!("note: {command}")));
    Ok(())
}

/// Writes the manual pages, and says how they are read.
fn manual(directory: &Path) -> anyhow::Result<()> {
    let unwritable = || format!("the manual pages can't be written to {}", directory.display());
    make_directory(directory).with_context(unwritable)?;
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let commands = cli.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    for command in commands.chain([cli.clone()]) {
        let page = clap_mangen::Man::new(command);
        // A link that has the page's name is replaced, not followed.
        write_atomically(&directory.join(page.get_filename()), |file| page.render(file))
            .with_context(unwritable)?;
    }
    let page = directory.join("mixbit.1");
    print_line(page.display())?;
    progress::print_line(format_args!("read it: man {}", page.display()));
    Ok(())
}

/// The exit code of invalid arguments.
const USAGE: u8 = 2;

/// Runs the command line. Exit codes are 0 for success, 1 for an error and 2 for invalid arguments. `diff`
/// exits with 1 for a difference and 2 for an error.
pub(crate) fn main() -> ExitCode {
    let cli = match parsed(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(line) => {
            progress::print_line(format_args!("error: {line}"));
            return ExitCode::from(USAGE);
        }
    };
    let failure = match cli.command {
        Command::Diff(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    };
    interrupt::set_goes_on(matches!(
        cli.command,
        Command::Convert(_) | Command::Palettize(_) | Command::Analyze(_) | Command::Pull(_)
    ));
    run(cli).unwrap_or_else(|error| {
        let mut line = message(&error);
        if stop::is_raised() {
            if !interrupt::report_once() {
                // The thread that reports ends the process.
                loop {
                    std::thread::park();
                }
            }
            line = interrupt::message(&line);
        }
        progress::print_line(format_args!("error: {line}"));
        failure
    })
}

/// The environment variable with the model that commands work on.
const MODEL: &str = "MIXBIT_MODEL";

/// An argument that no environment variable stands for.
fn without_environment(argument: clap::Arg) -> clap::Arg {
    match argument.get_env().is_some_and(|name| name == MODEL) {
        true => argument.env(None::<&'static str>),
        false => argument,
    }
}

/// Parses arguments, with the names of other tools. Help and the version are printed, and end the process.
///
/// # Errors
/// The line for arguments that can't be understood.
fn parsed(typed: Vec<OsString>) -> Result<Cli, String> {
    // An empty variable is one that a script has unset in the way of shells.
    let is_empty = std::env::var_os(MODEL).is_some_and(|model| model.is_empty());
    let parser = || match is_empty {
        true => Cli::command().mut_subcommands(|command| command.mut_args(without_environment)),
        false => Cli::command(),
    };
    let mut commands = parser();
    commands.build();
    let Understood { arguments, notes, typed } = arguments::understood(&commands, typed)?;
    let refused = |error: clap::Error| {
        arguments::refusal(&commands, &arguments, &typed, &error).unwrap_or_else(|| error.exit())
    };
    let matches = parser().try_get_matches_from(&arguments).map_err(refused)?;
    let cli = Cli::from_arg_matches(&matches).map_err(refused)?;
    let is_quiet = arguments.iter().any(|argument| argument == "-q" || argument == "--quiet");
    for note in notes.iter().filter(|_| !is_quiet) {
        progress::print_line(format_args!("note: {note}"));
    }
    Ok(cli)
}

/// An error and its causes on one line. A cause that the text already ends with is not repeated.
fn message(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if !line.ends_with(&cause) {
            let colon = if line.is_empty() { "" } else { ": " };
            line += &format!("{colon}{cause}");
        }
    }
    one_line(&line)
}

/// Prints a line of results. A closed pipe, as with `head`, is no error.
fn print_line(line: impl Display) -> anyhow::Result<()> {
    match progress::beside(|| writeln!(stdout(), "{line}")) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("standard output can't be written to"),
    }
}

/// The arguments of a command that takes models.
fn of_models(command: &mut Command) -> Option<&mut dyn hub::Models> {
    match command {
        Command::Generate(arguments) => Some(&mut **arguments),
        Command::Analyze(arguments) => Some(&mut **arguments),
        Command::Compare(arguments) => Some(&mut **arguments),
        Command::Bench(arguments) => Some(&mut **arguments),
        Command::Convert(arguments) => Some(&mut **arguments),
        Command::Palettize(arguments) => Some(&mut **arguments),
        Command::Inspect(arguments) => Some(arguments),
        Command::Diff(arguments) => Some(arguments),
        _ => None,
    }
}

fn run(mut cli: Cli) -> anyhow::Result<ExitCode> {
    if let Some(arguments) = of_models(&mut cli.command) {
        hub::locate_all(arguments, cli.offline)?;
    }
    match cli.command {
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Analyze(arguments) => analyze::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Palettize(arguments) => palettize::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Diff(arguments) => return diff::run(&arguments),
        Command::Predict(arguments) => predict::run(&arguments),
        Command::Metadata(arguments) => metadata::run(&arguments),
        Command::Pull(arguments) => pull::run(&arguments, cli.offline),
        Command::Models(arguments) => models::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Completions { shell } => completions(shell),
        Command::Man { directory } => manual(&directory),
    }?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_that_says_things_once() {
        let error = anyhow::anyhow!("it is\ngarbage").context("unet: it is\ngarbage").context("model");
        assert_eq!(message(&error), "model: unet: it is garbage");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
