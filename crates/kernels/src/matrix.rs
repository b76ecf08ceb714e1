//! Borrowed two-dimensional views with arbitrary strides.

use half::{bf16, f16};

use crate::encoded::{Codes, Encoded};
use crate::gemm::source::Runs;
use crate::pool::{GRAIN, for_each_chunk_mut};

/// Elements in a row, as they are stored.
pub trait Elements: Copy {
    /// The number of elements.
    fn count(&self) -> usize;
}

impl<T> Elements for &[T] {
    fn count(&self) -> usize {
        self.len()
    }
}

impl Elements for Encoded<'_> {
    fn count(&self) -> usize {
        self.len()
    }
}

/// A read-only matrix view of elements `D`, a slice or [`Encoded`]: element `(r, c)` is number
/// `r * row_stride + c * col_stride`.
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

/// The number of elements that a strided matrix reaches into its slice.
pub(crate) fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

impl<D: Elements> Mat<D> {
    /// A row-major matrix without gaps.
    ///
    /// # Panics
    ///
    /// When `data` is shorter than `rows * cols`.
    pub fn new(data: D, rows: usize, cols: usize) -> Self {
        Self::with_strides(data, rows, cols, cols, 1)
    }

    /// A matrix with the given distance, in elements, between rows and between columns.
    ///
    /// # Panics
    ///
    /// When the last element lies beyond `data`.
    pub fn with_strides(data: D, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        let needed = extent(rows, cols, row_stride, col_stride);
        assert!(
            needed <= data.count(),
            "a {rows}x{cols} matrix with strides ({row_stride}, {col_stride}) needs {needed} elements, got {}",
            data.count()
        );
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
/// No two elements share a place: see [`MatMut::with_strides`].
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
    /// When the last element lies beyond `data`, or two elements would share a place.
    pub fn with_strides(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        let needed = extent(rows, cols, row_stride, col_stride);
        assert!(
            needed <= data.len(),
            "a {rows}x{cols} matrix with strides ({row_stride}, {col_stride}) needs {needed} elements, got {}",
            data.len()
        );
        let rows_apart = row_stride >= extent(1, cols, 0, col_stride) && col_stride > 0;
        let cols_apart = col_stride >= extent(rows, 1, row_stride, 0) && row_stride > 0;
        assert!(
            needed == 0
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

/// A contiguous run of weights as stored.
#[derive(Clone, Copy, Debug)]
pub enum WeightSlice<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Truncated single precision.
    Bf16(&'a [bf16]),
    /// Compressed.
    Encoded(Encoded<'a>),
}

impl<'a> WeightSlice<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F16(data) => data.len(),
            Self::Bf16(data) => data.len(),
            Self::Encoded(data) => data.len(),
        }
    }

    /// Whether there are no elements.
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

    /// The elements in `range` as codes of one table, if they are that.
    pub(crate) fn codes_of(&self, range: std::ops::Range<usize>) -> Option<Codes<'a>> {
        match self {
            Self::Encoded(data) => data.codes_of(range),
            Self::F32(_) | Self::F16(_) | Self::Bf16(_) => None,
        }
    }

    /// The elements in single precision, decoded or widened on all threads.
    ///
    /// # Panics
    ///
    /// When the lengths differ.
    pub fn widen(&self, out: &mut [f32]) {
        assert_eq!(self.len(), out.len(), "source and destination lengths differ");
        for_each_chunk_mut(out, GRAIN, |index, chunk| self.widen_run(index * GRAIN, chunk));
    }

    /// The elements from `start` on in single precision, on this thread.
    pub(crate) fn widen_run(&self, start: usize, out: &mut [f32]) {
        match self {
            Self::F32(data) => data.widen_run(start, out),
            Self::F16(data) => data.widen_run(start, out),
            Self::Bf16(data) => data.widen_run(start, out),
            Self::Encoded(data) => data.widen_run(start, out),
        }
    }

    /// A row-major `rows`x`cols` matrix of these weights, widened while it is packed.
    ///
    /// # Panics
    ///
    /// When the slice is shorter than `rows * cols`.
    pub fn matrix(&self, rows: usize, cols: usize) -> Operand<'a> {
        match *self {
            Self::F32(data) => Operand::F32(Mat::new(data, rows, cols)),
            Self::F16(data) => Operand::F16(Mat::new(data, rows, cols)),
            Self::Bf16(data) => Operand::Bf16(Mat::new(data, rows, cols)),
            Self::Encoded(data) => Operand::Encoded(Mat::new(data, rows, cols)),
        }
    }

    /// The transposed view, `cols`x`rows`, of a row-major `rows`x`cols` matrix: a linear layer's `[out, in]`
    /// weight as the right side of a product.
    ///
    /// # Panics
    ///
    /// When the slice is shorter than `rows * cols`.
    pub fn transposed_matrix(&self, rows: usize, cols: usize) -> Operand<'a> {
        match self.matrix(rows, cols) {
            Operand::F32(mat) => Operand::F32(mat.transposed()),
            Operand::F16(mat) => Operand::F16(mat.transposed()),
            Operand::Bf16(mat) => Operand::Bf16(mat.transposed()),
            Operand::Encoded(mat) => Operand::Encoded(mat.transposed()),
            packed @ Operand::Packed(_) => packed,
        }
    }
}

/// One side of a matrix product.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// Single precision, any strides.
    F32(MatRef<'a>),
    /// Half precision, any strides; widened panel by panel.
    F16(Mat<&'a [f16]>),
    /// bfloat16, any strides; widened panel by panel.
    Bf16(Mat<&'a [bf16]>),
    /// Compressed, row-major or transposed; decoded panel by panel.
    Encoded(Mat<Encoded<'a>>),
    /// Already in the micro-kernel's layout, for this side of the product.
    Packed(&'a crate::PackedMatrix),
}

impl<'a> From<MatRef<'a>> for Operand<'a> {
    fn from(mat: MatRef<'a>) -> Self {
        Self::F32(mat)
    }
}
