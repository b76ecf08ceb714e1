//! The backends that networks are run on. Nothing else in the program names one.

use std::sync::Arc;

use mixbit_engine::{Arithmetic, Backend, Error};
use mixbit_engine_cpu::Cpu;

/// A backend that this build has.
struct BackendEntry {
    /// Makes it for a number of threads, or for all processors.
    open: fn(Option<usize>) -> Result<Machine, Error>,
}

/// Every backend; the first is the default.
static BACKENDS: [BackendEntry; 1] = [BackendEntry { open: cpu }];

/// A backend with the figures of its machine.
pub(super) struct Machine {
    /// The backend.
    pub(super) backend: Arc<dyn Backend>,
    /// The threads that it computes with.
    pub(super) threads: usize,
    peak: Box<dyn Fn(Arithmetic) -> Option<f64>>,
}

impl Machine {
    /// The default backend for a number of threads, or for all processors.
    ///
    /// # Errors
    /// If its threads can't be started.
    pub(super) fn new(threads: Option<usize>) -> Result<Self, Error> {
        (BACKENDS[0].open)(threads)
    }

    /// Measures the operations per second at most, where they are known.
    pub(super) fn peak(&self, arithmetic: Arithmetic) -> Option<f64> {
        (self.peak)(arithmetic)
    }
}

fn cpu(threads: Option<usize>) -> Result<Machine, Error> {
    let cpu = Arc::new(Cpu::new(threads)?);
    let (threads, measured) = (cpu.threads(), cpu.clone());
    Ok(Machine { backend: cpu, threads, peak: Box::new(move |arithmetic| measured.peak(arithmetic)) })
}
