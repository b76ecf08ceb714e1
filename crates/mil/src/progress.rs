//! Progress of long operations, and the request to stop them.

use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// A unit of work that progress is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Evaluations of a network.
    Steps,
    /// Bytes, read or written.
    Bytes,
    /// Layers of a network.
    Layers,
    /// Measurements of an analysis.
    Measurements,
}

/// A receiver of progress: one phase of a long operation. The caller of the operation names the phase.
///
/// Threads may report at the same time, so reports can arrive out of order. `()` ignores them; a closure
/// `Fn(u64, u64, Unit)` receives them and never stops.
pub trait Progress: Sync {
    /// Reports that `done` of `total` units are finished.
    ///
    /// # Errors
    /// [`Stopped`] asks the operation to end early. It then returns an error and leaves no partial output.
    fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped>;
}

/// The error of an operation that its [`Progress`] stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Error)]
#[error("stopped")]
pub struct Stopped;

impl Progress for () {
    fn advance(&self, _: u64, _: u64, _: Unit) -> Result<(), Stopped> {
        Ok(())
    }
}

impl<F: Fn(u64, u64, Unit) + Sync> Progress for F {
    fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped> {
        self(done, total, unit);
        Ok(())
    }
}

/// A running count of one phase, shared by the threads that work on it.
pub struct Tally<'p> {
    progress: &'p dyn Progress,
    done: AtomicU64,
    total: u64,
    unit: Unit,
}

impl<'p> Tally<'p> {
    /// A count from zero to `total`.
    pub fn new(progress: &'p dyn Progress, total: u64, unit: Unit) -> Self {
        Tally { progress, done: AtomicU64::new(0), total, unit }
    }

    /// Adds finished units and reports the sum.
    ///
    /// # Errors
    /// [`Stopped`], from the [`Progress`].
    pub fn add(&self, units: u64) -> Result<(), Stopped> {
        let done = self.done.fetch_add(units, Ordering::Relaxed) + units;
        self.progress.advance(done, self.total, self.unit)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_tally_reports_sums() {
        let reports = Mutex::new(Vec::new());
        let record = |done, total, unit| reports.lock().unwrap().push((done, total, unit));
        let tally = Tally::new(&record, 10, Unit::Bytes);
        for units in [3, 0, 7] {
            tally.add(units).unwrap();
        }
        let bytes = |done| (done, 10, Unit::Bytes);
        assert_eq!(*reports.lock().unwrap(), [bytes(3), bytes(3), bytes(10)]);
        Tally::new(&(), 1, Unit::Layers).add(1).unwrap();
    }

    #[test]
    fn a_receiver_stops_the_work() {
        struct After(u64);
        impl Progress for After {
            fn advance(&self, done: u64, _: u64, _: Unit) -> Result<(), Stopped> {
                if done < self.0 { Ok(()) } else { Err(Stopped) }
            }
        }
        let receiver: &dyn Progress = &After(2);
        let tally = Tally::new(receiver, 3, Unit::Layers);
        assert_eq!((tally.add(1), tally.add(1)), (Ok(()), Err(Stopped)));
    }
}
