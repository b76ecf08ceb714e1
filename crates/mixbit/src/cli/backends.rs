//! The available backends. No other module of the program names one.

use std::sync::Arc;

use mixbit_engine::{Arithmetic, Backend, Error};
use mixbit_engine_cpu::Cpu;

/// A backend of this build.
struct BackendEntry {
    /// Opens it with a number of threads; `None` uses all processors.
    open: fn(Option<usize>) -> Result<Machine, Error>,
}

/// Every backend; the first is the default.
static BACKENDS: [BackendEntry; 1] = [BackendEntry { open: cpu }];

/// A backend, its thread count and its peak rate.
pub(super) struct Machine {
    /// The backend.
    pub(super) backend: Arc<dyn Backend>,
    /// The number of worker threads.
    pub(super) threads: usize,
    peak: Box<dyn Fn(Arithmetic) -> Option<f64>>,
}

impl Machine {
    /// Opens the default backend with a number of threads; `None` uses all processors.
    ///
    /// # Errors
    /// If its threads cannot be started.
    pub(super) fn new(threads: Option<usize>) -> Result<Self, Error> {
        (BACKENDS[0].open)(threads)
    }

    /// Measures the peak operations per second; `None` if unknown.
    pub(super) fn peak(&self, arithmetic: Arithmetic) -> Option<f64> {
        (self.peak)(arithmetic)
    }
}

fn cpu(threads: Option<usize>) -> Result<Machine, Error> {
    let cpu = Arc::new(Cpu::new(threads)?);
    let (threads, measured) = (cpu.threads(), cpu.clone());
    Ok(Machine { backend: cpu, threads, peak: Box::new(move |arithmetic| measured.peak(arithmetic)) })
}
