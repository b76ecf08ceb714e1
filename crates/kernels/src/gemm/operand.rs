//! The two sides of a product.

use super::format::PackedSide;
use super::pack::PackedMatrix;
use super::source::{ByDepth, Source, Strided};
use crate::matrix::{Mat, WeightSlice};

/// One side of a matrix product.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// Any stored elements, with any strides; widened or decoded panel by panel.
    Matrix(Mat<WeightSlice<'a>>),
    /// Already in the micro-kernel's layout, for this side of the product.
    Packed(&'a PackedMatrix),
}

impl<'a, D: Copy + Into<WeightSlice<'a>>> From<Mat<D>> for Operand<'a> {
    fn from(Mat { data, rows, cols, row_stride, col_stride }: Mat<D>) -> Self {
        Self::Matrix(Mat { data: data.into(), rows, cols, row_stride, col_stride })
    }
}

impl<'a> Operand<'a> {
    /// Lanes and depth.
    ///
    /// # Panics
    /// When a packed matrix is packed for the other side.
    pub(crate) fn sizes(&self, side: PackedSide) -> (usize, usize) {
        match self {
            Self::Matrix(mat) => mat.sizes(side),
            Self::Packed(packed) => {
                assert_eq!(packed.shape.side, side, "the matrix is packed for the other side of a product");
                (packed.shape.lanes, packed.shape.depth)
            }
        }
    }

    /// The number of matrices.
    pub(crate) fn batch(&self) -> usize {
        match self {
            Self::Matrix(_) => 1,
            Self::Packed(packed) => packed.batch,
        }
    }

    pub(crate) fn side(&'a self, side: PackedSide) -> Side<'a> {
        match self {
            Self::Matrix(mat) => Side::Strided(Strided::new(mat, side)),
            Self::Packed(packed) => Side::Packed(packed),
        }
    }
}

/// One side of a product: packed as it is needed, or beforehand.
#[derive(Clone, Copy)]
pub(crate) enum Side<'a> {
    /// A matrix.
    Strided(Strided<'a>),
    /// Anything else whose depths are contiguous.
    ByDepth(&'a dyn ByDepth),
    Packed(&'a PackedMatrix),
}

impl Side<'_> {
    /// The source of panels; `None` if they are packed.
    pub(crate) fn source(&self) -> Option<Source<'_>> {
        match self {
            Self::Strided(strided) => Some(strided.source()),
            Self::ByDepth(source) => Some(Source::ByDepth(*source)),
            Self::Packed(_) => None,
        }
    }

    pub(crate) fn lanes(&self) -> usize {
        match self {
            Self::Strided(strided) => strided.lanes,
            Self::ByDepth(source) => source.lanes(),
            Self::Packed(packed) => packed.shape.lanes,
        }
    }
}
