//! Cutting a function into two consecutive parts, and joining two parts.

use std::collections::{HashMap, HashSet};

use crate::ops::lookup;
use crate::{Arg, DType, Def, Error, Function, Literal, Op, TensorType, ValueId};

/// Cuts a function where half the bytes of its constants are used, as Apple's `chunk_mlprogram` does, for
/// devices that can't load it whole. `None` if there is nothing to cut.
///
/// Every value that the second part needs is an output of the first and an input of the second, under its own
/// name. Floats cross the cut as `fp32`. The second part also has those of the function's inputs that it
/// uses. Outputs of the function that are made before the cut are outputs of the first part.
///
/// ```text
/// main(x) { y = f(x); z = g(y) } -> (z)
/// main(x) { y_cut = f(x); y = cast(y_cut) } -> (y)      main(y) { y_cut = cast(y); z = g(y_cut) } -> (z)
/// ```
pub fn bisect(function: &Function) -> Option<[Function; 2]> {
    let cut = cut(function)?;
    let (before, after) = function.ops.split_at(cut);
    let made: HashSet<ValueId> = before.iter().flat_map(|op| &op.outputs).copied().collect();
    let mut seen = HashSet::new();
    let crossing: Vec<ValueId> = after
        .iter()
        .flat_map(|op| op.args.iter().flat_map(Arg::values))
        .copied()
        .filter(|id| made.contains(id) && seen.insert(*id))
        .collect();

    let mut first = Part::new(function);
    function.inputs.iter().for_each(|&id| first.input(id));
    for op in before {
        first.copy(op, |id| seen.contains(&id) && is_narrow(function, id));
    }
    for &id in &crossing {
        let whole = first.widen(id);
        first.out.outputs.push(whole);
    }
    let early = function.outputs.iter().filter(|id| made.contains(id) && !seen.contains(id));
    first.out.outputs.extend(early.map(|id| first.places[id.index()].unwrap_or(*id)).collect::<Vec<_>>());

    let mut second = Part::new(function);
    let used: HashSet<ValueId> =
        after.iter().flat_map(|op| op.args.iter().flat_map(Arg::values)).copied().collect();
    function.inputs.iter().filter(|id| used.contains(id)).for_each(|&id| second.input(id));
    crossing.iter().for_each(|&id| second.narrowed_input(id));
    for op in after {
        second.copy(op, |_| false);
    }
    let late = function.outputs.iter().filter(|id| !made.contains(id));
    second.out.outputs = late.filter_map(|id| second.places[id.index()]).collect();
    Some([first.out, second.out])
}

/// Joins two consecutive functions. Inputs of the second are bound to outputs of the first of the same name.
///
/// The result has the inputs of both functions. Its outputs are those of the first that the second does not
/// take, then those of the second.
///
/// # Errors
/// [`Error::Graph`] if values of one name are of different types.
pub fn join(first: &Function, second: &Function) -> Result<Function, Error> {
    let mut out = Part::new(first);
    first.inputs.iter().for_each(|&id| out.input(id));
    first.ops.iter().for_each(|op| out.copy(op, |_| false));
    let named = |ids: &[ValueId], places: &[Option<ValueId>]| -> HashMap<String, ValueId> {
        let place = |&id: &ValueId| Some((first.value(id).name.clone(), places[id.index()]?));
        ids.iter().filter_map(place).collect()
    };
    let made = named(&first.outputs, &out.places);
    let given = named(&first.inputs, &out.places);
    let Part { out: whole, .. } = out;

    let taken: HashSet<String> = whole.values.iter().map(|value| value.name.clone()).collect();
    let mut out = Part::new(second);
    out.out = whole;
    for &id in &second.inputs {
        let value = second.value(id);
        let Some(&bound) = made.get(&value.name).or_else(|| given.get(&value.name)) else {
            out.input(id);
            continue;
        };
        let found = &out.out.value(bound).ty;
        if *found != value.ty {
            let what = format!("`{}` is {found} in one part and {} in the other", value.name, value.ty);
            return Err(Error::Graph(what));
        }
        out.places[id.index()] = Some(bound);
    }
    out.others = taken;
    second.ops.iter().for_each(|op| out.copy(op, |_| false));
    let crossing: HashSet<&String> = second.inputs.iter().map(|&id| &second.value(id).name).collect();
    let early = first.outputs.iter().filter(|id| !crossing.contains(&first.value(**id).name));
    let mut outputs: Vec<ValueId> =
        early.filter_map(|id| made.get(&first.value(*id).name).copied()).collect();
    outputs.extend(second.outputs.iter().filter_map(|id| out.places[id.index()]));
    out.out.outputs = outputs;
    Ok(out.out)
}

/// The number of ops before the cut.
fn cut(function: &Function) -> Option<usize> {
    let mut counted = HashSet::new();
    let mut bytes_of = |op: &Op| -> u64 {
        let ids = op.args.iter().flat_map(Arg::values);
        let new = ids.filter(|id| matches!(function.value(**id).def, Def::Const(_)) && counted.insert(**id));
        new.map(|id| function.value(*id).ty.byte_len().unwrap_or(0) as u64).sum()
    };
    let sizes: Vec<u64> = function.ops.iter().map(&mut bytes_of).collect();
    let half = sizes.iter().sum::<u64>() / 2;
    let mut gone = 0;
    let is_past = |size: &u64| {
        gone += size;
        gone > half
    };
    let at = sizes.iter().position(is_past)?;
    (at > 0 && at < function.ops.len()).then_some(at)
}

/// True if a value is a float narrower than `fp32`, in which values cross the cut.
fn is_narrow(function: &Function, id: ValueId) -> bool {
    let dtype = function.value(id).ty.dtype;
    dtype.is_float() && dtype != DType::F32
}

/// A part of a function, copied op by op.
pub(crate) struct Part<'f> {
    whole: &'f Function,
    taken: HashSet<&'f str>,
    pub(crate) out: Function,
    /// Names that are taken by the other part.
    others: HashSet<String>,
    /// The value of the part for each value of the whole.
    pub(crate) places: Vec<Option<ValueId>>,
}

impl<'f> Part<'f> {
    pub(crate) fn new(whole: &'f Function) -> Self {
        let out = Function::new(&whole.name, whole.opset);
        let taken = whole.values.iter().map(|value| value.name.as_str()).collect();
        Part { whole, taken, others: HashSet::new(), out, places: vec![None; whole.values.len()] }
    }

    pub(crate) fn input(&mut self, id: ValueId) {
        let value = self.whole.value(id);
        let new = self.out.add_value(value.name.clone(), value.ty.clone(), Def::Input);
        self.out.inputs.push(new);
        self.places[id.index()] = Some(new);
    }

    /// Adds an `fp32` input and, for a narrower value, the cast back.
    fn narrowed_input(&mut self, id: ValueId) {
        self.input(id);
        if is_narrow(self.whole, id) {
            let value = self.whole.value(id);
            if let Some(input) = self.places[id.index()] {
                self.out.values[input.index()].ty.dtype = DType::F32;
                let name = self.fresh(&value.name, "cut");
                let narrow = self.cast(input, name, value.ty.dtype);
                self.places[id.index()] = Some(narrow);
            }
        }
    }

    /// A value in `fp32`, if it is a float.
    fn widen(&mut self, id: ValueId) -> ValueId {
        let place = self.places[id.index()].unwrap_or(id);
        match is_narrow(self.whole, id) {
            true => self.cast(place, self.whole.value(id).name.clone(), DType::F32),
            false => place,
        }
    }

    fn cast(&mut self, x: ValueId, name: String, dtype: DType) -> ValueId {
        let def = lookup("cast").expect("the op table has `cast`");
        let target = Literal::string(&dtype.to_string());
        let ty = TensorType::new(dtype, self.out.value(x).ty.shape.clone());
        let target_ty = target.ty().clone();
        let kind = Def::Const(crate::Constant::Literal(target));
        let target_name = self.fresh(&name, "dtype");
        let target = self.out.add_value(target_name, target_ty, kind);
        let output = self.out.add_value(name, ty, Def::Result);
        let args = def.params.iter().map(|param| match param.name {
            "x" => Arg::One(x),
            "dtype" => Arg::One(target),
            _ => Arg::Absent,
        });
        self.out.ops.push(Op { def, args: args.collect(), outputs: vec![output] });
        output
    }

    /// Copies an op with its constants. Results for which `renamed` holds get another name: the value that
    /// crosses the cut has theirs.
    pub(crate) fn copy(&mut self, op: &Op, renamed: impl Fn(ValueId) -> bool) {
        let args = op.args.iter().map(|arg| match arg {
            Arg::Absent => Arg::Absent,
            Arg::One(id) => Arg::One(self.place(*id)),
            Arg::Many(ids) => Arg::Many(ids.iter().map(|&id| self.place(id)).collect()),
        });
        let args = args.collect();
        let outputs = op.outputs.iter().map(|&id| {
            let value = self.whole.value(id);
            let name = if renamed(id) { self.fresh(&value.name, "cut") } else { self.own(&value.name) };
            let new = self.out.add_value(name, value.ty.clone(), value.def.clone());
            self.places[id.index()] = Some(new);
            new
        });
        let outputs = outputs.collect();
        self.out.ops.push(Op { def: op.def, args, outputs });
    }

    /// A name that no value of the whole has.
    fn fresh(&self, base: &str, suffix: &str) -> String {
        let first = format!("{base}_{suffix}");
        let others = (2..).map(|index| format!("{base}_{suffix}_{index}"));
        let mut names = std::iter::once(first).chain(others);
        names
            .find(|name| !self.taken.contains(name.as_str()) && !self.others.contains(name))
            .unwrap_or_default()
    }

    fn place(&mut self, id: ValueId) -> ValueId {
        if let Some(place) = self.places[id.index()] {
            return place;
        }
        let value = self.whole.value(id);
        let name = self.own(&value.name);
        let new = self.out.add_value(name, value.ty.clone(), value.def.clone());
        self.places[id.index()] = Some(new);
        new
    }

    /// A copy's name: the value's own, unless another part took it.
    fn own(&self, name: &str) -> String {
        if self.others.contains(name) { self.fresh(name, "second") } else { name.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Bytes, Opset, WeightRef, verify};

    #[test]
    fn the_cut_is_at_half_the_weights_and_floats_cross_wide() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F16, [1, 8])).unwrap();
        let t = b.input("t", TensorType::new(DType::F16, [1, 8])).unwrap();
        let mut layer = |x, name: &str| {
            let ty = TensorType::new(DType::F16, [8, 8]);
            let weight = b.weight(WeightRef::new(name, ty, Bytes::new(vec![0; 128])).unwrap());
            b.op("linear").arg("x", x).arg("weight", weight).named(&format!("{name}_out")).add().unwrap()
        };
        let first = layer(x, "a");
        let second = layer(first, "b");
        let third = layer(second, "c");
        let sum = b.op("add").arg("x", third).arg("y", first).named("sum").add().unwrap();
        let sum = b.op("add").arg("x", sum).arg("y", t).named("result").add().unwrap();
        let whole = b.finish(&[sum]).unwrap();

        let parts = bisect(&whole).unwrap();
        parts.iter().for_each(|part| verify(part).unwrap());
        let names = |part: &Function, ids: &[ValueId]| -> Vec<String> {
            ids.iter().map(|&id| format!("{}: {}", part.value(id).name, part.value(id).ty.dtype)).collect()
        };
        let [first, second] = &parts;
        assert_eq!(names(first, &first.inputs), ["x: fp16", "t: fp16"]);
        assert_eq!(names(first, &first.outputs), ["a_out: fp32"]);
        assert_eq!(names(second, &second.inputs), ["t: fp16", "a_out: fp32"]);
        assert_eq!(names(second, &second.outputs), ["result: fp16"]);
        assert_eq!((first.ops.len(), second.ops.len()), (2, 5));

        let joined = join(first, second).unwrap();
        verify(&joined).unwrap();
        assert_eq!(names(&joined, &joined.inputs), ["x: fp16", "t: fp16"]);
        assert_eq!(names(&joined, &joined.outputs), ["result: fp16"]);
        assert_eq!(joined.ops.len(), 7);
        let other = join(second, first).unwrap();
        assert_eq!(names(&other, &other.inputs), ["t: fp16", "a_out: fp32", "x: fp16"]);
        verify(&other).unwrap();
    }

    #[test]
    fn a_function_without_weights_is_not_cut() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
        let y = b.op("relu").arg("x", x).add().unwrap();
        assert!(bisect(&b.finish(&[y]).unwrap()).is_none());
    }
}
