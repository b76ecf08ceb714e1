//! Shared, immutable bytes: a slice of a memory map or of a vector, cheap to clone.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A range of bytes whose owner (a memory map, a vector) lives as long as any range of it.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Owner>,
    start: usize,
    len: usize,
}

/// An owner of bytes.
pub trait Owner: Send + Sync + 'static {
    /// The bytes; always the same.
    fn bytes(&self) -> &[u8];

    /// Releases the memory of a range that is not needed soon. An owner that can read it again may give it
    /// back.
    fn release(&self, range: Range<usize>);
}

/// An owner that keeps its memory.
struct Kept<T>(T);

impl<T: AsRef<[u8]> + Send + Sync + 'static> Owner for Kept<T> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    fn release(&self, _: Range<usize>) {}
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::of_owner(Kept(owner))
    }

    /// All bytes of an owner that can give memory back.
    pub fn of_owner(owner: impl Owner) -> Self {
        let len = owner.bytes().len();
        Bytes { owner: Arc::new(owner), start: 0, len }
    }

    /// Releases the memory of these bytes, which are not needed soon; see [`Owner::release`]. Their content
    /// stays.
    pub fn release(&self) {
        self.owner.release(self.start..self.start + self.len);
    }

    /// A part of these bytes, or `None` if `range` is not inside them.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len {
            return None;
        }
        Some(Bytes {
            owner: self.owner.clone(),
            start: self.start + range.start,
            len: range.end - range.start,
        })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_inside() {
        let bytes = Bytes::new(vec![1u8, 2, 3, 4]);
        let middle = bytes.slice(1..3).unwrap();
        assert_eq!(&*middle, &[2, 3]);
        assert_eq!(&*middle.slice(1..2).unwrap(), &[3]);
        assert!(middle.slice(0..3).is_none());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 2..1;
        assert!(middle.slice(reversed).is_none());
    }
}
