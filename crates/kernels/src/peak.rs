//! The measured multiply-add peak of this machine: the upper bound of every kernel.

use std::hint::black_box;
use std::time::Instant;

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use crate::isa::dispatch;
use crate::pool::parallel_for;
use crate::{Precision, ThreadPool};

/// Target duration of a run in seconds: longer than a thread's start, shorter than a virtual machine's
/// interruptions.
const RUN: f64 = 0.03;

/// The number of runs; the best one counts.
const RUNS: usize = 7;

/// Rounds that are timed to calibrate the number that fills [`RUN`].
const TRIAL: usize = 100_000;

/// A loop of multiply-adds in registers: takes a number of rounds, returns the number of operations.
type Loop = fn(usize) -> f64;

/// Measures the rate of multiply-adds in registers on all threads of a pool, in operations per second. A
/// multiply-add counts as two. Takes about a quarter of a second.
///
/// `None` where the CPU lacks the instruction, which is `vdpbf16ps` for [`Precision::Bf16`] and `vpdpbusd`
/// for [`Precision::Int8`], both of AVX-512.
///
/// ```
/// let pool = mixbit_kernels::ThreadPool::new(Some(1)).expect("a thread");
/// let peak = mixbit_kernels::peak::measure(mixbit_kernels::Precision::F32, &pool);
/// assert!(peak.is_some_and(|rate| rate > 1e8));
/// ```
pub fn measure(precision: Precision, pool: &ThreadPool) -> Option<f64> {
    let multiply_adds = multiply_adds(precision)?;
    Some(pool.install(|| best(multiply_adds, pool.threads())))
}

/// The best rate of some runs on the current pool.
fn best(multiply_adds: Loop, threads: usize) -> f64 {
    let seconds = |rounds: usize| {
        let begin = Instant::now();
        parallel_for(threads, |_| {
            black_box(multiply_adds(black_box(rounds)));
        });
        begin.elapsed().as_secs_f64().max(1e-9)
    };
    let shortest = |rounds| (0..RUNS).map(|_| seconds(rounds)).fold(f64::INFINITY, f64::min);
    let operations = multiply_adds(1) * threads as f64;
    let rounds = (TRIAL as f64 * RUN / shortest(TRIAL)) as usize + 1;
    operations * rounds as f64 / shortest(rounds)
}

/// The loop for a precision, if this CPU can run it.
fn multiply_adds(precision: Precision) -> Option<Loop> {
    match precision {
        Precision::F32 => Some(|rounds| dispatch(F32(rounds))),
        Precision::Bf16 => bf16(),
        Precision::Int8 => int8(),
    }
}

/// Rounds of independent multiply-adds in `f32`.
struct F32(usize);

impl SimdOp for F32 {
    /// The number of operations.
    type Output = f64;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> f64 {
        // Enough to hide the latency, and few enough for sixteen registers.
        const CHAINS: usize = 12;
        let ops = isa.f32();
        let (x, y) = (ops.splat(black_box(0.999)), ops.splat(black_box(1e-3)));
        let mut sums = [ops.zero(); CHAINS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = ops.mul_add(*sum, x, y);
            }
        }
        black_box(sums.into_iter().fold(ops.zero(), |total, sum| ops.add(total, sum)));
        (2 * CHAINS * ops.len() * self.0) as f64
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16() -> Option<Loop> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn int8() -> Option<Loop> {
    None
}

#[cfg(target_arch = "x86_64")]
use x86_64::{bf16, int8};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::is_x86_feature_detected as has;
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    };
    use std::hint::black_box;

    use super::Loop;

    /// Enough to hide the latency, and few enough for the 32 registers of AVX-512.
    const CHAINS: usize = 24;

    /// Operations of one instruction: two bfloat16, or four bytes, for each of 16 sums.
    const BF16_OPERATIONS: usize = 2 * 2 * 16;
    const INT8_OPERATIONS: usize = 2 * 4 * 16;

    pub(super) fn bf16() -> Option<Loop> {
        // SAFETY: the CPU has the features.
        (has!("avx512f") && has!("avx512bf16")).then_some(|rounds| unsafe { repeat_bf16(rounds) })
    }

    pub(super) fn int8() -> Option<Loop> {
        // SAFETY: the CPU has the features.
        (has!("avx512f") && has!("avx512vnni")).then_some(|rounds| unsafe { repeat_int8(rounds) })
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn repeat_bf16(rounds: usize) -> f64 {
        // SAFETY: any bits are valid bfloat16.
        let x: __m512bh = unsafe { std::mem::transmute(black_box(_mm512_setzero_si512())) };
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
        (CHAINS * BF16_OPERATIONS * rounds) as f64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn repeat_int8(rounds: usize) -> f64 {
        let x: __m512i = black_box(_mm512_setzero_si512());
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
        (CHAINS * INT8_OPERATIONS * rounds) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The compiler neither removes the loops nor cuts them short.
    #[test]
    fn loops_run_the_operations_they_count() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let Some(multiply_adds) = multiply_adds(precision) else { continue };
            assert_eq!(multiply_adds(6), 6.0 * multiply_adds(1), "{precision:?}");
            // No CPU does a round of a dozen dependent chains in less than a tenth of a nanosecond.
            let begin = Instant::now();
            black_box(multiply_adds(black_box(1_000_000)));
            assert!(begin.elapsed().as_secs_f64() > 1e-4, "{precision:?}: the loop was removed");
        }
    }

    #[test]
    fn f32_has_a_peak_everywhere() {
        let pool = ThreadPool::new(Some(2)).expect("threads");
        let peak = measure(Precision::F32, &pool).expect("every CPU multiplies floats");
        // A hundred gigahertz of AVX-512 on both threads; slower than any machine that builds this.
        assert!(peak > 1e7 && peak < 2.0 * 64.0 * 1e11, "{peak}");
    }
}
