//! Convolution as one matrix product per group.
//!
//! For each image and group, the output `[O, OH * OW]` is the weight `[O, C * kh * kw]` times the matrix of
//! all input windows. That matrix is never stored: its panels are cut from the image while they are packed.

use std::ops::Range;

use super::shape::ConvShape;
use crate::gemm::epilogue::{Bias, Epilogue, TileEpilogue};
use crate::gemm::format::{Format, PackedSide};
use crate::gemm::operand::{Operand, Side};
use crate::gemm::pack::PackedMatrix;
use crate::gemm::product::run;
use crate::gemm::source::{ByDepth, Strided};
use crate::gemm::tile::Target;
use crate::matrix::{Mat, MatRef, WeightSlice};
use crate::precision::Precision;

/// The weight of each group: a slice of the stored weight, or a packed matrix.
#[derive(Clone, Copy)]
pub(crate) enum Groups<'a> {
    Stored(WeightSlice<'a>),
    Packed(&'a [PackedMatrix]),
}

impl<'a> Groups<'a> {
    /// The left side of a group's product.
    ///
    /// # Panics
    /// When packed weights are not those of `shape`.
    fn operand(&self, shape: &ConvShape, group: usize) -> Operand<'a> {
        let (rows, depth) = (shape.out_channels / shape.groups, shape.depth());
        match self {
            Self::Packed(groups) => {
                assert!(
                    groups.len() == shape.groups
                        && (groups[group].shape.lanes, groups[group].shape.depth) == (rows, depth),
                    "packed weight differs from the shape"
                );
                Operand::Packed(&groups[group])
            }
            Self::Stored(weight) => {
                weight.slice(group * rows * depth..(group + 1) * rows * depth).matrix(rows, depth).into()
            }
        }
    }
}

/// Packs the matrix of each group of a convolution's weight.
pub(crate) fn pack_groups(
    shape: &ConvShape,
    weight: WeightSlice<'_>,
    precision: Precision,
) -> Vec<PackedMatrix> {
    let (rows, depth) = (shape.out_channels / shape.groups, shape.depth());
    let pack = |group: usize| {
        let part = weight.slice(group * rows * depth..(group + 1) * rows * depth);
        PackedMatrix::new(part.matrix(rows, depth), PackedSide::Left, precision)
    };
    (0..shape.groups).map(pack).collect()
}

/// Convolves by one product per group. With a gate there is one group, and the output has half its channels.
pub(crate) fn direct(
    shape: &ConvShape,
    input: &[f32],
    weight: Groups<'_>,
    precision: Precision,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    let gated = epilogue.gate.map(|_| PackedSide::Left);
    let out_channels = shape.out_channels / if gated.is_some() { 2 } else { 1 };
    let rows = out_channels / shape.groups;
    let group_len = shape.in_channels / shape.groups * shape.in_size[0] * shape.in_size[1];
    let pixels = shape.pixels();
    for group in 0..shape.groups {
        let epilogue = group_epilogue(epilogue, shape, group);
        let out = &mut out[group * rows * pixels..];
        let target = Target::batched(out, shape.batch, rows, pixels, out_channels * pixels);
        let operand = weight.operand(shape, group);
        let left = operand.side(PackedSide::Left);
        with_windows(shape, &input[group * group_len..], |right| {
            run(&target, left, right, shape.depth(), Format::of(precision), &epilogue, gated);
        });
    }
}

/// The epilogue of one group.
///
/// # Panics
/// When the size of the bias or of the residual is not that of `shape`.
pub(crate) fn group_epilogue<'a>(
    epilogue: &Epilogue<'a>,
    shape: &ConvShape,
    group: usize,
) -> TileEpilogue<'a> {
    let (batch, channels, pixels) = (shape.batch, shape.out_channels, shape.pixels());
    let rows = channels / shape.groups;
    let (bias, bias_stride) = match epilogue.bias {
        Bias::None => (Bias::None, 0),
        Bias::PerRow(bias) => {
            let is_per_image = bias.len() != channels;
            assert!(
                !is_per_image || (bias.len() == batch * channels && epilogue.gate.is_none()),
                "bias length differs from the output channels"
            );
            (Bias::PerRow(&bias[group * rows..]), if is_per_image { channels } else { 0 })
        }
        Bias::PerColumn(_) => panic!("a convolution takes a bias for each row: each output channel"),
    };
    let out_channels = channels / if epilogue.gate.is_some() { 2 } else { 1 };
    let mut residual_stride = 0;
    let residual = epilogue.residual.map(|residual| {
        assert_eq!(
            (residual.rows, residual.cols),
            (batch * out_channels, pixels),
            "the residual's size differs from the output's"
        );
        assert!(residual.col_stride == 1 || pixels <= 1, "a residual needs a column stride of 1");
        residual_stride = out_channels * residual.row_stride;
        MatRef { data: &residual.data[group * rows * residual.row_stride..], ..residual }
    });
    let epilogue = Epilogue { bias, residual, ..*epilogue };
    TileEpilogue { epilogue, bias_stride, residual_stride, ..TileEpilogue::default() }
}

/// Calls `body` with the matrix of windows of each image, of the group that `input` begins with.
fn with_windows(shape: &ConvShape, input: &[f32], body: impl FnOnce(&[Side<'_>])) {
    let plane: usize = shape.in_size.iter().product();
    let group_len = shape.in_channels / shape.groups * plane;
    let images = (0..shape.batch).map(|image| &input[image * shape.in_channels * plane..][..group_len]);
    if shape.is_pointwise() {
        let matrices: Vec<MatRef<'_>> = images.map(|image| Mat::new(image, shape.depth(), plane)).collect();
        let side = |mat| Side::Strided(Strided::of_floats(mat, PackedSide::Right));
        body(&matrices.iter().map(side).collect::<Vec<_>>());
    } else {
        let windows: Vec<_> = images.map(|image| Windows::new(shape, image)).collect();
        body(&windows.iter().map(|windows| Side::ByDepth(windows)).collect::<Vec<_>>());
    }
}

/// The matrix of all windows of one image's group. Lanes are output pixels; depth runs over channel, window
/// row and window column.
struct Windows<'a> {
    input: &'a [f32],
    in_size: [usize; 2],
    out_size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    /// Padding at the top and at the left.
    origin: [usize; 2],
}

impl<'a> Windows<'a> {
    fn new(shape: &ConvShape, input: &'a [f32]) -> Self {
        Self {
            input,
            in_size: shape.in_size,
            out_size: shape.out_size(),
            kernel: shape.kernel,
            stride: shape.stride,
            dilation: shape.dilation,
            origin: [shape.padding.top, shape.padding.left],
        }
    }

    /// Writes the elements of input row `row` at window column `kx`, for the given output columns.
    fn copy_row(&self, row: &[f32], kx: usize, columns: Range<usize>, out: &mut [f32]) {
        let (stride, shift) = (self.stride[1], kx * self.dilation[1]);
        let origin = self.origin[1];
        // Output columns whose input column lies inside the row.
        let first = origin.saturating_sub(shift).div_ceil(stride).clamp(columns.start, columns.end);
        let end = (self.in_size[1] + origin).saturating_sub(shift).div_ceil(stride).clamp(first, columns.end);
        let (before, rest) = out.split_at_mut(first - columns.start);
        let (inside, after) = rest.split_at_mut(end - first);
        before.fill(0.0);
        after.fill(0.0);
        if inside.is_empty() {
            return;
        }
        let from = first * stride + shift - origin;
        if stride == 1 {
            inside.copy_from_slice(&row[from..from + inside.len()]);
        } else {
            for (out, value) in inside.iter_mut().zip(row[from..].iter().step_by(stride)) {
                *out = *value;
            }
        }
    }
}

impl ByDepth for Windows<'_> {
    fn lanes(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    fn read(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, rows: &mut [f32]) {
        // Lanes may run over several output rows.
        let mut lane = lanes.start;
        while lane < lanes.end {
            let (out_y, out_x) = (lane / self.out_size[1], lane % self.out_size[1]);
            let count = (self.out_size[1] - out_x).min(lanes.end - lane);
            let offset = lane - lanes.start;
            let columns = out_x..out_x + count;
            match count {
                32 => self.read_row::<32>(out_y, columns, depth.clone(), rows, width, offset),
                16 => self.read_row::<16>(out_y, columns, depth.clone(), rows, width, offset),
                8 => self.read_row::<8>(out_y, columns, depth.clone(), rows, width, offset),
                _ => self.read_row::<0>(out_y, columns, depth.clone(), rows, width, offset),
            }
            lane += count;
        }
    }
}

impl Windows<'_> {
    /// Writes the windows of some columns of one output row, from lane `offset` of each of `rows` on. `N` is
    /// the number of columns, or 0 for any number.
    #[inline(always)]
    fn read_row<const N: usize>(
        &self,
        out_y: usize,
        columns: Range<usize>,
        depth: Range<usize>,
        rows: &mut [f32],
        width: usize,
        offset: usize,
    ) {
        let [in_rows, in_cols] = self.in_size;
        let plane = in_rows * in_cols;
        let window = self.kernel[0] * self.kernel[1];
        let (mut channel, mut ky, mut kx) =
            (depth.start / window, depth.start % window / self.kernel[1], depth.start % self.kernel[1]);
        for row in rows.chunks_exact_mut(width).take(depth.len()) {
            let out = &mut row[offset..offset + columns.len()];
            let y = (out_y * self.stride[0] + ky * self.dilation[0]).wrapping_sub(self.origin[0]);
            if y < in_rows {
                let row = &self.input[channel * plane + y * in_cols..][..in_cols];
                // Wraps around if the first column is in the padding, and then lies beyond the row.
                let first = (columns.start + kx * self.dilation[1]).wrapping_sub(self.origin[1]);
                let inside = if N > 0 && self.stride[1] == 1 { row.get(first..) } else { None };
                match (inside.and_then(|row| row.first_chunk::<N>()), out.first_chunk_mut::<N>()) {
                    (Some(inside), Some(out)) if N > 0 => *out = *inside,
                    _ => self.copy_row(row, kx, columns.clone(), out),
                }
            } else {
                out.fill(0.0);
            }
            kx += 1;
            if kx == self.kernel[1] {
                kx = 0;
                ky += 1;
                if ky == self.kernel[0] {
                    ky = 0;
                    channel += 1;
                }
            }
        }
    }
}
