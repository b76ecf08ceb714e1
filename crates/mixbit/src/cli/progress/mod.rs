//! Progress on standard error: a bar on a terminal, plain lines elsewhere, or nothing.

use std::fmt::Display;
use std::io::{IsTerminal, Write as _, stderr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use mixbit_mil::{Stopped, Unit};

/// The minimum interval between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The template of a counting bar, as wide as the line.
const COUNTS: &str = "{prefix} [{wide_bar}] {pos}/{len}, {msg}{left} left";

/// The template of a byte bar.
const BYTES: &str = "{prefix} [{wide_bar}] {bytes}/{total_bytes}, {bytes_per_sec}, {left} left";

/// The progress display.
pub(super) struct Progress {
    shown: Shown,
}

enum Shown {
    Nothing,
    Lines,
    Bar,
}

impl Progress {
    /// Shows nothing if `quiet`, else a bar on a terminal or plain lines elsewhere.
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
        if !matches!(self.shown, Shown::Nothing) {
            print_line(message);
        }
    }

    /// Shows a spinner on a terminal until the result is dropped.
    pub(super) fn wait(&self, message: &'static str) -> Waiting {
        let bar = match self.shown {
            Shown::Bar => {
                let bar = ProgressBar::new_spinner().with_message(message);
                bar.enable_steady_tick(Duration::from_millis(100));
                Some(bar)
            }
            _ => None,
        };
        Waiting { bar }
    }

    /// A phase of `total` units of work.
    pub(super) fn count(&self, name: impl Into<String>, unit: Unit, total: usize) -> Counter {
        self.count_on(name, unit, 0, total)
    }

    /// A phase resumed at `done` units, which do not count for the estimate of the remaining time.
    pub(super) fn count_on(&self, name: impl Into<String>, unit: Unit, done: usize, total: usize) -> Counter {
        let name = name.into();
        let bar = matches!(self.shown, Shown::Bar).then(|| {
            let bar = ProgressBar::new(total as u64).with_prefix(name.clone());
            bar.set_style(style(if unit == Unit::Bytes { BYTES } else { COUNTS }));
            bar.set_position(done as u64);
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let lines = matches!(self.shown, Shown::Lines);
        Counter {
            name,
            before: done as u64,
            bar,
            lines,
            start: Instant::now(),
            state: Mutex::new(State { total: total as u64, last_line: None }),
        }
    }

    /// A phase of reading or writing; its first report sets the number of bytes.
    pub(super) fn bytes(&self, name: impl Into<String>) -> Counter {
        self.count(name, Unit::Bytes, 0)
    }

    /// A count whose first report sets the total. It is shown until it is complete or dropped.
    pub(super) fn phase(&self, name: impl Into<String>) -> Phase<'_> {
        Phase { progress: self, name: name.into(), counter: Mutex::new(None) }
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

/// Prints a line. Output errors are ignored.
fn print_line(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

/// The style of a template. The templates are constants; indicatif's own style replaces an invalid one.
fn style(template: &str) -> ProgressStyle {
    let fallback = ProgressStyle::default_bar();
    let left = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{}", clock(state.eta().as_secs_f64()));
    };
    ProgressStyle::with_template(template).unwrap_or(fallback).progress_chars("=> ").with_key("left", left)
}

/// A spinner for an operation of unknown length.
pub(super) struct Waiting {
    bar: Option<ProgressBar>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A running phase.
pub(super) struct Counter {
    name: String,
    /// Units done before the phase began.
    before: u64,
    bar: Option<ProgressBar>,
    lines: bool,
    start: Instant,
    state: Mutex<State>,
}

/// The mutable state of a phase.
struct State {
    total: u64,
    last_line: Option<Instant>,
}

impl mixbit_mil::Progress for Counter {
    fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped> {
        let own = done.saturating_sub(self.before);
        let seconds = self.start.elapsed().as_secs_f64() / own.max(1) as f64;
        if let Some(bar) = &self.bar {
            if own > 0 && unit != Unit::Bytes {
                bar.set_message(format!("{}, ", rate(seconds, unit)));
            }
            bar.set_length(total);
            bar.set_position(done);
        }
        self.state().total = total;
        if self.lines && own > 0 && self.is_due(unit, done == total) {
            print_line(match unit {
                Unit::Bytes => {
                    let [done, total] = [done, total].map(|bytes| bytes as f64 / 1e6);
                    format!("{}: {done:.0} of {total:.0} MB", self.name)
                }
                _ => {
                    let left = clock(seconds * total.saturating_sub(done) as f64);
                    let (name, units, rate) = (&self.name, units(unit), rate(seconds, unit));
                    format!("{name}: {done}/{total} {units}, {rate}, {left} left")
                }
            });
        }
        Ok(())
    }
}

impl Counter {
    /// True if a line is due. Counts show their first and last; bytes show only slow phases.
    fn is_due(&self, unit: Unit, is_last: bool) -> bool {
        let last_line = &mut self.state().last_line;
        let is_due = match unit {
            Unit::Bytes => last_line.unwrap_or(self.start).elapsed() >= LINE_INTERVAL,
            _ => is_last || last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL),
        };
        if is_due {
            *last_line = Some(Instant::now());
        }
        is_due
    }

    /// The units of the whole phase; 0 until known.
    pub(super) fn total(&self) -> u64 {
        self.state().total
    }

    /// Ignores poisoning: a panic in one reporting thread must not stop another.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows that `done` of `total` steps are done.
    pub(super) fn steps(&self, done: usize, total: usize) {
        self.show(done as u64, total as u64, Unit::Steps);
    }

    /// Shows progress; a terminal display never stops the work.
    pub(super) fn show(&self, done: u64, total: u64, unit: Unit) {
        let _ = mixbit_mil::Progress::advance(self, done, total, unit);
    }

    /// Prints a message above the bar.
    pub(super) fn say(&self, message: impl Display) {
        match (&self.bar, self.lines) {
            (Some(bar), _) => bar.println(message.to_string()),
            (None, true) => print_line(message),
            (None, false) => {}
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The plural name of a unit.
fn units(unit: Unit) -> &'static str {
    match unit {
        Unit::Steps => "steps",
        Unit::Bytes => "bytes",
        Unit::Layers => "layers",
        Unit::Measurements => "measurements",
    }
}

/// The duration of one unit as a rate, in the more readable form.
fn rate(seconds: f64, unit: Unit) -> String {
    let units = units(unit);
    if seconds > 1.0 {
        format!("{seconds:.2} s/{}", units.trim_end_matches('s'))
    } else {
        format!("{:.2} {units}/s", 1.0 / seconds.max(1e-9))
    }
}

/// A duration in clock format: minutes and seconds, with hours if not zero.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_on_a_clock() {
        for (seconds, shown) in [
            (0.4, "0:00"),
            (59.4, "0:59"),
            (59.6, "1:00"),
            (600.0, "10:00"),
            (3600.0, "1:00:00"),
            (86399.0, "23:59:59"),
        ] {
            assert_eq!(clock(seconds), shown);
        }
    }

    #[test]
    fn rates_are_what_reads_better() {
        assert_eq!(rate(2.5, Unit::Steps), "2.50 s/step");
        assert_eq!(rate(0.08, Unit::Layers), "12.50 layers/s");
    }
}
