//! Element-wise ops of one input.

use std::ops::Range;

use mixbit_mil::DType;

use crate::case::{Case, case};
use crate::cases::activation::SHAPES;

/// Ops of floats and where they are defined.
const DOMAINS: &[(&str, Range<f32>)] = &[
    ("abs", -9.0..9.0),
    ("ceil", -9.0..9.0),
    ("cos", -30.0..30.0),
    ("erf", -4.0..4.0),
    ("exp", -20.0..8.0),
    ("exp2", -20.0..8.0),
    ("floor", -9.0..9.0),
    ("identity", -2.0..2.0),
    ("inverse", 0.2..9.0),
    ("log", 0.01..60.0),
    ("round", -9.0..9.0),
    ("rsqrt", 0.01..60.0),
    ("sign", -2.0..2.0),
    ("sin", -30.0..30.0),
    ("sqrt", 0.0..60.0),
    ("square", -9.0..9.0),
    ("tanh", -9.0..9.0),
];

/// The types that `cast` converts between.
const CASTS: &[DType] = &[
    DType::F16,
    DType::F32,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::Bool,
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in SHAPES {
        for (op, domain) in DOMAINS {
            cases.push(case(op).input_in("x", shape, domain.clone()));
        }
        cases.push(case("clip").input("x", shape).arg("alpha", -0.5).arg("beta", 1.25));
    }
    for op in ["inverse", "log", "rsqrt"] {
        cases.push(case(op).input_in("x", &[19], 0.5..2.0).arg("epsilon", 0.5));
    }
    for (op, values, expected) in [
        ("round", [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], [-2.0, -2.0, -0.0, 0.0, 2.0, 2.0]),
        ("sign", [-3.0, -0.0, 0.0, 5.0, 1e-7, -1e-7], [-1.0, 0.0, 0.0, 1.0, 1.0, -1.0]),
        ("ceil", [-1.5, -0.5, 0.0, 0.5, 2.0, 2.25], [-1.0, 0.0, 0.0, 1.0, 2.0, 3.0]),
        ("floor", [-1.5, -0.5, 0.0, 0.5, 2.0, 2.25], [-2.0, -1.0, 0.0, 0.0, 2.0, 2.0]),
    ] {
        cases.push(case(op).input_of("x", &[6], values.to_vec()).expect(&[&expected]));
    }
    for (op, expected) in [
        ("abs", [3.0, 0.0, 4.0]),
        ("sign", [-1.0, 0.0, 1.0]),
        ("square", [9.0, 0.0, 16.0]),
        ("exp2", [0.0, 1.0, 16.0]),
    ] {
        cases.push(case(op).ints("x", DType::I32, &[3], &[-3, 0, 4]).expect(&[&expected]));
    }
    cases.push(case("identity").ints("x", DType::Bool, &[2], &[0, 1]).expect(&[&[0.0, 1.0]]));
    cases.push(case("logical_not").ints("x", DType::Bool, &[2, 1], &[0, 1]).expect(&[&[1.0, 0.0]]));
    cases.push(case("logical_not").ints("x", DType::Bool, &[0], &[]));
    for to in CASTS {
        // A number out of range is no number of the type, and a NaN no integer: MIL leaves both open.
        let range = if *to == DType::Bool { 0.0..2.0 } else { 0.0..100.0 };
        cases.push(case("cast").input_in("x", &[3, 11], range).arg("dtype", to.name()).finite());
        for from in CASTS.iter().filter(|dtype| !dtype.is_float()) {
            let values = if *from == DType::Bool { [0, 1, 1] } else { [0, 3, 100] };
            cases.push(case("cast").ints("x", *from, &[3], &values).arg("dtype", to.name()));
        }
    }
    cases.push(
        case("cast")
            .input_of("x", &[6], vec![-2.75, -0.5, 0.5, 1.99, 2.0, -0.0])
            .arg("dtype", "int32")
            .expect(&[&[-2.0, 0.0, 0.0, 1.0, 2.0, 0.0]])
            .finite(),
    );
    cases.push(
        case("cast")
            .input_of("x", &[4], vec![-2.75, -0.5, 0.0, -0.0])
            .arg("dtype", "bool")
            .expect(&[&[1.0, 1.0, 0.0, 0.0]])
            .finite(),
    );
    // Numbers out of range become the nearest of the type; 1e9 is out of half precision.
    for (dtype, expected) in
        [("int8", [-128.0, 127.0, -3.0]), ("uint8", [0.0, 255.0, 0.0]), ("uint32", [0.0, 1e9, 0.0])]
    {
        let values = vec![-1e9, 1e9, -3.5];
        cases.push(
            case("cast").input_of("x", &[3], values).arg("dtype", dtype).expect(&[&expected]).wide().finite(),
        );
    }
    // Half precision has neither 1/3 nor 100001.
    cases.push(case("cast").input_of("x", &[3], vec![1.0 / 3.0, 2049.0, -7.0]).arg("dtype", "fp16"));
    cases
}
