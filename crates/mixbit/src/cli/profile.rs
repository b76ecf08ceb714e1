//! Time by kind of op, as text.

use mixbit_engine::Timing;

/// The timings of a network, the longest first, with their share of the whole.
pub(super) fn timings(network: &str, timings: &[Timing]) -> String {
    let total: f64 = timings.iter().map(|timing| timing.time.as_secs_f64()).sum();
    let mut text = format!("{network}: {total:.3} s\n");
    for Timing { kind, steps, time, .. } in timings {
        let seconds = time.as_secs_f64();
        text += &format!("{seconds:10.3} s {:5.1} %  {kind} ({steps})\n", 100.0 * seconds / total);
    }
    text
}
