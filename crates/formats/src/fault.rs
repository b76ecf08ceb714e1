//! A fault in one of the file operations of a process, for tests of crashes.
//!
//! The variable `MIXBIT_FAULT` is `fail N` or `crash N`: the N-th operation, from 1, is an error, or ends the
//! process.

use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The exit code of a process that crashes.
const CRASHED: i32 = 86;

static DONE: AtomicU64 = AtomicU64::new(0);

static PLAN: LazyLock<Option<(bool, u64)>> = LazyLock::new(|| {
    let text = std::env::var("MIXBIT_FAULT").ok()?;
    let (kind, number) = text.split_once(' ')?;
    Some((kind == "crash", number.parse().ok()?))
});

/// Counts an operation, and fails if it is the planned one.
pub(crate) fn step() -> io::Result<()> {
    let Some((is_crash, number)) = *PLAN else { return Ok(()) };
    if DONE.fetch_add(1, Ordering::Relaxed) + 1 != number {
        return Ok(());
    }
    if is_crash {
        std::process::exit(CRASHED);
    }
    Err(io::Error::other("planned fault"))
}
