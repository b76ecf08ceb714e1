//! A stand-in for the engine's memory budget, until the engine has it.

/// The memory that networks may take.
#[derive(Clone, Debug)]
pub struct MemoryBudget(());

impl MemoryBudget {
    /// No limit.
    pub fn unlimited() -> Self {
        MemoryBudget(())
    }

    pub(super) fn used(&self) -> u64 {
        0
    }

    pub(super) fn limit(&self) -> u64 {
        u64::MAX
    }

    pub(super) fn reserve(&self, _bytes: u64) -> Option<()> {
        Some(())
    }
}
