//! Table tests that report every failing case.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Collects the outcome of every case of a table test; [`Failures::finish`] panics with all that failed.
#[derive(Debug)]
pub struct Failures {
    table: String,
    cases: usize,
    failed: Vec<String>,
}

impl Failures {
    /// An empty result for the table called `table`.
    pub fn new(table: impl Into<String>) -> Failures {
        Failures { table: table.into(), cases: 0, failed: Vec::new() }
    }

    /// Runs one case. An `Err` and a panic both count as a failure of this case only.
    pub fn case<E: Display>(&mut self, name: &str, run: impl FnOnce() -> Result<(), E>) {
        self.cases += 1;
        let outcome = catch_unwind(AssertUnwindSafe(run));
        let reason = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => {
                let message = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message");
                format!("panicked: {message}")
            }
        };
        self.failed.push(format!("{name}: {reason}"));
    }

    /// The cases that ran so far.
    pub fn cases(&self) -> usize {
        self.cases
    }

    /// Ends the table.
    ///
    /// # Panics
    ///
    /// If a case failed, with the reason of each; or if no case ran, because an empty table proves nothing.
    #[track_caller]
    pub fn finish(self) {
        assert!(self.cases > 0, "{}: no case ran", self.table);
        if !self.failed.is_empty() {
            let list = self.failed.join("\n  ");
            panic!("{}: {} of {} cases failed:\n  {list}", self.table, self.failed.len(), self.cases);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failing_case_is_listed() {
        let mut failures = Failures::new("table");
        failures.case("good", || Ok::<(), String>(()));
        failures.case("bad", || Err("off by one"));
        failures.case("worse", || -> Result<(), String> { panic!("index {}", 7) });
        let message = catch_unwind(|| failures.finish()).expect_err("two cases failed");
        let message = message.downcast_ref::<String>().expect("formatted").clone();
        assert_eq!(message, "table: 2 of 3 cases failed:\n  bad: off by one\n  worse: panicked: index 7");
    }

    #[test]
    #[should_panic(expected = "no case ran")]
    fn an_empty_table_fails() {
        Failures::new("nothing").finish();
    }
}
