//! Rearranging, joining and splitting.

use super::{ANY, Default, OpDef, Param, Work, any, bools, float, ints, resolve_axes};
use crate::{DType, Error, OpView, TensorType};

pub(super) static OPS: &[OpDef] = &[
    OpDef::new(
        "concat",
        &[any("values").variadic(), ints("axis"), bools("interleave").default(Default::Bool(false))],
        concat,
        Work::Moves,
    ),
    OpDef::new("expand_dims", &[any("x"), ints("axes")], expand_dims, Work::Moves),
    OpDef::new(
        "fill",
        &[ints("shape"), Param::new("value", ANY).constant().default(Default::Float(0.0))],
        fill,
        Work::Moves,
    ),
    // (batch, channels * f * f, height, width) to (batch, channels, height * f, width * f).
    OpDef::new("pixel_shuffle", &[float("x"), ints("upscale_factor")], pixel_shuffle, Work::Moves),
    // shape: -1 follows from the others, 0 copies the input's axis, where the ranks are equal.
    OpDef::new("reshape", &[any("x"), ints("shape")], reshape, Work::Moves),
    OpDef::new(
        "slice_by_index",
        &[
            any("x"),
            ints("begin"),
            ints("end"),
            ints("stride").optional(),
            bools("begin_mask").optional(),
            bools("end_mask").optional(),
            bools("squeeze_mask").optional(),
        ],
        slice_by_index,
        Work::Moves,
    ),
    // size: -1 means to the end.
    OpDef::new("slice_by_size", &[any("x"), ints("begin"), ints("size")], slice_by_size, Work::Moves),
    OpDef::new(
        "split",
        &[any("x"), ints("num_splits").optional(), ints("split_sizes").optional(), ints("axis")],
        split,
        Work::Moves,
    ),
    // Absent axes: every axis of extent 1.
    OpDef::new("squeeze", &[any("x"), ints("axes").optional()], squeeze, Work::Moves),
    OpDef::new("stack", &[any("values").variadic(), ints("axis")], stack, Work::Moves),
    OpDef::new("tile", &[any("x"), ints("reps")], tile, Work::Moves),
    OpDef::new("transpose", &[any("x"), ints("perm")], transpose, Work::Moves),
];

/// The slice that `slice_by_index` or `slice_by_size` takes of one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisSlice {
    /// The first index.
    pub start: usize,
    /// The step; negative goes backwards.
    pub step: isize,
    /// The number of indices.
    pub count: usize,
    /// True if the axis is dropped from the result.
    pub squeeze: bool,
}

impl AxisSlice {
    /// The slices that a `slice_by_index` or `slice_by_size` op takes of the axes of `x`, masks and negative
    /// indices resolved.
    ///
    /// # Errors
    /// Indices that don't fit the shape.
    pub fn of(op: &OpView) -> Result<Vec<Self>, Error> {
        let x = op.ty("x")?;
        match op.kind() {
            "slice_by_size" => Self::by_size(op, x),
            _ => Self::by_index(op, x),
        }
    }

    fn by_size(op: &OpView, x: &TensorType) -> Result<Vec<Self>, Error> {
        let (begin, size) = (op.ints("begin")?, op.ints("size")?);
        if begin.len() != x.rank() || size.len() != x.rank() {
            return Err(op.invalid(format!("begin {begin:?} and size {size:?} don't fit {x}")));
        }
        let axis = |axis: usize| {
            let extent = x.shape[axis] as i64;
            let start = if begin[axis] < 0 { begin[axis] + extent } else { begin[axis] };
            let count = if size[axis] == -1 { extent - start } else { size[axis] };
            let fits = start >= 0 && count >= 0 && start.checked_add(count).is_some_and(|end| end <= extent);
            fits.then_some(AxisSlice {
                start: start as usize,
                step: 1,
                count: count as usize,
                squeeze: false,
            })
        };
        (0..x.rank())
            .map(|at| {
                axis(at).ok_or_else(|| op.invalid(format!("begin {begin:?}, size {size:?} exceed {x}")))
            })
            .collect()
    }

    fn by_index(op: &OpView, x: &TensorType) -> Result<Vec<Self>, Error> {
        let rank = x.rank();
        let (begin, end) = (op.ints("begin")?, op.ints("end")?);
        let stride = op.opt_ints("stride")?.unwrap_or_else(|| vec![1; rank]);
        let mask = |input: &str| Ok::<_, Error>(op.opt_bools(input)?.unwrap_or_else(|| vec![false; rank]));
        let (begin_mask, end_mask, squeeze) = (mask("begin_mask")?, mask("end_mask")?, mask("squeeze_mask")?);
        let lengths = [begin.len(), end.len(), stride.len(), begin_mask.len(), end_mask.len(), squeeze.len()];
        if lengths.iter().any(|&length| length != rank) {
            return Err(op.invalid(format!("begin, end, stride and masks must have {rank} entries for {x}")));
        }
        (0..rank)
            .map(|axis| {
                let extent = x.shape[axis] as i64;
                let wrap = |index: i64| if index < 0 { index.saturating_add(extent) } else { index };
                let step = stride[axis];
                if step == 0 || step == i64::MIN {
                    return Err(op.invalid(format!("stride {stride:?}")));
                }
                let (first, past) = if step > 0 { (0, extent) } else { (extent - 1, -1) };
                let start = if begin_mask[axis] { first } else { wrap(begin[axis]) };
                if squeeze[axis] {
                    if !(0..extent).contains(&start) {
                        return Err(op.invalid(format!("index {} is not in {x}", begin[axis])));
                    }
                    return Ok(AxisSlice { start: start as usize, step: 1, count: 1, squeeze: true });
                }
                let stop = if end_mask[axis] { past } else { wrap(end[axis]) };
                let (low, high) = if step > 0 { (0, extent) } else { (-1, extent - 1) };
                let (start, stop) = (start.clamp(low, high), stop.clamp(low, high));
                let distance = if step > 0 { stop - start } else { start - stop };
                let count = if distance <= 0 { 0 } else { (distance - 1) / step.abs() + 1 };
                let start = usize::try_from(start).unwrap_or(0);
                Ok(AxisSlice { start, step: step as isize, count: count as usize, squeeze: false })
            })
            .collect()
    }
}

fn sliced(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let shape: Vec<usize> =
        AxisSlice::of(op)?.iter().filter(|slice| !slice.squeeze).map(|slice| slice.count).collect();
    Ok(vec![TensorType::new(op.ty("x")?.dtype, shape)])
}

fn slice_by_index(op: &OpView) -> Result<Vec<TensorType>, Error> {
    sliced(op)
}

fn slice_by_size(op: &OpView) -> Result<Vec<TensorType>, Error> {
    sliced(op)
}

fn operand_types<'a>(op: &OpView<'a>) -> Result<Vec<&'a TensorType>, Error> {
    let values = op.arg("values").values();
    let types: Vec<_> = values.iter().map(|&id| &op.function().value(id).ty).collect();
    if types.is_empty() { Err(op.invalid("`values` is empty")) } else { Ok(types) }
}

fn concat(op: &OpView) -> Result<Vec<TensorType>, Error> {
    if op.bool("interleave")? {
        return Err(op.invalid("`interleave` is not supported"));
    }
    let types = operand_types(op)?;
    let axis = op.axis(op.int("axis")?, types[0].rank())?;
    let mut shape = types[0].shape.clone();
    shape[axis] = 0;
    for ty in &types {
        let fits =
            ty.rank() == shape.len() && (0..shape.len()).all(|at| at == axis || ty.shape[at] == shape[at]);
        if !fits {
            return Err(op.invalid(format!("{ty} and {} don't join along axis {axis}", types[0])));
        }
        shape[axis] =
            shape[axis].checked_add(ty.shape[axis]).ok_or_else(|| op.invalid("the result is too large"))?;
    }
    Ok(vec![TensorType::new(types[0].dtype, shape)])
}

fn stack(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let types = operand_types(op)?;
    if types.iter().any(|ty| ty.shape != types[0].shape) {
        return Err(op.invalid("the tensors to stack differ in shape"));
    }
    let axis = op.axis(op.int("axis")?, types[0].rank() + 1)?;
    let mut shape = types[0].shape.clone();
    shape.insert(axis, types.len());
    Ok(vec![TensorType::new(types[0].dtype, shape)])
}

fn split(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let axis = op.axis(op.int("axis")?, x.rank())?;
    let extent = x.shape[axis];
    let sizes: Vec<usize> = match (op.opt_ints("split_sizes")?, op.opt_ints("num_splits")?.as_deref()) {
        (Some(sizes), _) => {
            let sizes: Option<Vec<usize>> = sizes.iter().map(|&size| usize::try_from(size).ok()).collect();
            sizes.unwrap_or_default()
        }
        (None, Some(&[parts])) => match usize::try_from(parts) {
            // Checked before the types are made.
            Ok(parts) if !op.op().outputs.is_empty() && op.op().outputs.len() != parts => {
                return Err(op.invalid(format!("has {} results, not {parts}", op.op().outputs.len())));
            }
            Ok(parts) if (1..=extent).contains(&parts) && extent.is_multiple_of(parts) => {
                vec![extent / parts; parts]
            }
            _ => return Err(op.invalid(format!("{x} does not split into {parts} equal parts"))),
        },
        _ => return Err(op.invalid("`num_splits` or `split_sizes` must be there")),
    };
    let total = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
    if sizes.is_empty() || total != Some(extent) {
        return Err(op.invalid(format!("split_sizes {sizes:?} don't add up to {extent}")));
    }
    let part = |&size: &usize| {
        let mut shape = x.shape.clone();
        shape[axis] = size;
        TensorType::new(x.dtype, shape)
    };
    Ok(sizes.iter().map(part).collect())
}

fn pixel_shuffle(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (x, factor) = (op.ty("x")?, op.int("upscale_factor")?);
    let misfit = || op.invalid(format!("{x} can't be shuffled by a factor of {factor}"));
    let factor = usize::try_from(factor).ok().filter(|&factor| factor > 0).ok_or_else(misfit)?;
    let (&[batch, channels, height, width], Some(square)) = (&x.shape[..], factor.checked_mul(factor)) else {
        return Err(misfit());
    };
    let extents = height.checked_mul(factor).zip(width.checked_mul(factor));
    match extents.filter(|_| channels.is_multiple_of(square)) {
        Some((height, width)) => {
            Ok(vec![TensorType::new(x.dtype, [batch, channels / square, height, width])])
        }
        None => Err(misfit()),
    }
}

fn reshape(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let wanted = op.ints("shape")?;
    let misfit = || op.invalid(format!("{x} can't be reshaped to {wanted:?}"));
    let mut shape = Vec::with_capacity(wanted.len());
    let mut free = None;
    for (axis, &extent) in wanted.iter().enumerate() {
        shape.push(match extent {
            -1 if free.is_none() => {
                free = Some(axis);
                1
            }
            0 if wanted.len() == x.rank() => x.shape[axis],
            extent => usize::try_from(extent).map_err(|_| misfit())?,
        });
    }
    let known = TensorType::new(x.dtype, shape.clone()).checked_count().ok_or_else(misfit)?;
    if let Some(axis) = free {
        if known == 0 || !x.count().is_multiple_of(known) {
            return Err(misfit());
        }
        shape[axis] = x.count() / known;
    } else if known != x.count() {
        return Err(misfit());
    }
    Ok(vec![TensorType::new(x.dtype, shape)])
}

fn transpose(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let shape: Vec<usize> = permutation(op)?.iter().map(|&axis| x.shape[axis]).collect();
    Ok(vec![TensorType::new(x.dtype, shape)])
}

/// The axes of `x` in the order in which a `transpose` op puts them.
///
/// # Errors
/// If `perm` is not a permutation.
pub fn permutation(op: &OpView) -> Result<Vec<usize>, Error> {
    let rank = op.ty("x")?.rank();
    let perm = op.ints("perm")?;
    if resolve_axes(op, &perm, rank)?.len() != rank {
        return Err(op.invalid(format!("perm {perm:?} does not name every one of {rank} axes")));
    }
    perm.iter().map(|&axis| op.axis(axis, rank)).collect()
}

fn expand_dims(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let axes = op.ints("axes")?;
    let axes = resolve_axes(op, &axes, x.rank() + axes.len())?;
    let mut shape = x.shape.clone();
    axes.iter().for_each(|&axis| shape.insert(axis, 1));
    Ok(vec![TensorType::new(x.dtype, shape)])
}

fn squeeze(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let axes = match op.opt_ints("axes")? {
        Some(axes) => resolve_axes(op, &axes, x.rank())?,
        None => (0..x.rank()).filter(|&axis| x.shape[axis] == 1).collect(),
    };
    if let Some(&axis) = axes.iter().find(|&&axis| x.shape[axis] != 1) {
        return Err(op.invalid(format!("axis {axis} of {x} is not 1")));
    }
    let shape: Vec<usize> = x
        .shape
        .iter()
        .enumerate()
        .filter(|(axis, _)| !axes.contains(axis))
        .map(|(_, &extent)| extent)
        .collect();
    Ok(vec![TensorType::new(x.dtype, shape)])
}

fn tile(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let reps = op.ints("reps")?;
    if reps.len() != x.rank() {
        return Err(op.invalid(format!("reps {reps:?} don't fit {x}")));
    }
    let shape =
        x.shape.iter().zip(&reps).map(|(&extent, &times)| extent.checked_mul(usize::try_from(times).ok()?));
    let shape: Option<Vec<usize>> = shape.collect();
    Ok(vec![TensorType::new(x.dtype, shape.ok_or_else(|| op.invalid(format!("reps {reps:?}")))?)])
}

fn fill(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let shape: Option<Vec<usize>> =
        op.ints("shape")?.iter().map(|&extent| usize::try_from(extent).ok()).collect();
    let shape = shape.ok_or_else(|| op.invalid("`shape` has a negative extent"))?;
    let dtype = match op.get("value") {
        Some(_) => op.ty("value")?.dtype,
        None => DType::F32,
    };
    Ok(vec![TensorType::new(dtype, shape)])
}
