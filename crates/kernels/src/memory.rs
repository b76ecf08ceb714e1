//! Aligned memory, on large pages where the system has them.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::LocalKey;

use bytemuck::Pod;
use memmap2::MmapMut;

/// Bytes of a cache line. Vector loads and stores that cross two lines take twice as long.
pub(crate) const LINE_BYTES: usize = 64;

/// Bytes of a large page of x86-64, and of AArch64 with 4 KiB pages. Buffers of at least this size use large
/// pages where the system has them.
const LARGE_PAGE: usize = 2 << 20;

/// A buffer that begins on a cache line.
///
/// From 2 MiB on it requests large pages (Linux). Rows of activations are longer than a 4 KiB page, so a tile
/// of a product would otherwise touch another page with each row.
pub struct Memory<T> {
    storage: Storage<T>,
    len: usize,
}

enum Storage<T> {
    /// The elements, and the index of the first one that begins a cache line.
    Small(Vec<T>, usize),
    Large(MmapMut),
}

impl<T: Pod> Memory<T> {
    /// A buffer of `len` zeros; `None` if the system refuses the memory. Pages of a large buffer are
    /// untouched.
    pub fn zeros(len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        if bytes < LARGE_PAGE {
            let room = len + LINE_BYTES / size_of::<T>();
            let mut values = Vec::new();
            values.try_reserve_exact(room).ok()?;
            values.resize(room, T::zeroed());
            let start = values.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / size_of::<T>());
            return Some(Memory { storage: Storage::Small(values, start), len });
        }
        let map = MmapMut::map_anon(bytes.checked_next_multiple_of(LARGE_PAGE)?).ok()?;
        // Only a hint: small pages work too, if slower.
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

/// Memory that the system refused to a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The bytes that the kernel asked for.
    pub bytes: usize,
}

/// Calls `run`, which calls kernels. The result is an error if one of them, on any thread of the pool, got no
/// memory for packed operands. Outputs then hold any values.
///
/// # Errors
/// [`OutOfMemory`].
pub fn with_memory<R>(run: impl FnOnce() -> R) -> Result<R, OutOfMemory> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| match payload.downcast::<OutOfMemory>() {
        Ok(refused) => *refused,
        Err(panic) => resume_unwind(panic),
    })
}

/// A buffer of `len` zeros. Unwinds to [`with_memory`] if the system refuses it.
pub(crate) fn zeros_or_unwind<T: Pod>(len: usize) -> Memory<T> {
    let bytes = len.saturating_mul(size_of::<T>());
    // No panic: a kernel has no caller that could go on without its scratch, and nothing is to be printed.
    Memory::zeros(len).unwrap_or_else(|| resume_unwind(Box::new(OutOfMemory { bytes })))
}

/// A scratch buffer that a thread keeps between calls.
pub(crate) type Scratch<T> = LocalKey<RefCell<Memory<T>>>;

/// Calls `body` with `len` elements of unspecified content from this thread's `scratch`. They begin on a
/// cache line.
///
/// The buffer is taken out of `scratch` meanwhile: a nested kernel on the same thread gets a buffer of its
/// own.
pub(crate) fn with_scratch<T: Pod, R>(
    scratch: &'static Scratch<T>,
    len: usize,
    body: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut buffer = scratch.take();
    if buffer.len() < len {
        buffer = zeros_or_unwind(len);
    }
    let result = body(&mut buffer[..len]);
    scratch.replace(buffer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_memory_is_an_error_and_a_panic_stays_one() {
        let refused = with_memory(|| zeros_or_unwind::<u32>(usize::MAX / 8).len());
        assert_eq!(refused, Err(OutOfMemory { bytes: usize::MAX / 8 * 4 }));
        assert_eq!(with_memory(|| zeros_or_unwind::<u32>(3).len()), Ok(3));
        let panic = catch_unwind(|| with_memory(|| panic!("a defect")));
        assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"a defect"));
    }

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
    fn more_memory_than_the_system_has_is_refused() {
        for len in [usize::MAX, usize::MAX / 4, 1 << 60] {
            assert!(Memory::<f32>::zeros(len).is_none(), "{len}");
        }
    }
}
