//! The epilogue of a product: what happens to a tile on its way from registers to memory.

use rten_simd::Isa;
use rten_simd::ops::{BitOps, NumOps};

use super::tile::{Corner, LINE, Target, TileBuffer};
use crate::matrix::{Mat, MatRef};
use crate::simd;
use crate::simd::microkernel::{TILE_VECTORS, Tile};
use crate::unary::{UnaryOp, coarse_on_this_thread, unary_on_this_thread};

/// A vector that is added to the product.
#[derive(Clone, Copy, Debug, Default)]
pub enum Bias<'a> {
    /// No bias.
    #[default]
    None,
    /// One value for each row of the output: a convolution's bias.
    PerRow(&'a [f32]),
    /// One value for each column of the output: a linear layer's bias.
    PerColumn(&'a [f32]),
}

/// The operations on a product before it is stored: `activation(product + bias + residual)`.
///
/// With a [`gate`](Self::gate), one side of the product has values and then as many gates, and the output is
/// `activation(values + bias + residual) * gate(gates + bias)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to the product. With a gate, it has the values' elements and then the gates'.
    pub bias: Bias<'a>,
    /// Added to the product: a matrix of the output's size. A convolution's output has a row for each image
    /// and channel.
    pub residual: Option<MatRef<'a>>,
    /// Applied to the sum.
    pub activation: Option<UnaryOp>,
    /// Applied to the gates of a gated linear unit.
    pub gate: Option<UnaryOp>,
}

/// An [`Epilogue`] of a batch of matrices, with its strides.
#[derive(Clone, Copy, Default)]
pub(crate) struct TileEpilogue<'a> {
    pub(crate) epilogue: Epilogue<'a>,
    /// Elements from one matrix's bias to the next one's.
    pub(crate) bias_stride: usize,
    /// Elements from one matrix's residual to the next one's.
    pub(crate) residual_stride: usize,
    /// True if activations need no more than the accuracy of rounded products.
    pub(crate) coarse: bool,
}

impl<'a> TileEpilogue<'a> {
    /// The epilogue of a single product of `rows` by `cols`.
    ///
    /// # Panics
    /// When the lengths of the bias or the residual differ from the product's.
    pub(crate) fn new(epilogue: &Epilogue<'a>, rows: usize, cols: usize) -> Self {
        let gated = 1 + usize::from(epilogue.gate.is_some());
        if let Some(residual) = epilogue.residual {
            assert_eq!(
                (residual.rows, residual.cols),
                (rows, cols),
                "the residual's size differs from the output's"
            );
            assert!(residual.col_stride == 1 || cols <= 1, "a residual needs a column stride of 1");
        }
        match epilogue.bias {
            Bias::None => {}
            Bias::PerRow(bias) => {
                assert!(epilogue.gate.is_none(), "a gated product takes a bias for each column");
                assert_eq!(bias.len(), rows, "bias length differs from the output's rows");
            }
            Bias::PerColumn(bias) => {
                assert_eq!(bias.len(), gated * cols, "bias length differs from the product's columns");
            }
        }
        Self { epilogue: *epilogue, ..Self::default() }
    }
}

impl TileEpilogue<'_> {
    /// Prefetches the residual of `nr` elements of a row.
    #[inline(always)]
    pub(crate) fn prefetch_row(&self, Corner { matrix, row, col }: Corner, nr: usize) {
        if let Some(Mat { data, row_stride, .. }) = self.epilogue.residual {
            let offset = matrix * self.residual_stride + row * row_stride + col;
            let address = data.as_ptr().wrapping_add(offset);
            for line in (0..nr).step_by(LINE) {
                simd::prefetch_line(address.wrapping_add(line));
            }
        }
    }

    /// `len` elements of the residual.
    #[inline(always)]
    fn residual_row<'r>(&self, residual: &MatRef<'r>, corner: Corner, len: usize) -> &'r [f32] {
        let Corner { matrix, row, col } = corner;
        &residual.data[matrix * self.residual_stride + row * residual.row_stride + col..][..len]
    }

    /// The residual from a row of the first matrix on, if its matrices lie as far apart as the target's.
    /// `Err` if they do not, or it is too short.
    pub(crate) fn residual_rows(&self, row: usize, target: &Target) -> Result<Option<&[f32]>, ()> {
        let Some(residual) = self.epilogue.residual else { return Ok(None) };
        let fits = target.batch <= 1 || self.residual_stride == target.matrix_stride;
        let last = target.batch.saturating_sub(1) * target.matrix_stride + target.cols;
        let rows = residual.data.get(row * residual.row_stride..);
        rows.filter(|rows| fits && rows.len() >= last).map(Some).ok_or(())
    }

    /// The bias of a whole row.
    #[inline(always)]
    pub(crate) fn row_bias(&self, matrix: usize, row: usize) -> f32 {
        match self.epilogue.bias {
            Bias::PerRow(bias) => bias[matrix * self.bias_stride + row],
            Bias::None | Bias::PerColumn(_) => 0.0,
        }
    }

    /// The epilogue of the gates, before they multiply the values.
    pub(crate) fn gates(&self, target: &Target) -> Self {
        let bias = match self.epilogue.bias {
            Bias::None => Bias::None,
            Bias::PerRow(bias) => Bias::PerRow(&bias[target.rows..]),
            Bias::PerColumn(bias) => Bias::PerColumn(&bias[target.cols..]),
        };
        let epilogue = Epilogue { bias, residual: None, activation: self.epilogue.gate, gate: None };
        Self { epilogue, ..*self }
    }

    /// Applies the activation.
    #[inline(always)]
    fn activate(&self, values: &mut [f32]) {
        match self.epilogue.activation {
            Some(activation) if self.coarse => coarse_on_this_thread(activation, values),
            Some(activation) => unary_on_this_thread(activation, values),
            None => {}
        }
    }

    /// Applies all but the gate to elements of one row.
    #[inline(always)]
    pub(crate) fn apply_row(&self, corner: Corner, values: &mut [f32]) {
        let Corner { matrix, row, col } = corner;
        match self.epilogue.bias {
            Bias::None => {}
            Bias::PerRow(_) => {
                let bias = self.row_bias(matrix, row);
                values.iter_mut().for_each(|x| *x += bias);
            }
            Bias::PerColumn(bias) => {
                let bias = &bias[matrix * self.bias_stride + col..];
                values.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
        }
        if let Some(residual) = &self.epilogue.residual {
            let residual = self.residual_row(residual, corner, values.len());
            values.iter_mut().zip(residual).for_each(|(x, residual)| *x += residual);
        }
        self.activate(values);
    }

    /// Applies all but the gate to a tile within the output's edges. Each step is a loop of its own without
    /// branches, which keeps the tile in registers.
    #[inline(always)]
    fn apply_tile<I: Isa, const MR: usize>(&self, isa: I, sums: &mut Tile<I, MR>, corner: Corner) {
        let ops = isa.f32();
        let len = ops.len();
        let Corner { matrix, row, col } = corner;
        match self.epilogue.bias {
            Bias::None => {}
            Bias::PerRow(bias) => {
                let bias: &[f32; MR] =
                    bias[matrix * self.bias_stride + row..].first_chunk().expect("MR rows");
                for (sums, bias) in sums.iter_mut().zip(bias) {
                    for sum in sums {
                        *sum = ops.add(*sum, ops.splat(*bias));
                    }
                }
            }
            Bias::PerColumn(bias) => {
                let mut columns = [ops.zero(); TILE_VECTORS];
                let bias = &bias[matrix * self.bias_stride + col..];
                for (column, bias) in columns.iter_mut().zip(bias.chunks_exact(len)) {
                    *column = ops.load(bias);
                }
                for sums in sums.iter_mut() {
                    for (sum, column) in sums.iter_mut().zip(&columns) {
                        *sum = ops.add(*sum, *column);
                    }
                }
            }
        }
        if let Some(residual) = &self.epilogue.residual {
            for (index, sums) in sums.iter_mut().enumerate() {
                let corner = Corner { row: row + index, ..corner };
                let residual = self.residual_row(residual, corner, TILE_VECTORS * len);
                for (sum, residual) in sums.iter_mut().zip(residual.chunks_exact(len)) {
                    *sum = ops.add(*sum, ops.load(residual));
                }
            }
        }
        if self.epilogue.activation.is_some() {
            let mut tile = TileBuffer::of::<I, MR>(isa, sums);
            self.activate(&mut tile.0[..MR * TILE_VECTORS * len]);
            for (sum, values) in sums.as_flattened_mut().iter_mut().zip(tile.0.chunks_exact(len)) {
                *sum = ops.load(values);
            }
        }
    }

    /// A tile in memory after all but the gate.
    #[inline(always)]
    pub(crate) fn applied<I: Isa, const MR: usize>(
        &self,
        isa: I,
        mut sums: Tile<I, MR>,
        target: &Target,
        corner: Corner,
    ) -> TileBuffer {
        let nr = TILE_VECTORS * isa.f32().len();
        if target.contains(corner, [MR, nr]) {
            self.apply_tile::<I, MR>(isa, &mut sums, corner);
            return TileBuffer::of::<I, MR>(isa, &sums);
        }
        let mut tile = TileBuffer::of::<I, MR>(isa, &sums);
        for (row, values) in (corner.row..target.rows).zip(tile.rows_mut::<MR>(nr)) {
            self.apply_row(Corner { row, ..corner }, &mut values[..nr.min(target.cols - corner.col)]);
        }
        tile
    }
}

/// Stores a tile, or with `accumulate` adds it to the output; parts beyond the output's edges are dropped.
/// The `epilogue` applies to the sum, which is then multiplied by `gates`.
#[inline(always)]
pub(crate) fn store_tile<I: Isa, const MR: usize>(
    isa: I,
    mut sums: Tile<I, MR>,
    target: &Target,
    corner: Corner,
    accumulate: bool,
    epilogue: Option<&TileEpilogue<'_>>,
    gates: Option<&TileBuffer>,
) {
    let ops = isa.f32();
    let len = ops.len();
    let nr = TILE_VECTORS * len;
    if !target.contains(corner, [MR, nr]) {
        let mut tile = TileBuffer::of::<I, MR>(isa, &sums);
        return store_part::<MR>(&mut tile, nr, target, corner, accumulate, epilogue, gates);
    }
    // Read once: the compiler has to assume that stores change them.
    let (first, row_stride) = (target.address(corner), target.row_stride);
    let place = |row: usize, vector: usize| first.wrapping_add(row * row_stride + vector * len);
    if accumulate {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (vector, sum) in sums.iter_mut().enumerate() {
                // SAFETY: all of the tile is inside the output, and no other task touches it.
                *sum = ops.add(*sum, unsafe { ops.load_ptr(place(row, vector)) });
            }
        }
    }
    if let Some(epilogue) = epilogue {
        epilogue.apply_tile::<I, MR>(isa, &mut sums, corner);
    }
    if let Some(gates) = gates {
        for (sum, gates) in sums.as_flattened_mut().iter_mut().zip(gates.0.chunks_exact(len)) {
            *sum = ops.mul(*sum, ops.load(gates));
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: as for the load.
            unsafe { ops.store_ptr(*sum, place(row, vector)) };
        }
    }
}

/// [`store_tile`] of a tile that crosses the output's edges.
#[inline(never)]
fn store_part<const MR: usize>(
    tile: &mut TileBuffer,
    nr: usize,
    target: &Target,
    corner: Corner,
    accumulate: bool,
    epilogue: Option<&TileEpilogue<'_>>,
    gates: Option<&TileBuffer>,
) {
    let cols = nr.min(target.cols - corner.col);
    for (index, values) in tile.rows_mut::<MR>(nr).enumerate().take(target.rows - corner.row) {
        let (values, corner) = (&mut values[..cols], Corner { row: corner.row + index, ..corner });
        // SAFETY: no other task touches this tile.
        let out = unsafe { target.row_mut(corner, cols) };
        if accumulate {
            values.iter_mut().zip(&*out).for_each(|(x, old)| *x += old);
        }
        if let Some(epilogue) = epilogue {
            epilogue.apply_row(corner, values);
        }
        if let Some(gates) = gates {
            values.iter_mut().zip(&gates.0[index * nr..]).for_each(|(x, gate)| *x *= gate);
        }
        out.copy_from_slice(values);
    }
}
