//! MIL's types and values in a specification.

use std::collections::BTreeMap;

use mixbit_mil::{Bytes, Constant, DType, Declared, Literal, TensorType, WeightRef};

use super::wire::Message;
use super::{CoreMlError, WeightFiles, blob};

/// More dimensions than any tensor has.
const RANK_LIMIT: usize = 32;

/// The specification's codes of element types.
pub(super) const DTYPES: [(u64, DType); 20] = [
    (1, DType::Bool),
    (2, DType::Str),
    (10, DType::F16),
    (11, DType::F32),
    (12, DType::F64),
    (13, DType::BF16),
    (21, DType::I8),
    (22, DType::I16),
    (23, DType::I32),
    (24, DType::I64),
    (25, DType::I4),
    (31, DType::U8),
    (32, DType::U16),
    (33, DType::U32),
    (34, DType::U64),
    (35, DType::U4),
    (36, DType::U2),
    (37, DType::U1),
    (38, DType::U6),
    (39, DType::U3),
];

/// A name with its type: a function's input, or an op's result.
pub(super) fn named_type<'a>(message: Message<'a>) -> Result<(&'a str, Declared), CoreMlError> {
    let (mut name, mut ty) = ("", None);
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => name = field.text()?,
            2 => ty = Some(value_type(field.message()?)?),
            _ => {}
        }
    }
    match ty {
        Some(ty) if !name.is_empty() => Ok((name, ty)),
        _ => Err(message.malformed("a value has no name or no type")),
    }
}

fn value_type(message: Message) -> Result<Declared, CoreMlError> {
    let mut ty = None;
    for field in message.fields() {
        let field = field?;
        ty = Some(match field.number {
            1 => tensor_type(field.message()?)?,
            2..=5 => {
                let kind = ["list", "tuple", "dictionary", "state"][field.number as usize - 2];
                return Err(CoreMlError::unsupported(format!("a value that is a {kind}")));
            }
            _ => continue,
        });
    }
    ty.ok_or_else(|| message.malformed("a type is empty"))
}

fn tensor_type(message: Message) -> Result<Declared, CoreMlError> {
    let (mut code, mut rank) = (0, 0);
    let mut shape = Vec::new();
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => code = field.number()?,
            2 => rank = field.number()?,
            3 => shape.push(dimension(field.message()?)?),
            _ => {}
        }
        if shape.len() > RANK_LIMIT {
            return Err(message.malformed(format!("a type has more than {RANK_LIMIT} dimensions")));
        }
    }
    let dtype = DTYPES.iter().find(|(known, _)| *known == code).map(|(_, dtype)| *dtype);
    let dtype = dtype.ok_or_else(|| CoreMlError::unsupported(format!("element type number {code}")))?;
    if rank != shape.len() as u64 {
        return Err(message.malformed(format!("a type of rank {rank} has {} dimensions", shape.len())));
    }
    Ok(Declared { dtype, shape })
}

fn dimension(message: Message) -> Result<Option<usize>, CoreMlError> {
    let mut extent = None;
    for field in message.fields() {
        let field = field?;
        for inner in field.message()?.fields() {
            let inner = inner?;
            match (field.number, inner.number) {
                (1, 1) => extent = Some(inner.size()?),
                (2, 1) if inner.number()? != 0 => {
                    return Err(CoreMlError::unsupported("a tensor of any rank"));
                }
                _ => {}
            }
        }
        // Proto3 leaves out an extent of 0.
        if field.number == 1 {
            extent = extent.or(Some(0));
        }
    }
    Ok(extent)
}

/// A constant, and where it lies if that is in a weight file: the file and the offset of the blob.
pub(super) struct Placed<'a> {
    pub(super) constant: Constant,
    pub(super) place: Option<(&'a str, u64)>,
}

/// A value under the given name, of which a blob is not read before it is used.
pub(super) fn constant<'a>(
    message: Message<'a>,
    name: &str,
    weights: &mut WeightFiles,
) -> Result<Placed<'a>, CoreMlError> {
    let (mut ty, mut immediate, mut blob) = (None, None, None);
    for field in message.fields() {
        let field = field?;
        match field.number {
            2 => ty = Some(value_type(field.message()?)?),
            3 => immediate = Some(field.message()?),
            5 => blob = Some(field.message()?),
            _ => {}
        }
    }
    let ty = ty.and_then(|ty| ty.fixed()).ok_or_else(|| message.malformed("a value has no fixed type"))?;
    match (immediate, blob) {
        (Some(immediate), None) => {
            Ok(Placed { constant: Constant::Literal(literal(ty, immediate)?), place: None })
        }
        (None, Some(blob)) => {
            let (file, offset) = blob_place(blob)?;
            let bytes = weights.blob(file, offset, name, &ty)?;
            let weight = WeightRef::new(name, ty, bytes).map_err(mixbit_mil::Error::from)?;
            Ok(Placed { constant: Constant::Weight(weight), place: Some((file, offset)) })
        }
        _ => Err(message.malformed("a value is neither immediate nor in a file")),
    }
}

fn blob_place(message: Message<'_>) -> Result<(&str, u64), CoreMlError> {
    let (mut file, mut offset) = ("", 0);
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => file = field.text()?,
            2 => offset = field.number()?,
            _ => {}
        }
    }
    Ok((file, offset))
}

impl WeightFiles {
    /// The data of the blob at `offset` of a weight file, as the specification names it.
    pub(super) fn blob(
        &mut self,
        file: &str,
        offset: u64,
        name: &str,
        ty: &TensorType,
    ) -> Result<Bytes, CoreMlError> {
        let found = self.get(file).and_then(|bytes| blob::read(&bytes, offset, ty));
        found.map_err(|what| CoreMlError::Blob { name: name.into(), file: file.into(), offset, what })
    }
}

fn literal(ty: TensorType, message: Message) -> Result<Literal, CoreMlError> {
    let mut tensor = None;
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => tensor = Some(field.message()?),
            number => {
                return Err(CoreMlError::unsupported(format!("an immediate value of kind {number}")));
            }
        }
    }
    let tensor = tensor.ok_or_else(|| message.malformed("an immediate value is empty"))?;
    let (mut bytes, mut strings) = (Vec::new(), Vec::new());
    for field in tensor.fields() {
        let field = field?;
        for values in
            field.message()?.fields().filter(|values| !matches!(values, Ok(other) if other.number != 1))
        {
            let values = values?;
            let mut fits = true;
            let mut narrow = |value: i64| fits &= push_int(&mut bytes, ty.dtype, value);
            match (field.number, ty.dtype) {
                (1, DType::F32) => bytes.extend_from_slice(values.fixed(4)?),
                // Negative int32 values are sign-extended to 64 bits.
                (2, _) => values.numbers(|value| narrow(value as i64))?,
                (3, DType::Bool) => values.numbers(|value| narrow(i64::from(value != 0)))?,
                (4, DType::Str) if strings.len() < ty.count() => strings.push(values.text()?.to_string()),
                (5, DType::I64) => values.numbers(|value| narrow(value as i64))?,
                (6, DType::F64) => bytes.extend_from_slice(values.fixed(8)?),
                (7, dtype) if !matches!(dtype, DType::Str | DType::Bool) => {
                    bytes.extend_from_slice(values.bytes()?)
                }
                _ => fits = false,
            }
            if !fits {
                return Err(tensor.malformed(format!("an immediate value is not {ty}")));
            }
        }
    }
    let found = bytes.len();
    let literal = match ty.dtype {
        DType::Str => Literal::from_strings(&ty.shape, strings),
        _ => Literal::from_bytes(ty.clone(), bytes),
    };
    literal.ok_or_else(|| tensor.malformed(format!("an immediate value of type {ty} has {found} bytes")))
}

/// The texts of a dictionary by key. Other values are passed over.
pub(super) fn texts(message: Message<'_>) -> Result<BTreeMap<&str, &str>, CoreMlError> {
    let mut out = BTreeMap::new();
    for immediate in within(message, 3) {
        for dictionary in within(immediate?, 4) {
            for pair in within(dictionary?, 1) {
                let pair = pair?;
                if let (Some(key), Some(value)) = (text(pair, 1)?, text(pair, 2)?) {
                    out.insert(key, value);
                }
            }
        }
    }
    Ok(out)
}

/// The messages of one field.
fn within(message: Message<'_>, number: u32) -> impl Iterator<Item = Result<Message<'_>, CoreMlError>> {
    let of = message.fields().filter(move |field| !matches!(field, Ok(other) if other.number != number));
    of.map(|field| field?.message())
}

/// The text that a field holds as a value.
fn text(message: Message<'_>, number: u32) -> Result<Option<&str>, CoreMlError> {
    let mut found = None;
    for value in within(message, number) {
        for immediate in within(value?, 3) {
            for tensor in within(immediate?, 1) {
                for strings in within(tensor?, 4) {
                    for field in strings?.fields() {
                        let field = field?;
                        found = if field.number == 1 { Some(field.text()?) } else { found };
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Appends an integer of a whole-byte type; false if it does not fit.
fn push_int(bytes: &mut Vec<u8>, dtype: DType, value: i64) -> bool {
    macro_rules! push {
        ($ty:ty) => {
            <$ty>::try_from(value).map(|value| bytes.extend(value.to_le_bytes())).is_ok()
        };
    }
    match dtype {
        DType::I8 => push!(i8),
        DType::I16 => push!(i16),
        DType::I32 => push!(i32),
        DType::I64 => push!(i64),
        DType::Bool | DType::U8 => push!(u8),
        DType::U16 => push!(u16),
        // Kept by their writers in a signed field.
        DType::U32 => {
            bytes.extend((value as u32).to_le_bytes());
            true
        }
        _ => false,
    }
}
