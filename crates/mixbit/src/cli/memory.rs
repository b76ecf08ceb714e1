//! The memory use of the process.

/// The peak resident set size in bytes; `None` if the system does not report it. Mapped files count by their
/// touched pages.
pub(super) fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The bytes of the system's memory, and those that are free for programs; `None` if it does not report them.
pub(super) fn of_system() -> [Option<u64>; 2] {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    ["MemTotal:", "MemAvailable:"].map(|name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    })
}

/// [`peak`] as the end of a summary; empty if unknown.
pub(super) fn in_summary() -> String {
    peak().map(|bytes| format!(", peak memory {:.0} MB", bytes as f64 / 1e6)).unwrap_or_default()
}
