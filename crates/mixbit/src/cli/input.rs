//! Texts that the user gives in a file or on standard input.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;

use anyhow::{Context, bail};

/// The longest text, in bytes.
const LONGEST: u64 = 1 << 20;

/// The text of a file, or of standard input for `-`.
///
/// # Errors
/// If it can't be read, is too long, or is not UTF-8.
pub(super) fn text(path: &Path) -> anyhow::Result<String> {
    let name = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    let unreadable = || format!("{name} can't be read");
    let source: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(stdin().lock()),
        false => Box::new(File::open(path).with_context(unreadable)?),
    };
    let mut bytes = Vec::new();
    source.take(LONGEST + 1).read_to_end(&mut bytes).with_context(unreadable)?;
    if bytes.len() as u64 > LONGEST {
        bail!("{name} has more than {LONGEST} bytes of text");
    }
    String::from_utf8(bytes).ok().with_context(|| format!("{name} is not UTF-8 text"))
}

/// The lines of [`text`] that are not empty, without the white space around them.
///
/// # Errors
/// Those of [`text`], and if there is no such line.
pub(super) fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = text(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<String> = lines.map(str::to_string).collect();
    if lines.is_empty() {
        let name = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
        bail!("{name} has no line with text: write a prompt on each line");
    }
    Ok(lines)
}
