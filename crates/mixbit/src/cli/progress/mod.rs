//! Progress on standard error: one line on a terminal, plain lines elsewhere, or nothing.

mod line;

use std::fmt::Display;
use std::io::{IsTerminal, Write as _, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use console::{Term, measure_text_width};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use mixbit_mil::{Stopped, Unit};

use super::printable::visible;
use super::{colour, stop};
use line::{Moment, Noun, TICK};

/// The minimum interval between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The columns of a terminal that does not say how many it has.
const USUAL_COLUMNS: usize = 80;

/// The lines on the terminal, the last of which is live.
static LINES: Mutex<Vec<(u64, ProgressBar)>> = Mutex::new(Vec::new());

/// The progress display.
pub(super) struct Progress {
    shown: Shown,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Nothing,
    Lines,
    Bar,
}

impl Progress {
    /// Shows nothing if `quiet`, else a line on a terminal or plain lines elsewhere.
    pub(super) fn new(quiet: bool) -> Self {
        let shown = match (quiet, stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Bar,
            (false, false) => Shown::Lines,
        };
        Progress { shown }
    }

    /// Prints a message unless quiet.
    pub(super) fn say(&self, message: impl Display) {
        if self.shown != Shown::Nothing {
            print_line(message);
        }
    }

    /// Shows the name of a phase of unknown length, with its seconds, until the result is dropped.
    pub(super) fn wait(&self, name: impl Into<String>) -> Counter {
        self.begin(name, Noun::Counted(""), 0, 0)
    }

    /// A phase of `total` units of work.
    pub(super) fn count(&self, name: impl Into<String>, unit: Unit, total: usize) -> Counter {
        self.count_on(name, unit, 0, total)
    }

    /// A phase resumed at `done` units, which do not count for the estimate of the remaining time.
    pub(super) fn count_on(&self, name: impl Into<String>, unit: Unit, done: usize, total: usize) -> Counter {
        self.begin(name, noun(unit), done, total)
    }

    /// A phase of units with a name of their own, such as runs.
    pub(super) fn count_as(&self, name: impl Into<String>, noun: &'static str, total: usize) -> Counter {
        self.begin(name, Noun::Counted(noun), 0, total)
    }

    /// The evaluations of a network in a number of steps: counted as steps if each takes one.
    pub(super) fn evaluations(&self, name: impl Into<String>, steps: usize, evaluations: usize) -> Counter {
        self.count_as(name, if steps == evaluations { "steps" } else { "evaluations" }, evaluations)
    }

    /// A phase of reading or writing; its first report sets the number of bytes.
    pub(super) fn bytes(&self, name: impl Into<String>) -> Counter {
        self.count(name, Unit::Bytes, 0)
    }

    /// A phase of bytes of which `done` are there already, and whose files stay if it is interrupted: the
    /// process need not wait for it.
    pub(super) fn resumable(&self, name: impl Into<String>, done: u64, total: u64) -> Counter {
        let counter = self.begin(name, Noun::Bytes, done as usize, total as usize);
        Counter { _writing: None, ..counter }
    }

    /// A count whose first report sets the total. It is shown until it is complete or dropped.
    pub(super) fn phase(&self, name: impl Into<String>) -> Phase<'_> {
        Phase { progress: self, name: name.into(), counter: Mutex::new(None) }
    }

    /// A [`phase`](Self::phase) whose first report ends the wait that is shown, and whose last begins
    /// another.
    pub(super) fn phase_after<'p>(
        &'p self,
        name: impl Into<String>,
        wait: &'p Wait,
        then: Option<&'static str>,
    ) -> PhaseAfter<'p> {
        PhaseAfter { phase: self.phase(name), wait, then }
    }

    fn begin(&self, name: impl Into<String>, noun: Noun, done: usize, total: usize) -> Counter {
        let work = Arc::new(Work {
            name: name.into(),
            noun,
            before: done as u64,
            start: Instant::now(),
            state: Mutex::new(State { done: done as u64, total: total as u64, ..State::default() }),
        });
        Counter {
            line: (self.shown == Shown::Bar).then(|| Line::new(work.clone())),
            lines: self.shown == Shown::Lines,
            _writing: (noun == Noun::Bytes).then(stop::writing),
            work,
        }
    }
}

/// Prints a line above the live one. Output errors are ignored.
pub(super) fn print_line(line: impl Display) {
    let line = colour::of_message(&on_terminal(visible(&line.to_string())));
    match lines().last() {
        Some((_, bar)) => bar.println(line),
        None => drop(writeln!(stderr(), "{line}")),
    }
}

/// Writes to standard output while the live line is off the terminal.
pub(super) fn beside<T>(write: impl FnOnce() -> T) -> T {
    let live = lines().last().map(|(_, bar)| bar.clone());
    match live {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// A message with its lines broken between words, on a terminal. Commands and paths stay whole, so that they
/// can be copied.
fn on_terminal(message: String) -> String {
    let is_prose = ["warning:", "note:"].iter().any(|beginning| message.starts_with(beginning));
    match is_prose && stderr().is_terminal() {
        true => wrapped(&message, columns()),
        false => message,
    }
}

/// A text with line breaks in place of spaces, so that no line that can be broken is wider.
fn wrapped(text: &str, columns: usize) -> String {
    let (mut out, mut width) = (String::new(), 0);
    for word in text.split(' ') {
        let own = measure_text_width(word);
        if width > 0 && width + 1 + own > columns {
            out.push('\n');
            width = 0;
        } else if !out.is_empty() {
            out.push(' ');
            width += 1;
        }
        out += word;
        width += own;
    }
    out
}

/// The terminal's columns.
fn columns() -> usize {
    Term::stderr().size_checked().map_or(USUAL_COLUMNS, |(_, columns)| columns.into())
}

/// Takes the lines off the terminal, before the process ends.
pub(super) fn clear() {
    lines().drain(..).for_each(|(_, bar)| bar.finish_and_clear());
}

/// The lines. Poisoning is ignored: they are whole between operations.
fn lines() -> MutexGuard<'static, Vec<(u64, ProgressBar)>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line on the terminal. It is cleared when it is dropped.
struct Line {
    number: u64,
    bar: ProgressBar,
}

impl Line {
    fn new(work: Arc<Work>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let bar = ProgressBar::new_spinner();
        let text = move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&work.moment(|moment| moment.line(columns())));
        };
        // The template is a constant; indicatif's own style replaces an invalid one.
        let style = ProgressStyle::with_template("{text}").unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("text", text));
        bar.enable_steady_tick(TICK);
        lines().push((number, bar.clone()));
        Line { number, bar }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        lines().retain(|(number, _)| *number != self.number);
        self.bar.finish_and_clear();
    }
}

/// A phase of a longer operation.
pub(super) struct Phase<'p> {
    progress: &'p Progress,
    name: String,
    counter: Mutex<Option<Counter>>,
}

impl mixbit_mil::Progress for Phase<'_> {
    fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped> {
        let mut shown = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = || self.progress.count_on(self.name.clone(), unit, done as usize, total as usize);
        mixbit_mil::Progress::advance(shown.get_or_insert_with(begin), done, total, unit)?;
        if done >= total {
            *shown = None;
        }
        Ok(())
    }
}

/// A wait that ends when a phase begins.
#[derive(Default)]
pub(super) struct Wait(Mutex<Option<Counter>>);

impl Wait {
    /// Shows a counter, or nothing, in place of what is shown.
    pub(super) fn set(&self, counter: Option<Counter>) {
        // The old line goes before the new one comes.
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(shown.take());
        *shown = counter;
    }
}

/// A phase between waits.
pub(super) struct PhaseAfter<'p> {
    phase: Phase<'p>,
    wait: &'p Wait,
    then: Option<&'static str>,
}

impl mixbit_mil::Progress for PhaseAfter<'_> {
    fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped> {
        self.wait.set(None);
        self.phase.advance(done, total, unit)?;
        if done >= total {
            self.wait.set(self.then.map(|then| self.phase.progress.wait(then)));
        }
        Ok(())
    }
}

/// The work of a phase.
struct Work {
    name: String,
    noun: Noun,
    /// Units done before the phase began.
    before: u64,
    start: Instant,
    state: Mutex<State>,
}

/// The mutable state of a phase.
#[derive(Default)]
struct State {
    done: u64,
    total: u64,
    /// The time from the beginning to the last report.
    measured: Duration,
    last_line: Option<Instant>,
}

impl Work {
    /// Ignores poisoning: a panic in one reporting thread must not stop another.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moment<T>(&self, of: impl FnOnce(&Moment<'_>) -> T) -> T {
        let (done, total, measured) = {
            let state = self.state();
            (state.done, state.total, state.measured)
        };
        let (name, noun, before) = (self.name.as_str(), self.noun, self.before);
        of(&Moment { name, noun, before, done, total, measured, elapsed: self.start.elapsed() })
    }

    /// True if a plain line is due. Counts show their first and last; bytes show only slow phases.
    fn is_due(&self) -> bool {
        let mut state = self.state();
        let is_last = state.done >= state.total;
        let is_due = match self.noun {
            Noun::Bytes => state.last_line.unwrap_or(self.start).elapsed() >= LINE_INTERVAL,
            _ => is_last || state.last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL),
        };
        if is_due {
            state.last_line = Some(Instant::now());
        }
        is_due
    }
}

/// A running phase.
pub(super) struct Counter {
    work: Arc<Work>,
    line: Option<Line>,
    lines: bool,
    /// Files that are written keep the process from ending before they are removed.
    _writing: Option<stop::Writing>,
}

impl mixbit_mil::Progress for Counter {
    fn advance(&self, done: u64, total: u64, _: Unit) -> Result<(), Stopped> {
        {
            let mut state = self.work.state();
            (state.done, state.total) = (done, total);
            state.measured = self.work.start.elapsed();
        }
        if self.lines && done > self.work.before && self.work.is_due() {
            print_line(self.work.moment(|moment| moment.plain()));
        }
        if stop::is_raised() { Err(Stopped) } else { Ok(()) }
    }
}

impl Counter {
    /// Shows that `done` of `total` steps are done.
    pub(super) fn steps(&self, done: usize, total: usize) {
        let _ = mixbit_mil::Progress::advance(self, done as u64, total as u64, Unit::Steps);
    }

    /// Prints a message above the line, unless quiet.
    pub(super) fn say(&self, message: impl Display) {
        if self.line.is_some() || self.lines {
            print_line(message);
        }
    }
}

/// The noun of a unit.
fn noun(unit: Unit) -> Noun {
    match unit {
        Unit::Steps => Noun::Counted("evaluations"),
        Unit::Bytes => Noun::Bytes,
        Unit::Layers => Noun::Counted("layers"),
        Unit::Measurements => Noun::Counted("measurements"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_broken_between_words() {
        let text = "warning: the demo model does not know `lighthouse`";
        assert_eq!(wrapped(text, 20), "warning: the demo\nmodel does not know\n`lighthouse`");
        assert_eq!(wrapped(text, 200), text);
        assert_eq!(wrapped("a verylongword b", 5), "a\nverylongword\nb");
    }
}
