//! Convolution, padding and resizing of images, [batch, channels, height, width].

use super::linear::weight_products;
use super::{Default, OpDef, Param, Work, float, ints, string};
use crate::{DType, Error, OpView, TensorType};

pub(super) static OPS: &[OpDef] = &[
    // weight is [out, in / groups, height, width]. pad_type: valid, custom (pad: top, bottom, left, right),
    // same, same_lower. Absent strides, pad and dilations: ones, zeros and ones.
    OpDef::new(
        "conv",
        &[
            float("x"),
            float("weight"),
            float("bias").constant().optional(),
            ints("strides").optional(),
            string("pad_type").default(Default::Str("valid")),
            ints("pad").optional(),
            ints("dilations").optional(),
            ints("groups").default(Default::Int(1)),
        ],
        conv,
        Work::Products(weight_products),
    )
    .weight("weight"),
    // pad: before and after, of each of the last axes.
    OpDef::new(
        "pad",
        &[
            float("x"),
            ints("pad"),
            string("mode").default(Default::Str("constant")),
            float("constant_val").constant().default(Default::Float(0.0)),
        ],
        pad,
        Work::Moves,
    ),
    // Source index floor(i * in / out).
    OpDef::new(
        "resize_nearest_neighbor",
        &[float("x"), ints("target_size_height"), ints("target_size_width")],
        resize,
        Work::Moves,
    ),
    OpDef::new(
        "upsample_nearest_neighbor",
        &[float("x"), scale("scale_factor_height"), scale("scale_factor_width")],
        upsample,
        Work::Moves,
    ),
];

const fn scale(name: &'static str) -> Param {
    Param::new(name, &[DType::F32, DType::I32]).constant().default(Default::Int(1))
}

/// The geometry of a 2-D convolution, all defaults resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Steps along height and width.
    pub strides: [usize; 2],
    /// Zeros added at the top, bottom, left and right.
    pub pad: [usize; 4],
    /// Distances between taps.
    pub dilations: [usize; 2],
    /// The number of channel groups, each convolved separately.
    pub groups: usize,
    /// Height and width of the result.
    pub output: [usize; 2],
}

impl ConvGeometry {
    /// The geometry of a `conv` op.
    ///
    /// # Errors
    /// Shapes or parameters that don't fit.
    pub fn of(op: &OpView) -> Result<Self, Error> {
        let (x, weight) = (op.ty("x")?, op.ty("weight")?);
        let (&[_, channels, height, width], &[out, per_group, kernel_height, kernel_width]) =
            (&x.shape[..], &weight.shape[..])
        else {
            return Err(op.invalid(format!("x {x} and weight {weight} must have rank 4")));
        };
        let strides = pair(op, "strides", 1)?;
        let dilations = pair(op, "dilations", 1)?;
        let groups = usize::try_from(op.int("groups")?).unwrap_or(0);
        let grouped =
            groups > 0 && per_group.checked_mul(groups) == Some(channels) && out.is_multiple_of(groups);
        if !grouped {
            return Err(op.invalid(format!("x {x}, weight {weight} and {groups} groups don't fit")));
        }
        if kernel_height == 0 || kernel_width == 0 || strides.contains(&0) || dilations.contains(&0) {
            return Err(op.invalid("kernel, strides and dilations must be at least 1"));
        }
        let spans = [span(op, kernel_height, dilations[0])?, span(op, kernel_width, dilations[1])?];
        let pad = padding(op, [height, width], spans, strides)?;
        let axis = |extent: usize, before: usize, after: usize, span: usize, stride: usize| {
            let padded = extent.checked_add(before)?.checked_add(after)?;
            Some(padded.checked_sub(span)? / stride + 1)
        };
        let output = axis(height, pad[0], pad[1], spans[0], strides[0])
            .zip(axis(width, pad[2], pad[3], spans[1], strides[1]))
            .ok_or_else(|| op.invalid(format!("weight {weight} is larger than the padded {x}")))?;
        Ok(ConvGeometry { strides, pad, dilations, groups, output: [output.0, output.1] })
    }
}

fn span(op: &OpView, kernel: usize, dilation: usize) -> Result<usize, Error> {
    (kernel - 1)
        .checked_mul(dilation)
        .and_then(|taps| taps.checked_add(1))
        .ok_or_else(|| op.invalid("dilations are too large"))
}

fn padding(
    op: &OpView,
    extents: [usize; 2],
    spans: [usize; 2],
    strides: [usize; 2],
) -> Result<[usize; 4], Error> {
    let same = |lower: bool| {
        let mut pad = [0; 4];
        for axis in 0..2 {
            let output = extents[axis].div_ceil(strides[axis]);
            let needed =
                (output.saturating_sub(1) * strides[axis] + spans[axis]).saturating_sub(extents[axis]);
            let (less, more) = (needed / 2, needed - needed / 2);
            (pad[2 * axis], pad[2 * axis + 1]) = if lower { (more, less) } else { (less, more) };
        }
        pad
    };
    match op.str("pad_type")?.as_str() {
        "valid" => Ok([0; 4]),
        "same" => Ok(same(false)),
        "same_lower" => Ok(same(true)),
        "custom" => {
            let Some(pad) = op.opt_ints("pad")? else { return Ok([0; 4]) };
            let pad: Option<Vec<usize>> = pad.iter().map(|&extent| usize::try_from(extent).ok()).collect();
            pad.and_then(|pad| pad.try_into().ok())
                .ok_or_else(|| op.invalid("`pad` must be four numbers that are not negative"))
        }
        other => Err(op.invalid(format!("unknown pad_type `{other}`"))),
    }
}

fn pair(op: &OpView, input: &str, default: usize) -> Result<[usize; 2], Error> {
    let Some(values) = op.opt_ints(input)? else { return Ok([default; 2]) };
    let values: Option<Vec<usize>> = values.iter().map(|&value| usize::try_from(value).ok()).collect();
    values
        .and_then(|values| values.try_into().ok())
        .ok_or_else(|| op.invalid(format!("`{input}` must be two numbers that are not negative")))
}

fn conv(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (x, weight) = (op.ty("x")?, op.ty("weight")?);
    let geometry = ConvGeometry::of(op)?;
    let out = weight.shape[0];
    if op.get("bias").is_some() && op.ty("bias")?.shape != [out] {
        return Err(op.invalid(format!("bias {} does not fit weight {weight}", op.ty("bias")?)));
    }
    Ok(vec![TensorType::new(x.dtype, [x.shape[0], out, geometry.output[0], geometry.output[1]])])
}

fn pad(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let mode = op.str("mode")?;
    if mode != "constant" {
        return Err(op.invalid(format!("padding mode `{mode}` is not supported; only `constant` is")));
    }
    let pad = op.ints("pad")?;
    if !pad.len().is_multiple_of(2) || pad.len() / 2 > x.rank() || pad.iter().any(|&extent| extent < 0) {
        return Err(op.invalid(format!("pad {pad:?} does not fit {x}")));
    }
    let mut shape = x.shape.clone();
    let first = x.rank() - pad.len() / 2;
    for (axis, pair) in pad.chunks_exact(2).enumerate() {
        let extent =
            usize::try_from(pair[0] + pair[1]).ok().and_then(|more| shape[first + axis].checked_add(more));
        shape[first + axis] = extent.ok_or_else(|| op.invalid("the padding is too large"))?;
    }
    Ok(vec![TensorType::new(x.dtype, shape)])
}

fn resize(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let size = |input: &str| {
        let value = op.int(input)?;
        usize::try_from(value)
            .ok()
            .filter(|&size| size > 0)
            .ok_or_else(|| op.invalid(format!("{input} is {value}")))
    };
    scaled(op, x, [size("target_size_height")?, size("target_size_width")?])
}

fn upsample(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let rank = x.rank();
    let size = |input: &str, extent: usize| {
        let factor = op.float(input)?;
        if factor < 1.0 || factor.fract() != 0.0 || factor > 1024.0 {
            return Err(op.invalid(format!("{input} {factor} is not supported: only whole factors are")));
        }
        extent.checked_mul(factor as usize).ok_or_else(|| op.invalid("the result is too large"))
    };
    if rank < 3 {
        return Err(op.invalid(format!("x {x} has no height and width")));
    }
    let size =
        [size("scale_factor_height", x.shape[rank - 2])?, size("scale_factor_width", x.shape[rank - 1])?];
    scaled(op, x, size)
}

fn scaled(op: &OpView, x: &TensorType, size: [usize; 2]) -> Result<Vec<TensorType>, Error> {
    if x.rank() < 3 || x.shape[x.rank() - 2..].contains(&0) {
        return Err(op.invalid(format!("x {x} can't be resized")));
    }
    let mut shape = x.shape.clone();
    shape.truncate(x.rank() - 2);
    shape.extend(size);
    Ok(vec![TensorType::new(x.dtype, shape)])
}
