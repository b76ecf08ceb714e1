//! Instructions that [`rten_simd`] does not have: products of bfloat16 and of bytes, and what prepares them.

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

/// Asks for the cache lines of some memory.
pub(crate) fn prefetch(bytes: &[u8]) {
    bytes.chunks(LINE_BYTES).for_each(|line| prefetch_line(line.as_ptr().cast()));
}
