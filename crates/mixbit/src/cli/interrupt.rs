//! Handling of Ctrl-C.
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

/// The cancellation flag that the first Ctrl-C sets; the second ends the process at once.
pub(super) fn cancel() -> anyhow::Result<Cancel> {
    let cancel = stop::flag();
    let raised = cancel.clone();
    ctrlc::set_handler(move || {
        if raised.is_cancelled() {
            progress::clear();
            exit(KILLED);
        }
        raised.cancel();
        progress::print_line("stopping");
        thread::spawn(end_if_deaf);
    })
    .context("Ctrl-C can't be handled")?;
    Ok(cancel)
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
