//! SIMD below [`rten_simd`]: the micro-kernels, and routines written with one CPU's instructions where that
//! is faster than what the compiler makes of a loop.
//!
//! This layer knows slices and the small types of [`operands`]; it depends on none of the kernels. Each
//! routine of a CPU reports how much it did (a count, `bool` or `Option`), and its caller's portable loop
//! does the rest. So a CPU without an instruction needs no code: [`fallback`](self) reports that nothing was
//! done.

pub(crate) mod microkernel;
pub(crate) mod operands;
pub(crate) mod quantize;
pub(crate) mod weigh;

#[cfg_attr(target_arch = "x86_64", path = "x86_64/mod.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), path = "other.rs")]
mod cpu;
#[cfg(not(target_arch = "x86_64"))]
mod fallback;

use crate::memory::LINE_BYTES;
pub(crate) use cpu::*;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use fallback::*;

/// Prefetches every cache line of `bytes`.
pub(crate) fn prefetch(bytes: &[u8]) {
    bytes.chunks(LINE_BYTES).for_each(|line| prefetch_line(line.as_ptr().cast()));
}
