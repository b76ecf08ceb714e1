//! Two-dimensional convolution by implicit matrix product.
//!
//! For each image and group, the output `[O, OH * OW]` is the weight `[O, C * kh * kw]` times the matrix of all
//! input windows. That matrix never exists: its panels are cut from the image while they are packed.

use std::ops::Range;

use crate::gemm::{Activation, Bias, Epilogue, Initial, Side, run};
use crate::matrix::{Mat, MatMut, Operand, WeightSlice};
use crate::panels::{Dense, PackedMatrix, PackedSide, PanelSource};

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
    /// One packed matrix for each group, from [`pack_conv_weight`].
    Packed(&'a [PackedMatrix]),
}

/// Packs a convolution's weight, one matrix for each group.
///
/// # Panics
///
/// When the weight's length is not that of `shape`, or `shape` is inconsistent.
pub fn pack_conv_weight(shape: &ConvShape, weight: WeightSlice<'_>) -> Vec<PackedMatrix> {
    shape.check();
    let (rows, depth) = (shape.out_channels / shape.groups, shape.depth());
    assert_eq!(weight.len(), shape.out_channels * depth, "weight length differs from the shape's");
    (0..shape.groups)
        .map(|group| {
            let part = weight.slice(group * rows * depth..(group + 1) * rows * depth);
            PackedMatrix::new(part.matrix(rows, depth), PackedSide::Left)
        })
        .collect()
}

/// What is added to and done with a convolution's output.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConvEpilogue<'a> {
    /// One value for each output channel.
    pub bias: Option<&'a [f32]>,
    /// Whether the output's content, for instance a residual, is a summand.
    pub initial: Initial,
    /// Applied last.
    pub activation: Activation,
}

/// Convolves `input[batch, C, H, W]` with `weight[O, C / groups, kh, kw]` into `out[batch, O, OH, OW]`.
///
/// # Panics
///
/// When a length is not that of `shape`, or `shape` is inconsistent.
pub fn conv2d(
    shape: &ConvShape,
    input: &[f32],
    weight: ConvWeight<'_>,
    epilogue: &ConvEpilogue<'_>,
    out: &mut [f32],
) {
    shape.check();
    let image_len = shape.in_channels * shape.in_size[0] * shape.in_size[1];
    let pixels: usize = shape.out_size().iter().product();
    assert_eq!(input.len(), shape.batch * image_len, "input length differs from the shape's");
    assert_eq!(out.len(), shape.out_len(), "output length differs from the shape's");
    let rows = shape.out_channels / shape.groups;
    let depth = shape.depth();
    match weight {
        ConvWeight::Stored(weight) => {
            assert_eq!(weight.len(), rows * shape.groups * depth, "weight length differs from the shape's");
        }
        ConvWeight::Packed(packed) => assert!(
            packed.len() == shape.groups && packed.iter().all(|p| (p.lanes, p.depth) == (rows, depth)),
            "packed weight differs from the shape"
        ),
    }
    if let Some(bias) = epilogue.bias {
        assert_eq!(bias.len(), shape.out_channels, "bias length differs from the output channels");
    }
    if out.is_empty() {
        return;
    }
    let group_len = image_len / shape.groups;
    for (index, out) in out.chunks_exact_mut(rows * pixels).enumerate() {
        let (image, group) = (index / shape.groups, index % shape.groups);
        let input = &input[image * image_len + group * group_len..][..group_len];
        let epilogue = Epilogue {
            bias: epilogue.bias.map_or(Bias::None, |bias| Bias::PerRow(&bias[group * rows..][..rows])),
            initial: epilogue.initial,
            activation: epilogue.activation,
        };
        let out = MatMut::new(out, rows, pixels);
        let pointwise;
        let windows;
        let right = if shape.is_pointwise() {
            pointwise = Dense::right(Mat::new(input, depth, pixels));
            Side::Source(&pointwise)
        } else {
            windows = Windows::new(shape, input);
            Side::Source(&windows)
        };
        match weight {
            ConvWeight::Packed(packed) => run(out, Side::Packed(&packed[group]), right, depth, &epilogue),
            ConvWeight::Stored(weight) => {
                let part = weight.slice(group * rows * depth..(group + 1) * rows * depth);
                match part.matrix(rows, depth) {
                    Operand::F32(mat) => run(out, Side::Source(&Dense::left(mat)), right, depth, &epilogue),
                    Operand::F16(mat) => run(out, Side::Source(&Dense::left(mat)), right, depth, &epilogue),
                    Operand::Bf16(mat) => run(out, Side::Source(&Dense::left(mat)), right, depth, &epilogue),
                    Operand::Encoded(mat) => {
                        run(out, Side::Source(&Dense::encoded_left(mat)), right, depth, &epilogue);
                    }
                    Operand::Packed(packed) => run(out, Side::Packed(packed), right, depth, &epilogue),
                }
            }
        }
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

impl PanelSource for Windows<'_> {
    fn lanes(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        if lanes.len() < width {
            panel.fill(0.0);
        }
        let [in_rows, in_cols] = self.in_size;
        let plane = in_rows * in_cols;
        let window = self.kernel[0] * self.kernel[1];
        // Lanes may run over several output rows.
        let mut lane = lanes.start;
        while lane < lanes.end {
            let (out_y, out_x) = (lane / self.out_size[1], lane % self.out_size[1]);
            let count = (self.out_size[1] - out_x).min(lanes.end - lane);
            let offset = lane - lanes.start;
            let (mut channel, mut ky, mut kx) =
                (depth.start / window, depth.start % window / self.kernel[1], depth.start % self.kernel[1]);
            for row in panel.chunks_exact_mut(width).take(depth.len()) {
                let out = &mut row[offset..offset + count];
                let y = (out_y * self.stride[0] + ky * self.dilation[0]).wrapping_sub(self.origin[0]);
                if y < in_rows {
                    let row = &self.input[channel * plane + y * in_cols..][..in_cols];
                    self.copy_row(row, kx, out_x..out_x + count, out);
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
            lane += count;
        }
    }
}

#[cfg(test)]
mod tests;
