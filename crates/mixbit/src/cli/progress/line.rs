//! A phase's progress as one line of text that fits the terminal.

use std::time::Duration;

use console::{measure_text_width, truncate_str};

/// The bar's fewest columns; a narrower one is left out.
const LEAST_BAR: usize = 10;

/// The bar's most columns.
const MOST_BAR: usize = 40;

/// The fewest columns of a name; a line shortens it no further.
const LEAST_NAME: usize = 4;

/// Nothing is estimated from less time.
const LEAST_MEASURED: Duration = Duration::from_millis(300);

/// The spinner's frames, one for each tick.
const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// The time of a frame.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// The noun of a phase's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noun {
    /// Bytes, shown as MB.
    Bytes,
    /// A plural.
    Counted(&'static str),
}

/// A phase at a moment.
#[derive(Clone, Debug)]
pub(super) struct Moment<'a> {
    /// The phase.
    pub(super) name: &'a str,
    pub(super) noun: Noun,
    /// Units done before the phase began; they took no time.
    pub(super) before: u64,
    pub(super) done: u64,
    /// The units of the whole phase; 0 until known.
    pub(super) total: u64,
    /// The time since the phase began.
    pub(super) elapsed: Duration,
    /// The time from the beginning to the last unit that is done.
    pub(super) measured: Duration,
}

impl Moment<'_> {
    /// Seconds a unit; `None` before there is enough to measure.
    fn pace(&self) -> Option<f64> {
        let own = self.done.checked_sub(self.before).filter(|own| *own > 0)?;
        (self.measured >= LEAST_MEASURED).then(|| self.measured.as_secs_f64() / own as f64)
    }

    /// The progress, as `12/25 steps` or `3 of 45 MB`.
    fn count(&self) -> String {
        match self.noun {
            Noun::Bytes => {
                let decimals = if self.total < 10_000_000 { 1 } else { 0 };
                let [done, total] = [self.done, self.total].map(|bytes| bytes as f64 / 1e6);
                format!("{done:.decimals$} of {total:.decimals$} MB")
            }
            Noun::Counted(noun) => format!("{}/{} {noun}", self.done, self.total),
        }
    }

    /// The rate in the more readable form; `None` before it is known.
    fn rate(&self) -> Option<String> {
        let pace = self.pace()?;
        Some(match self.noun {
            Noun::Bytes => format!("{} MB/s", rounded(1e-6 / pace.max(1e-12))),
            Noun::Counted(noun) if pace >= 1.0 => {
                format!("{} s/{}", rounded(pace), noun.trim_end_matches('s'))
            }
            Noun::Counted(noun) => format!("{} {noun}/s", rounded(1.0 / pace.max(1e-9))),
        })
    }

    /// The rest of the time on a clock; `None` before there is an estimate.
    fn left(&self) -> Option<String> {
        let whole = self.pace()? * self.total.saturating_sub(self.done) as f64;
        let since = self.elapsed.saturating_sub(self.measured).as_secs_f64();
        Some(format!("{} left", clock((whole - since).max(1.0))))
    }

    /// The line for a terminal of so many columns: a spinner, the name and the count; the bar, the rate and
    /// the rest of the time where they are known and have room.
    pub(super) fn line(&self, columns: usize) -> String {
        let room = columns.saturating_sub(1);
        truncate_str(&self.of_room(room), room, "…").into_owned()
    }

    /// The line of so many columns, as far as its numbers allow.
    fn of_room(&self, room: usize) -> String {
        let frame = self.elapsed.as_millis() / TICK.as_millis().max(1);
        let spinner = SPINNER[frame as usize % SPINNER.len()];
        let shortened = |name: &str, rest: usize| {
            let most = room.saturating_sub(2 + rest).max(LEAST_NAME);
            truncate_str(name, most, "…").into_owned()
        };
        if self.total == 0 {
            let rest = format!(", {}", seconds(self.elapsed));
            return format!("{spinner} {}{rest}", shortened(self.name, rest.len()));
        }
        let count = self.count();
        let Some((rate, left)) = self.rate().zip(self.left()) else {
            let rest = format!(": {count}, {}", seconds(self.elapsed));
            return format!("{spinner} {}{rest}", shortened(self.name, rest.len()));
        };
        for rest in [format!("{count}, {rate}, {left}"), format!("{count}, {left}")] {
            let others = 2 + measure_text_width(self.name) + " [] ".len() + rest.len();
            let bar = room.saturating_sub(others).min(MOST_BAR);
            if bar >= LEAST_BAR {
                return format!("{spinner} {} [{}] {rest}", self.name, self.bar(bar));
            }
            if others <= room + 2 {
                return format!("{spinner} {}: {rest}", shortened(self.name, rest.len() + 2));
            }
        }
        let rest = format!(": {count}, {left}");
        format!("{spinner} {}{rest}", shortened(self.name, rest.len()))
    }

    /// A bar of so many columns.
    fn bar(&self, columns: usize) -> String {
        let full = columns as u64 * self.done.min(self.total) / self.total.max(1);
        let full = full as usize;
        let arrow = usize::from(full > 0 && full < columns);
        format!("{}{}{}", "=".repeat(full - arrow), ">".repeat(arrow), " ".repeat(columns - full))
    }

    /// The line where there is no terminal.
    pub(super) fn plain(&self) -> String {
        let (name, count) = (self.name, self.count());
        match (self.done >= self.total, self.rate().zip(self.left())) {
            (true, _) => format!("{name}: {count} in {}", seconds(self.elapsed)),
            (false, Some((rate, left))) => format!("{name}: {count}, {rate}, {left}"),
            (false, None) => format!("{name}: {count}"),
        }
    }
}

/// A number with two or three digits that count.
fn rounded(number: f64) -> String {
    match number {
        number if number < 9.995 => format!("{number:.2}"),
        number if number < 99.95 => format!("{number:.1}"),
        number => format!("{number:.0}"),
    }
}

/// A time in words: seconds, or a clock from a minute on.
fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 9.95 => format!("{seconds:.1} s"),
        seconds if seconds < 60.0 => format!("{seconds:.0} s"),
        seconds => clock(seconds),
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

    fn moment(name: &str, noun: Noun, [done, total]: [u64; 2], elapsed: u64, measured: u64) -> Moment<'_> {
        let [elapsed, measured] = [elapsed, measured].map(Duration::from_millis);
        Moment { name, noun, before: 0, done, total, elapsed, measured }
    }

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
    fn lines_are_as_wide_as_the_terminal_allows() {
        let steps = moment("drawing", Noun::Counted("steps"), [12, 25], 30_000, 30_000);
        let bytes = moment("package 3 of 5, unet", Noun::Bytes, [1_200_000_000, 1_720_000_000], 4_000, 4_000);
        for (columns, shown) in [
            (80, "⠋ drawing [==================>                      ] 12/25 steps, 2.50 s/step, 0:33 left"),
            (50, "⠋ drawing: 12/25 steps, 2.50 s/step, 0:33 left"),
            (40, "⠋ drawing: 12/25 steps, 0:33 left"),
        ] {
            let shown_as = steps.line(columns);
            let is_same = shown.split_whitespace().eq(shown_as.split_whitespace());
            assert!(is_same || columns == 80, "{columns}: {shown_as}");
        }
        assert_eq!(
            bytes.line(80),
            "⠋ package 3 of 5, unet [==========>      ] 1200 of 1720 MB, 300 MB/s, 0:02 left"
        );
        assert_eq!(bytes.line(40), "⠋ package …: 1200 of 1720 MB, 0:02 left");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let names = [
            "x",
            "drawing",
            "Stable_Diffusion_version_runwayml_stable-diffusion-v1-5_unet",
            "猫と犬の絵を描く",
        ];
        for name in names {
            for noun in [Noun::Bytes, Noun::Counted("measurements"), Noun::Counted("steps")] {
                for counts in [[0, 0], [0, 25], [1, 25], [24, 25], [2_567_000_000, 2_567_000_001]] {
                    for millis in [0, 200, 5_000, 36_000_000] {
                        for columns in 40..=200 {
                            let line = moment(name, noun, counts, millis, millis).line(columns);
                            let width = measure_text_width(&line);
                            assert!(width < columns, "{columns}: {width} {line}");
                            assert!(!line.contains(" 0:00") && !line.contains("[]"), "{line}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_estimated_before_the_first_unit() {
        let first = moment("drawing", Noun::Counted("steps"), [0, 25], 12_300, 0);
        assert_eq!(first.line(80), "⠸ drawing: 0/25 steps, 12 s");
        let quick = moment("palettes", Noun::Counted("layers"), [400, 500], 10, 10);
        assert_eq!(quick.line(80), "⠋ palettes: 400/500 layers, 0.0 s");
        let unknown = moment("loading the model", Noun::Counted("steps"), [0, 0], 1_000, 0);
        assert_eq!(unknown.line(80), "⠋ loading the model, 1.0 s");
    }

    #[test]
    fn plain_lines_end_with_the_time_taken() {
        let steps = |done, millis| moment("drawing", Noun::Counted("steps"), [done, 25], millis, millis);
        assert_eq!(steps(1, 100).plain(), "drawing: 1/25 steps");
        assert_eq!(steps(5, 1_000).plain(), "drawing: 5/25 steps, 5.00 steps/s, 0:04 left");
        assert_eq!(steps(25, 90_000).plain(), "drawing: 25/25 steps in 1:30");
    }
}
