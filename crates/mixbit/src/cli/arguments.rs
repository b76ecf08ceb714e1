//! Arguments as people type them: other names become mixbit's, and what is not there is answered.

use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::Command;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use super::names::{COMMANDS, Meaning, NAMES, Row, Spelling, VALUES};
use super::values::random_seed;

/// Arguments in mixbit's own names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Understood {
    /// The arguments, the program's name first.
    pub(super) arguments: Vec<OsString>,
    /// The notes on names that mixbit does not need.
    pub(super) notes: Vec<String>,
    /// The options as they were typed, each with the long name of the option that it stands for.
    pub(super) typed: Vec<(String, String)>,
}

/// The commands whose model may stand by itself.
const OF_A_MODEL: [&str; 4] = ["convert", "palettize", "analyze", "bench"];

/// Translates arguments. Those of an unknown command stay as they are.
///
/// # Errors
/// The answer to a name that has no option.
pub(super) fn understood(cli: &Command, mut arguments: Vec<OsString>) -> Result<Understood, String> {
    // `mixbit help --help` asks for what `mixbit help` shows.
    if arguments.get(1).is_some_and(|argument| argument == "help") {
        arguments.retain(|argument| argument != "--help" && argument != "-h");
    }
    let mut rest = arguments.into_iter();
    let mut out = Understood::default();
    let mut command = None;
    for argument in rest.by_ref() {
        command = match out.arguments.is_empty() {
            true => None,
            false => argument.to_str().and_then(|name| cli.find_subcommand(name)),
        };
        let is_option = argument.to_str().is_some_and(|text| text.starts_with('-'));
        let is_first = out.arguments.is_empty();
        out.arguments.push(argument);
        if command.is_some() || !(is_option || is_first) {
            break;
        }
    }
    let Some(command) = command else {
        out.arguments.extend(rest);
        return Ok(out);
    };
    let rest = rest.collect::<Vec<_>>().into_iter().peekable();
    Translator { command, rest, out, last: Vec::new(), model: None }.run()
}

/// The arguments of a command on their way.
struct Translator<'c, I: Iterator<Item = OsString>> {
    command: &'c Command,
    rest: std::iter::Peekable<I>,
    out: Understood,
    /// Arguments that no option can be.
    last: Vec<OsString>,
    /// The model that stands by itself.
    model: Option<OsString>,
}

impl<I: Iterator<Item = OsString>> Translator<'_, I> {
    fn run(mut self) -> Result<Understood, String> {
        while let Some(argument) = self.rest.next() {
            if argument == "--" {
                break;
            }
            match argument.to_str().filter(|text| is_option(text)).map(str::to_string) {
                Some(text) => {
                    let (name, value) = match text.split_once('=') {
                        Some((name, value)) => (name, Some(value.into())),
                        None => (text.as_str(), None),
                    };
                    self.option(name, value, argument)?;
                }
                None => {
                    if let Some(argument) = self.not_the_model(argument)? {
                        self.out.arguments.push(argument);
                    }
                }
            }
        }
        while let Some(argument) = self.rest.next() {
            let argument = self.not_the_model(argument)?;
            self.last.extend(argument);
        }
        if !self.last.is_empty() {
            self.out.arguments.push("--".into());
            self.out.arguments.append(&mut self.last);
        }
        Ok(self.out)
    }

    /// Takes an argument that is no option as `--model`, if the command has a model that may stand by itself;
    /// gives it back otherwise.
    fn not_the_model(&mut self, argument: OsString) -> Result<Option<OsString>, String> {
        let name = self.command.get_name();
        let is_word = |word: &OsStr| {
            let positional = self.command.get_positionals().flat_map(|arg| arg.get_possible_values());
            positional.into_iter().any(|value| word.to_str().is_some_and(|word| value.matches(word, false)))
        };
        if !OF_A_MODEL.contains(&name) || is_word(&argument) {
            return Ok(Some(argument));
        }
        if let Some(model) = &self.model {
            let [model, other] = [model.display(), argument.display()];
            return Err(format!("`{name}` takes one model, not both `{model}` and `{other}`"));
        }
        let mut option = OsString::from("--model=");
        option.push(&argument);
        self.out.arguments.push(option);
        self.model = Some(argument);
        Ok(None)
    }

    /// Translates one option. `value` is what follows its equals sign.
    fn option(&mut self, name: &str, value: Option<OsString>, typed: OsString) -> Result<(), String> {
        let dashed = name.replace('_', "-");
        let means = match row(self.command, &dashed).map(|row| row.meaning) {
            Some(Meaning::Option(option)) => option,
            _ => &dashed,
        };
        if let Some(long) = long_name(self.command, means) {
            self.out.typed.push((name.to_string(), long));
        }
        if let Some(name) = [name, &dashed].into_iter().find(|name| has(self.command, name)) {
            self.known(name.to_string(), value);
            return Ok(());
        }
        match row(self.command, &dashed).map(|row| row.meaning) {
            Some(Meaning::Option(name)) => self.known(name.to_string(), value),
            Some(Meaning::Prompt) => {
                let prompt = value.or_else(|| self.rest.next());
                self.last.push(prompt.ok_or_else(|| format!("{name} needs the prompt after it"))?);
            }
            Some(Meaning::Needless { takes_value, note }) => {
                let follows = |next: &OsString| next.to_str().is_none_or(|next| !is_option(next));
                let value = value.or_else(|| if takes_value { self.rest.next_if(follows) } else { None });
                let value = value.map(|value| format!(" {}", value.display())).unwrap_or_default();
                self.out.notes.push(format!("{name}{value} is not needed: {note}"));
            }
            Some(Meaning::Answer(answer)) => {
                return Err(format!("`{}` has no option {name}: {answer}", self.command.get_name()));
            }
            None => self.out.arguments.push(typed),
        }
        Ok(())
    }

    /// Adds an option of the command, with its value spelt as the command knows it.
    fn known(&mut self, name: String, value: Option<OsString>) {
        let spelling = |value: &OsStr| {
            let value = value.to_str()?;
            let is_typed = |typed: &&str| typed.eq_ignore_ascii_case(value);
            let mut known = VALUES.iter().filter(|known| known.option == name);
            known.find(|known| known.typed.iter().any(is_typed)).map(|known| known.means)
        };
        let other = match &value {
            Some(value) => spelling(value),
            None => self.rest.peek().and_then(|next| spelling(next)),
        };
        if other.is_some() && value.is_none() {
            self.rest.next();
        }
        let value = match other {
            Some(Spelling::Text(text)) => Some(text.into()),
            Some(Spelling::Random) => Some(random_seed().to_string().into()),
            None => value,
        };
        match value {
            Some(value) if name.starts_with("--") => {
                let mut argument = OsString::from(name + "=");
                argument.push(value);
                self.out.arguments.push(argument);
            }
            Some(value) => self.out.arguments.extend([name.into(), value]),
            None => {
                let values = values(self.command, &name);
                self.out.arguments.push(name.into());
                self.values(values);
            }
        }
    }

    /// Adds the values that follow an option.
    fn values(&mut self, [least, most]: [usize; 2]) {
        let is_one = |next: &OsString| next.to_str().is_none_or(|next| !is_option(next));
        let is_number = |next: &OsString| next.to_str().is_some_and(|next| next.parse::<f64>().is_ok());
        for index in 0..most {
            let next = match (index < least, most) {
                (true, _) => self.rest.next(),
                (false, 1) => self.rest.next_if(is_number),
                (false, _) => self.rest.next_if(is_one),
            };
            match next {
                Some(next) => self.out.arguments.push(next),
                None => break,
            }
        }
    }
}

/// True for an option, unlike a value, a negative number or the dash that stands for a stream.
fn is_option(text: &str) -> bool {
    text.len() > 1 && text.starts_with('-') && text.parse::<f64>().is_err()
}

/// The fewest and the most values of a command's option.
fn values(command: &Command, name: &str) -> [usize; 2] {
    let is_named = |arg: &&clap::Arg| {
        let long = name.strip_prefix("--");
        let short = name.strip_prefix('-').and_then(|name| name.chars().next());
        (long.is_some() && arg.get_long() == long)
            || arg.get_all_aliases().is_some_and(|all| long.is_some_and(|long| all.contains(&long)))
            || (long.is_none() && arg.get_short() == short)
    };
    let Some(arg) = command.get_arguments().find(is_named) else { return [0, 0] };
    match arg.get_action().takes_values() {
        true => arg.get_num_args().map_or([1, 1], |range| [range.min_values(), range.max_values()]),
        false => [0, 0],
    }
}

/// The long name, with its dashes, of the option that has a name.
fn long_name(command: &Command, name: &str) -> Option<String> {
    let (long, short) = match name.strip_prefix("--") {
        Some(long) => (Some(long), None),
        None => (None, name.strip_prefix('-').filter(|name| name.chars().count() == 1)?.chars().next()),
    };
    let is_named = |arg: &&clap::Arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        let shorts = arg.get_all_short_aliases().unwrap_or_default();
        long.is_some_and(|long| arg.get_long() == Some(long) || aliases.contains(&long))
            || short.is_some_and(|short| arg.get_short() == Some(short) || shorts.contains(&short))
    };
    Some(format!("--{}", command.get_arguments().find(is_named)?.get_long()?))
}

/// True if a command has an option of this name, with its dashes.
fn has(command: &Command, name: &str) -> bool {
    let is_long = |long: &str| {
        let of = |arg: &clap::Arg| {
            arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|all| all.contains(&long))
        };
        matches!(long, "help" | "version") || command.get_arguments().any(of)
    };
    let is_short = |short: char| {
        let of = |arg: &clap::Arg| {
            arg.get_short() == Some(short)
                || arg.get_all_short_aliases().is_some_and(|all| all.contains(&short))
        };
        matches!(short, 'h' | 'V') || command.get_arguments().any(of)
    };
    match (name.strip_prefix("--"), name.strip_prefix('-').map(|short| short.chars())) {
        (Some(long), _) => is_long(long),
        (None, Some(mut short)) => short.next().is_some_and(is_short) && short.next().is_none(),
        (None, None) => false,
    }
}

/// The row of a name in a command.
fn row(command: &Command, name: &str) -> Option<&'static Row> {
    NAMES.iter().find(|row| {
        let is_for = row.commands.is_empty() || row.commands.contains(&command.get_name());
        let is_there = match row.meaning {
            Meaning::Option(option) => has(command, option),
            _ => true,
        };
        is_for && is_there && row.typed.contains(&name)
    })
}

/// The line for arguments that clap refuses; `None` where clap's own text serves, as for help. `typed` are
/// the options in the user's words.
pub(super) fn refusal(
    cli: &Command,
    arguments: &[OsString],
    typed: &[(String, String)],
    error: &Error,
) -> Option<String> {
    let get = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let command = arguments.iter().skip(1).find_map(|argument| cli.find_subcommand(argument.to_str()?));
    match (error.kind(), command) {
        (ErrorKind::UnknownArgument, Some(command)) => Some(unknown(command, &get(ContextKind::InvalidArg)?)),
        (ErrorKind::InvalidSubcommand, _) => {
            Some(unknown_command(cli, &get(ContextKind::InvalidSubcommand)?))
        }
        (ErrorKind::ValueValidation, _) => {
            let (option, value) = (get(ContextKind::InvalidArg)?, get(ContextKind::InvalidValue)?);
            let option = option.split(' ').next().unwrap_or(&option);
            Some(format!("{option} can't be `{value}`: {}", reason(error)))
        }
        (ErrorKind::ArgumentConflict, _) if get(ContextKind::InvalidArg) == get(ContextKind::PriorArg) => {
            Some(twice(&get(ContextKind::InvalidArg)?, typed))
        }
        (
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            _,
        ) => None,
        (_, command) => Some(in_one_line(&error.to_string(), command)),
    }
}

/// The line for an option that is given twice, by the names that were typed.
fn twice(option: &str, typed: &[(String, String)]) -> String {
    let option = option.split(' ').next().unwrap_or(option);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in typed.iter().filter(|(_, long)| long == option) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    match &names[..] {
        [] => format!("{option} is given twice: leave one out"),
        [name] => format!("{name} is given twice: leave one out"),
        names => format!("{} are the same option, and each is given: leave one out", names.join(" and ")),
    }
}

/// clap's message without its advice, which is about clap's own syntax as often as not.
fn in_one_line(message: &str, command: Option<&Command>) -> String {
    let is_advice = |line: &&str| {
        let line = line.trim_start();
        ["Usage:", "For more information", "tip:", "note:"].iter().any(|start| line.starts_with(start))
    };
    let lines = message.lines().take_while(|line| !is_advice(line)).map(str::trim);
    let text = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let text = text.strip_prefix("error: ").unwrap_or(&text).replace(" [possible values: ", " [one of ");
    match command {
        Some(command) => format!("{text}; `mixbit {} --help` describes the options", command.get_name()),
        None => format!("{text}; `mixbit --help` lists the commands"),
    }
}

/// The reason of a value that can't be read.
fn reason(error: &Error) -> String {
    let Some(source) = error.source() else { return "it can't be read".to_string() };
    if let Some(error) = source.downcast_ref::<ParseIntError>() {
        let is_large = matches!(error.kind(), IntErrorKind::PosOverflow | IntErrorKind::NegOverflow);
        return match is_large {
            true => "it is too large",
            false => "it must be a whole number",
        }
        .to_string();
    }
    if source.is::<ParseFloatError>() {
        return "it must be a number, such as 7.5".to_string();
    }
    // The bounds of a range.
    source.to_string().replace("..=", " to ").replace(" is not in ", ": it must be in ")
}

/// The line for an argument that a command does not have.
fn unknown(command: &Command, argument: &str) -> String {
    let name = command.get_name();
    let option = argument.split('=').next().unwrap_or(argument);
    if !is_option(argument) {
        return match name {
            "generate" => format!(
                "`{argument}` is one word too many: put the whole prompt into quotation marks, \"a red circle\""
            ),
            _ => {
                format!("`{argument}` is one argument too many; `mixbit {name} --help` shows what goes where")
            }
        };
    }
    let of_table = NAMES.iter().flat_map(|row| row.typed.iter().map(move |typed| (*typed, row)));
    let of_table = of_table.filter_map(|(typed, row)| match row.meaning {
        Meaning::Option(target) if has(command, target) => Some((typed.to_string(), target.to_string())),
        _ => None,
    });
    let visible = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let own = visible.filter_map(|arg| arg.get_long()).map(|long| (format!("--{long}"), format!("--{long}")));
    match nearest(option, own.chain(of_table)) {
        Some(near) => format!("`{name}` has no option {option}; there is {near}"),
        None => format!("`{name}` has no option {option}; `mixbit {name} --help` lists those that there are"),
    }
}

fn unknown_command(cli: &Command, typed: &str) -> String {
    let own = cli.get_subcommands().filter(|command| !command.is_hide_set());
    let own = own.map(|command| (command.get_name().to_string(), command.get_name().to_string()));
    let other = COMMANDS.iter().map(|(typed, name)| (typed.to_string(), name.to_string()));
    match nearest(&typed.to_lowercase(), own.chain(other)) {
        Some(near) => format!("there is no command `{typed}`; there is `mixbit {near}`"),
        None if typed.contains(' ') => {
            format!("to draw a picture, write the command first: mixbit generate \"{typed}\"")
        }
        None => format!("there is no command `{typed}`; `mixbit --help` lists those that there are"),
    }
}

/// The meaning of the name nearest to a typed one: one that begins with it, or differs in few letters.
fn nearest(typed: &str, names: impl Iterator<Item = (String, String)>) -> Option<String> {
    let rank = |name: &str| match name.starts_with(typed) && typed.len() >= 4 {
        true => 1,
        false => distance(typed, name),
    };
    let most = (typed.chars().count() / 3).max(1);
    let ranked = names.map(|(name, stands_for)| (rank(&name), stands_for)).filter(|(rank, _)| *rank <= most);
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, stands_for)| stands_for)
}

/// The number of letters that are exchanged, added, left out or swapped between two texts (Damerau and
/// Levenshtein, each letter once).
fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|text| text.chars().collect::<Vec<char>>());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let above = &rows[i - 1];
            let changed = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    fn cli() -> Command {
        let mut cli = Cli::command();
        cli.build();
        cli
    }

    fn of(arguments: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
        let all = std::iter::once("mixbit").chain(arguments.iter().copied()).map(OsString::from);
        let Understood { arguments, notes, .. } = understood(&cli(), all.collect())?;
        Ok((arguments.iter().skip(1).map(|it| it.to_string_lossy().into_owned()).collect(), notes))
    }

    #[test]
    fn names_that_people_type_are_understood() {
        for (typed, expected) in [
            ("generate x --cfg-scale 7", "generate x --guidance-scale 7"),
            ("generate x --cfg_scale=7", "generate x --guidance-scale=7"),
            ("generate x --guidance_scale 7", "generate x --guidance-scale 7"),
            ("generate x --sampler euler", "generate x --scheduler euler"),
            ("generate x --ckpt d", "generate x --model d"),
            ("generate x --model-version d", "generate x --model d"),
            ("convert --model-version d", "convert --model-version d"),
            ("compare x --model d", "compare x --models d"),
            ("generate -p x --steps 2", "generate --steps 2 -- x"),
            ("generate --prompt=x", "generate -- x"),
            ("generate x --precision fp16", "generate x --precision=f16"),
            ("generate x --precision=FP32", "generate x --precision=f32"),
            ("generate -- --prompt", "generate -- --prompt"),
            ("generate -", "generate -"),
            ("convert sdxl -o out", "convert --model=sdxl -o out"),
            ("palettize --nbits 6 sdxl --output out", "palettize --nbits 6 --model=sdxl --output out"),
            ("palettize sdxl --part unet vae_decoder", "palettize --model=sdxl --part unet vae_decoder"),
            ("analyze merge sdxl", "analyze merge --model=sdxl"),
            ("analyze --int8 sdxl", "analyze --int8 --model=sdxl"),
            ("analyze --int8 47 ./merge", "analyze --int8 47 --model=./merge"),
            ("bench -- -odd", "bench --model=-odd"),
            ("convert --bits 6", "convert --quantize-nbits 6"),
            ("palettize --quantize-nbits 6", "palettize --nbits 6"),
            ("palettize --mlpackage-path a --selected-recipe b", "palettize --model a --select b"),
            ("generate x --guidance-scale -1", "generate x --guidance-scale -1"),
            ("draw x --sampler a", "draw x --sampler a"),
            ("--help", "--help"),
            ("help --help", "help"),
            ("help convert -h", "help convert"),
        ] {
            let split = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
            let arguments: Vec<&str> = typed.split(' ').collect();
            assert_eq!(of(&arguments), Ok((split(expected), Vec::new())), "{typed}");
        }
    }

    #[test]
    fn a_seed_of_minus_one_is_a_random_one() {
        for typed in [&["--seed", "-1"][..], &["--seed=-1"], &["--seed", "random"]] {
            let (arguments, _) = of(&[&["generate", "x"], typed].concat()).unwrap();
            let seed = arguments[2].strip_prefix("--seed=").unwrap();
            assert!(seed.parse::<u64>().is_ok() && arguments.len() == 3, "{arguments:?}");
        }
    }

    #[test]
    fn what_is_not_needed_is_noted_and_what_is_not_there_is_answered() {
        let (arguments, notes) =
            of(&["convert", "--xl-version", "--compute-unit", "CPU_AND_NE", "-q"]).unwrap();
        assert_eq!(arguments, ["convert", "-q"]);
        assert!(notes[0].contains("--xl-version") && notes[1].contains("CPU_AND_NE"), "{notes:?}");
        assert!(notes[1].contains("no Neural Engine"), "{notes:?}");
        for (typed, answer) in [
            ("convert --merge-chunks-in-pipeline-model", "leave"),
            ("generate --lora", "fuse_lora"),
            ("generate --fp16", "--precision"),
            ("convert a b", "one model"),
        ] {
            let arguments: Vec<&str> = typed.split(' ').collect();
            assert!(of(&arguments).unwrap_err().contains(answer), "{typed}");
        }
    }

    #[test]
    fn every_row_has_a_use() {
        let cli = cli();
        let commands: Vec<&Command> = cli.get_subcommands().collect();
        for row in NAMES {
            for name in row.commands {
                assert!(cli.find_subcommand(name).is_some(), "{name}");
            }
            for typed in row.typed {
                let is_used = |command: &&&Command| {
                    !has(command, typed)
                        && super::row(command, typed).is_some_and(|found| std::ptr::eq(found, row))
                };
                assert!(commands.iter().find(is_used).is_some(), "{typed} of {:?}", row.meaning);
            }
        }
        for value in VALUES {
            assert!(commands.iter().any(|command| has(command, value.option)), "{}", value.option);
        }
        for (_, name) in COMMANDS {
            assert!(cli.find_subcommand(name).is_some(), "{name}");
        }
    }

    #[test]
    fn refusals_name_what_is_near() {
        for (typed, said) in [
            (&["generate", "x", "--sede", "7"][..], "there is --seed"),
            (&["generate", "x", "--negativ", "7"], "there is --negative-prompt"),
            (&["generate", "x", "--smapler", "7"], "there is --scheduler"),
            (&["generate", "x", "--qqqqqqqq"], "mixbit generate --help"),
            (&["generate", "a", "red"], "quotation marks"),
            (&["generat", "x"], "mixbit generate"),
            (&["quantize", "x"], "mixbit palettize"),
            (&["a red circle"], "mixbit generate \"a red circle\""),
            (&["generate", "x", "--seed", "abc"], "a whole number"),
            (&["generate", "x", "--guidance-scale", "abc"], "a number"),
            (&["generate", "x", "--threads", "0"], "1 to 1024"),
            (&["analyze", "x", "-o", "y", "--threads", "0"], "1 to 1024"),
            (&["generate", "x", "--seed", "18446744073709551616"], "it is too large"),
            (
                &["generate", "x", "--cfg-scale", "7", "--cfg", "8"],
                "--cfg-scale and --cfg are the same option",
            ),
            (&["generate", "x", "--sampler", "ddim", "--sampler", "ddim"], "--sampler is given twice"),
            (&["convert", "--model-version", "a", "-m", "b"], "--model-version and -m are the same option"),
            (&["generate", "x", "--scheduler", "karras"], "as in dpmpp-2m-karras"),
            (&["generate", "x", "--scheduler", "SGM Uniform"], "as in dpmpp-2m-trailing"),
            (&["palettize", "x"], "--output <PATH>"),
            (&["generate", "x", "--seed"], "--seed"),
            (&["generate", "x", "--quiet=yes"], "--quiet"),
            (&["generate", "x", "--rng", "dice"], "[one of"),
        ] {
            let arguments: Vec<OsString> =
                std::iter::once("mixbit").chain(typed.iter().copied()).map(OsString::from).collect();
            let Understood { arguments, typed: names, .. } = understood(&cli(), arguments).unwrap();
            let error = Cli::command().try_get_matches_from(&arguments).unwrap_err();
            let line = refusal(&cli(), &arguments, &names, &error).unwrap_or_default();
            assert!(
                line.contains(said)
                    && !["\n", "..=", "For more information", "Usage", "tip:"]
                        .iter()
                        .any(|no| line.contains(no)),
                "{typed:?}: {line}"
            );
        }
    }
}
