//! Ctrl-C, and the other ways in which a system asks a process to end.
//!
//! The first Ctrl-C raises a flag that the work looks at, and says so. Work that does not look at it within a
//! second is ended all the same, unless a file is being written: that work looks at the flag with every
//! portion, and removes what it began.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use mixbit_engine::Cancel;

use super::{progress, stop};

/// The exit code of a process that a second Ctrl-C ended.
const KILLED: i32 = 130;

/// The exit code of a process that stopped.
const STOPPED: i32 = 1;

/// The time that work has to stop by itself.
const PATIENCE: Duration = Duration::from_millis(700);

/// True if the same command goes on where it was stopped.
static GOES_ON: AtomicBool = AtomicBool::new(false);

/// True once the end is reported: one thread does it.
static REPORTED: AtomicBool = AtomicBool::new(false);

/// Says whether the command goes on where it was stopped, if it is run again.
pub(super) fn set_goes_on(goes_on: bool) {
    GOES_ON.store(goes_on, Ordering::Relaxed);
}

/// The cancellation flag that the first Ctrl-C sets, or SIGTERM or SIGHUP; the second ends the process at
/// once.
pub(super) fn cancel() -> anyhow::Result<Cancel> {
    static IS_HANDLED: AtomicBool = AtomicBool::new(false);
    let cancel = stop::flag();
    if IS_HANDLED.swap(true, Ordering::SeqCst) {
        return Ok(cancel);
    }
    let raised = cancel.clone();
    on_request(move || {
        if raised.is_cancelled() {
            progress::clear();
            exit(KILLED);
        }
        raised.cancel();
        progress::print_line("stopping");
        thread::spawn(end_if_deaf);
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

/// Ends the process if its work does not.
fn end_if_deaf() {
    thread::sleep(PATIENCE);
    while stop::is_writing() {
        thread::sleep(Duration::from_millis(20));
    }
    if report_once() {
        progress::clear();
        progress::print_line(format_args!("error: {}", message("")));
        exit(STOPPED);
    }
    // The other thread that reports ends the process.
}

/// True for the first caller.
pub(super) fn report_once() -> bool {
    !REPORTED.swap(true, Ordering::SeqCst)
}

/// The message of a stopped command, from that of the library that stopped.
pub(super) fn message(cause: &str) -> String {
    let stopped = if cause.starts_with("stopped") { cause } else { "stopped" };
    match GOES_ON.load(Ordering::Relaxed) && !stopped.contains("run it again") {
        true => format!("{stopped}; run it again to go on"),
        false => stopped.to_string(),
    }
}
