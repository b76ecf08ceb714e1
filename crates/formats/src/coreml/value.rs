//! The reader of types and values.

use std::collections::BTreeMap;

use mixbit_mil::{Bytes, Constant, DType, Declared, Literal, TensorType, WeightRef};

use super::schema::{self, TENSOR_CODES};
use super::wire::{Field, Message};
use super::{CoreMlError, WeightFiles, blob};

/// The most dimensions of a tensor.
const RANK_LIMIT: usize = 32;

/// A name with its type: a function's input, or an op's result.
pub(super) fn named_type<'a>(message: Message<'a>) -> Result<(&'a str, Declared), CoreMlError> {
    let (mut name, mut ty) = ("", None);
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::named_type::NAME => name = field.text()?,
            schema::named_type::TYPE => ty = Some(value_type(field.message()?)?),
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
            schema::value_type::TENSOR => tensor_type(field.message()?)?,
            number @ schema::value_type::LIST..=schema::value_type::STATE => {
                let kind =
                    ["list", "tuple", "dictionary", "state"][(number - schema::value_type::LIST) as usize];
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
            schema::tensor_type::DATA_TYPE => code = field.number()?,
            schema::tensor_type::RANK => rank = field.number()?,
            schema::tensor_type::DIMENSIONS => shape.push(dimension(field.message()?)?),
            _ => {}
        }
        if shape.len() > RANK_LIMIT {
            return Err(message.malformed(format!("a type has more than {RANK_LIMIT} dimensions")));
        }
    }
    let dtype = TENSOR_CODES
        .dtype(code)
        .ok_or_else(|| CoreMlError::unsupported(format!("element type number {code}")))?;
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
                (schema::dimension::CONSTANT, schema::constant_dimension::SIZE) => {
                    extent = Some(inner.size()?);
                }
                (schema::dimension::UNKNOWN, schema::unknown_dimension::IS_VARIADIC)
                    if inner.number()? != 0 =>
                {
                    return Err(CoreMlError::unsupported("a tensor of any rank"));
                }
                _ => {}
            }
        }
        // Proto3 leaves out an extent of 0.
        if field.number == schema::dimension::CONSTANT {
            extent = extent.or(Some(0));
        }
    }
    Ok(extent)
}

/// A constant and, if it is in a weight file, its place: the file and the offset of the blob.
pub(super) struct Placed<'a> {
    pub(super) constant: Constant,
    pub(super) place: Option<(&'a str, u64)>,
}

/// A value under the given name. A blob is read when it is used.
pub(super) fn constant<'a>(
    message: Message<'a>,
    name: &str,
    weights: &mut WeightFiles,
) -> Result<Placed<'a>, CoreMlError> {
    let (mut ty, mut immediate, mut blob) = (None, None, None);
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::value::TYPE => ty = Some(value_type(field.message()?)?),
            schema::value::IMMEDIATE => immediate = Some(field.message()?),
            schema::value::BLOB => blob = Some(field.message()?),
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
            schema::blob_value::FILE => file = field.text()?,
            schema::blob_value::OFFSET => offset = field.number()?,
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
    use schema::tensor_value::{BOOLS, BYTES, DOUBLES, FLOATS, INTS, LONG_INTS, STRINGS};

    let mut tensor = None;
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::immediate::TENSOR => tensor = Some(field.message()?),
            number => {
                return Err(CoreMlError::unsupported(format!("an immediate value of kind {number}")));
            }
        }
    }
    let tensor = tensor.ok_or_else(|| message.malformed("an immediate value is empty"))?;
    let (mut bytes, mut strings) = (Vec::new(), Vec::new());
    for field in tensor.fields() {
        let field = field?;
        for values in fields(field.message()?, schema::repeated::VALUES) {
            let values = values?;
            let mut fits = true;
            let mut narrow = |value: i64| fits &= push_int(&mut bytes, ty.dtype, value);
            match (field.number, ty.dtype) {
                (FLOATS, DType::F32) => bytes.extend_from_slice(values.fixed(4)?),
                // Negative int32 values are sign-extended to 64 bits.
                (INTS, _) => values.numbers(|value| narrow(value as i64))?,
                (BOOLS, DType::Bool) => values.numbers(|value| narrow(i64::from(value != 0)))?,
                (STRINGS, DType::Str) if strings.len() < ty.count() => {
                    strings.push(values.text()?.to_string());
                }
                (LONG_INTS, DType::I64) => values.numbers(|value| narrow(value as i64))?,
                (DOUBLES, DType::F64) => bytes.extend_from_slice(values.fixed(8)?),
                (BYTES, dtype) if !matches!(dtype, DType::Str | DType::Bool) => {
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
    for immediate in messages(message, schema::value::IMMEDIATE) {
        for dictionary in messages(immediate?, schema::immediate::DICTIONARY) {
            for pair in messages(dictionary?, schema::dictionary::PAIRS) {
                let pair = pair?;
                let (key, value) = (text(pair, schema::pair::KEY)?, text(pair, schema::pair::VALUE)?);
                out.extend(key.zip(value));
            }
        }
    }
    Ok(out)
}

/// The fields of one number.
fn fields(message: Message<'_>, number: u32) -> impl Iterator<Item = Result<Field<'_>, CoreMlError>> {
    message.fields().filter(move |field| !matches!(field, Ok(other) if other.number != number))
}

/// The messages of one field.
fn messages(message: Message<'_>, number: u32) -> impl Iterator<Item = Result<Message<'_>, CoreMlError>> {
    fields(message, number).map(|field| field?.message())
}

/// The last text of the value in a field, if there is one.
fn text(message: Message<'_>, number: u32) -> Result<Option<&str>, CoreMlError> {
    let mut found = None;
    for value in messages(message, number) {
        for immediate in messages(value?, schema::value::IMMEDIATE) {
            for tensor in messages(immediate?, schema::immediate::TENSOR) {
                for strings in messages(tensor?, schema::tensor_value::STRINGS) {
                    for text in fields(strings?, schema::repeated::VALUES) {
                        found = Some(text?.text()?);
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Appends an integer of a whole-byte type. False if it does not fit.
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
        // Writers store them in a signed field.
        DType::U32 => {
            bytes.extend((value as u32).to_le_bytes());
            true
        }
        _ => false,
    }
}
