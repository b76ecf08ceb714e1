//! The memory that models may take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The divisor of a budget whose quotient is the most memory that only makes runs faster.
const OPTIONAL_PART: u64 = 4;

/// A limit on the memory of all models that are compiled with it: intermediate results, copies of weights,
/// packed weights. Weights in a memory map are not counted. Clones share the count.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Account>);

#[derive(Debug)]
struct Account {
    limit: u64,
    used: AtomicU64,
    /// The part of `used` that only makes runs faster.
    optional: AtomicU64,
}

impl MemoryBudget {
    /// A budget of some bytes.
    pub fn new(bytes: u64) -> Self {
        MemoryBudget(Arc::new(Account { limit: bytes, used: AtomicU64::new(0), optional: AtomicU64::new(0) }))
    }

    /// A budget that only counts. A backend may apply a limit of its device instead.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// True if the budget has no limit.
    pub fn is_unlimited(&self) -> bool {
        self.limit() == u64::MAX
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// The bytes that are reserved.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The bytes of [`used`](Self::used) that only make runs faster.
    pub fn used_optionally(&self) -> u64 {
        self.0.optional.load(Ordering::Relaxed)
    }

    /// Reserves memory that a run can't do without; `None` if less is left.
    pub fn reserve(&self, bytes: u64) -> Option<Reservation> {
        let is_left = add(&self.0.used, bytes, self.limit());
        is_left.then(|| Reservation { budget: self.clone(), bytes, optional: false })
    }

    /// Reserves memory that makes runs faster; `None` if less is left, or if such memory would be more than a
    /// quarter of the limit.
    pub fn reserve_optional(&self, bytes: u64) -> Option<Reservation> {
        if !add(&self.0.optional, bytes, self.limit() / OPTIONAL_PART) {
            return None;
        }
        if !add(&self.0.used, bytes, self.limit()) {
            self.0.optional.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(Reservation { budget: self.clone(), bytes, optional: true })
    }
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::unlimited()
    }
}

/// Adds to a count if it stays within a limit.
fn add(count: &AtomicU64, bytes: u64, limit: u64) -> bool {
    let sum = |count: u64| count.checked_add(bytes).filter(|sum| *sum <= limit);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

/// Memory of a [`MemoryBudget`], given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: MemoryBudget,
    bytes: u64,
    optional: bool,
}

impl Reservation {
    /// The bytes that are reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.optional {
            self.budget.0.optional.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_counts_until_it_is_dropped() {
        let budget = MemoryBudget::new(100);
        let first = budget.clone().reserve(60).unwrap();
        assert!(budget.reserve(41).is_none());
        let second = budget.reserve(40).unwrap();
        assert_eq!((budget.used(), first.bytes(), second.bytes()), (100, 60, 40));
        drop(first);
        assert_eq!(budget.used(), 40);
        assert!(budget.reserve(u64::MAX).is_none());
        assert!(MemoryBudget::unlimited().reserve(u64::MAX).is_some());
    }

    #[test]
    fn optional_memory_is_a_quarter_at_most() {
        let budget = MemoryBudget::new(100);
        let optional = budget.reserve_optional(25).unwrap();
        assert!(budget.reserve_optional(1).is_none());
        assert_eq!((budget.used(), budget.used_optionally()), (25, 25));
        let needed = budget.reserve(75).unwrap();
        drop(optional);
        assert_eq!((budget.used(), budget.used_optionally()), (75, 0));
        let _rest = budget.reserve(20).unwrap();
        assert!(budget.reserve_optional(6).is_none());
        assert_eq!(budget.used_optionally(), 0);
        drop(needed);
        assert!(budget.reserve_optional(25).is_some());
    }
}
