//! Cutting a function into consecutive segments, at cuts that few values cross.

use std::collections::HashSet;

use crate::bisect::Part;
use crate::{Arg, Def, Function, ValueId, multiply_adds};

/// Cuts a function into about `count` consecutive segments of similar work, in multiply-adds, where the
/// values that cross have few elements.
///
/// A segment's inputs are the values that it uses of the function's inputs and of earlier segments. Its
/// outputs are those that later segments or the caller use. Names and types stay. Run in order, the segments
/// compute what the function computes, and whoever keeps the values that cross can begin at any segment.
///
/// ```text
/// main(x) { y = f(x); z = g(y) } -> (z)        main(x) { y = f(x) } -> (y)      main(y) { z = g(y) } -> (z)
/// ```
pub fn segments(function: &Function, count: usize) -> Vec<Function> {
    let mut cuts = cuts(function, count);
    cuts.push(function.ops.len());
    let mut start = 0;
    let mut parts = Vec::with_capacity(cuts.len());
    for end in cuts {
        parts.push(segment(function, start, end));
        start = end;
    }
    parts
}

/// The values, in order, after which a function can be cut with that value alone crossing: everything later
/// depends on it and on constants only.
pub fn single_value_cuts(function: &Function) -> Vec<ValueId> {
    let mut open = crossing(function, |_| 1);
    let mut last_input_use = 0;
    for (at, op) in function.ops.iter().enumerate() {
        if op.args.iter().flat_map(Arg::values).any(|id| function.inputs.contains(id)) {
            last_input_use = at;
        }
    }
    open.iter_mut().take(last_input_use + 1).for_each(|count| *count += 1);
    let alone = (1..function.ops.len()).filter(|&at| open[at] == 1);
    alone.filter_map(|at| crossing_value(function, at)).collect()
}

/// The value of the op before a cut that crosses it.
fn crossing_value(function: &Function, at: usize) -> Option<ValueId> {
    let used = |id: &ValueId| {
        let mut later = function.ops[at..].iter().flat_map(|op| op.args.iter().flat_map(Arg::values));
        later.any(|other| other == id)
    };
    function.ops[at - 1].outputs.iter().copied().find(used)
}

/// Cuts a function after one of its [`single_value_cuts`], by the value's name. The value is the output of
/// the first part and the input of the second. `None` if there is no cut after a value of that name.
///
/// ```text
/// main(x) { y = f(x); z = g(y) } -> (z)        main(x) { y = f(x) } -> (y)      main(y) { z = g(y) } -> (z)
/// ```
pub fn cut_after(function: &Function, name: &str) -> Option<[Function; 2]> {
    let id = single_value_cuts(function).into_iter().find(|&id| function.value(id).name == name)?;
    let at = 1 + function.ops.iter().position(|op| op.outputs.contains(&id))?;
    Some([segment(function, 0, at), segment(function, at, function.ops.len())])
}

fn segment(function: &Function, start: usize, end: usize) -> Function {
    let ops = &function.ops[start..end];
    let made: HashSet<ValueId> = ops.iter().flat_map(|op| &op.outputs).copied().collect();
    let used = |ops: &[crate::Op]| -> Vec<ValueId> {
        ops.iter().flat_map(|op| op.args.iter().flat_map(Arg::values)).copied().collect()
    };
    let mut part = Part::new(function);
    let mut seen = HashSet::new();
    for id in used(ops) {
        let is_constant = matches!(function.value(id).def, Def::Const(_));
        if !is_constant && !made.contains(&id) && seen.insert(id) {
            part.input(id);
        }
    }
    ops.iter().for_each(|op| part.copy(op, |_| false));
    let mut needed: HashSet<ValueId> = used(&function.ops[end..]).into_iter().collect();
    needed.extend(&function.outputs);
    let outputs = ops.iter().flat_map(|op| &op.outputs).filter(|id| needed.contains(id));
    part.out.outputs = outputs.filter_map(|id| part.places[id.index()]).collect();
    part.out
}

/// The indices of the ops before which to cut.
fn cuts(function: &Function, count: usize) -> Vec<usize> {
    let work: Vec<u64> = function.ops.iter().map(|op| multiply_adds(&function.view(op))).collect();
    let crossing = crossing(function, |id| function.value(id).ty.count());
    let total: u64 = work.iter().sum();
    // The sum of the work before each op.
    let before: Vec<u64> = work
        .iter()
        .scan(0, |sum, work| {
            let before = *sum;
            *sum += work;
            Some(before)
        })
        .collect();
    let mut cuts: Vec<usize> = Vec::new();
    for part in 1..count as u64 {
        // A window around the even cut, as long as a segment.
        let (low, high) =
            (total * (2 * part - 1) / (2 * count as u64), total * (2 * part + 1) / (2 * count as u64));
        let first = cuts.last().copied().unwrap_or(0) + 1;
        let window = (first..function.ops.len()).filter(|&at| before[at] > low && before[at] <= high);
        cuts.extend(window.min_by_key(|&at| crossing[at]));
    }
    cuts
}

/// The sum of `size` over the values that cross a cut before each op, except the function's inputs.
fn crossing(function: &Function, size: impl Fn(ValueId) -> usize) -> Vec<usize> {
    let count = function.ops.len();
    let mut last_use = vec![0; function.values.len()];
    for (at, op) in function.ops.iter().enumerate() {
        op.args.iter().flat_map(Arg::values).for_each(|id| last_use[id.index()] = at);
    }
    function.outputs.iter().for_each(|id| last_use[id.index()] = count);
    let mut crossing = vec![0; count];
    for (at, op) in function.ops.iter().enumerate() {
        for id in &op.outputs {
            let size = size(*id);
            let alive = at + 1..(last_use[id.index()] + 1).min(count);
            crossing[alive].iter_mut().for_each(|sum| *sum += size);
        }
    }
    crossing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Bytes, DType, Opset, TensorType, WeightRef, verify};

    /// A chain of layers with a skip from the first to the last.
    fn chain(count: usize) -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let mut x = b.input("x", TensorType::new(DType::F16, [1, 8])).unwrap();
        let mut first = None;
        for index in 0..count {
            let ty = TensorType::new(DType::F16, [8, 8]);
            let weight = b.weight(WeightRef::new(format!("w{index}"), ty, Bytes::new(vec![0; 128])).unwrap());
            x = b
                .op("linear")
                .arg("x", x)
                .arg("weight", weight)
                .named(&format!("layer_{index}"))
                .add()
                .unwrap();
            // Between layers more crosses than after them.
            let wide =
                b.op("concat").arg("values", [x, x]).arg("axis", 1).arg("interleave", false).add().unwrap();
            x = b.op("slice_by_index").arg("x", wide).arg("begin", [0, 0]).arg("end", [1, 8]).add().unwrap();
            first.get_or_insert(x);
        }
        let y = b.op("add").arg("x", x).arg("y", first.unwrap()).named("y").add().unwrap();
        b.finish(&[y]).unwrap()
    }

    fn names(part: &Function, ids: &[ValueId]) -> Vec<String> {
        ids.iter().map(|&id| part.value(id).name.clone()).collect()
    }

    #[test]
    fn parts_follow_each_other() {
        let whole = chain(12);
        for count in [1, 2, 3, 4, 12, 40] {
            let parts = segments(&whole, count);
            assert!(
                parts.len() <= count.min(12) && parts.len() >= count.min(12) / 2,
                "{count}: {}",
                parts.len()
            );
            let ops: usize = parts.iter().map(|part| part.ops.len()).sum();
            assert_eq!(ops, whole.ops.len());
            let mut known = vec!["x".to_string()];
            for part in &parts {
                verify(part).unwrap();
                assert!(names(part, &part.inputs).iter().all(|name| known.contains(name)));
                let wide = part.outputs.iter().any(|&id| part.value(id).ty.count() > 8);
                assert!(!wide, "{count}: a cut lies where much crosses");
                known.extend(names(part, &part.outputs));
            }
            assert_eq!(names(&parts[parts.len() - 1], &parts[parts.len() - 1].outputs), ["y"]);
        }
    }

    #[test]
    fn a_waist_is_all_that_crosses() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F16, [4])).unwrap();
        let mut op = |kind: &str, name: &str, args: &[ValueId]| {
            let op = b.op(kind).arg("x", args[0]);
            let op = if let Some(&y) = args.get(1) { op.arg("y", y) } else { op };
            op.named(name).add().unwrap()
        };
        let early = op("relu", "early", &[x]);
        let with_input = op("add", "with_input", &[early, x]);
        let branch = op("relu", "branch", &[with_input]);
        let sum = op("add", "sum", &[branch, with_input]);
        let y = op("relu", "y", &[sum]);
        let function = b.finish(&[y]).unwrap();
        assert_eq!(names(&function, &single_value_cuts(&function)), ["with_input", "sum"]);
        for name in ["early", "branch", "y", "absent"] {
            assert!(cut_after(&function, name).is_none(), "{name}");
        }
        let [first, second] = cut_after(&function, "with_input").unwrap();
        for part in [&first, &second] {
            verify(part).unwrap();
        }
        assert_eq!(
            (names(&first, &first.inputs), names(&first, &first.outputs)),
            (vec!["x".into()], vec!["with_input".into()])
        );
        assert_eq!(
            (names(&second, &second.inputs), names(&second, &second.outputs)),
            (vec!["with_input".into()], vec!["y".into()])
        );
    }
}
