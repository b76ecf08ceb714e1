//! MIL text, in the dialect of Apple's compiled models (`model.mil`, version 1.0).
//!
//! Weights print as a `BLOBFILE` whose path is `@checkpoint/` and the tensor's name: they have no offset in a weight
//! file before one is written.

use std::fmt::{self, Write};

use half::f16;

use crate::{Arg, Constant, DType, Def, Function, Literal, Op, Program, ValueId};

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("program(1.0)\n{\n")?;
        for function in &self.functions {
            write_function(f, function)?;
        }
        f.write_str("}\n")
    }
}

fn write_function(f: &mut fmt::Formatter<'_>, function: &Function) -> fmt::Result {
    write!(f, "    func {}<{}>(", function.name, function.opset)?;
    for (index, &id) in function.inputs.iter().enumerate() {
        let value = function.value(id);
        write!(f, "{}{} {}", if index > 0 { ", " } else { "" }, value.ty, value.name)?;
    }
    f.write_str(") {\n")?;
    let mut written = vec![false; function.values.len()];
    let mut constant = |f: &mut fmt::Formatter<'_>, id: ValueId| match &function.value(id).def {
        Def::Const(constant) if !std::mem::replace(&mut written[id.index()], true) => {
            write_constant(f, &function.value(id).name, constant)
        }
        _ => Ok(()),
    };
    for op in &function.ops {
        for &id in op.args.iter().flat_map(Arg::values) {
            constant(f, id)?;
        }
        write_op(f, function, op)?;
    }
    function.outputs.iter().try_for_each(|&id| constant(f, id))?;
    f.write_str("        } -> (")?;
    for (index, &id) in function.outputs.iter().enumerate() {
        write!(f, "{}{}", if index > 0 { ", " } else { "" }, function.value(id).name)?;
    }
    f.write_str(");\n")
}

fn write_constant(f: &mut fmt::Formatter<'_>, name: &str, constant: &Constant) -> fmt::Result {
    let ty = constant.ty();
    write!(f, "            {ty} {name} = const()[name = {}, val = ", StringText(name))?;
    match constant {
        Constant::Literal(literal) => write_literal(f, literal)?,
        Constant::Weight(weight) => {
            let path = format!("@checkpoint/{}", weight.name());
            write!(f, "{ty}(BLOBFILE(path = {}, offset = tensor<uint64, []>(0)))", StringText(&path))?;
        }
    }
    f.write_str("];\n")
}

fn write_op(f: &mut fmt::Formatter<'_>, function: &Function, op: &Op) -> fmt::Result {
    f.write_str("            ")?;
    for (index, &id) in op.outputs.iter().enumerate() {
        let value = function.value(id);
        write!(f, "{}{} {}", if index > 0 { ", " } else { "" }, value.ty, value.name)?;
    }
    write!(f, " = {}(", op.def.name)?;
    // Argument names are alphabetical, as Apple's compiler writes them.
    let mut args: Vec<_> = op.def.params.iter().map(|param| param.name).zip(&op.args).collect();
    args.retain(|(_, arg)| !matches!(arg, Arg::Absent));
    args.sort_by_key(|(name, _)| *name);
    for (index, (name, arg)) in args.iter().enumerate() {
        write!(f, "{}{name} = ", if index > 0 { ", " } else { "" })?;
        match arg {
            Arg::Absent => {}
            Arg::One(id) => f.write_str(&function.value(*id).name)?,
            Arg::Many(ids) => {
                let names: Vec<&str> = ids.iter().map(|&id| function.value(id).name.as_str()).collect();
                write!(f, "({})", names.join(", "))?;
            }
        }
    }
    let name = op.outputs.first().map_or("", |&id| &function.value(id).name);
    writeln!(f, ")[name = {}];", StringText(name))
}

/// A string literal with its type.
struct StringText<'a>(&'a str);

impl fmt::Display for StringText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor<string, []>(")?;
        write_quoted(f, self.0)?;
        f.write_str(")")
    }
}

fn write_quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
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

fn write_literal(f: &mut fmt::Formatter<'_>, literal: &Literal) -> fmt::Result {
    write!(f, "{}(", literal.ty())?;
    write_nested(f, literal, &literal.ty().shape, 0)?;
    f.write_str(")")
}

fn write_nested(f: &mut fmt::Formatter<'_>, literal: &Literal, shape: &[usize], at: usize) -> fmt::Result {
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

fn write_element(f: &mut fmt::Formatter<'_>, literal: &Literal, at: usize) -> fmt::Result {
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

/// Element `at` of packed integers of any width; other types read as raw bits.
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
fn write_hex_float(f: &mut fmt::Formatter<'_>, value: f32) -> fmt::Result {
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
