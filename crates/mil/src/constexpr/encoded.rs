//! Encoding: compressed constants as the constexpr ops of files.

use std::collections::HashSet;

use crate::ops::lookup;
use crate::weights::Encoding;
use crate::{
    Arg, Builder, Constant, DType, Def, Error, Function, Literal, Op, Opset, TensorType, ValueId,
    WeightError, WeightRef,
};

/// A tensor of table entries. `indices` has a type of 1, 2, 3, 4, 6 or 8 bits. `lut` has two axes more: the
/// blocks of each axis of `indices`, then the entries, then 1.
///
/// # Errors
/// [`Error::Invalid`] if shapes or types don't fit.
pub fn lut_to_dense(name: &str, indices: WeightRef, lut: WeightRef) -> Result<WeightRef, Error> {
    let mut b = Builder::new("main", Opset::Ios18);
    let (indices, lut) = (b.weight(indices), b.weight(lut));
    let result = b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut).add()?;
    constant_of(name, b.finish(&[result])?, result)
}

/// A tensor of `scale * (data - offset)`. `scale` and `offset` have one element for each block of `data`.
///
/// # Errors
/// [`Error::Invalid`] if shapes or types don't fit.
pub fn blockwise_shift_scale(
    name: &str,
    data: WeightRef,
    scale: WeightRef,
    offset: Option<WeightRef>,
) -> Result<WeightRef, Error> {
    let mut b = Builder::new("main", Opset::Ios18);
    let (data, scale) = (b.weight(data), b.weight(scale));
    let offset = offset.map(|offset| b.weight(offset));
    let op = b.op("constexpr_blockwise_shift_scale").arg("data", data).arg("scale", scale);
    let result = op.maybe("offset", offset).add()?;
    constant_of(name, b.finish(&[result])?, result)
}

fn constant_of(name: &str, function: Function, result: ValueId) -> Result<WeightRef, Error> {
    match &super::decoded(&function)?.value(result).def {
        Def::Const(Constant::Weight(weight)) => Ok(weight.renamed(name)),
        _ => Err(Error::Graph(format!("`{name}` is not decoded"))),
    }
}

/// The function with every compressed constant as the result of a constexpr op, for files: the counterpart of
/// [`decoded`](super::decoded).
///
/// The ops have the form of the function's opset, and stand before their first use. The operand with the
/// elements keeps the name of the decoded constant.
///
/// # Errors
/// [`Error::Opset`] for an encoding that is newer than the function's opset, [`Error::Weight`] for a view of
/// an encoding that no op expresses.
pub fn encoded(function: &Function) -> Result<Function, Error> {
    let mut writer = Writer::new(function);
    for op in &function.ops {
        for &id in op.args.iter().flat_map(Arg::values) {
            writer.constant(id)?;
        }
        writer.out.ops.push(op.clone());
    }
    for &id in &function.outputs {
        writer.constant(id)?;
    }
    Ok(writer.out)
}

struct Writer {
    out: Function,
    names: HashSet<String>,
}

impl Writer {
    fn new(function: &Function) -> Self {
        let out = Function { ops: Vec::with_capacity(function.ops.len()), ..function.clone() };
        Writer { names: out.values.iter().map(|value| value.name.clone()).collect(), out }
    }

    /// Makes a constant the result of an op, if it is compressed.
    fn constant(&mut self, id: ValueId) -> Result<(), Error> {
        let Def::Const(Constant::Weight(weight)) = &self.out.value(id).def else { return Ok(()) };
        let weight = weight.clone();
        if let Some(encoding) = weight.encoding() {
            self.encoding(id, &weight, encoding)?;
            self.out.values[id.index()].def = Def::Result;
        }
        Ok(())
    }

    /// The op that makes value `id`.
    fn encoding(&mut self, id: ValueId, weight: &WeightRef, encoding: &Encoding) -> Result<(), Error> {
        match encoding {
            Encoding::Lut { indices, bits, shape, lut, vector_axis } => {
                let (blocks, row) = lut.ty().shape.split_at(shape.len());
                let blocks = blocks_seen(weight, shape, blocks)?;
                let lut = lut.cast(weight.ty().dtype);
                let is_flat = blocks.iter().all(|&blocks| blocks == 1) && lut.encoding().is_none();
                if self.out.opset < Opset::Ios18 {
                    if !is_flat || row[1] != 1 || *bits == 3 {
                        return Err(self.too_new(id, "constexpr_lut_to_dense without `shape`"));
                    }
                    return self.flat_lut(id, weight, indices, &lut);
                }
                if row[1] != 1 && *shape != weight.ty().shape {
                    return Err(unseen(weight));
                }
                let seen = if row[1] == 1 { weight.ty().shape.clone() } else { shape.clone() };
                let dtype = index_type(*bits).ok_or_else(|| unseen(weight))?;
                let indices = indices.reinterpreted(TensorType::new(dtype, seen))?.renamed(weight.name());
                let mut args = vec![
                    ("indices", self.operand(id, "indices", Constant::Weight(indices))),
                    ("lut", self.table(id, lut.reshape([&blocks[..], row].concat())?)?),
                ];
                if row[1] != 1 {
                    let axis = Constant::Literal(Literal::int(*vector_axis as i32));
                    args.push(("vector_axis", self.operand(id, "vector_axis", axis)));
                }
                self.op("constexpr_lut_to_dense", args, id)
            }
            Encoding::ShiftScale { data, scale, offset } => {
                let own = &data.ty().shape;
                let blocks = blocks_seen(weight, own, &scale.ty().shape)?;
                let scale = scale.cast(weight.ty().dtype).reshape(blocks)?;
                let offset = match offset {
                    Some(offset) => Some(offset.reshape(blocks_seen(weight, own, &offset.ty().shape)?)?),
                    None => None,
                };
                let data = data.reshape(weight.ty().shape.clone())?.renamed(weight.name());
                if self.out.opset < Opset::Ios18 {
                    return self.affine(id, data, &scale, offset.as_ref());
                }
                let mut args = vec![
                    ("data", self.part(id, "data", data)?),
                    ("scale", self.operand(id, "scale", in_place(&scale)?)),
                ];
                if let Some(offset) = &offset {
                    args.push(("offset", self.operand(id, "offset", in_place(offset)?)));
                }
                self.op("constexpr_blockwise_shift_scale", args, id)
            }
            Encoding::Sparse { .. } | Encoding::Nonzero { .. } => Err(unseen(weight)),
        }
    }

    /// The iOS 16 form of one table for all elements.
    fn flat_lut(
        &mut self,
        id: ValueId,
        weight: &WeightRef,
        indices: &WeightRef,
        lut: &WeightRef,
    ) -> Result<(), Error> {
        let bytes = TensorType::new(DType::U8, [indices.stored_len()]);
        let indices = indices.reinterpreted(bytes)?.renamed(weight.name());
        let extents = &weight.ty().shape;
        let bytes = extents.iter().flat_map(|&extent| (extent as u32).to_le_bytes()).collect();
        let shape = literal(TensorType::new(DType::U32, [extents.len()]), bytes)?;
        let table = in_place(&lut.reshape([lut.ty().count()])?)?;
        let args = vec![
            ("indices", self.operand(id, "indices", Constant::Weight(indices))),
            ("lut", self.operand(id, "lut", table)),
            ("shape", self.operand(id, "shape", shape)),
        ];
        self.op("constexpr_lut_to_dense", args, id)
    }

    /// The iOS 16 form of bytes with scales along at most one axis.
    fn affine(
        &mut self,
        id: ValueId,
        data: WeightRef,
        scale: &WeightRef,
        offset: Option<&WeightRef>,
    ) -> Result<(), Error> {
        let too_new = self.too_new(id, "constexpr_blockwise_shift_scale");
        let shape = &data.ty().shape;
        let blocks = &scale.ty().shape;
        let axis = blocks.iter().position(|&blocks| blocks > 1).unwrap_or(0);
        let fits =
            blocks.iter().enumerate().all(|(at, &count)| count == 1 || (at == axis && count == shape[at]));
        if !fits || !matches!(data.ty().dtype, DType::I8 | DType::U8) {
            return Err(too_new);
        }
        let zero_point = match offset {
            Some(offset) if offset.ty().dtype == data.ty().dtype => {
                in_place(&offset.reshape(along(offset))?)?
            }
            Some(_) => return Err(too_new),
            None => literal(TensorType::scalar(data.ty().dtype), vec![0])?,
        };
        let args = vec![
            ("quantized_data", self.operand(id, "quantized_data", Constant::Weight(data.clone()))),
            ("zero_point", self.operand(id, "zero_point", zero_point)),
            ("scale", self.operand(id, "scale", in_place(&scale.reshape(along(scale))?)?)),
            ("axis", self.operand(id, "axis", Constant::Literal(Literal::int(axis as i32)))),
        ];
        self.op("constexpr_affine_dequantize", args, id)
    }

    /// A constant for the op that makes `result`, which may itself be the result of an op.
    fn part(&mut self, result: ValueId, input: &str, weight: WeightRef) -> Result<Arg, Error> {
        let arg = self.operand(result, input, Constant::Weight(weight));
        arg.values().iter().try_for_each(|&id| self.constant(id))?;
        Ok(arg)
    }

    /// A table: a small constant, unless it is a result.
    fn table(&mut self, result: ValueId, lut: WeightRef) -> Result<Arg, Error> {
        match lut.encoding() {
            Some(_) => self.part(result, "lut", lut),
            None => Ok(self.operand(result, "lut", in_place(&lut)?)),
        }
    }

    /// A new constant for the op that makes `result`.
    fn operand(&mut self, result: ValueId, input: &str, constant: Constant) -> Arg {
        let base = format!("{}_{input}", self.out.value(result).name);
        let mut name = base.clone();
        let mut count = 0;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{base}_{count}");
        }
        Arg::One(self.out.add_value(name, constant.ty().clone(), Def::Const(constant)))
    }

    fn op(&mut self, kind: &str, args: Vec<(&str, Arg)>, result: ValueId) -> Result<(), Error> {
        let def = lookup(kind).ok_or_else(|| Error::UnknownOp(kind.to_string()))?;
        let mut op = Op { def, args: vec![Arg::Absent; def.params.len()], outputs: vec![result] };
        for (input, arg) in args {
            let unknown = || Error::UnknownInput { op: kind.to_string(), input: input.to_string() };
            op.args[def.param_index(input).ok_or_else(unknown)?] = arg;
        }
        self.out.ops.push(op);
        Ok(())
    }

    fn too_new(&self, id: ValueId, what: &str) -> Error {
        let op = format!("constant `{}`", self.out.value(id).name);
        Error::Opset { op, what: what.to_string(), needs: Opset::Ios18, has: self.out.opset }
    }
}

/// The blocks along each axis of a weight. Its encoding may have more or fewer axes of extent 1.
fn blocks_seen(weight: &WeightRef, own: &[usize], blocks: &[usize]) -> Result<Vec<usize>, Error> {
    let shape = &weight.ty().shape;
    if blocks.iter().all(|&blocks| blocks == 1) {
        return Ok(vec![1; shape.len()]);
    }
    let mut rest = own.iter().zip(blocks).filter(|(extent, _)| **extent != 1);
    let mut seen = Vec::with_capacity(shape.len());
    for &extent in shape {
        match extent {
            1 => seen.push(1),
            _ => match rest.next() {
                Some((&same, &blocks)) if same == extent => seen.push(blocks),
                _ => return Err(unseen(weight)),
            },
        }
    }
    Ok(seen)
}

fn unseen(weight: &WeightRef) -> Error {
    let what = format!("no op decodes to it as {}", weight.ty());
    Error::Weight(WeightError::View { name: weight.name().to_string(), what })
}

/// A scalar, or a vector of the elements.
fn along(weight: &WeightRef) -> Vec<usize> {
    match weight.ty().count() {
        1 => Vec::new(),
        count => vec![count],
    }
}

/// A small constant, which stands in the program itself.
fn in_place(weight: &WeightRef) -> Result<Constant, Error> {
    literal(weight.ty().clone(), weight.read()?.into_owned())
}

fn literal(ty: TensorType, bytes: Vec<u8>) -> Result<Constant, Error> {
    let error = Error::Graph(format!("no literal is of type {ty}"));
    Literal::from_bytes(ty, bytes).map(Constant::Literal).ok_or(error)
}

fn index_type(bits: usize) -> Option<DType> {
    let types = [DType::U1, DType::U2, DType::U3, DType::U4, DType::U6, DType::U8];
    types.into_iter().find(|dtype| dtype.bits() == bits)
}
