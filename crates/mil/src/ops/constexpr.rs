//! Compressed constants: ops that are decoded when a program is compiled. `crate::constexpr` decodes them.

use super::{OpDef, Param, Work, ints, string};
use crate::{DType, Def, Error, OpView, Opset, TensorType};

const BYTES: &[DType] = &[DType::I8, DType::U8];
const SMALL: &[DType] = &[DType::I4, DType::U4, DType::I8, DType::U8, DType::F16, DType::F32];
const INDICES: &[DType] = &[DType::U1, DType::U2, DType::U3, DType::U4, DType::U6, DType::U8];
const FLOATS: &[DType] = &[DType::F16, DType::F32];

const fn shape() -> Param {
    Param::new("shape", &[DType::U32, DType::I32]).constant().optional()
}

// Operands are constants or results of other constexpr ops. With a `shape`, an op has the iOS 16 form, in
// which packed elements are bytes; without, the iOS 18 form.
pub(super) static OPS: &[OpDef] = &[
    // scale * (quantized_data - zero_point); both are scalars, or vectors along `axis`.
    OpDef::new(
        "constexpr_affine_dequantize",
        &[
            Param::new("quantized_data", BYTES),
            Param::new("zero_point", BYTES),
            Param::new("scale", FLOATS),
            ints("axis"),
        ],
        affine_dequantize,
        Work::Elements,
    )
    .since(Opset::Ios16),
    // scale * (data - offset), each element of scale and offset for a block of data.
    OpDef::new(
        "constexpr_blockwise_shift_scale",
        &[Param::new("data", SMALL), Param::new("scale", FLOATS), Param::new("offset", SMALL).optional()],
        blockwise_shift_scale,
        Work::Elements,
    )
    .since(Opset::Ios18),
    OpDef::new(
        "constexpr_cast",
        &[Param::new("source_val", &[DType::F16, DType::BF16]), string("output_dtype")],
        cast,
        Work::Elements,
    )
    .since(Opset::Ios16),
    // lut[indices]: one table for all, or one for each block, of single values or of vectors along
    // `vector_axis`.
    OpDef::new(
        "constexpr_lut_to_dense",
        &[
            Param::new("indices", INDICES),
            Param::new("lut", &[DType::F16, DType::F32, DType::I8, DType::U8]),
            shape(),
            ints("vector_axis").optional().since(Opset::Ios18),
        ],
        lut_to_dense,
        Work::Elements,
    )
    .since(Opset::Ios16),
    // The nonzero elements of a sparse tensor by index: the blocks of `lut` are those of the whole tensor.
    // The results are the mask and the elements, for constexpr_sparse_to_dense or another op of its kind.
    OpDef::new(
        "constexpr_lut_to_sparse",
        &[
            Param::new("indices_mask", &[DType::U1]),
            Param::new("indices_nonzero_data", INDICES),
            Param::new("lut", &[DType::F16, DType::F32, DType::I8, DType::U8]),
            ints("vector_axis").optional(),
        ],
        lut_to_sparse,
        Work::Elements,
    )
    .since(Opset::Ios18),
    // scale * (nonzero_data - offset) for the nonzero elements, in the way of constexpr_lut_to_sparse.
    OpDef::new(
        "constexpr_sparse_blockwise_shift_scale",
        &[
            Param::new("data_mask", &[DType::U1]),
            Param::new("nonzero_data", SMALL),
            Param::new("scale", FLOATS),
            Param::new("offset", SMALL).optional(),
        ],
        sparse_blockwise_shift_scale,
        Work::Elements,
    )
    .since(Opset::Ios18),
    // The next of nonzero_data where a bit of `mask` is set, else 0.
    OpDef::new(
        "constexpr_sparse_to_dense",
        &[
            Param::new("nonzero_data", &[DType::F16, DType::F32, DType::I8, DType::U8]),
            Param::new("mask", &[DType::U1, DType::U8]),
            shape(),
        ],
        sparse_to_dense,
        Work::Elements,
    )
    .since(Opset::Ios16),
];

/// The shape of a result in the iOS 16 form, or `None` in the iOS 18 form, which needs that opset.
fn declared_shape(op: &OpView) -> Result<Option<Vec<usize>>, Error> {
    let Some(shape) = op.opt_ints("shape")? else {
        return match op.function().opset {
            has if has >= Opset::Ios18 => Ok(None),
            has => Err(Error::Opset {
                op: op.label(),
                what: format!("{} without `shape`", op.kind()),
                needs: Opset::Ios18,
                has,
            }),
        };
    };
    let shape: Option<Vec<usize>> = shape.iter().map(|&extent| usize::try_from(extent).ok()).collect();
    shape.map(Some).ok_or_else(|| op.invalid("`shape` has a negative extent"))
}

fn affine_dequantize(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (data, zero_point, scale) = (op.ty("quantized_data")?, op.ty("zero_point")?, op.ty("scale")?);
    let axis = op.axis(op.int("axis")?, data.rank())?;
    let fits = |shape: &[usize]| shape.is_empty() || shape == &data.shape[axis..=axis];
    if zero_point.dtype != data.dtype || !fits(&zero_point.shape) || !fits(&scale.shape) {
        let what = format!("zero_point {zero_point} or scale {scale} doesn't fit axis {axis} of {data}");
        return Err(op.invalid(what));
    }
    Ok(vec![data.with_dtype(scale.dtype)])
}

fn blockwise_shift_scale(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (data, scale) = (op.ty("data")?, op.ty("scale")?);
    check_blocks(op, "scale", &scale.shape, &data.shape)?;
    if op.get("offset").is_some() && op.ty("offset")?.shape != scale.shape {
        return Err(op.invalid(format!("offset {} does not fit scale {scale}", op.ty("offset")?)));
    }
    Ok(vec![data.with_dtype(scale.dtype)])
}

/// Checks that every axis of `whole` divides into `blocks` equal blocks.
fn check_blocks(op: &OpView, input: &str, blocks: &[usize], whole: &[usize]) -> Result<(), Error> {
    let fits = |(&blocks, &extent): (&usize, &usize)| blocks > 0 && extent.is_multiple_of(blocks);
    if blocks.len() != whole.len() || !blocks.iter().zip(whole).all(fits) {
        return Err(op.invalid(format!("`{input}` divides {whole:?} into {blocks:?} blocks")));
    }
    Ok(())
}

fn cast(op: &OpView) -> Result<Vec<TensorType>, Error> {
    match op.str("output_dtype")?.as_str() {
        "fp32" => Ok(vec![op.ty("source_val")?.with_dtype(DType::F32)]),
        other => Err(op.invalid(format!("`output_dtype` can't be `{other}`, only `fp32`"))),
    }
}

fn lut_to_dense(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (indices, lut) = (op.ty("indices")?, op.ty("lut")?);
    if let Some(shape) = declared_shape(op)? {
        let bits = [1, 2, 4, 6, 8].into_iter().find(|&bits| lut.shape == [1 << bits]);
        let bits = bits.ok_or_else(|| op.invalid(format!("lut {lut} has not 2, 4, 16, 64 or 256 values")))?;
        check_packed(op, "indices", bits, &shape)?;
        return Ok(vec![TensorType::new(lut.dtype, shape)]);
    }
    let rank = indices.rank();
    let Some((blocks, &[entries, vector])) = lut.shape.split_at_checked(rank) else {
        return Err(op.invalid(format!("lut {lut} must have two axes more than indices {indices}")));
    };
    check_blocks(op, "lut", blocks, &indices.shape)?;
    if entries != 1 << indices.dtype.bits() || vector == 0 {
        return Err(op.invalid(format!("lut {lut} has {entries} entries for indices {indices}")));
    }
    let mut shape = indices.shape.clone();
    match op.get("vector_axis") {
        Some(_) => {
            let axis = op.axis(op.int("vector_axis")?, rank)?;
            let extent = shape[axis].checked_mul(vector);
            shape[axis] = extent.ok_or_else(|| op.invalid("the result is too large"))?;
        }
        None if vector == 1 => {}
        None => return Err(op.invalid("`vector_axis` is missing, but the lut holds vectors")),
    }
    Ok(vec![TensorType::new(lut.dtype, shape)])
}

fn lut_to_sparse(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (mask, indices, lut) = (op.ty("indices_mask")?, op.ty("indices_nonzero_data")?, op.ty("lut")?);
    let Some((blocks, &[entries, vector])) = lut.shape.split_at_checked(mask.rank()) else {
        return Err(op.invalid(format!("lut {lut} must have two axes more than indices_mask {mask}")));
    };
    check_blocks(op, "lut", blocks, &mask.shape)?;
    if entries != 1 << indices.dtype.bits() || vector != 1 {
        return Err(op.invalid(format!("lut {lut} is not one of single values for indices {indices}")));
    }
    sparse(op, mask, indices, lut.dtype)
}

fn sparse_blockwise_shift_scale(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (mask, data, scale) = (op.ty("data_mask")?, op.ty("nonzero_data")?, op.ty("scale")?);
    check_blocks(op, "scale", &scale.shape, &mask.shape)?;
    if op.get("offset").is_some() && op.ty("offset")?.shape != scale.shape {
        return Err(op.invalid(format!("offset {} does not fit scale {scale}", op.ty("offset")?)));
    }
    sparse(op, mask, data, scale.dtype)
}

/// The results of an op of sparse tensors: the mask, and as many elements as were given.
fn sparse(op: &OpView, mask: &TensorType, data: &TensorType, dtype: DType) -> Result<Vec<TensorType>, Error> {
    if data.rank() != 1 {
        return Err(op.invalid(format!("nonzero elements {data} are not a vector")));
    }
    Ok(vec![mask.clone(), data.with_dtype(dtype)])
}

fn sparse_to_dense(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (data, mask) = (op.ty("nonzero_data")?, op.ty("mask")?);
    let shape = match declared_shape(op)? {
        Some(shape) => {
            check_packed(op, "mask", 1, &shape)?;
            shape
        }
        None if mask.dtype == DType::U1 => mask.shape.clone(),
        None => return Err(op.invalid(format!("mask {mask} must be uint1"))),
    };
    // A mask that another op gives on is counted when it is decoded.
    let is_constant = matches!(op.function().value(op.value("mask")?).def, Def::Const(_));
    if is_constant {
        let set = crate::constexpr::count_set(op, "mask", shape.iter().product())?;
        if data.shape != [set] {
            return Err(op.invalid(format!("nonzero_data {data} does not fit a mask with {set} bits set")));
        }
    }
    Ok(vec![TensorType::new(data.dtype, shape)])
}

/// Checks the iOS 16 form: a byte vector with one element of `bits` bits for each of `shape`.
fn check_packed(op: &OpView, input: &str, bits: usize, shape: &[usize]) -> Result<(), Error> {
    let ty = op.ty(input)?;
    let count = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    let bytes = count.and_then(|count| count.checked_mul(bits)).map(|bits| bits.div_ceil(8));
    match (ty.dtype, &ty.shape[..], bytes) {
        (DType::U8, &[found], Some(bytes)) if found == bytes => Ok(()),
        _ => Err(op.invalid(format!("`{input}` {ty} does not hold {shape:?} elements of {bits} bits"))),
    }
}
