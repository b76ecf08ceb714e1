//! MIL text: `model.mil` of Apple's compiled models.
//!
//! Two dialects differ in how they write scalars: version 1.0 has only tensors, `tensor<fp16, []>(0x1p+0)`,
//! version 1.3 writes `fp16(0x1p+0)`. [`parse`] reads both; [`print()`] writes either.
//!
//! `Display` writes version 1.0. Weights print as a `BLOBFILE` whose path is `@checkpoint/` and the tensor's
//! name, for they have no offset before a weight file is written.

mod error;
mod lexer;
mod parse;

use std::fmt::{self, Write};

use half::f16;

pub use error::ParseError;
pub use parse::{Blob, build_info, parse};

use crate::{Arg, Constant, DType, Def, Function, Literal, Op, Program, TensorType, ValueId};

/// A version of MIL text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Version 1.0, of models for iOS 15 to 17.
    V1_0,
    /// Version 1.3, of models for iOS 18.
    V1_3,
}

impl Dialect {
    const ALL: [(Dialect, &'static str); 2] = [(Dialect::V1_0, "1.0"), (Dialect::V1_3, "1.3")];

    fn version(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// A lookup of a constant's place in a weight file: the file's path and the offset of the blob.
pub type Place = (String, u64);

/// The style of a printed program.
pub struct Style<'a> {
    /// The dialect.
    pub dialect: Dialect,
    /// Build information, by key. Core ML does not look at it.
    pub build_info: &'a [(&'a str, &'a str)],
    /// The place of a constant in a weight file. A constant without one is printed in full.
    pub place: &'a dyn Fn(&Function, ValueId) -> Option<Place>,
}

/// Prints a program.
///
/// # Errors
/// Those of the writer, or a weight without a place.
pub fn print(out: &mut dyn Write, program: &Program, style: &Style) -> fmt::Result {
    writeln!(out, "program({})", style.dialect.version())?;
    let mut printer = Printer { out, style };
    if !style.build_info.is_empty() {
        printer.build_info()?;
    }
    printer.out.write_str("{\n")?;
    for function in &program.functions {
        printer.function(function)?;
    }
    printer.out.write_str("}\n")
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |function: &Function, id: ValueId| match &function.value(id).def {
            Def::Const(Constant::Weight(weight)) => Some((format!("@checkpoint/{}", weight.name()), 0)),
            _ => None,
        };
        print(f, self, &Style { dialect: Dialect::V1_0, build_info: &[], place: &place })
    }
}

struct Printer<'a, 'p> {
    out: &'a mut dyn Write,
    style: &'a Style<'p>,
}

/// Writes items separated by commas.
fn separated<T>(
    out: &mut dyn Write,
    items: impl IntoIterator<Item = T>,
    mut each: impl FnMut(&mut dyn Write, T) -> fmt::Result,
) -> fmt::Result {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.write_str(", ")?;
        }
        each(out, item)?;
    }
    Ok(())
}

impl Printer<'_, '_> {
    fn build_info(&mut self) -> fmt::Result {
        let ty = self.ty(&TensorType::scalar(DType::Str));
        write!(self.out, "[buildInfo = dict<{ty}, {ty}>({{")?;
        separated(self.out, self.style.build_info, |out, (key, value)| {
            out.write_str("{")?;
            write_quoted(out, key)?;
            out.write_str(", ")?;
            write_quoted(out, value)?;
            out.write_str("}")
        })?;
        self.out.write_str("})]\n")
    }

    /// A type as the dialect writes it.
    fn ty(&self, ty: &TensorType) -> String {
        match self.style.dialect {
            Dialect::V1_3 if ty.shape.is_empty() => ty.dtype.to_string(),
            _ => ty.to_string(),
        }
    }

    fn values(&mut self, function: &Function, ids: &[ValueId]) -> fmt::Result {
        let texts: Vec<String> = ids
            .iter()
            .map(|&id| format!("{} {}", self.ty(&function.value(id).ty), function.value(id).name))
            .collect();
        self.out.write_str(&texts.join(", "))
    }

    fn function(&mut self, function: &Function) -> fmt::Result {
        write!(self.out, "    func {}<{}>(", function.name, function.opset)?;
        self.values(function, &function.inputs)?;
        self.out.write_str(") {\n")?;
        let mut written = vec![false; function.values.len()];
        for op in &function.ops {
            // Constants of constexpr ops stand inside the op.
            if !op.def.is_constexpr() {
                op.args
                    .iter()
                    .flat_map(Arg::values)
                    .try_for_each(|&id| self.constant(function, id, &mut written))?;
            }
            self.op(function, op)?;
        }
        function.outputs.iter().try_for_each(|&id| self.constant(function, id, &mut written))?;
        self.out.write_str("        } -> (")?;
        separated(self.out, &function.outputs, |out, &id| out.write_str(&function.value(id).name))?;
        self.out.write_str(");\n")
    }

    /// The `const` op of a constant that is not written yet.
    fn constant(&mut self, function: &Function, id: ValueId, written: &mut [bool]) -> fmt::Result {
        let value = function.value(id);
        if !matches!(value.def, Def::Const(_)) || std::mem::replace(&mut written[id.index()], true) {
            return Ok(());
        }
        let ty = self.ty(&value.ty);
        write!(self.out, "            {ty} {} = const()[name = ", value.name)?;
        self.string(&value.name)?;
        self.out.write_str(", val = ")?;
        self.constant_value(function, id)?;
        self.out.write_str("];\n")
    }

    /// A constant's value with its type.
    fn constant_value(&mut self, function: &Function, id: ValueId) -> fmt::Result {
        let value = function.value(id);
        write!(self.out, "{}(", self.ty(&value.ty))?;
        match ((self.style.place)(function, id), &value.def) {
            (Some((path, offset)), _) => {
                self.out.write_str("BLOBFILE(path = ")?;
                self.string(&path)?;
                let offset_type = self.ty(&TensorType::scalar(DType::U64));
                write!(self.out, ", offset = {offset_type}({offset}))")?;
            }
            (None, Def::Const(Constant::Literal(literal))) => {
                write_nested(self.out, literal, &literal.ty().shape, 0)?;
            }
            _ => return Err(fmt::Error),
        }
        self.out.write_str(")")
    }

    fn string(&mut self, text: &str) -> fmt::Result {
        write!(self.out, "{}(", self.ty(&TensorType::scalar(DType::Str)))?;
        write_quoted(self.out, text)?;
        self.out.write_str(")")
    }

    fn op(&mut self, function: &Function, op: &Op) -> fmt::Result {
        self.out.write_str("            ")?;
        self.values(function, &op.outputs)?;
        write!(self.out, " = {}(", op.def.name)?;
        // Arguments are in alphabetical order, as Apple's compiler writes them.
        let mut args: Vec<_> = op.def.params.iter().map(|param| param.name).zip(&op.args).collect();
        args.retain(|(_, arg)| !matches!(arg, Arg::Absent));
        args.sort_by_key(|(name, _)| *name);
        let (mut inputs, mut attributes) = (args, Vec::new());
        if function.view(op).has_attributes() {
            std::mem::swap(&mut inputs, &mut attributes);
        }
        for (index, (name, arg)) in inputs.iter().enumerate() {
            write!(self.out, "{}{name} = ", if index > 0 { ", " } else { "" })?;
            self.arg(function, op, arg)?;
        }
        self.out.write_str(")[")?;
        let label = op.outputs.first().map_or("", |&id| &function.value(id).name);
        let after = attributes.partition_point(|(name, _)| *name < "name");
        for (index, (name, arg)) in attributes.iter().enumerate() {
            if index == after {
                self.out.write_str("name = ")?;
                self.string(label)?;
                self.out.write_str(", ")?;
            }
            write!(self.out, "{name} = ")?;
            self.arg(function, op, arg)?;
            if index + 1 < attributes.len() {
                self.out.write_str(", ")?;
            }
        }
        if after == attributes.len() {
            self.out.write_str(if after > 0 { ", name = " } else { "name = " })?;
            self.string(label)?;
        }
        self.out.write_str("];\n")
    }

    fn arg(&mut self, function: &Function, op: &Op, arg: &Arg) -> fmt::Result {
        match arg {
            Arg::Absent => Ok(()),
            Arg::One(id) if op.def.is_constexpr() && matches!(function.value(*id).def, Def::Const(_)) => {
                self.constant_value(function, *id)
            }
            Arg::One(id) => self.out.write_str(&function.value(*id).name),
            Arg::Many(ids) => {
                self.out.write_str("(")?;
                separated(self.out, ids, |out, &id| out.write_str(&function.value(id).name))?;
                self.out.write_str(")")
            }
        }
    }
}

fn write_quoted(f: &mut dyn Write, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            '\r' => f.write_str("\\r")?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

fn write_nested(f: &mut dyn Write, literal: &Literal, shape: &[usize], at: usize) -> fmt::Result {
    let Some((&extent, inner)) = shape.split_first() else { return write_element(f, literal, at) };
    let stride: usize = inner.iter().product();
    f.write_str("[")?;
    for index in 0..extent {
        if index > 0 {
            f.write_str(", ")?;
        }
        write_nested(f, literal, inner, at + index * stride)?;
    }
    f.write_str("]")
}

fn write_element(f: &mut dyn Write, literal: &Literal, at: usize) -> fmt::Result {
    if let Some(strings) = literal.strings() {
        return write_quoted(f, &strings[at]);
    }
    let bytes = literal.bytes().unwrap_or_default();
    let dtype = literal.ty().dtype;
    let element = |width: usize| &bytes[at * width..(at + 1) * width];
    match dtype {
        DType::Bool => write!(f, "{}", bytes[at] != 0),
        DType::F16 => {
            let b = element(2);
            write_hex_float(f, f16::from_le_bytes([b[0], b[1]]).to_f32())
        }
        DType::F32 => {
            let b = element(4);
            write_hex_float(f, f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        }
        _ => {
            let value = packed_int(bytes, dtype, at);
            write!(f, "{value}")
        }
    }
}

/// Element `at` of packed integers of any width. Other types are read as raw bits.
fn packed_int(bytes: &[u8], dtype: DType, at: usize) -> i128 {
    let bits = dtype.bits();
    let mut value: i128 = 0;
    for bit in 0..bits {
        let position = at * bits + bit;
        value |= i128::from(bytes[position / 8] >> (position % 8) & 1) << bit;
    }
    let signed = matches!(dtype, DType::I4 | DType::I8 | DType::I16 | DType::I32 | DType::I64);
    if signed && bits > 0 && value >> (bits - 1) & 1 == 1 { value - (1 << bits) } else { value }
}

/// A float as C99's `%a`: `0x1.8p+1`.
fn write_hex_float(f: &mut dyn Write, value: f32) -> fmt::Result {
    if value.is_nan() {
        return f.write_str("nan");
    }
    let sign = if value.is_sign_negative() { "-" } else { "" };
    if value.is_infinite() {
        return write!(f, "{sign}inf");
    }
    if value == 0.0 {
        return write!(f, "{sign}0x0p+0");
    }
    // Through f64, in which every f32 is normal.
    let bits = f64::from(value.abs()).to_bits();
    let exponent = (bits >> 52) as i64 - 1023;
    let digits = format!("{:013x}", bits & ((1 << 52) - 1));
    let digits = digits.trim_end_matches('0');
    let point = if digits.is_empty() { "" } else { "." };
    write!(f, "{sign}0x1{point}{digits}p{exponent:+}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Bytes, Opset, TensorType, WeightRef};

    struct Hex(f32);

    impl fmt::Display for Hex {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_hex_float(f, self.0)
        }
    }

    #[test]
    fn floats_print_as_c_does() {
        let cases = [
            (0.0, "0x0p+0"),
            (-0.0, "-0x0p+0"),
            (1.0, "0x1p+0"),
            (-2.0, "-0x1p+1"),
            (0.1, "0x1.99999ap-4"),
            (1e-45, "0x1p-149"),
            (f32::MAX, "0x1.fffffep+127"),
            (f32::INFINITY, "inf"),
        ];
        for (value, text) in cases {
            assert_eq!(Hex(value).to_string(), text);
        }
    }

    #[test]
    fn packed_integers_unpack() {
        assert_eq!(
            (0..4).map(|at| packed_int(&[0b11_010_001, 0b0000_1111], DType::U3, at)).collect::<Vec<_>>(),
            [1, 2, 7, 7]
        );
        assert_eq!(packed_int(&[0xf0], DType::I4, 1), -1);
        assert_eq!(packed_int(&[0x80], DType::I8, 0), -128);
    }

    #[test]
    fn weights_print_their_names() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F16, [1, 3])).unwrap();
        let weight =
            WeightRef::new("a.b.weight", TensorType::new(DType::F16, [2, 3]), Bytes::new(vec![0u8; 12]));
        let weight = b.weight(weight.unwrap());
        let y = b.op("linear").arg("x", x).arg("weight", weight).named("y").add().unwrap();
        let text = Program::new(b.finish(&[y]).unwrap()).to_string();
        let line = "            tensor<fp16, [2, 3]> a_b_weight = const()[name = tensor<string, []>(\"a_b_weight\"), \
                    val = tensor<fp16, [2, 3]>(BLOBFILE(path = tensor<string, []>(\"@checkpoint/a.b.weight\"), \
                    offset = tensor<uint64, []>(0)))];";
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}
