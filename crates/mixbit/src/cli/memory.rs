//! The memory that the process has used.

/// The largest resident size of the process so far in bytes, where the system tells: mapped files count by
/// the pages that were touched.
pub(super) fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// [`peak`], as the end of a summary; nothing where the system does not tell.
pub(super) fn in_summary() -> String {
    peak().map(|bytes| format!(", peak memory {:.0} MB", bytes as f64 / 1e6)).unwrap_or_default()
}
