//! The steps of a run as a trace in Chrome's trace event format: an array of complete events.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};

use super::measure::Measured;

/// Refuses a file in a missing directory.
pub(super) fn check(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => bail!("{} is no directory to write a trace to", folder.display()),
        _ if path.is_dir() => bail!("{} is a directory: name a file for the trace", path.display()),
        _ => Ok(()),
    }
}

/// Writes the parts one after another, each as a thread of one process.
///
/// # Errors
/// If the file can't be written.
pub(super) fn write(path: &Path, parts: &[Measured]) -> anyhow::Result<()> {
    let events = serde_json::to_vec(&events(parts))?;
    Ok(mixbit_formats::write_where_asked(path, |file| std::io::Write::write_all(file, &events))?)
}

fn events(parts: &[Measured]) -> Vec<Value> {
    let mut events = Vec::new();
    let mut start = Duration::ZERO;
    for (thread, part) in parts.iter().enumerate() {
        for stage in &part.trace {
            for step in stage {
                let seconds = step.duration.as_secs_f64().max(1e-9);
                events.push(json!({
                    "ph": "X",
                    "name": step.label,
                    "cat": step.kind,
                    "pid": 1,
                    "tid": thread + 1,
                    "ts": microseconds(start + step.start),
                    "dur": microseconds(step.duration),
                    "args": {
                        "network": part.folder,
                        "multiply_adds": step.multiply_adds,
                        "gflops": 2.0 * step.multiply_adds as f64 / seconds / 1e9,
                    },
                }));
            }
            start += stage.last().map(|step| step.start + step.duration).unwrap_or_default();
        }
    }
    events
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}
