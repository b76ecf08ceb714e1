//! Two-dimensional convolution: as a matrix product ([`direct`]), or by Winograd's minimal filtering
//! ([`winograd`]).

pub(crate) mod direct;
mod shape;
pub(crate) mod winograd;

pub use shape::{ConvShape, Padding};

use direct::{Groups, direct, group_epilogue, pack_groups};

use crate::gemm::epilogue::Epilogue;
use crate::gemm::format::PackedSide;
use crate::gemm::pack::PackedMatrix;
use crate::gemm::tile::Target;
use crate::matrix::WeightSlice;
use crate::precision::Precision;

/// The weight `[O, C / groups, kh, kw]` of a convolution.
#[derive(Clone, Copy)]
pub enum ConvWeight<'a> {
    /// As stored; widened while it is packed.
    Stored(WeightSlice<'a>),
    /// From [`pack_conv_weight`] or [`pack_gated_conv_weight`].
    Packed(&'a PackedConvWeight),
}

/// A convolution's weight in the layout of this CPU's micro-kernel.
#[derive(Debug)]
pub struct PackedConvWeight(Packing);

#[derive(Debug)]
enum Packing {
    /// One matrix for each group.
    Groups(Vec<PackedMatrix>),
    /// Winograd's transformed filters.
    Filters(winograd::PackedFilters),
}

impl PackedConvWeight {
    /// The memory that the weight of a convolution will take once it is packed, in bytes. Gated ones are
    /// those of [`pack_gated_conv_weight`].
    pub fn bytes(shape: &ConvShape, gated: bool, precision: Precision) -> usize {
        if !gated && let Some(format) = winograd::format(shape, precision) {
            return winograd::PackedFilters::bytes(shape, format);
        }
        let size = [shape.out_channels / shape.groups, shape.depth()];
        shape.groups * PackedMatrix::bytes(size, gated, PackedSide::Left, precision)
    }

    /// The memory that the packed words take, in bytes.
    pub fn size_in_bytes(&self) -> usize {
        match &self.0 {
            Packing::Groups(groups) => groups.iter().map(PackedMatrix::size_in_bytes).sum(),
            Packing::Filters(filters) => filters.size_in_bytes(),
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
        Some(format) => Packing::Filters(winograd::PackedFilters::new(shape, weight, format)),
        None => Packing::Groups(pack_groups(shape, weight, precision)),
    })
}

/// Packs the weight of a convolution whose epilogue has a [gate](Epilogue::gate).
///
/// # Panics
///
/// As [`pack_conv_weight`]; besides, when there are several groups, or the number of output channels is odd.
pub fn pack_gated_conv_weight(
    shape: &ConvShape,
    weight: WeightSlice<'_>,
    precision: Precision,
) -> PackedConvWeight {
    shape.check();
    assert_eq!(shape.groups, 1, "a gated convolution has one group");
    let matrix = weight.matrix(shape.out_channels, shape.depth());
    PackedConvWeight(Packing::Groups(vec![PackedMatrix::gated(matrix, PackedSide::Left, precision)]))
}

/// Convolves `input[batch, C, H, W]` with `weight[O, C / groups, kh, kw]` into `out[batch, O, OH, OW]`.
///
/// The epilogue's rows are output channels: its bias has one value for each channel, or one for each image
/// and channel, and its residual is the matrix `[batch * O, OH * OW]`. With a [gate](Epilogue::gate), the
/// convolution has one group, the weight's output channels are values and then as many gates, and the output
/// has `O / 2` channels.
///
/// # Panics
///
/// When a length is not that of `shape`, `shape` is inconsistent, or the weight was packed for another shape
/// or precision.
pub fn conv2d(
    shape: &ConvShape,
    input: &[f32],
    weight: ConvWeight<'_>,
    precision: Precision,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    shape.check();
    assert_eq!(input.len(), shape.in_len(), "input length differs from the shape's");
    let halves = if epilogue.gate.is_some() { 2 } else { 1 };
    assert_eq!(halves * out.len(), shape.out_len(), "output length differs from the shape's");
    if let ConvWeight::Stored(weight) = weight {
        let len = shape.out_channels * shape.depth();
        assert_eq!(weight.len(), len, "weight length differs from the shape's");
    }
    if epilogue.gate.is_some() {
        assert!(
            shape.groups == 1 && shape.out_channels.is_multiple_of(2),
            "a gated convolution has one group and an even number of output channels"
        );
    }
    if out.is_empty() {
        return;
    }
    let format = winograd::format(shape, precision).filter(|_| epilogue.gate.is_none());
    let filters = match weight {
        ConvWeight::Packed(PackedConvWeight(Packing::Groups(groups))) => {
            return direct(shape, input, Groups::Packed(groups), precision, epilogue, out);
        }
        ConvWeight::Packed(PackedConvWeight(Packing::Filters(filters))) => {
            assert_eq!(format, Some(filters.format()), "packed for another shape, precision or epilogue");
            winograd::Filters::Packed(filters)
        }
        ConvWeight::Stored(weight) => match format {
            Some(format) => winograd::Filters::Stored(weight, format),
            None => return direct(shape, input, Groups::Stored(weight), precision, epilogue, out),
        },
    };
    let pixels = shape.pixels();
    let epilogue = group_epilogue(epilogue, shape, 0);
    let target = Target::batched(out, shape.batch, shape.out_channels, pixels, shape.out_channels * pixels);
    winograd::conv2d(shape, input, filters, &target, &epilogue);
}

#[cfg(test)]
pub(crate) mod tests;
