//! Two-dimensional convolution by implicit matrix product.
//!
//! For each image and group, the output `[O, OH * OW]` is the weight `[O, C * kh * kw]` times the matrix of all
//! input windows. That matrix never exists: its panels are cut from the image while they are packed.

use std::ops::Range;

use crate::gemm::format::Format;
use crate::gemm::pack::{PackedMatrix, PackedSide};
use crate::gemm::source::{ByDepth, Dense, Source};
use crate::gemm::tile::{Beside, Bias, Finish, Target};
use crate::gemm::{Side, run, with_side};
use crate::matrix::{Mat, WeightSlice};
use crate::precision::Precision;
use crate::unary::UnaryOp;

pub(crate) mod winograd;

/// Zeros around an image, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns at the left.
    pub left: usize,
    /// Columns at the right.
    pub right: usize,
}

impl Padding {
    /// The same padding on all four sides.
    pub fn same(pixels: usize) -> Self {
        Self { top: pixels, bottom: pixels, left: pixels, right: pixels }
    }
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Input channels, all groups together.
    pub in_channels: usize,
    /// Input rows and columns.
    pub in_size: [usize; 2],
    /// Output channels, all groups together.
    pub out_channels: usize,
    /// Window rows and columns.
    pub kernel: [usize; 2],
    /// Step between windows, vertical and horizontal.
    pub stride: [usize; 2],
    /// Step inside a window, vertical and horizontal; 1 is a dense window.
    pub dilation: [usize; 2],
    /// Zeros around each image.
    pub padding: Padding,
    /// Groups of channels that do not mix.
    pub groups: usize,
}

impl ConvShape {
    /// Output rows and columns; zero where the window does not fit.
    pub fn out_size(&self) -> [usize; 2] {
        let pads = [self.padding.top + self.padding.bottom, self.padding.left + self.padding.right];
        [0, 1].map(|axis| {
            let window = self.dilation[axis] * self.kernel[axis].saturating_sub(1) + 1;
            match (self.in_size[axis] + pads[axis]).checked_sub(window) {
                Some(free) if self.kernel[axis] > 0 => free / self.stride[axis] + 1,
                _ => 0,
            }
        })
    }

    /// Elements of the output `[batch, out_channels, OH, OW]`.
    pub fn out_len(&self) -> usize {
        self.batch * self.out_channels * self.out_size().iter().product::<usize>()
    }

    /// The depth of the matrix product: window elements of one group.
    fn depth(&self) -> usize {
        self.in_channels / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Whether windows are single pixels, all of them, in order.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == Padding::default()
    }

    fn check(&self) {
        assert!(self.groups > 0, "a convolution needs at least one group");
        assert!(
            self.in_channels.is_multiple_of(self.groups) && self.out_channels.is_multiple_of(self.groups),
            "{} input and {} output channels do not divide into {} groups",
            self.in_channels,
            self.out_channels,
            self.groups
        );
        assert!(
            self.stride.iter().chain(&self.dilation).all(|&step| step > 0),
            "strides and dilations start at 1"
        );
    }
}

/// The weight `[O, C / groups, kh, kw]` of a convolution.
#[derive(Clone, Copy)]
pub enum ConvWeight<'a> {
    /// As stored; widened while it is packed.
    Stored(WeightSlice<'a>),
    /// From [`pack_conv_weight`].
    Packed(&'a PackedConvWeight),
}

/// A convolution's weight in the layout of this CPU's micro-kernel.
#[derive(Debug)]
pub struct PackedConvWeight(Form);

#[derive(Debug)]
enum Form {
    /// One matrix for each group.
    Groups(Vec<PackedMatrix>),
    /// What [`winograd`] multiplies.
    Filters(winograd::Filters),
}

impl PackedConvWeight {
    /// The memory that it takes, in bytes.
    pub fn size_in_bytes(&self) -> usize {
        match &self.0 {
            Form::Groups(groups) => groups.iter().map(PackedMatrix::size_in_bytes).sum(),
            Form::Filters(filters) => filters.size_in_bytes(),
        }
    }
}

/// Packs a convolution's weight for a shape and a precision.
///
/// # Panics
///
/// When the weight's length is not that of `shape`, or `shape` is inconsistent.
pub fn pack_conv_weight(
    shape: &ConvShape,
    weight: WeightSlice<'_>,
    precision: Precision,
) -> PackedConvWeight {
    shape.check();
    let depth = shape.depth();
    assert_eq!(weight.len(), shape.out_channels * depth, "weight length differs from the shape's");
    PackedConvWeight(match winograd::format(shape, precision) {
        Some(format) => Form::Filters(winograd::Filters::new(shape, weight, format)),
        None => Form::Groups(pack_groups(shape, weight, precision)),
    })
}

/// Packs the weight of a convolution for [`gated_conv2d`].
///
/// # Panics
///
/// As [`pack_conv_weight`]; besides, when there are several groups, or the output channels have no halves.
pub fn pack_gated_conv_weight(
    shape: &ConvShape,
    weight: WeightSlice<'_>,
    precision: Precision,
) -> PackedConvWeight {
    shape.check();
    assert_eq!(shape.groups, 1, "a gated convolution has one group");
    let matrix = weight.matrix(shape.out_channels, shape.depth());
    PackedConvWeight(Form::Groups(vec![PackedMatrix::gated(matrix, PackedSide::Left, precision)]))
}

/// The matrix of each group of a convolution's weight.
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

/// What happens to a convolution's output: `activation(sum + bias + residual)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConvEpilogue<'a> {
    /// One value for each output channel, or one for each image and output channel.
    pub bias: Option<&'a [f32]>,
    /// Added too: a tensor of the output's shape.
    pub residual: Option<&'a [f32]>,
    /// Applied to the sum.
    pub activation: Option<UnaryOp>,
}

impl<'a> ConvEpilogue<'a> {
    /// The part of a group of `rows` channels.
    pub(crate) fn group(&self, shape: &ConvShape, group: usize, rows: usize, pixels: usize) -> Finish<'a> {
        let image_stride = shape.out_channels * pixels;
        let beside = |data: &'a [f32]| {
            assert_eq!(
                data.len(),
                shape.batch * image_stride,
                "the residual's length differs from the output's"
            );
            Beside { data: &data[group * rows * pixels..], row_stride: pixels, image_stride }
        };
        let bias_stride = match self.bias {
            Some(bias) if bias.len() != shape.out_channels => {
                assert_eq!(
                    bias.len(),
                    shape.batch * shape.out_channels,
                    "bias length differs from the output channels"
                );
                shape.out_channels
            }
            _ => 0,
        };
        Finish {
            bias: self.bias.map_or(Bias::None, |bias| Bias::PerRow(&bias[group * rows..])),
            bias_stride,
            residual: self.residual.map(beside),
            activation: self.activation,
            ..Finish::default()
        }
    }
}

/// Convolves `input[batch, C, H, W]` with `weight[O, C / groups, kh, kw]` into `out[batch, O, OH, OW]`.
///
/// # Panics
///
/// When a length is not that of `shape`, or `shape` is inconsistent, or the weight was packed for another precision.
pub fn conv2d(
    shape: &ConvShape,
    input: &[f32],
    weight: ConvWeight<'_>,
    precision: Precision,
    epilogue: &ConvEpilogue<'_>,
    out: &mut [f32],
) {
    shape.check();
    let image_len = shape.in_channels * shape.in_size[0] * shape.in_size[1];
    let pixels: usize = shape.out_size().iter().product();
    assert_eq!(input.len(), shape.batch * image_len, "input length differs from the shape's");
    assert_eq!(out.len(), shape.out_len(), "output length differs from the shape's");
    if let ConvWeight::Stored(weight) = weight {
        assert_eq!(
            weight.len(),
            shape.out_channels * shape.depth(),
            "weight length differs from the shape's"
        );
    }
    if out.is_empty() {
        return;
    }
    let filters = match weight {
        ConvWeight::Packed(PackedConvWeight(Form::Groups(groups))) => {
            return direct(shape, input, Groups::Packed(groups), precision, epilogue, out);
        }
        ConvWeight::Packed(PackedConvWeight(Form::Filters(filters))) => {
            let format = winograd::format(shape, precision);
            assert_eq!(format, Some(filters.format()), "packed for another shape or precision");
            winograd::Weights::Packed(filters)
        }
        ConvWeight::Stored(weight) => match winograd::format(shape, precision) {
            Some(format) => winograd::Weights::Stored(weight, format),
            None => return direct(shape, input, Groups::Stored(weight), precision, epilogue, out),
        },
    };
    let image_stride = shape.out_channels * pixels;
    let finish = epilogue.group(shape, 0, shape.out_channels, pixels);
    let target = Target::images(out, shape.batch, shape.out_channels, pixels, image_stride);
    winograd::conv2d(shape, input, filters, &target, &finish);
}

/// The weight of each group, as one matrix or several.
#[derive(Clone, Copy)]
pub(crate) enum Groups<'a> {
    Stored(WeightSlice<'a>),
    Packed(&'a [PackedMatrix]),
}

/// A convolution as the product with the matrix of its windows.
pub(crate) fn direct(
    shape: &ConvShape,
    input: &[f32],
    weight: Groups<'_>,
    precision: Precision,
    epilogue: &ConvEpilogue<'_>,
    out: &mut [f32],
) {
    let (rows, depth) = (shape.out_channels / shape.groups, shape.depth());
    let group_len = shape.in_channels / shape.groups * shape.in_size[0] * shape.in_size[1];
    let pixels: usize = shape.out_size().iter().product();
    let image_stride = shape.out_channels * pixels;
    let format = Format::of(precision);
    for group in 0..shape.groups {
        let finish = epilogue.group(shape, group, rows, pixels);
        let target =
            Target::images(&mut out[group * rows * pixels..], shape.batch, rows, pixels, image_stride);
        with_windows(shape, &input[group * group_len..], |right| match weight {
            Groups::Packed(groups) => {
                assert!(
                    groups.len() == shape.groups
                        && (groups[group].shape.lanes, groups[group].shape.depth) == (rows, depth),
                    "packed weight differs from the shape"
                );
                run(&target, Side::Packed(&groups[group]), right, depth, format, &finish, None);
            }
            Groups::Stored(weight) => {
                let part = weight.slice(group * rows * depth..(group + 1) * rows * depth);
                with_side(part.matrix(rows, depth), PackedSide::Left, |left| {
                    run(&target, left, right, depth, format, &finish, None);
                });
            }
        });
    }
}

/// A convolution of one group whose weight's output channels are values and then as many gates, into
/// `out[batch, O / 2, OH, OW]`: `(values + bias) * activation(gates + bias)`, with a `bias` of all `O`, or none.
///
/// # Panics
///
/// As [`conv2d`]; besides, when there are several groups, or a packed weight was not
/// [packed so](pack_gated_conv_weight).
pub fn gated_conv2d(
    shape: &ConvShape,
    input: &[f32],
    weight: ConvWeight<'_>,
    precision: Precision,
    bias: Option<&[f32]>,
    activation: UnaryOp,
    out: &mut [f32],
) {
    shape.check();
    let (lanes, depth) = (shape.out_channels, shape.depth());
    let (rows, pixels) = (lanes / 2, shape.out_size().iter().product());
    assert!(shape.groups == 1 && lanes.is_multiple_of(2), "a gated convolution has one group, and halves");
    let image_len = shape.in_channels * shape.in_size[0] * shape.in_size[1];
    assert_eq!(input.len(), shape.batch * image_len, "input length differs from the shape's");
    assert_eq!(2 * out.len(), shape.out_len(), "output length differs from half the shape's");
    assert!(bias.is_none_or(|bias| bias.len() == lanes), "bias length differs from the output channels");
    if out.is_empty() {
        return;
    }
    let bias = bias.map_or(Bias::None, Bias::PerRow);
    let finish = Finish { bias, gate: Some(activation), ..Finish::default() };
    let target = Target::images(out, shape.batch, rows, pixels, rows * pixels);
    let (format, gated) = (Format::of(precision), Some(PackedSide::Left));
    with_windows(shape, input, |right| match weight {
        ConvWeight::Packed(PackedConvWeight(Form::Groups(groups))) => {
            let [packed] = &groups[..] else { panic!("packed weight differs from the shape") };
            run(&target, Side::Packed(packed), right, depth, format, &finish, gated);
        }
        ConvWeight::Packed(PackedConvWeight(Form::Filters(_))) => {
            panic!("the weight is not packed as one of values and gates")
        }
        ConvWeight::Stored(weight) => {
            assert_eq!(weight.len(), lanes * depth, "weight length differs from the shape's");
            with_side(weight.matrix(lanes, depth), PackedSide::Left, |left| {
                run(&target, left, right, depth, format, &finish, gated);
            });
        }
    });
}

/// Calls `body` with the matrix of windows of each image, of one group: the one that `input` begins with.
fn with_windows(shape: &ConvShape, input: &[f32], body: impl FnOnce(&[Side<'_>])) {
    let plane: usize = shape.in_size.iter().product();
    let group_len = shape.in_channels / shape.groups * plane;
    let images = (0..shape.batch).map(|image| &input[image * shape.in_channels * plane..][..group_len]);
    if shape.is_pointwise() {
        let depth = shape.depth();
        let dense: Vec<_> =
            images.map(|image| Dense::new(Mat::new(image, depth, plane), PackedSide::Right)).collect();
        body(&dense.iter().map(|dense| Side::Source(dense.source())).collect::<Vec<_>>());
    } else {
        let windows: Vec<_> = images.map(|image| Windows::new(shape, image)).collect();
        body(&windows.iter().map(|windows| Side::Source(Source::ByDepth(windows))).collect::<Vec<_>>());
    }
}

/// The matrix of all windows of one image's group: lanes are output pixels, depth runs over channel, window row
/// and window column.
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

    /// Writes what window column `kx` sees in input row `row` from the given output columns on.
    fn copy_row(&self, row: &[f32], kx: usize, columns: Range<usize>, out: &mut [f32]) {
        let (stride, shift) = (self.stride[1], kx * self.dilation[1]);
        let origin = self.origin[1];
        // The output columns whose input column lies inside the row.
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
    /// Writes the windows of some columns of one output row, from lane `offset` of each of the rows on. `N` is how many
    /// columns that are, or 0 if the compiler is not to know.
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
                // Wraps around where the first column is in the padding, and then lies beyond the row.
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

#[cfg(test)]
pub(crate) mod tests;
