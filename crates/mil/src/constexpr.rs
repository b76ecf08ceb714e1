//! Decoding of the constexpr ops: the scalar definition of every compressed encoding.
//!
//! [`decoded`] replaces the ops by constants that are decoded when they are read. A program then runs on any
//! executor, and its weights stay compressed in memory.

mod encoded;

use half::f16;

pub use encoded::{blockwise_shift_scale, encoded, lut_to_dense};

use crate::weights::{BlockEncoding, Encoding};
use crate::{Bytes, Constant, DType, Def, Error, Function, OpView, TensorType, ValueId, WeightRef};

/// The function with every constexpr op replaced by a constant, which decodes when it is read.
///
/// ```text
/// w = constexpr_lut_to_dense()[indices = .., lut = ..]      w = const()[..]
/// y = conv(weight = w, x = x)                           ->  y = conv(weight = w, x = x)
/// ```
///
/// # Errors
/// [`Error::NotConst`] if an operand is computed at run time, [`Error::Weight`] if one can't be read.
pub fn decoded(function: &Function) -> Result<Function, Error> {
    let mut out = function.clone();
    if function.ops.iter().all(|op| !op.def.is_constexpr()) {
        return Ok(out);
    }
    let mut results: Vec<Option<WeightRef>> = vec![None; function.values.len()];
    for op in function.ops.iter().filter(|op| op.def.is_constexpr()) {
        let view = function.view(op);
        let weights = decoded_op(&view, &|id| results[id.index()].clone())?;
        for (&id, weight) in op.outputs.iter().zip(weights) {
            results[id.index()] = Some(weight.clone());
            out.values[id.index()].def = Def::Const(Constant::Weight(weight));
        }
    }
    out.ops.retain(|op| !op.def.is_constexpr());
    Ok(out)
}

/// The results of one constexpr op, which decode when they are read. `result` gives those of other constexpr
/// ops.
///
/// # Errors
/// Those of [`decoded`].
pub fn decoded_op(
    op: &OpView,
    result: &dyn Fn(ValueId) -> Option<WeightRef>,
) -> Result<Vec<WeightRef>, Error> {
    let mut types = op.op().def.infer(op)?;
    let ty = types.pop().ok_or_else(|| op.invalid("has no result"))?;
    let operand = |input: &str| operand(op, input, result);
    let encoding = match op.kind() {
        "constexpr_cast" => return Ok(vec![operand("source_val")?.cast(ty.dtype)]),
        "constexpr_lut_to_sparse" => {
            let blocks = BlockEncoding::Lut(operand("lut")?);
            return nonzero(op, ty, operand("indices_nonzero_data")?, operand("indices_mask")?, blocks);
        }
        "constexpr_sparse_blockwise_shift_scale" => {
            let offset = op.get("offset").map(|_| operand("offset")).transpose()?;
            let blocks = BlockEncoding::ShiftScale { scale: operand("scale")?, offset };
            return nonzero(op, ty, operand("nonzero_data")?, operand("data_mask")?, blocks);
        }
        "constexpr_affine_dequantize" => {
            let data = operand("quantized_data")?;
            let axis = op.axis(op.int("axis")?, data.ty().rank())?;
            let along_axis = |weight: WeightRef| {
                let mut shape = vec![1; data.ty().rank()];
                shape[axis] = weight.ty().count();
                weight.reshape(shape)
            };
            let (scale, offset) = (along_axis(operand("scale")?)?, along_axis(operand("zero_point")?)?);
            Encoding::ShiftScale { data, scale, offset: Some(offset) }
        }
        "constexpr_blockwise_shift_scale" => {
            let offset = op.get("offset").map(|_| operand("offset")).transpose()?;
            Encoding::ShiftScale { data: operand("data")?, scale: operand("scale")?, offset }
        }
        "constexpr_lut_to_dense" => {
            let (indices, lut) = (operand("indices")?, operand("lut")?);
            if op.get("shape").is_some() {
                let entries = lut.ty().count();
                let lut = lut.reshape([vec![1; ty.rank()], vec![entries, 1]].concat())?;
                let (shape, bits) = (ty.shape.clone(), entries.ilog2() as usize);
                Encoding::Lut { indices, bits, shape, lut, vector_axis: 0 }
            } else {
                let (shape, bits) = (indices.ty().shape.clone(), indices.ty().dtype.bits());
                let vector_axis = match op.get("vector_axis") {
                    Some(_) => op.axis(op.int("vector_axis")?, shape.len())?,
                    None => 0,
                };
                Encoding::Lut { indices, bits, shape, lut, vector_axis }
            }
        }
        "constexpr_sparse_to_dense" => {
            let (values, mask, count) = (operand("nonzero_data")?, operand("mask")?, ty.count());
            let set = set_bits(&mask.read_stored(), count);
            if values.ty().shape != [set] {
                return Err(op.invalid(format!("{} does not fit a mask with {set} bits set", values.ty())));
            }
            Encoding::Sparse { values, mask, count }
        }
        other => return Err(op.invalid(format!("`{other}` is not decoded"))),
    };
    Ok(vec![WeightRef::encoded(&name(op, &encoding), ty, encoding)])
}

/// The mask and the nonzero elements of a sparse tensor.
fn nonzero(
    op: &OpView,
    ty: TensorType,
    values: WeightRef,
    mask: WeightRef,
    blocks: BlockEncoding,
) -> Result<Vec<WeightRef>, Error> {
    let set = set_bits(&mask.read_stored(), mask.ty().count());
    if values.ty().count() != set {
        return Err(op.invalid(format!("{} do not fit a mask with {set} bits set", values.ty())));
    }
    let encoding = Encoding::Nonzero { values, mask: mask.clone(), blocks };
    Ok(vec![mask, WeightRef::encoded(&name(op, &encoding), ty, encoding)])
}

/// The name of the decoded constant: that of its elements, unless these are called after their place in the
/// op.
fn name(op: &OpView, encoding: &Encoding) -> String {
    let result = op.op().outputs.first().map_or("", |&id| &op.function().value(id).name);
    let elements = encoding.elements().name();
    match elements.strip_prefix(result).is_some_and(|rest| rest.starts_with('_')) {
        true => result.to_string(),
        false => elements.to_string(),
    }
}

/// An operand as stored bytes: a constant, or the result of another constexpr op.
fn operand(
    op: &OpView,
    input: &str,
    result: &dyn Fn(ValueId) -> Option<WeightRef>,
) -> Result<WeightRef, Error> {
    let id = op.value(input)?;
    let value = op.function().value(id);
    let weight = match &value.def {
        Def::Const(Constant::Weight(weight)) => weight.clone(),
        Def::Const(Constant::Literal(literal)) => {
            let bytes = literal.bytes().unwrap_or_default().to_vec();
            WeightRef::new(value.name.clone(), literal.ty().clone(), Bytes::new(bytes))?
        }
        _ => result(id).ok_or_else(|| Error::NotConst { op: op.label(), input: input.to_string() })?,
    };
    // A cast is applied now, for decoding works on stored elements. So is a chain deeper than any tool makes,
    // so that reading does not recurse far.
    if weight.ty().dtype != weight.stored_dtype() || weight.encoding_depth() >= 4 {
        let bytes = weight.read()?.into_owned();
        return Ok(WeightRef::new(weight.name(), weight.ty().clone(), Bytes::new(bytes))?);
    }
    Ok(weight)
}

/// Checks that every operand of a constexpr op is a constant or the result of another.
pub(crate) fn check_operands(function: &Function) -> Result<(), Error> {
    let mut constant: Vec<bool> =
        function.values.iter().map(|value| matches!(value.def, Def::Const(_))).collect();
    for op in function.ops.iter().filter(|op| op.def.is_constexpr()) {
        for (param, arg) in op.def.params.iter().zip(&op.args) {
            if arg.values().iter().any(|id| !constant[id.index()]) {
                let op = function.view(op).label();
                return Err(Error::NotConst { op, input: param.name.to_string() });
            }
        }
        op.outputs.iter().for_each(|id| constant[id.index()] = true);
    }
    Ok(())
}

/// The number of set bits among the first `count` of a constant.
pub(crate) fn count_set(op: &OpView, input: &str, count: usize) -> Result<usize, Error> {
    let weight = operand(op, input, &|_| None)?;
    Ok(set_bits(&weight.read_stored(), count))
}

fn set_bits(bytes: &[u8], count: usize) -> usize {
    let whole: usize = bytes[..count / 8].iter().map(|byte| byte.count_ones() as usize).sum();
    whole + (count / 8 * 8..count).filter(|&at| bits_at(bytes, 1, at) == 1).count()
}

impl Encoding {
    /// The elements, row-major, little-endian. The op table has checked that the operands fit.
    pub(crate) fn decode(&self) -> Vec<u8> {
        match self {
            Encoding::Lut { indices, bits, shape, lut, vector_axis } => {
                let table = lut.read_stored();
                let decode = match lut.stored_dtype().bits() {
                    8 => look_up::<1>,
                    16 => look_up::<2>,
                    _ => look_up::<4>,
                };
                decode(&indices.read_stored(), *bits, shape, &table, &lut.ty().shape, *vector_axis)
            }
            Encoding::ShiftScale { data, scale, offset } => shift_scale(data, scale, offset.as_ref()),
            Encoding::Sparse { values, mask, count } => {
                let width = values.stored_dtype().bits() / 8;
                spread(&values.read_stored(), width, &mask.read_stored(), *count)
            }
            Encoding::Nonzero { values, mask, blocks } => decode_nonzero(values, mask, blocks),
        }
    }
}

/// The elements of the whole tensor where a bit of `mask` is set, decoded in their blocks.
fn decode_nonzero(values: &WeightRef, mask: &WeightRef, blocks: &BlockEncoding) -> Vec<u8> {
    let (shape, count) = (mask.ty().shape.clone(), mask.ty().count());
    let (set, bits) = (mask.read_stored(), values.stored_dtype().bits());
    let placed = spread_bits(&values.read_stored(), bits, &set, count);
    let ty = TensorType::new(values.stored_dtype(), shape.clone());
    let Ok(whole) = WeightRef::new(values.name(), ty, Bytes::new(placed)) else { return Vec::new() };
    let (dense, width) = match blocks {
        BlockEncoding::Lut(lut) => {
            let width = lut.stored_dtype().bits() / 8;
            let encoding = Encoding::Lut { indices: whole, bits, shape, lut: lut.clone(), vector_axis: 0 };
            (encoding.decode(), width)
        }
        BlockEncoding::ShiftScale { scale, offset } => {
            (shift_scale(&whole, scale, offset.as_ref()), scale.stored_dtype().bits() / 8)
        }
    };
    let elements = dense.chunks_exact(width).enumerate();
    elements.filter(|(at, _)| bits_at(&set, 1, *at) == 1).flat_map(|(_, element)| element).copied().collect()
}

/// A stream of `count` elements of `bits` bits: the next of `values` where `mask` is set, zero elsewhere.
fn spread_bits(values: &[u8], bits: usize, mask: &[u8], count: usize) -> Vec<u8> {
    let mut out = vec![0; (count * bits).div_ceil(8)];
    if bits.is_multiple_of(8) {
        return spread(values, bits / 8, mask, count);
    }
    for (next, at) in (0..count).filter(|&at| bits_at(mask, 1, at) == 1).enumerate() {
        let code = bits_at(values, bits, next);
        let position = at * bits;
        let wide = code << (position % 8);
        out[position / 8] |= wide as u8;
        if let Some(high) = out.get_mut(position / 8 + 1) {
            *high |= (wide >> 8) as u8;
        }
    }
    out
}

/// Element `at` of a stream of `bits`-bit unsigned integers (at most 8 bits each), least significant bit
/// first.
#[inline(always)]
fn bits_at(bytes: &[u8], bits: usize, at: usize) -> usize {
    let position = at * bits;
    let low = usize::from(bytes[position / 8]);
    let high = bytes.get(position / 8 + 1).map_or(0, |&byte| usize::from(byte) << 8);
    (low | high) >> (position % 8) & ((1 << bits) - 1)
}

/// The runs of row-major elements of `shape` that lie in one block: the length of a run, and the row-major
/// index of the block in which the run from a given element lies.
struct Blocks<'a> {
    shape: &'a [usize],
    blocks: &'a [usize],
    run: usize,
}

impl<'a> Blocks<'a> {
    fn new(shape: &'a [usize], blocks: &'a [usize]) -> Self {
        let run = match blocks.iter().rposition(|&blocks| blocks > 1) {
            Some(axis) => shape[axis..].iter().product::<usize>() / blocks[axis],
            None => shape.iter().product(),
        };
        Blocks { shape, blocks, run: run.max(1) }
    }

    fn block(&self, element: usize) -> usize {
        let mut stride: usize = self.shape.iter().product();
        let mut rest = element;
        let mut block = 0;
        for (&extent, &blocks) in self.shape.iter().zip(self.blocks) {
            stride /= extent;
            block = block * blocks + rest / stride / (extent / blocks);
            rest %= stride;
        }
        block
    }
}

/// Elements of `W` bytes. `lut` has the blocks of each axis, then entries, then values of a vector.
fn look_up<const W: usize>(
    indices: &[u8],
    bits: usize,
    shape: &[usize],
    table: &[u8],
    lut: &[usize],
    axis: usize,
) -> Vec<u8> {
    let table = table.as_chunks::<W>().0;
    let (blocks, vector) = (Blocks::new(shape, &lut[..shape.len()]), lut[shape.len() + 1]);
    let row = lut[shape.len()] * vector;
    let count: usize = shape.iter().product();
    let inner: usize = shape.iter().skip(axis + 1).product();
    let mut out = vec![[0; W]; count * vector];
    for start in (0..count).step_by(blocks.run) {
        let palette = &table[blocks.block(start) * row..][..row];
        if vector == 1 {
            look_up_run(&mut out[start..start + blocks.run], palette, indices, bits, start);
            continue;
        }
        for element in start..start + blocks.run {
            let entry = bits_at(indices, bits, element) * vector;
            let (outer, along) = (element / inner, element % inner);
            for (place, value) in palette[entry..entry + vector].iter().enumerate() {
                out[(outer * vector + place) * inner + along] = *value;
            }
        }
    }
    out.into_flattened()
}

/// Looks up the single values of one block, whose first element is `start`.
fn look_up_run<const W: usize>(
    out: &mut [[u8; W]],
    palette: &[[u8; W]],
    indices: &[u8],
    bits: usize,
    start: usize,
) {
    // One arm for each width, so that shifts and masks are constants.
    macro_rules! widths {
        ($($width:literal)*) => {
            match bits {
                $($width => out.iter_mut().enumerate().for_each(|(at, value)| {
                    *value = palette[bits_at(indices, $width, start + at)];
                }),)*
                _ => {}
            }
        };
    }
    widths!(1 2 3 4 6 8);
}

/// scale * (data - offset), every step rounded to the type of `scale`.
fn shift_scale(data: &WeightRef, scale: &WeightRef, offset: Option<&WeightRef>) -> Vec<u8> {
    let half = scale.stored_dtype() == DType::F16;
    let round = |value: f32| if half { f16::from_f32(value).to_f32() } else { value };
    let shape = &data.ty().shape;
    let elements = Numbers::new(data);
    let (scales, offsets) = (Numbers::new(scale), offset.map(Numbers::new));
    let scale_blocks = Blocks::new(shape, &scale.ty().shape);
    let offset_blocks = offset.map(|offset| Blocks::new(shape, &offset.ty().shape));
    let count: usize = shape.iter().product();
    let mut out = Vec::with_capacity(count * if half { 2 } else { 4 });
    // Both have the same blocks, or one has a single one.
    let run = scale_blocks.run.min(offset_blocks.as_ref().map_or(usize::MAX, |blocks| blocks.run));
    for start in (0..count).step_by(run) {
        let factor = scales.at(scale_blocks.block(start));
        let shift = match (&offsets, &offset_blocks) {
            (Some(offsets), Some(blocks)) => round(offsets.at(blocks.block(start))),
            _ => 0.0,
        };
        for element in start..start + run {
            let value = round(factor * round(round(elements.at(element)) - shift));
            match half {
                true => out.extend(f16::from_f32(value).to_le_bytes()),
                false => out.extend(value.to_le_bytes()),
            }
        }
    }
    out
}

/// The elements of an operand of a constexpr op as they are stored, as numbers: floats, and integers of up to
/// 8 bits.
pub fn numbers(operand: &WeightRef) -> Vec<f32> {
    let numbers = Numbers::new(operand);
    (0..operand.ty().count()).map(|index| numbers.at(index)).collect()
}

/// Stored elements as numbers.
struct Numbers<'a> {
    bytes: std::borrow::Cow<'a, [u8]>,
    dtype: DType,
}

impl<'a> Numbers<'a> {
    fn new(weight: &'a WeightRef) -> Self {
        Numbers { bytes: weight.read_stored(), dtype: weight.stored_dtype() }
    }

    fn at(&self, index: usize) -> f32 {
        let bytes = &self.bytes;
        match self.dtype {
            DType::I8 => (bytes[index] as i8).into(),
            DType::I4 => {
                let nibble = bits_at(bytes, 4, index) as i8;
                (nibble << 4 >> 4).into()
            }
            DType::F16 => f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32(),
            DType::F32 => {
                let at = 4 * index;
                f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            }
            dtype => bits_at(bytes, dtype.bits(), index) as f32,
        }
    }
}

/// The next of `values` where a bit of `mask` is set, zero elsewhere.
fn spread(values: &[u8], width: usize, mask: &[u8], count: usize) -> Vec<u8> {
    let mut out = vec![0; count * width];
    let mut values = values.chunks_exact(width);
    for (at, place) in out.chunks_exact_mut(width).enumerate() {
        if bits_at(mask, 1, at) == 1
            && let Some(value) = values.next()
        {
            place.copy_from_slice(value);
        }
    }
    out
}

#[cfg(test)]
mod tests;
