//! Any bytes as the journal of an analysis: no panic, and a cut off line takes nothing from those before it.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mixbit_analysis::analyze::count_measurements;

fuzz_target!(|file: &[u8]| {
    let path = Path::new("fuzz.jsonl");
    let Ok(count) = count_measurements(path, file) else { return };
    let Some(end) = file.iter().rposition(|&byte| byte == b'\n') else { return };
    assert_eq!(count_measurements(path, &file[..=end]).ok(), Some(count));
});
