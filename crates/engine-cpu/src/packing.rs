//! The layers whose weights stay packed.
//!
//! Kernels pack a dense weight panel by panel whenever they use it. That is a good part of a product of few
//! rows, as text encoders and the inner layers of a UNet have them. A model that is planned to run often
//! keeps such weights packed, besides as they are stored, as far as its budget of memory allows. The plan
//! decides; a weight is packed when it is first used.

use mixbit_engine::{MemoryBudget, Reservation};

/// Rows, or pixels, of a product up to which its weight is worth packing: of more, packing is less than a
/// hundredth of the work.
pub(crate) const PACK_UP_TO_ROWS: usize = 1024;

/// Runs up to which weights are packed in every run. Fresh memory costs about as much as it saves in so few.
const FEW_RUNS: usize = 4;

/// A plan's decision about weights.
#[derive(Clone, Debug)]
pub(crate) enum Packing {
    /// Weights are packed in every run.
    EveryRun,
    /// Weights stay packed as long as a budget allows.
    Within(MemoryBudget),
}

impl Packing {
    /// The decision for a model that is planned to run a number of times.
    pub(crate) fn of(planned_runs: usize, budget: &MemoryBudget) -> Self {
        if Self::pays(planned_runs) { Packing::Within(budget.clone()) } else { Packing::EveryRun }
    }

    /// True if a model runs often enough to keep weights packed.
    pub(crate) fn pays(planned_runs: usize) -> bool {
        planned_runs > FEW_RUNS
    }

    /// Memory for a packed weight, if it is to stay packed.
    pub(crate) fn reserve(&self, bytes: usize) -> Option<Reservation> {
        match self {
            Packing::EveryRun => None,
            Packing::Within(budget) => budget.reserve_optional(bytes as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_stay_packed_for_many_runs_within_the_budget() {
        let budget = MemoryBudget::new(40);
        assert!(Packing::of(FEW_RUNS, &budget).reserve(1).is_none());
        let packing = Packing::of(FEW_RUNS + 1, &budget);
        let reserved = packing.reserve(10).unwrap();
        assert!(packing.reserve(1).is_none());
        drop(reserved);
        assert_eq!(budget.used(), 0);
        assert!(packing.reserve(usize::MAX).is_none());
    }
}
