//! Reductions.

use mixbit_mil::DType;

use crate::case::{Case, case};

const REDUCTIONS: &[&str] = &[
    "reduce_l2_norm",
    "reduce_max",
    "reduce_mean",
    "reduce_min",
    "reduce_prod",
    "reduce_sum",
    "reduce_sum_square",
];

const AXES: &[(&[usize], &[i32])] = &[
    (&[1], &[0]),
    (&[17], &[-1]),
    (&[3, 5], &[0]),
    (&[3, 5], &[1]),
    (&[2, 3, 7], &[1]),
    (&[2, 3, 7], &[0, 2]),
    (&[2, 3, 7], &[-1, -2]),
    (&[2, 1, 3, 4], &[1, 2, 3]),
    (&[1, 65, 2, 3], &[1]),
    (&[2, 3, 2, 3, 2], &[1, 3]),
    (&[2, 3, 2, 3, 2], &[4, 0, 2]),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for op in REDUCTIONS {
        // Away from 0, so that a product of many neither vanishes nor overflows in half precision.
        let range = || if *op == "reduce_prod" { 0.7..1.4 } else { -2.0..2.0 };
        for (shape, axes) in AXES {
            for keep_dims in [false, true] {
                let x = case(op).input_in("x", shape, range());
                cases.push(x.arg("axes", *axes).arg("keep_dims", keep_dims));
            }
        }
        cases.push(case(op).input_in("x", &[2, 3, 5], range()));
        cases.push(case(op).input_in("x", &[2, 3, 5], range()).arg("keep_dims", true));
        cases.push(case(op).input_in("x", &[2, 3], range()).arg("axes", Vec::<i32>::new()));
        cases.push(case(op).ints("x", DType::I32, &[2, 3], &[1, -2, 3, 4, 5, -6]).arg("axes", [1]));
    }
    for op in ["reduce_argmax", "reduce_argmin"] {
        for shape in [&[1][..], &[17], &[3, 5], &[2, 1, 7], &[2, 3, 4, 5], &[2, 3, 2, 3, 2]] {
            for axis in -(shape.len() as i32)..shape.len() as i32 {
                for keep_dims in [false, true] {
                    cases.push(case(op).input("x", shape).arg("axis", axis).arg("keep_dims", keep_dims));
                }
            }
        }
        cases.push(case(op).input("x", &[2, 3]));
        cases.push(case(op).input("x", &[2, 3]).arg("output_dtype", "uint16"));
    }
    let argument = |op: &str, out: f64| {
        case(op).ints("x", DType::I32, &[5], &[3, 9, 1, 9, 1]).arg("axis", 0).expect(&[&[out]])
    };
    // Of equals the first.
    cases.extend([argument("reduce_argmax", 1.0), argument("reduce_argmin", 2.0)]);
    let known = |op: &str, out: f64| case(op).ints("x", DType::I32, &[3], &[-2, 3, 4]).expect(&[&[out]]);
    cases.push(case("reduce_l2_norm").ints("x", DType::I32, &[3], &[-2, 3, 6]).expect(&[&[7.0]]));
    cases.extend([
        known("reduce_max", 4.0),
        known("reduce_min", -2.0),
        known("reduce_prod", -24.0),
        known("reduce_sum", 5.0),
        known("reduce_sum_square", 29.0),
    ]);
    cases
}
