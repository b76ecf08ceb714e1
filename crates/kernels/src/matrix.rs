//! Borrowed two-dimensional views with arbitrary strides.

use half::{bf16, f16};

use crate::elements::Elements;
use crate::encoded::Encoded;
use crate::gemm::format::PackedSide;
use crate::pool::{GRAIN, for_each_chunk_mut};

/// A read-only matrix view of elements `D`, a slice, [`Encoded`] or [`WeightSlice`]: element `(r, c)` is
/// element `r * row_stride + c * col_stride` of the data.
#[derive(Clone, Copy, Debug)]
pub struct Mat<D> {
    pub(crate) data: D,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

/// A read-only `f32` matrix view.
pub type MatRef<'a> = Mat<&'a [f32]>;

/// The length of the slice that a strided matrix needs; `None` if it overflows.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    let last_row = (rows - 1).checked_mul(row_stride)?;
    let last_col = (cols - 1).checked_mul(col_stride)?;
    last_row.checked_add(last_col)?.checked_add(1)
}

/// Panics unless a strided matrix lies within a slice of `len` elements.
fn check_extent([rows, cols]: [usize; 2], [row_stride, col_stride]: [usize; 2], len: usize) {
    let needed = extent(rows, cols, row_stride, col_stride);
    assert!(
        needed.is_some_and(|needed| needed <= len),
        "a {rows}x{cols} matrix with strides ({row_stride}, {col_stride}) exceeds its {len} elements",
    );
}

impl<D: Copy> Mat<D> {
    /// A row-major matrix without gaps.
    ///
    /// # Panics
    ///
    /// When `data` is shorter than `rows * cols`.
    pub fn new<'a>(data: D, rows: usize, cols: usize) -> Self
    where
        D: Into<WeightSlice<'a>>,
    {
        Self::with_strides(data, rows, cols, cols, 1)
    }

    /// A matrix with the given distance, in elements, between rows and between columns.
    ///
    /// # Panics
    ///
    /// When the last element lies beyond `data`.
    pub fn with_strides<'a>(data: D, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self
    where
        D: Into<WeightSlice<'a>>,
    {
        check_extent([rows, cols], [row_stride, col_stride], data.into().len());
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The transposed view.
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Lanes and depth as one side of a product.
    pub(crate) fn sizes(&self, side: PackedSide) -> (usize, usize) {
        match side {
            PackedSide::Left => (self.rows, self.cols),
            PackedSide::Right => (self.cols, self.rows),
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// A writable `f32` matrix view: element `(r, c)` is `data[r * row_stride + c * col_stride]`.
///
/// No two elements overlap: see [`MatMut::with_strides`].
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A row-major matrix without gaps.
    ///
    /// # Panics
    ///
    /// When `data` is shorter than `rows * cols`.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::with_strides(data, rows, cols, cols.max(1), 1)
    }

    /// A matrix with the given distance, in elements, between rows and between columns.
    ///
    /// # Panics
    ///
    /// When the last element lies beyond `data`, or two elements would overlap.
    pub fn with_strides(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        check_extent([rows, cols], [row_stride, col_stride], data.len());
        let exceeds = |stride: usize, extent: Option<usize>| extent.is_some_and(|extent| stride >= extent);
        let rows_apart = exceeds(row_stride, extent(1, cols, 0, col_stride)) && col_stride > 0;
        let cols_apart = exceeds(col_stride, extent(rows, 1, row_stride, 0)) && row_stride > 0;
        assert!(
            rows == 0
                || cols == 0
                || rows_apart
                || cols_apart
                || (rows == 1 && col_stride > 0)
                || (cols == 1 && row_stride > 0),
            "elements of a {rows}x{cols} output with strides ({row_stride}, {col_stride}) overlap"
        );
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// Contiguous elements as stored: weights of any storage type, or `f32` activations.
#[derive(Clone, Copy, Debug)]
pub enum WeightSlice<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// Compressed.
    Encoded(Encoded<'a>),
}

impl<'a> From<&'a [f32]> for WeightSlice<'a> {
    fn from(data: &'a [f32]) -> Self {
        Self::F32(data)
    }
}

impl<'a> From<&'a [f16]> for WeightSlice<'a> {
    fn from(data: &'a [f16]) -> Self {
        Self::F16(data)
    }
}

impl<'a> From<&'a [bf16]> for WeightSlice<'a> {
    fn from(data: &'a [bf16]) -> Self {
        Self::Bf16(data)
    }
}

impl<'a> From<Encoded<'a>> for WeightSlice<'a> {
    fn from(data: Encoded<'a>) -> Self {
        Self::Encoded(data)
    }
}

impl<'a> WeightSlice<'a> {
    /// The elements behind one trait.
    pub(crate) fn elements(&self) -> &(dyn Elements + 'a) {
        match self {
            Self::F32(data) => data,
            Self::F16(data) => data,
            Self::Bf16(data) => data,
            Self::Encoded(data) => data,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.elements().count()
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in `range`.
    ///
    /// # Panics
    ///
    /// When `range` exceeds the slice.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::F32(data) => Self::F32(&data[range]),
            Self::F16(data) => Self::F16(&data[range]),
            Self::Bf16(data) => Self::Bf16(&data[range]),
            Self::Encoded(data) => Self::Encoded(data.slice(range)),
        }
    }

    /// The elements in single precision, decoded or widened on all threads.
    ///
    /// # Panics
    ///
    /// When the lengths differ.
    pub fn widen(&self, out: &mut [f32]) {
        assert_eq!(self.len(), out.len(), "source and destination lengths differ");
        let elements = self.elements();
        for_each_chunk_mut(out, GRAIN, |index, chunk| elements.widen_run(index * GRAIN, chunk));
    }

    /// A row-major `rows`x`cols` matrix of these elements.
    ///
    /// # Panics
    ///
    /// When the slice is shorter than `rows * cols`.
    pub fn matrix(&self, rows: usize, cols: usize) -> Mat<Self> {
        Mat::new(*self, rows, cols)
    }

    /// The transposed view, `cols`x`rows`, of a row-major `rows`x`cols` matrix: a linear layer's `[out, in]`
    /// weight as the right side of a product.
    ///
    /// # Panics
    ///
    /// When the slice is shorter than `rows * cols`.
    pub fn transposed_matrix(&self, rows: usize, cols: usize) -> Mat<Self> {
        self.matrix(rows, cols).transposed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_that_overflow_are_refused() {
        let mut memory = [0.0; 32];
        for (rows, cols, row_stride, col_stride) in [
            (2, 1, usize::MAX, 1),
            (1, 2, 1, usize::MAX),
            (3, 1, usize::MAX / 2 + 1, 1),
            (2, 2, usize::MAX / 2 + 1, usize::MAX / 2 + 1),
            (usize::MAX, 3, usize::MAX, 1),
        ] {
            let writable = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mat = MatMut::with_strides(&mut memory, rows, cols, row_stride, col_stride);
                mat.rows()
            }));
            assert!(writable.is_err(), "{rows}x{cols} ({row_stride}, {col_stride})");
            let data = [0.0_f32; 32];
            let readable =
                std::panic::catch_unwind(|| Mat::with_strides(&data[..], rows, cols, row_stride, col_stride));
            assert!(readable.is_err(), "{rows}x{cols} ({row_stride}, {col_stride})");
        }
        assert_eq!(MatMut::with_strides(&mut memory, 1, 32, usize::MAX, 1).cols(), 32);
        assert_eq!(MatMut::with_strides(&mut memory, 0, usize::MAX, usize::MAX, 1).rows(), 0);
    }
}
