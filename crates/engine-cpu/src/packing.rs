//! Weights that stay packed.
//!
//! Kernels pack a dense weight panel by panel whenever they use it. That is a good part of a product of few rows, as text encoders
//! and the inner layers of a UNet have them. A model that has run a few times keeps such weights packed, as far as memory allows.
//! The first runs pay nothing for it: a prompt is encoded once, and some images take four steps.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::memory::available;

/// Rows, or pixels, of a product up to which packing its weight is worth avoiding: of more, it is less than a hundredth of the work.
pub(super) const PACK_UP_TO_ROWS: usize = 1024;

/// Runs after which a model is expected to run often. Fresh memory costs about as much as it saves in so many.
const SEVERAL_RUNS: usize = 4;

/// The part of the memory that is left, one of so many, that the packed weights of all models may take.
const SHARE_OF_MEMORY: u64 = 4;
/// What is taken for the memory that is left where the system does not tell.
const USUAL_MEMORY: u64 = 1 << 30;

/// Bytes of all models' packed weights.
static PACKED: AtomicU64 = AtomicU64::new(0);

/// A model's packed weights.
#[derive(Debug, Default)]
pub(crate) struct Packing {
    runs: AtomicUsize,
    bytes: AtomicUsize,
}

impl Packing {
    /// Whether weights are to be packed, or are packed already.
    pub(crate) fn is_due(&self) -> bool {
        self.runs.load(Ordering::Relaxed) >= SEVERAL_RUNS
    }

    /// Counts a run.
    pub(super) fn count_run(&self) {
        self.runs.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of the model's packed weights.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Packs a weight of so many bytes, if memory allows.
    pub(super) fn pack<P>(
        &self,
        bytes: usize,
        pack: impl FnOnce() -> P,
        size: impl Fn(&P) -> usize,
    ) -> Option<P> {
        let all = PACKED.load(Ordering::Relaxed);
        let memory = available().map_or(USUAL_MEMORY, |available| available.saturating_add(all));
        if all.saturating_add(bytes as u64) > memory / SHARE_OF_MEMORY {
            return None;
        }
        let packed = pack();
        self.bytes.fetch_add(size(&packed), Ordering::Relaxed);
        PACKED.fetch_add(size(&packed) as u64, Ordering::Relaxed);
        Some(packed)
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        PACKED.fetch_sub(self.bytes() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_counted_while_their_model_lives() {
        let packing = Packing::default();
        for _ in 0..SEVERAL_RUNS {
            assert!(!packing.is_due());
            packing.count_run();
        }
        assert!(packing.is_due());
        assert_eq!(packing.pack(3, || vec![0u8; 5], Vec::len), Some(vec![0; 5]));
        assert_eq!(packing.bytes(), 5);
        assert!(PACKED.load(Ordering::Relaxed) >= 5);
        assert!(packing.pack(usize::MAX, Vec::<u8>::new, Vec::len).is_none());
    }
}
