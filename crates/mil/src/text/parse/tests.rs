use super::super::{Style, print};
use super::*;
use crate::{Builder, Bytes, Def, verify};

/// A weight of zeros, named as a displayed program names it.
fn zeros(blob: Blob) -> Result<WeightRef, String> {
    let name = blob.path.strip_prefix("@checkpoint/").ok_or("not a checkpoint's")?;
    let bytes = Bytes::new(vec![0u8; blob.ty.byte_len().unwrap()]);
    WeightRef::new(name, blob.ty.clone(), bytes).map_err(|error| error.to_string())
}

fn literal(dtype: DType, shape: &[usize], bytes: &[u8]) -> Literal {
    Literal::from_bytes(TensorType::new(dtype, shape), bytes.to_vec()).unwrap()
}

/// Constants of every type, lists, several results, compressed constants in both forms.
fn everything() -> Program {
    let mut b = Builder::new("main", Opset::Ios18);
    let x = b.input("x", TensorType::new(DType::F16, [1, 4, 2])).unwrap();
    let bytes = Bytes::new(vec![0u8; 16]);
    let weight = WeightRef::new("a.b.\"quoted\"", TensorType::new(DType::F16, [4, 2]), bytes).unwrap();
    let weight = b.weight(weight);
    let parts = b.op("split").arg("x", x).arg("num_splits", 2).arg("axis", 1).add_all().unwrap();
    let joined = b.op("concat").arg("values", parts).arg("axis", -1).add().unwrap();
    let single = b.op("concat").arg("values", [joined]).arg("axis", -1).add().unwrap();
    let scaled = b.op("mul").arg("x", single).arg("y", 0.1).named("half@1").add().unwrap();
    // 0 to 7 in three bits each.
    let indices = literal(DType::U3, &[4, 2], &[0x88, 0xc6, 0xfa]);
    let lut = Literal::floats(
        DType::F16,
        &[1, 1, 8, 1],
        &[-0.0, 1e-7, 0.1, -3.5, 65504.0, f64::INFINITY, f64::NEG_INFINITY, 2.0],
    )
    .unwrap();
    let table =
        b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut).named("table").add().unwrap();
    let old = b
        .op("constexpr_lut_to_dense")
        .arg("indices", literal(DType::U8, &[1], &[0b1010_0101]))
        .arg("lut", literal(DType::I8, &[2], &[0x80, 0x7f]))
        .arg("shape", literal(DType::U32, &[2], &[2, 0, 0, 0, 4, 0, 0, 0]));
    let old = old.named("old").add().unwrap();
    let op = b.op("constexpr_blockwise_shift_scale").arg("data", literal(DType::I4, &[1, 3], &[0x8f, 0x07]));
    let shifted = op.arg("scale", Literal::floats(DType::F32, &[1, 1], &[1e-45]).unwrap()).add().unwrap();
    let gathered = b.op("gather").arg("x", weight).arg("indices", Literal::ints(&[-1, 3])).add().unwrap();
    let compared = b.op("equal").arg("x", old).arg("y", literal(DType::I8, &[], &[0x80])).add().unwrap();
    let kept = b
        .op("select")
        .arg("cond", Literal::bools(&[true, false]))
        .arg("a", literal(DType::U16, &[], &[0xff, 0xff]))
        .arg("b", literal(DType::U16, &[2], &[1, 0, 2, 0]))
        .add()
        .unwrap();
    let empty = b.literal(literal(DType::F32, &[2, 0], &[]));
    Program::new(b.finish(&[scaled, table, shifted, gathered, compared, kept, empty]).unwrap())
}

#[test]
fn printed_programs_parse_and_print_the_same() {
    let program = everything();
    program.functions.iter().for_each(|function| verify(function).unwrap());
    let place = |function: &Function, id| match &function.value(id).def {
        Def::Const(Constant::Weight(weight)) => Some((format!("@checkpoint/{}", weight.name()), 64)),
        _ => None,
    };
    for dialect in [Dialect::V1_0, Dialect::V1_3] {
        let style = Style { dialect, build_info: &[("by", "a \"test\"")], place: &place };
        let text = |program: &Program| {
            let mut text = String::new();
            print(&mut text, program, &style).unwrap();
            text
        };
        let first = text(&program);
        let parsed = parse(&first, &mut zeros).unwrap();
        parsed.functions.iter().for_each(|function| verify(function).unwrap());
        assert_eq!(text(&parsed), first);
        assert_eq!(build_info(&first).unwrap(), [("by".to_string(), "a \"test\"".to_string())].into());
    }
    let shown = program.to_string();
    assert_eq!(parse(&shown, &mut zeros).unwrap().to_string(), shown);
}

#[test]
fn compressed_constants_stand_in_their_op() {
    let text = everything().to_string();
    let old = "tensor<int8, [2, 4]> old = constexpr_lut_to_dense()[indices = tensor<uint8, [1]>([165]), \
               lut = tensor<int8, [2]>([-128, 127]), name = tensor<string, []>(\"old\"), \
               shape = tensor<uint32, [2]>([2, 4])];";
    let new = "tensor<fp16, [4, 2]> table = constexpr_lut_to_dense(indices = tensor<uint3, [4, 2]>([[0, 1], [2, 3], \
               [4, 5], [6, 7]]), lut = tensor<fp16, [1, 1, 8, 1]>([[[[-0x0p+0], [0x1p-23], [0x1.998p-4], \
               [-0x1.cp+1], [0x1.ffcp+15], [inf], [-inf], [0x1p+1]]]]))[name = tensor<string, []>(\"table\")];";
    for line in [old, new] {
        assert!(text.lines().any(|found| found.trim_start() == line), "{text}");
    }
}

#[test]
fn numbers_of_c_are_read() {
    let cases = [
        ("0x1p+0", 1.0),
        ("-0x1.99999ap-4", -f64::from(0.1f32)),
        ("0x1p-149", 2f64.powi(-149)),
        ("0x0.8p+1", 1.0),
        ("0X1.8P1", 3.0),
        ("0x10", 16.0),
        ("1.5e-3", 1.5e-3),
        ("+2", 2.0),
        ("-inf", f64::NEG_INFINITY),
        ("0x0p+0", 0.0),
        ("0x1p+99999", f64::INFINITY),
    ];
    for (text, value) in cases {
        assert_eq!(number(text), Some(value), "{text}");
    }
    assert!(number("nan").unwrap().is_nan());
    for text in ["", "-", "0x", "0x.p1", "0xg", "0x1p", "0x1p999999999", "e3", "in", "0x11111111111111111"] {
        assert_eq!(number(text), None, "{text}");
    }
}

/// A program of one statement.
fn with_statement(statement: &str) -> String {
    format!("program(1.3)\n{{\nfunc main<ios16>(tensor<fp32, [2]> x) {{\n{statement}\n}} -> (y);\n}}")
}

#[test]
fn faults_are_named_with_their_place() {
    let nested = format!("fp32 y = const()[val = tensor<fp32, [1]>({}", "[".repeat(100_000));
    let cases: [(&str, &str); 22] = [
        ("tensor<fp32, [2]> y = relu(x = z);", "line 4, column 32: `z` is not made before it is used"),
        ("tensor<fp32, [3]> y = relu(x = x);", "line 4, column 1: relu `y`: `y` is declared as"),
        ("tensor<fp32, [2]> x = relu(x = x);", "two values are named `x`"),
        ("tensor<fp32, [2]> y = frobnicate(x = x);", "unknown op `frobnicate`"),
        ("tensor<fp32, [2]> y = relu(x = x)[mode = fp32(0x1p+0)];", "has no input `mode`"),
        ("tensor<fp32, [2]> y = relu(x = x", "expected `,`, found }"),
        ("tensor<fp7, [2]> y = relu(x = x);", "expected an element type, found fp7"),
        ("tensor<fp32, [-2]> y = relu(x = x);", "expected a size, found -2"),
        ("tensor<fp32, [99999999999999999999]> y = relu(x = x);", "expected a size"),
        ("fp32 y = const()[];", "const `y` has no value"),
        ("fp32 y = const()[val = fp16(0x1p+0)];", "const `y` has no value of its type"),
        ("fp16 y = const()[val = fp16(0x1p+20)];", "expected a value of type fp16, found 0x1p+20"),
        ("int8 y = const()[val = int8(128)];", "expected a value of type int8"),
        ("uint3 y = const()[val = uint3(8)];", "expected a value of type uint3"),
        ("bool y = const()[val = bool(1)];", "expected a value of type bool"),
        ("string y = const()[val = string(\"\\q\")];", "unknown escape"),
        ("tensor<fp32, [2]> y = const()[val = tensor<fp32, [2]>([0x0p+0])];", "expected `,`, found ]"),
        (
            "tensor<fp32, [1]> y = const()[val = tensor<fp32, [1]>([0x0p+0, 0x0p+0])];",
            "expected `]`, found ,",
        ),
        (
            "tensor<fp32, [1000000000000]> y = const()[val = tensor<fp32, [1000000000000]>([0x0p+0])];",
            "expected `,`",
        ),
        (&nested, "expected a value of type fp32, found ["),
        ("tensor<fp32, [?]> y = const()[val = tensor<fp32, [?]>([0x0p+0])];", "no fixed type"),
        (
            "fp32 y = const()[val = fp32(BLOBFILE(path = string(\"@model_path/../x\"), offset = uint64(64)))];",
            "line 4, column 29: not a checkpoint's",
        ),
    ];
    for (statement, message) in cases {
        let error = parse(&with_statement(statement), &mut zeros).unwrap_err().to_string();
        assert!(error.contains(message), "{}: {error}", &statement[..statement.len().min(80)]);
    }
    let deep = format!("program(1.3)[a = {}", "dict<".repeat(100_000));
    let open = "program(1.0){func main<ios16>(tensor<fp32, [?]> x) {} -> (x);}";
    let cases = [
        ("", "expected `program`, found the end"),
        ("program(2.0)\n{\n}", "a version other than"),
        ("program(1.0)\n{\n} x", "goes on after"),
        ("program(1.0){func main<ios19>() {} -> ();}", "expected an opset"),
        (&deep, "types nest too deep"),
        (open, "no fixed or default shape"),
    ];
    for (text, message) in cases {
        let error = parse(text, &mut zeros).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn integers_are_decimal_or_hexadecimal() {
    let text = with_statement("tensor<uint8, [3]> y = const()[val = tensor<uint8, [3]>([0xff, 12, 0x0])];");
    let program = parse(&text, &mut zeros).unwrap();
    let function = &program.functions[0];
    let Def::Const(Constant::Literal(literal)) = &function.value(function.outputs()[0]).def else {
        panic!("no literal")
    };
    assert_eq!(literal.bytes(), Some(&[255, 12, 0][..]));
}

#[test]
fn open_shapes_take_their_defaults() {
    let text = r#"program(1.3)
[buildInfo = dict<string, string>({{"coremlc-version", "3600.25.1"}})]
{
    func main<ios17>(tensor<fp32, [?, 4]> x) [FlexibleShapeInformation = tuple<tuple<string, dict<string, tensor<int32, [?]>>>, tuple<string, dict<string, list<tensor<int32, [2]>, ?>>>>((("DefaultShapes", {{"x", [3, 4]}}), ("RangeDims", {{"x", [[1, 4], [4, 4]]}})))] {
            tensor<fp32, [?, 4]> y = relu(x = x);
        } -> (y);
}
"#;
    let program = parse(text, &mut zeros).unwrap();
    let function = &program.functions[0];
    verify(function).unwrap();
    assert_eq!(function.value(function.outputs()[0]).ty, TensorType::new(DType::F32, [3, 4]));
}

#[test]
fn garbage_never_panics() {
    let text = everything().to_string();
    // Every cut, and every byte replaced by one that the grammar knows.
    for at in 0..text.len() {
        if text.is_char_boundary(at) {
            let _ = parse(&text[..at], &mut zeros);
        }
        for byte in [b'[', b']', b'"', b'9', b'-', b' ', b'<'] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes) {
                let _ = parse(&text, &mut zeros);
            }
        }
    }
}
