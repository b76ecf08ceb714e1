//! The outcome of a run of the suite.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The cases that a backend does not pass, and its tolerance.
#[derive(Clone, Debug)]
pub struct Exceptions {
    /// The largest error of a result in `f32`, relative to its largest value.
    pub tolerance: f64,
    /// Cases that the backend fails, each with the reason. One that matches no failing case fails the suite.
    pub known: Vec<Exception>,
    /// Only cases whose names contain this are run, to find a defect. Exceptions that match none of them
    /// don't count.
    pub only: Option<String>,
}

impl Default for Exceptions {
    /// A backend that passes everything within 1e-5.
    fn default() -> Self {
        Exceptions { tolerance: 1e-5, known: Vec::new(), only: None }
    }
}

/// Cases that a backend is known to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// A part of the names of the cases, such as `f16: conv`.
    pub cases: String,
    /// The reason.
    pub reason: String,
}

/// The outcome of every case.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The number of cases that ran.
    pub cases: usize,
    /// The cases that failed, with the reason.
    pub failed: Vec<(String, String)>,
    /// The cases that failed as an exception says, with the exception's reason.
    pub excepted: Vec<(String, String)>,
    /// Exceptions that no failing case needs.
    pub unneeded: Vec<Exception>,
}

impl Report {
    /// True if cases ran, all but the excepted passed, and every exception is needed.
    pub fn is_passed(&self) -> bool {
        self.cases > 0 && self.failed.is_empty() && self.unneeded.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cases, {} failed, {} excepted", self.cases, self.failed.len(), self.excepted.len())?;
        for (name, reason) in &self.failed {
            writeln!(f, "  {name}: {reason}")?;
        }
        for Exception { cases, reason } in &self.unneeded {
            writeln!(f, "  no case that fails is excepted by `{cases}` ({reason})")?;
        }
        Ok(())
    }
}

/// A report in the making.
pub(crate) struct Collector<'e> {
    exceptions: &'e Exceptions,
    needed: Vec<bool>,
    report: Report,
}

impl<'e> Collector<'e> {
    pub(crate) fn new(exceptions: &'e Exceptions) -> Self {
        Collector { exceptions, needed: vec![false; exceptions.known.len()], report: Report::default() }
    }

    /// Runs one case. An `Err` and a panic both fail this case only.
    pub(crate) fn case(&mut self, part: &str, label: &str, run: impl FnOnce() -> Result<(), String>) {
        let name = format!("{part}: {label}");
        if self.exceptions.only.as_ref().is_some_and(|only| !name.contains(only)) {
            return;
        }
        self.report.cases += 1;
        let reason = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => reason,
            Err(panic) => {
                let message = panic.downcast_ref::<String>().map(String::as_str);
                let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
                format!("panicked: {}", message.unwrap_or("no message"))
            }
        };
        match self.exceptions.known.iter().position(|known| name.contains(&known.cases)) {
            Some(index) => {
                self.needed[index] = true;
                self.report.excepted.push((name, self.exceptions.known[index].reason.clone()));
            }
            None => self.report.failed.push((name, reason)),
        }
    }

    pub(crate) fn report(mut self) -> Report {
        if self.exceptions.only.is_none() {
            let known = self.exceptions.known.iter().zip(self.needed);
            self.report.unneeded =
                known.filter(|(_, needed)| !needed).map(|(exception, _)| exception.clone()).collect();
        }
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_excepted_by_name_and_exceptions_must_be_needed() {
        let known = |cases: &str| Exception { cases: cases.to_string(), reason: "slow".to_string() };
        let exceptions =
            Exceptions { known: vec![known("f16: conv"), known("gelu")], ..Exceptions::default() };
        let mut collector = Collector::new(&exceptions);
        collector.case("f32", "conv", || Ok(()));
        collector.case("f16", "conv x", || Err("far".to_string()));
        collector.case("f32", "add", || panic!("index {}", 7));
        collector.case("f32", "gelu", || Ok(()));
        let report = collector.report();
        assert_eq!((report.cases, report.excepted.len()), (4, 1));
        assert_eq!(report.failed, [("f32: add".to_string(), "panicked: index 7".to_string())]);
        assert_eq!(report.unneeded, [known("gelu")]);
        assert!(!report.is_passed());
        assert!(!Report::default().is_passed());
    }
}
