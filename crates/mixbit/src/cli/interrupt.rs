//! Ctrl-C, and the other ways in which a system asks a process to end.

use anyhow::Context;
use mixbit_engine::Cancel;
use mixbit_mil::{Progress, Stopped, Unit};

/// The exit code of a process that the user stopped.
const STOPPED: i32 = 130;

/// The cancellation flag that the first Ctrl-C sets, or SIGTERM or SIGHUP; the second ends the process at
/// once.
pub(super) fn cancel() -> anyhow::Result<Cancel> {
    let cancel = Cancel::new();
    let raised = cancel.clone();
    on_request(move || {
        if raised.is_cancelled() {
            std::process::exit(STOPPED);
        }
        raised.cancel();
    })?;
    Ok(cancel)
}

/// Calls `stop` whenever the process is asked to end. A write beyond the limit of file sizes is an error from
/// then on, not a signal.
#[cfg(unix)]
fn on_request(stop: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

    let context = "signals can't be handled";
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).context(context)?;
    let hang_up = (!ignores_hang_up()).then_some(SIGHUP);
    let requests = [SIGINT, SIGTERM].into_iter().chain(hang_up);
    let mut signals = signal_hook::iterator::Signals::new(requests).context(context)?;
    let handle = move || signals.forever().for_each(|_| stop());
    std::thread::Builder::new().name("signals".to_string()).spawn(handle).context(context)?;
    Ok(())
}

/// True if the process was started to outlive its terminal, as by `nohup`. Linux reports ignored signals;
/// elsewhere `nohup` shows by an output that is no terminal.
#[cfg(unix)]
fn ignores_hang_up() -> bool {
    use std::io::{IsTerminal, stdout};
    let status = std::fs::read_to_string("/proc/self/status").ok();
    let ignored = status.as_deref().and_then(|status| status.lines().find_map(|l| l.strip_prefix("SigIgn:")));
    match ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) {
        Some(mask) => mask & 1 << (signal_hook::consts::SIGHUP - 1) != 0,
        None => !stdout().is_terminal(),
    }
}

#[cfg(not(unix))]
fn on_request(stop: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(stop).context("Ctrl-C can't be handled")
}

/// A progress receiver that stops the work once the user asks for it.
pub(super) struct Stoppable<'c, P> {
    pub(super) progress: P,
    pub(super) cancel: &'c Cancel,
}

impl<P: Progress> Progress for Stoppable<'_, P> {
    fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped> {
        self.progress.advance(done, total, unit)?;
        if self.cancel.is_cancelled() { Err(Stopped) } else { Ok(()) }
    }
}
