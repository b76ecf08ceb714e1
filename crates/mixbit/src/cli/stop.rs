//! The request to stop, and the files that must be whole or gone before the process ends.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use mixbit_engine::Cancel;

/// The flag, once a command handles Ctrl-C.
static RAISED: OnceLock<Cancel> = OnceLock::new();

/// The number of files that are being written.
static WRITING: AtomicUsize = AtomicUsize::new(0);

/// The flag that Ctrl-C raises.
pub(super) fn flag() -> Cancel {
    RAISED.get_or_init(Cancel::new).clone()
}

/// True if Ctrl-C was pressed.
pub(super) fn is_raised() -> bool {
    RAISED.get().is_some_and(Cancel::is_cancelled)
}

/// A file that is being written. While one is, the process does not end by itself.
pub(super) struct Writing(());

/// Begins to write a file.
pub(super) fn writing() -> Writing {
    WRITING.fetch_add(1, Ordering::SeqCst);
    Writing(())
}

/// True while a file is being written.
pub(super) fn is_writing() -> bool {
    WRITING.load(Ordering::SeqCst) > 0
}

impl Drop for Writing {
    fn drop(&mut self) {
        WRITING.fetch_sub(1, Ordering::SeqCst);
    }
}
