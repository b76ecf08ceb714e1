//! Handling of Ctrl-C.

use anyhow::Context;
use mixbit_engine::Cancel;

/// The exit code of a process that the user stopped.
const STOPPED: i32 = 130;

/// The cancellation flag that the first Ctrl-C sets; the second ends the process at once.
pub(super) fn cancel() -> anyhow::Result<Cancel> {
    let cancel = Cancel::new();
    let raised = cancel.clone();
    ctrlc::set_handler(move || {
        if raised.is_cancelled() {
            std::process::exit(STOPPED);
        }
        raised.cancel();
    })
    .context("Ctrl-C can't be handled")?;
    Ok(cancel)
}
