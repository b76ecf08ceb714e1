//! The memory use of the process.

/// The peak resident set size in bytes; `None` if the system does not report it. Mapped files count by their
/// touched pages.
pub(super) fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// [`peak`] as the end of a summary; empty if unknown.
pub(super) fn in_summary() -> String {
    peak().map(|bytes| format!(", peak memory {:.0} MB", bytes as f64 / 1e6)).unwrap_or_default()
}
