//! The tests' common parts. Every kernel is compared with a naive `f64` oracle, at every instruction set of
//! the CPU, with several thread counts, and with guards around the output.

use std::fmt::Debug;
use std::sync::OnceLock;

use crate::isa::forced::{self, Level};
use crate::pool::ThreadPool;

/// Uniform values in `[-1, 1)`, the same for the same seed.
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Runs `body` on every case and reports all that fail, not only the first.
pub(crate) fn check_cases<C: Debug>(cases: &[C], body: impl Fn(&C) -> Result<(), String>) {
    assert!(!cases.is_empty(), "a table of no cases tests nothing");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| body(case).err().map(|message| format!("{case:?}: {message}")))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases fail:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

/// The largest error against the oracle.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tolerance {
    /// Relative to the largest magnitude of the expected output.
    OfLargest(f64),
    /// Relative to each expected element.
    OfEach(f64),
    /// In units of the output.
    Absolute(f64),
}

fn compare(actual: &[f32], expected: &[f64], tolerance: Tolerance) -> Result<(), String> {
    assert_eq!(actual.len(), expected.len(), "the oracle's length");
    let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0_f64, |m, x| m.max(x.abs()));
    let mut worst: Option<(f64, String)> = None;
    for (index, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let actual = f64::from(actual);
        if actual == expected || (actual.is_nan() && expected.is_nan()) {
            continue;
        }
        let error = match tolerance {
            Tolerance::OfLargest(limit) => (actual - expected).abs() / largest / limit,
            Tolerance::OfEach(limit) => (actual - expected).abs() / expected.abs() / limit,
            Tolerance::Absolute(limit) => (actual - expected).abs() / limit,
        };
        let fails = error.is_nan() || error > 1.0;
        if fails && worst.as_ref().is_none_or(|(least, _)| error > *least || error.is_nan()) {
            worst = Some((
                error,
                format!("element {index}: {actual:e}, expected {expected:e}: {error} times {tolerance:?}"),
            ));
        }
    }
    worst.map_or(Ok(()), |(_, message)| Err(message))
}

const GUARD: usize = 40;
const SENTINEL: f32 = -12345.678;

/// A buffer with guards around it.
struct Guarded(Vec<f32>);

impl Guarded {
    fn new(initial: &[f32]) -> Self {
        let mut data = vec![SENTINEL; initial.len() + 2 * GUARD];
        data[GUARD..GUARD + initial.len()].copy_from_slice(initial);
        Self(data)
    }

    fn run(mut self, kernel: impl FnOnce(&mut [f32])) -> Result<Vec<f32>, String> {
        let end = self.0.len() - GUARD;
        kernel(&mut self.0[GUARD..end]);
        if self.0[..GUARD].iter().chain(&self.0[end..]).any(|x| *x != SENTINEL) {
            return Err("wrote outside of the output".into());
        }
        Ok(self.0[GUARD..end].to_vec())
    }
}

/// Pools of 1, 2 and 3 threads.
fn pools() -> &'static [ThreadPool] {
    static POOLS: OnceLock<Vec<ThreadPool>> = OnceLock::new();
    POOLS.get_or_init(|| [1, 2, 3].map(|n| ThreadPool::new(Some(n)).expect("threads")).into())
}

/// Runs `kernel` on an output full of NaN and compares with the oracle; see [`check_from`].
pub(crate) fn check(
    expected: &[f64],
    tolerance: Tolerance,
    kernel: impl Fn(&mut [f32]) + Sync,
) -> Result<(), String> {
    check_from(&vec![f32::NAN; expected.len()], expected, tolerance, kernel)
}

/// Runs `kernel` on an output that starts as `initial`, at every instruction set and thread count, and
/// compares with the oracle. All thread counts must give the same bytes.
pub(crate) fn check_from(
    initial: &[f32],
    expected: &[f64],
    tolerance: Tolerance,
    kernel: impl Fn(&mut [f32]) + Sync,
) -> Result<(), String> {
    let mut first: Option<Vec<u32>> = None;
    for pool in pools() {
        let result = pool.install(|| Guarded::new(initial).run(&kernel))?;
        compare(&result, expected, tolerance)?;
        let bits: Vec<u32> = result.iter().map(|x| x.to_bits()).collect();
        if first.as_ref().is_some_and(|first| *first != bits) {
            return Err(format!("{} threads give other bytes than one", pool.threads()));
        }
        first.get_or_insert(bits);
    }
    for level in Level::available() {
        let result = forced::with(level, || Guarded::new(initial).run(&kernel))?;
        compare(&result, expected, tolerance).map_err(|message| format!("{level:?}: {message}"))?;
    }
    Ok(())
}
