//! Progress on standard error: a bar on a terminal, plain lines elsewhere, or nothing.

use std::fmt::Display;
use std::io::{IsTerminal, Write as _, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use mixbit_mil::{Stopped, Unit};

/// Plain lines are at least this far apart.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// How a bar that counts steps looks; it takes the room that the line has left.
const STEPS: &str = "{prefix} [{wide_bar}] {pos}/{len}, {msg}{left} left";

/// How a bar that counts bytes looks.
const BYTES: &str = "{prefix} [{wide_bar}] {bytes}/{total_bytes}, {bytes_per_sec}, {left} left";

/// Shows progress.
pub(super) struct Progress {
    shown: Shown,
}

enum Shown {
    Nothing,
    Lines,
    Bar,
}

impl Progress {
    /// Shows nothing if `quiet`, else what fits where standard error goes.
    pub(super) fn new(quiet: bool) -> Self {
        let shown = match (quiet, stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Bar,
            (false, false) => Shown::Lines,
        };
        Progress { shown }
    }

    /// Says something.
    pub(super) fn say(&self, message: impl Display) {
        if !matches!(self.shown, Shown::Nothing) {
            print_line(message);
        }
    }

    /// Says that something will take a while, until the result is dropped.
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

    /// Counts to `total`.
    pub(super) fn count(&self, name: String, total: usize) -> Counter {
        self.count_on(name, 0, total)
    }

    /// Counts to `total` from what was `done` before, which says nothing of the time that the rest will take.
    pub(super) fn count_on(&self, name: String, done: usize, total: usize) -> Counter {
        let bar = match self.shown {
            Shown::Bar => {
                let bar = ProgressBar::new(total as u64).with_prefix(name.clone());
                bar.set_position(done as u64);
                bar.reset_eta();
                bar.set_style(style(STEPS));
                bar.enable_steady_tick(Duration::from_millis(100));
                Some(bar)
            }
            _ => None,
        };
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
}

impl Progress {
    /// Counts the bytes that are written.
    pub(super) fn bytes(&self, name: String) -> Counter {
        let bar = match self.shown {
            Shown::Bar => {
                let bar = ProgressBar::new(0).with_prefix(name.clone());
                bar.set_style(style(BYTES));
                Some(bar)
            }
            _ => None,
        };
        let lines = matches!(self.shown, Shown::Lines);
        Counter { name, before: 0, bar, lines, start: Instant::now(), state: Mutex::default() }
    }
}

/// Prints a line. Progress that can't be shown stops nothing.
fn print_line(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

/// The template is a constant; if it were wrong, indicatif's own style is shown.
fn style(template: &str) -> ProgressStyle {
    let fallback = ProgressStyle::default_bar();
    let left = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{}", clock(state.eta().as_secs_f64()));
    };
    ProgressStyle::with_template(template).unwrap_or(fallback).progress_chars("=> ").with_key("left", left)
}

/// Something that takes a while.
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

/// A count on its way.
pub(super) struct Counter {
    name: String,
    /// What was done before the count began.
    before: u64,
    bar: Option<ProgressBar>,
    lines: bool,
    start: Instant,
    state: Mutex<State>,
}

/// What changes as a count goes on.
#[derive(Default)]
struct State {
    total: u64,
    last_line: Option<Instant>,
}

impl mixbit_mil::Progress for Counter {
    fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped> {
        match unit {
            Unit::Bytes => self.advance_bytes(done, total),
            Unit::Steps | Unit::Layers | Unit::Measurements => self.show(done),
        }
        Ok(())
    }
}

impl Counter {
    /// Shows that `done` are done.
    pub(super) fn advance(&self, done: usize) {
        self.show(done as u64);
    }

    /// The units that are counted to, as far as they are known.
    pub(super) fn total(&self) -> u64 {
        self.state().total
    }

    /// A thread that panicked while it counted is no reason for another to.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, done: u64) {
        let mut state = self.state();
        let own = done.saturating_sub(self.before);
        let seconds = self.start.elapsed().as_secs_f64() / own.max(1) as f64;
        if let Some(bar) = &self.bar {
            if own > 0 {
                bar.set_message(format!("{}, ", rate(seconds)));
            }
            bar.set_position(done);
        }
        let is_due = state.last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if self.lines && own > 0 && (is_due || done == state.total) {
            let left = seconds * (state.total - done) as f64;
            print_line(format_args!(
                "{}: {done}/{} steps, {}, {} left",
                self.name,
                state.total,
                rate(seconds),
                clock(left)
            ));
            state.last_line = Some(Instant::now());
        }
    }

    /// Shows that `done` of `total` bytes are done.
    pub(super) fn advance_bytes(&self, done: u64, total: u64) {
        let mut state = self.state();
        state.total = total;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
        let is_due = state.last_line.unwrap_or(self.start).elapsed() >= LINE_INTERVAL;
        if self.lines && is_due {
            let [done, total] = [done, total].map(|bytes| bytes as f64 / 1e6);
            print_line(format_args!("{}: {done:.0} of {total:.0} MB", self.name));
            state.last_line = Some(Instant::now());
        }
    }

    /// Says something above the bar.
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

/// A duration of one step, as the rate that reads better.
fn rate(seconds: f64) -> String {
    if seconds > 1.0 {
        format!("{seconds:.2} s/step")
    } else {
        format!("{:.2} steps/s", 1.0 / seconds.max(1e-9))
    }
}

/// A duration as a clock shows it: minutes and seconds, and hours if there are any.
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
        assert_eq!(rate(2.5), "2.50 s/step");
        assert_eq!(rate(0.08), "12.50 steps/s");
    }
}
