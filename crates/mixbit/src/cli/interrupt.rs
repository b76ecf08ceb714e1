//! Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// The exit code of a process that the user stopped.
const STOPPED: i32 = 130;

/// A flag that the first Ctrl-C raises; the second ends the process at once.
pub(super) fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::SeqCst) {
            std::process::exit(STOPPED);
        }
    })
    .context("Ctrl-C can't be handled")?;
    Ok(flag)
}
