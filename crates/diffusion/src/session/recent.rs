//! Lists that keep what was used most recently.

use std::slice::{Iter, IterMut};

/// At most `capacity` entries, the least recently used first.
pub(super) struct Recent<T> {
    entries: Vec<T>,
    capacity: usize,
}

impl<T> Recent<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Recent { entries: Vec::new(), capacity }
    }

    /// The entry for which `is` holds, which is now the most recently used.
    pub(super) fn find(&mut self, is: impl Fn(&T) -> bool) -> Option<&mut T> {
        let index = self.entries.iter().position(is)?;
        self.entries[index..].rotate_left(1);
        self.entries.last_mut()
    }

    /// The entry for which `is` holds, or else a new one; now the most recently used.
    pub(super) fn find_or_push(&mut self, is: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> &mut T {
        if self.find(is).is_none() {
            self.push(new());
        }
        let last = self.entries.len() - 1;
        &mut self.entries[last]
    }

    /// Adds the most recently used entry. The least recently used is dropped if there are too many.
    pub(super) fn push(&mut self, entry: T) {
        if self.entries.len() == self.capacity {
            self.entries.remove(0);
        }
        self.entries.push(entry);
    }

    /// Drops the entries for which `is_kept` does not hold.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&T) -> bool) {
        self.entries.retain(is_kept);
    }

    pub(super) fn iter(&self) -> Iter<'_, T> {
        self.entries.iter()
    }

    pub(super) fn iter_mut(&mut self) -> IterMut<'_, T> {
        self.entries.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_entry_is_dropped() {
        let mut recent = Recent::new(3);
        (1..=3).for_each(|entry| recent.push(entry));
        assert_eq!(recent.find(|entry| *entry == 1), Some(&mut 1));
        assert_eq!(recent.find(|entry| *entry == 4), None);
        assert_eq!(*recent.find_or_push(|entry| *entry == 4, || 4), 4);
        assert_eq!(recent.iter().copied().collect::<Vec<_>>(), [3, 1, 4]);
        recent.retain(|entry| *entry != 1);
        recent.push(5);
        assert_eq!(recent.iter().copied().collect::<Vec<_>>(), [3, 4, 5]);
    }
}
