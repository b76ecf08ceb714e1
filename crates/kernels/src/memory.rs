//! Memory that vectors are read from and written to at full speed.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

use bytemuck::Pod;
use memmap2::MmapMut;

/// Bytes of a cache line. Vectors that lie across two are read and written at half the speed.
pub(crate) const LINE_BYTES: usize = 64;

/// Bytes of a large page of x86-64 and of AArch64 with small pages of 4 KiB. What is at least as large is mapped on
/// them where the system can.
const LARGE_PAGE: usize = 2 << 20;

/// A stretch of elements that begins with a cache line.
///
/// From 2 MiB on it asks for large pages (Linux): rows of activations are farther apart than a small page is long, so that
/// on small ones a tile of a product touches a page for every row.
pub struct Memory<T> {
    storage: Storage<T>,
    len: usize,
}

enum Storage<T> {
    /// With the index of the first element that begins a cache line.
    Small(Vec<T>, usize),
    Large(MmapMut),
}

impl<T: Pod> Memory<T> {
    /// `len` zeros, whose pages are not touched yet if they are many; nothing if the system refuses to give as much.
    pub fn zeros(len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        if bytes < LARGE_PAGE {
            let values = vec![T::zeroed(); len + LINE_BYTES / size_of::<T>()];
            let start = values.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / size_of::<T>());
            return Some(Memory { storage: Storage::Small(values, start), len });
        }
        let map = MmapMut::map_anon(bytes.checked_next_multiple_of(LARGE_PAGE)?).ok()?;
        // A wish: on small pages everything works, if slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Memory { storage: Storage::Large(map), len })
    }
}

impl<T> Memory<T> {
    /// No elements.
    pub const fn new() -> Self {
        Memory { storage: Storage::Small(Vec::new(), 0), len: 0 }
    }
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Memory<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} elements", self.len)
    }
}

impl<T: Pod> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.storage {
            Storage::Small(values, start) => &values[*start..][..self.len],
            Storage::Large(map) => &bytemuck::cast_slice(map)[..self.len],
        }
    }
}

impl<T: Pod> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.storage {
            Storage::Small(values, start) => &mut values[*start..][..self.len],
            Storage::Large(map) => &mut bytemuck::cast_slice_mut(map)[..self.len],
        }
    }
}

/// A scratch buffer that a thread keeps from call to call.
pub(crate) type Scratch<T> = LocalKey<RefCell<Memory<T>>>;

/// Lends `len` elements of unspecified content from this thread's `scratch`, from the beginning of a cache line on.
///
/// The buffer is taken out while it is lent, so that a kernel that another one waits for on the same thread
/// gets a buffer of its own.
pub(crate) fn with_scratch<T: Pod, R>(
    scratch: &'static Scratch<T>,
    len: usize,
    body: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut buffer = scratch.take();
    if buffer.len() < len {
        buffer = Memory::zeros(len).expect("memory for what a kernel packs");
    }
    let result = body(&mut buffer[..len]);
    scratch.replace(buffer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_begins_with_a_cache_line() {
        for len in [0, 1, 15, 16, 17, 1000, LARGE_PAGE / 4 - 1, LARGE_PAGE / 4, LARGE_PAGE / 4 + 1, 1 << 20] {
            let mut memory = Memory::<f32>::zeros(len).unwrap();
            assert_eq!(memory.len(), len);
            assert_eq!(memory.as_ptr() as usize % LINE_BYTES, 0, "{len}");
            assert!(memory.iter().all(|&value| value == 0.0));
            memory.fill(1.0);
            assert_eq!(memory.iter().sum::<f32>(), len as f32);
        }
    }

    #[test]
    fn what_the_system_does_not_have_is_nothing() {
        for len in [usize::MAX, usize::MAX / 4, 1 << 60] {
            assert!(Memory::<f32>::zeros(len).is_none(), "{len}");
        }
    }
}
