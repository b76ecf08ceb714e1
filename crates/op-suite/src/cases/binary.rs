//! Element-wise ops of two or three inputs.

use mixbit_mil::DType;

use crate::case::{Case, case};

/// Pairs of shapes that broadcast to each other, in both directions.
const PAIRS: &[(&[usize], &[usize])] = &[
    (&[1], &[1]),
    (&[17], &[17]),
    (&[2, 3, 5], &[2, 3, 5]),
    (&[3, 5], &[5]),
    (&[5], &[3, 5]),
    (&[3, 1], &[1, 7]),
    (&[1, 4, 1, 9], &[2, 1, 3, 1]),
    (&[2, 3, 1, 2, 1], &[3, 5, 1, 8]),
    (&[], &[2, 3]),
    (&[2, 8, 33], &[]),
    (&[2, 5, 3, 3], &[1, 5, 1, 1]),
    (&[1], &[2, 2, 2, 2, 2]),
    (&[0, 4], &[1, 4]),
    (&[1031, 3], &[1, 3]),
];

const ARITHMETIC: &[&str] = &["add", "maximum", "minimum", "mul", "sub"];
const DIVISIONS: &[&str] = &["floor_div", "mod", "real_div"];
const COMPARISONS: &[&str] = &["equal", "greater", "greater_equal", "less", "less_equal", "not_equal"];
const LOGICAL: &[&str] = &["logical_and", "logical_or", "logical_xor"];

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Whole numbers that repeat, so that comparisons meet equal ones.
fn cycle(shape: &[usize], period: usize, from: i32) -> Vec<i32> {
    (0..count(shape)).map(|index| from + (index * 7 % period) as i32).collect()
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (x, y) in PAIRS {
        for op in ARITHMETIC {
            cases.push(case(op).input("x", x).input("y", y));
        }
        for op in DIVISIONS {
            cases.push(case(op).input_in("x", x, -9.0..9.0).input_in("y", y, 0.3..2.7));
        }
        cases.push(case("pow").input_in("x", x, 0.1..4.0).input_in("y", y, -3.0..3.0));
        let (whole_x, whole_y) = (cycle(x, 5, -2), cycle(y, 5, -1));
        let floats = |values: &[i32]| values.iter().map(|&value| value as f32).collect();
        for op in COMPARISONS {
            cases.push(case(op).input_of("x", x, floats(&whole_x)).input_of("y", y, floats(&whole_y)));
            cases.push(case(op).ints("x", DType::I32, x, &whole_x).ints("y", DType::I32, y, &whole_y));
        }
        for op in LOGICAL {
            let (x_bools, y_bools) = (cycle(x, 2, 0), cycle(y, 2, 0));
            cases.push(case(op).ints("x", DType::Bool, x, &x_bools).ints("y", DType::Bool, y, &y_bools));
        }
        for op in ARITHMETIC {
            cases.push(case(op).ints("x", DType::I32, x, &whole_x).ints("y", DType::I32, y, &whole_y));
        }
        cases.push(case("select").ints("cond", DType::Bool, y, &cycle(y, 2, 0)).input("a", x).input_in(
            "b",
            &[1],
            5.0..6.0,
        ));
    }
    cases.extend(known());
    cases
}

/// Results that follow from the definitions by hand: floors go down, and large integers stay exact.
fn known() -> Vec<Case> {
    let ints = |op: &str, x: &[i32], y: &[i32], out: &[f64]| {
        case(op).ints("x", DType::I32, &[x.len()], x).ints("y", DType::I32, &[y.len()], y).expect(&[out])
    };
    let floats = |op: &str, x: &[f32], y: &[f32], out: &[f64]| {
        case(op)
            .input_of("x", &[x.len()], x.to_vec())
            .input_of("y", &[y.len()], y.to_vec())
            .expect(&[out])
            .finite()
    };
    vec![
        ints("floor_div", &[7, -7, 7, -7], &[2, 2, -2, -2], &[3.0, -4.0, -4.0, 3.0]),
        ints("mod", &[7, -7, 7, -7], &[3, 3, -3, -3], &[1.0, 2.0, -2.0, -1.0]),
        // No number is right, but none may stop the run.
        ints("floor_div", &[1, -1, 0], &[0, 0, 0], &[2_147_483_647.0, -2_147_483_648.0, 0.0]),
        ints("mod", &[1, -1], &[0, 0], &[0.0, 0.0]),
        ints("add", &[16_777_217, 2_000_000_001], &[0, 2], &[16_777_217.0, 2_000_000_003.0]),
        ints("mul", &[46_341, -3], &[46_340, 5], &[2_147_441_940.0, -15.0]),
        ints("pow", &[3, -2, 10], &[4, 3, 9], &[81.0, -8.0, 1e9]),
        ints("maximum", &[1, -5], &[0, -4], &[1.0, -4.0]),
        floats("floor_div", &[7.0, -7.0, 7.0, -7.0], &[2.0, 2.0, -2.0, -2.0], &[3.0, -4.0, -4.0, 3.0]),
        floats("mod", &[7.0, -7.0, 7.0, -7.0], &[3.0, 3.0, -3.0, -3.0], &[1.0, 2.0, -2.0, -1.0]),
        floats("pow", &[-2.0, 0.0, 2.0, 0.0], &[3.0, 0.0, -1.0, 2.0], &[-8.0, 1.0, 0.5, 0.0]),
        floats("real_div", &[1.0, -1.0], &[0.0, 0.0], &[f64::INFINITY, f64::NEG_INFINITY]),
        case("equal")
            .ints("x", DType::Bool, &[3], &[1, 0, 1])
            .ints("y", DType::Bool, &[3], &[1, 1, 1])
            .expect(&[&[1.0, 0.0, 1.0]]),
        case("select")
            .ints("cond", DType::Bool, &[2, 1], &[1, 0])
            .ints("a", DType::I32, &[2], &[1, 2])
            .ints("b", DType::I32, &[2, 2], &[5, 6, 7, 8])
            .expect(&[&[1.0, 2.0, 7.0, 8.0]]),
        case("select")
            .ints("cond", DType::Bool, &[1], &[1])
            .input("a", &[2, 1, 3])
            .input("b", &[4, 1])
            .constant(),
        case("add").input("x", &[2, 3, 5, 5]).input("y", &[3, 1, 1]).constant(),
        case("mul").input("x", &[4, 1]).constant().input("y", &[1, 6]),
        case("mul").input("x", &[3, 7]).again("y"),
        case("select").ints("cond", DType::Bool, &[2], &[1, 0]).input("a", &[3, 2]).again("b"),
    ]
}
