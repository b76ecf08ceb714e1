//! The output of a product, and the tiles that it is cut into.

use rten_simd::Isa;
use rten_simd::ops::BitOps;

use crate::matrix::MatMut;
use crate::memory::LINE_BYTES;
use crate::simd;
use crate::simd::microkernel::{TILE_VECTORS, Tile, WIDE_MR};

/// Floats of a cache line.
pub(crate) const LINE: usize = LINE_BYTES / 4;

/// The output of a product: a batch of matrices with column stride 1, of which tasks write disjoint tiles.
pub(crate) struct Target {
    data: *mut f32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) batch: usize,
    pub(crate) matrix_stride: usize,
}

// SAFETY: the pointer comes from an exclusive borrow that outlives the product. Tasks write through it only
// in `store_tile`, `row_mut` and `store_tiles`, each to tiles of its own.
unsafe impl Sync for Target {}

impl Target {
    /// One matrix.
    pub(crate) fn new(out: MatMut<'_>) -> Self {
        let MatMut { data, rows, cols, row_stride, col_stride } = out;
        assert!(col_stride == 1 || cols <= 1, "the output of a product needs a column stride of 1");
        Self { data: data.as_mut_ptr(), rows, cols, row_stride, batch: 1, matrix_stride: 0 }
    }

    /// `batch` matrices without gaps between their rows, `matrix_stride` elements apart.
    ///
    /// # Panics
    /// When the last one lies beyond `out`.
    pub(crate) fn batched(
        out: &mut [f32],
        batch: usize,
        rows: usize,
        cols: usize,
        matrix_stride: usize,
    ) -> Self {
        let len = rows.checked_mul(cols).filter(|len| batch > 0 && matrix_stride >= *len);
        let needed = len.and_then(|len| (batch - 1).checked_mul(matrix_stride)?.checked_add(len));
        assert!(needed.is_some_and(|needed| out.len() >= needed), "the product exceeds its output");
        Self { data: out.as_mut_ptr(), rows, cols, row_stride: cols, batch, matrix_stride }
    }

    /// The first element of a row of the first matrix.
    ///
    /// # Panics
    /// When there is no such row.
    pub(crate) fn row_start(&self, row: usize) -> *mut f32 {
        assert!(row < self.rows);
        // SAFETY: inside the output, whose extent was checked when `self` was made.
        unsafe { self.data.add(row * self.row_stride) }
    }

    /// `len` elements of a row.
    ///
    /// # Panics
    /// When they are not all inside the output.
    ///
    /// # Safety
    /// No other reference to them is alive, in this task or another.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn row_mut(&self, Corner { matrix, row, col }: Corner, len: usize) -> &mut [f32] {
        assert!(matrix < self.batch && row < self.rows && col + len <= self.cols);
        let at = matrix * self.matrix_stride + row * self.row_stride + col;
        // SAFETY: checked above to be inside the output, whose extent was checked when `self` was made. That
        // no other reference is alive is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }

    /// The address of an element, which may lie beyond the output.
    #[inline(always)]
    pub(crate) fn address(&self, Corner { matrix, row, col }: Corner) -> *mut f32 {
        self.data.wrapping_add(matrix * self.matrix_stride + row * self.row_stride + col)
    }

    /// True if a tile lies within the output's edges.
    #[inline(always)]
    pub(crate) fn contains(&self, Corner { row, col, .. }: Corner, [mr, nr]: [usize; 2]) -> bool {
        row + mr <= self.rows && col + nr <= self.cols
    }

    /// Prefetches `nr` elements of a row for writing: each row lies on a page of its own, often in no cache.
    #[inline(always)]
    pub(crate) fn prefetch_row(&self, corner: Corner, nr: usize) {
        let address = self.address(corner);
        for line in (0..nr).step_by(LINE) {
            simd::prefetch_to_write(address.wrapping_add(line));
        }
    }
}

/// The position of a tile's first element.
#[derive(Clone, Copy)]
pub(crate) struct Corner {
    /// Its matrix in the batch.
    pub(crate) matrix: usize,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

/// Elements of the largest tile.
const LARGEST_TILE: usize = WIDE_MR * TILE_VECTORS * 16;

/// A tile in memory, row after row.
pub(crate) struct TileBuffer(pub(crate) [f32; LARGEST_TILE]);

impl TileBuffer {
    #[inline(always)]
    pub(crate) fn of<I: Isa, const MR: usize>(isa: I, sums: &Tile<I, MR>) -> Self {
        let mut tile = Self([0.0; LARGEST_TILE]);
        for (sum, place) in sums.as_flattened().iter().zip(tile.0.chunks_exact_mut(isa.f32().len())) {
            isa.f32().store(*sum, place);
        }
        tile
    }

    /// The rows of a tile of `MR` rows of `nr` elements.
    #[inline(always)]
    pub(crate) fn rows_mut<const MR: usize>(&mut self, nr: usize) -> impl Iterator<Item = &mut [f32]> {
        self.0.chunks_exact_mut(nr).take(MR)
    }
}
