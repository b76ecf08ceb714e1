//! Memory for intermediate results: one arena for floats and one for integers. Buffers that don't live at the
//! same time share it.

use std::ops::{Deref, DerefMut, Range};

use bytemuck::Pod;
use mixbit_engine::{Data, Error, MemoryBudget, Reservation};
use mixbit_kernels::Memory;

use crate::plan::{Buffer, Io, Place, Step};

/// Buffers start at multiples of this many elements: a cache line of floats.
const ALIGN: usize = 16;

/// The largest arena, in bytes, for which the system's free memory is not looked up.
const SMALL: u64 = 1 << 24;

/// Zeros that are counted in a budget as long as they live.
pub(super) struct Counted<T: Pod> {
    values: Memory<T>,
    _reserved: Reservation,
}

impl<T: Pod> Counted<T> {
    /// `len` zeros.
    ///
    /// The system often promises memory that it does not have, and ends the process when the memory is used.
    /// So the machine must have enough left for all that is reserved and `len` more.
    ///
    /// # Errors
    /// [`Error::Memory`] if the budget or the machine has less left.
    pub(super) fn zeros(len: usize, budget: &MemoryBudget) -> Result<Self, Error> {
        let bytes = len.saturating_mul(size_of::<T>()) as u64;
        let error = || Error::Memory { needed: needed(bytes, budget) as f64 / 1e9 };
        if bytes > SMALL && available_memory().is_some_and(|available| needed(bytes, budget) > available) {
            return Err(error());
        }
        let reserved = budget.reserve(bytes).ok_or_else(error)?;
        Ok(Counted { values: Memory::zeros(len).ok_or_else(error)?, _reserved: reserved })
    }
}

/// The bytes that all models with a budget need if one needs some more.
pub(super) fn needed(bytes: u64, budget: &MemoryBudget) -> u64 {
    (budget.used() - budget.used_optionally()).saturating_add(bytes)
}

impl<T: Pod> Deref for Counted<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T: Pod> DerefMut for Counted<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values
    }
}

/// The bytes of memory that are free on this machine, if the system reports them (Linux).
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The memory of a plan's intermediate results.
pub(super) struct Arenas {
    pub(super) floats: Counted<f32>,
    pub(super) ints: Counted<i32>,
}

impl Arenas {
    /// The arenas of a plan's regions.
    ///
    /// # Errors
    /// [`Error::Memory`] if the budget or the machine has less left.
    pub(super) fn new(regions: &Regions, budget: &MemoryBudget) -> Result<Self, Error> {
        let floats = Counted::zeros(regions.floats, budget)?;
        Ok(Arenas { floats, ints: Counted::zeros(regions.ints, budget)? })
    }
}

/// The place of every buffer in its arena.
pub(super) struct Regions {
    pub(super) ranges: Vec<Range<usize>>,
    /// Elements of the float arena.
    pub(super) floats: usize,
    /// Elements of the integer arena.
    pub(super) ints: usize,
}

impl Regions {
    /// Bytes of both arenas.
    pub(super) fn bytes(&self) -> usize {
        size_of::<f32>() * self.floats + size_of::<i32>() * self.ints
    }

    /// Places the largest buffers first, each at the lowest offset where it overlaps no other that lives with
    /// it.
    pub(super) fn plan(buffers: &[Buffer], lifetimes: &[Range<usize>]) -> Self {
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(buffers[index].len));
        let mut ranges = vec![0..0; buffers.len()];
        let mut placed: Vec<usize> = Vec::new();
        let mut totals = [0, 0];
        for index in order {
            let buffer = &buffers[index];
            let alive = |other: &&usize| {
                buffers[**other].is_float == buffer.is_float
                    && lifetimes[**other].start < lifetimes[index].end
                    && lifetimes[index].start < lifetimes[**other].end
            };
            let mut taken: Vec<Range<usize>> =
                placed.iter().filter(alive).map(|&other| ranges[other].clone()).collect();
            taken.sort_by_key(|range| range.start);
            let mut start = 0;
            for range in taken {
                if range.start >= start + buffer.len {
                    break;
                }
                start = start.max(range.end.next_multiple_of(ALIGN));
            }
            ranges[index] = start..start + buffer.len;
            let total = &mut totals[usize::from(buffer.is_float)];
            *total = (*total).max(start + buffer.len);
            placed.push(index);
        }
        Regions { ranges, floats: totals[1], ints: totals[0] }
    }

    /// The slices that a step reads and writes.
    pub(super) fn borrow<'a>(
        &self,
        step: &Step,
        constants: &'a [Data],
        floats: &'a mut [f32],
        ints: &'a mut [i32],
    ) -> Io<'a> {
        let mut io = Io::default();
        let mut float_arena = Arena::new(floats);
        let mut int_arena = Arena::new(ints);
        for &(buffer, is_float) in &step.write_buffers() {
            let range = self.ranges[buffer].clone();
            if is_float { float_arena.write(range) } else { int_arena.write(range) }
        }
        for (buffer, is_float) in step.typed_reads() {
            let range = self.ranges[buffer].clone();
            if is_float { float_arena.read(range) } else { int_arena.read(range) }
        }
        let (float_reads, float_writes) = float_arena.split();
        let (int_reads, int_writes) = int_arena.split();
        io.out = float_writes;
        io.int_out = int_writes;
        let (mut float_reads, mut int_reads) = (float_reads.into_iter(), int_reads.into_iter());
        for (place, is_float) in step.reads.iter().zip(&step.read_floats) {
            match (place, is_float) {
                (Place::Const(index), _) => match &constants[*index] {
                    Data::Float(values) => io.floats.push(values),
                    Data::Int(values) => io.ints.push(values),
                },
                (Place::Buffer(_), true) => io.floats.extend(float_reads.next()),
                (Place::Buffer(_), false) => io.ints.extend(int_reads.next()),
            }
        }
        io
    }
}

/// One arena, cut into the ranges that a step reads and writes.
struct Arena<'a, T> {
    data: &'a mut [T],
    reads: Vec<Range<usize>>,
    writes: Vec<Range<usize>>,
}

impl<'a, T> Arena<'a, T> {
    fn new(data: &'a mut [T]) -> Self {
        Arena { data, reads: Vec::new(), writes: Vec::new() }
    }

    fn read(&mut self, range: Range<usize>) {
        self.reads.push(range);
    }

    fn write(&mut self, range: Range<usize>) {
        self.writes.push(range);
    }

    /// The slices, in the order of the calls. The plan lets no written range overlap another range;
    /// `split_at_mut` would panic if one did.
    fn split(self) -> (Vec<&'a [T]>, Vec<&'a mut [T]>) {
        let mut cuts: Vec<(usize, Range<usize>)> = self.writes.iter().cloned().enumerate().collect();
        cuts.sort_by_key(|(_, range)| (range.start, range.end));
        let mut writes: Vec<(usize, &'a mut [T])> = Vec::with_capacity(cuts.len());
        let mut gaps: Vec<(usize, &'a [T])> = Vec::with_capacity(cuts.len() + 1);
        let (mut rest, mut at) = (self.data, 0);
        for (index, range) in cuts {
            let (gap, after) = rest.split_at_mut(range.start - at);
            let (write, after) = after.split_at_mut(range.len());
            gaps.push((at, gap));
            writes.push((index, write));
            (rest, at) = (after, range.end);
        }
        gaps.push((at, rest));
        let find = |range: &Range<usize>| {
            let gap =
                gaps.iter().find(|(start, gap)| *start <= range.start && range.end <= start + gap.len());
            gap.map(|(start, gap)| &gap[range.start - start..range.end - start])
        };
        let reads =
            self.reads.iter().map(|range| find(range).expect("no step reads what it writes")).collect();
        writes.sort_by_key(|(index, _)| *index);
        (reads, writes.into_iter().map(|(_, write)| write).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(lens: &[usize]) -> Vec<Buffer> {
        lens.iter().map(|&len| Buffer { is_float: true, len }).collect()
    }

    #[test]
    fn buffers_that_live_together_do_not_overlap() {
        // A deterministic tangle of sizes and lifetimes.
        let lens: Vec<usize> = (0..60).map(|i| (i * 37) % 101).collect();
        let lifetimes: Vec<Range<usize>> =
            (0..60).map(|i| (i * 7) % 40..(i * 7) % 40 + 1 + (i * 13) % 11).collect();
        let regions = Regions::plan(&floats(&lens), &lifetimes);
        for a in 0..60 {
            for b in 0..a {
                let together = lifetimes[a].start < lifetimes[b].end && lifetimes[b].start < lifetimes[a].end;
                let (x, y) = (&regions.ranges[a], &regions.ranges[b]);
                let overlap = x.start < y.end && y.start < x.end;
                assert!(!(together && overlap), "{a} {b}");
            }
        }
        assert!(regions.floats < lens.iter().sum());
    }

    #[test]
    fn more_memory_than_the_machine_has_is_refused() {
        let budget = MemoryBudget::unlimited();
        let three = Counted::<f32>::zeros(3, &budget).unwrap();
        assert_eq!((&*three, budget.used()), (&[0.0; 3][..], 12));
        for len in [usize::MAX, usize::MAX / 4, 1 << 45] {
            assert!(matches!(Counted::<f32>::zeros(len, &budget), Err(Error::Memory { .. })), "{len}");
        }
        assert_eq!(budget.used(), 12);
        // Memory that is reserved and not yet used counts.
        if let Some(available) = available_memory() {
            let most = (available / 5 * 3) as usize;
            // A system that promises no more than it has may not give as much.
            let Ok(first) = Counted::<u8>::zeros(most, &budget) else { return };
            assert!(matches!(Counted::<u8>::zeros(most, &budget), Err(Error::Memory { .. })));
            drop(first);
            assert!(Counted::<u8>::zeros(most, &budget).is_ok());
        }
    }

    #[test]
    fn more_memory_than_the_budget_has_is_refused() {
        let budget = MemoryBudget::new(100);
        let first = Counted::<u8>::zeros(60, &budget).unwrap();
        let refused = Counted::<u8>::zeros(60, &budget);
        assert!(matches!(refused, Err(Error::Memory { needed }) if needed == 120e-9));
        drop(first);
        assert!(Counted::<u8>::zeros(60, &budget).is_ok());
    }

    #[test]
    fn memory_of_dead_buffers_is_used_again() {
        let regions = Regions::plan(&floats(&[64, 64, 64]), &[0..2, 1..3, 2..4]);
        assert_eq!(regions.floats, 128);
    }

    #[test]
    fn slices_come_in_the_order_of_the_calls() {
        let mut data: Vec<i32> = (0..10).collect();
        let mut arena = Arena::new(&mut data);
        arena.write(6..8);
        arena.write(2..4);
        arena.read(8..10);
        arena.read(0..2);
        arena.read(8..9);
        let (reads, writes) = arena.split();
        assert_eq!(reads, [&[8, 9][..], &[0, 1], &[8]]);
        assert_eq!(writes, [&[6, 7][..], &[2, 3]]);
    }
}
