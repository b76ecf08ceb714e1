//! Run-time choice of the instruction set.
//!
//! Every kernel is a [`SimdOp`] and goes through [`dispatch`]. Its body is compiled once per instruction set
//! (AVX-512, AVX2 with FMA, NEON, portable), and the widest that the CPU has is called. Plain loops profit
//! too: the compiler vectorises them for each set.

use rten_simd::ops::BitOps;
use rten_simd::{Isa, Simd, SimdOp};

/// Runs `op` with the widest instruction set of this CPU.
#[inline]
pub(crate) fn dispatch<Op: SimdOp>(op: Op) -> Op::Output {
    #[cfg(test)]
    match forced::level() {
        forced::Level::Native => {}
        forced::Level::Portable => return op.eval(rten_simd::isa::GenericIsa::new()),
        #[cfg(target_arch = "x86_64")]
        forced::Level::Avx2 => {
            return op.eval(rten_simd::isa::Avx2Isa::new().expect("checked by Level::available"));
        }
    }
    op.dispatch()
}

/// True if kernels use the widest instruction set of this CPU. Only tests can choose another.
#[inline]
pub(crate) fn is_native_level() -> bool {
    #[cfg(test)]
    return forced::level() == forced::Level::Native;
    #[cfg(not(test))]
    true
}

/// Replaces each element of `data` by `f` of it, a vector at a time.
#[inline(always)]
pub(crate) fn map_in_place<I: Isa>(isa: I, data: &mut [f32], f: impl Fn(I::F32) -> I::F32) {
    let ops = isa.f32();
    let mut vectors = data.chunks_exact_mut(ops.len());
    for vector in &mut vectors {
        ops.store(f(ops.load(vector)), vector);
    }
    let rest = vectors.into_remainder();
    if !rest.is_empty() {
        let result = f(ops.load_pad(rest).0).to_array();
        rest.copy_from_slice(&result.as_ref()[..rest.len()]);
    }
}

/// Runs kernels with a narrower instruction set than the CPU's, in tests.
#[cfg(test)]
pub(crate) mod forced {
    use std::cell::Cell;

    /// An instruction set that a test can choose.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Level {
        Native,
        #[cfg(target_arch = "x86_64")]
        Avx2,
        Portable,
    }

    impl Level {
        /// The sets that this CPU can run.
        pub(crate) fn available() -> Vec<Level> {
            let levels = [Level::Native, Level::Portable].into_iter();
            #[cfg(target_arch = "x86_64")]
            let levels = levels.chain(rten_simd::isa::Avx2Isa::new().map(|_| Level::Avx2));
            levels.collect()
        }
    }

    thread_local!(static LEVEL: Cell<Level> = const { Cell::new(Level::Native) });

    pub(crate) fn level() -> Level {
        LEVEL.get()
    }

    /// Runs `body` on this thread alone with the given set; see [`crate::pool::parallel_for`].
    pub(crate) fn with<R>(level: Level, body: impl FnOnce() -> R) -> R {
        LEVEL.set(level);
        let result = body();
        LEVEL.set(Level::Native);
        result
    }
}
