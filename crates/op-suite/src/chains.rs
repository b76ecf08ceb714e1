//! Chains of ops that a backend may run as one step, and chains that look like them.

use mixbit_engine::{Backend, Options, Reference, Tensor};
use mixbit_mil::{Builder, DType, Function, Literal, OpBuilder, Opset, TensorType, ValueId};
use mixbit_testkit::ErrorStats;

use crate::case::Inputs;
use crate::check::{self, have_same_bits};
use crate::report::Collector;

/// A chain and the nodes that it becomes.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The rule and the variation.
    pub name: String,
    /// The chain.
    pub function: Function,
    /// The outcome of [`fuse`](mixbit_engine::fuse::fuse).
    pub expect: Expect,
}

/// The expected outcome of a function's fusion.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// The kinds of all nodes, with commas.
    Nodes(&'static str),
    /// Nothing is fused, and a rule gives a reason that contains these words.
    Declined(&'static str),
    /// Nothing is fused.
    Nothing,
}

/// The largest error of a chain's results, relative to the largest value.
const TOLERANCE: f64 = 2e-5;

/// Every chain.
///
/// # Panics
/// If a function is not valid.
pub fn chains() -> Vec<Chain> {
    let mut chains = Vec::new();
    for (family, all) in [
        ("group norm", group_norms()),
        ("attention", attentions()),
        ("head of SPLIT_EINSUM", split_heads()),
        ("gated GELU", gated_gelus()),
        ("gated layer", gated_layers()),
        ("layer norm", layer_norms()),
        ("epilogue", epilogues()),
        ("self-attention", self_attentions()),
    ] {
        let chain = |(name, function, expect)| Chain { name: format!("{family}, {name}"), function, expect };
        chains.extend(all.into_iter().map(chain));
    }
    chains
}

/// A variation: its name, its function and its fusion.
type Variation = (String, Function, Expect);

/// Runs the part of the suite.
pub(crate) fn run(backends: &[&dyn Backend], collector: &mut Collector) {
    for chain in chains() {
        collector.case("chain", &chain.name, || check(&chain.function, backends));
    }
}

/// Runs a chain: the first backend against the reference, the others, and models that are planned to run
/// often, against the first.
fn check(function: &Function, backends: &[&dyn Backend]) -> Result<(), String> {
    let inputs = inputs(function);
    let once = Options::default();
    let often = Options { planned_runs: 1000, ..Options::default() };
    let expected = check::run(&Reference, function, &once, &inputs)?;
    let first = check::run(backends[0], function, &once, &inputs)?;
    for (found, expected) in first.iter().zip(&expected) {
        let (found, expected) = (found.as_f32().unwrap_or_default(), expected.as_f32().unwrap_or_default());
        ErrorStats::compare(found, expected).within(TOLERANCE)?;
    }
    for (index, backend) in backends.iter().enumerate() {
        for options in [&once, &often] {
            if !have_same_bits(&check::run(*backend, function, options, &inputs)?, &first) {
                return Err(format!(
                    "backend {index}, planned for {} runs: other bits",
                    options.planned_runs
                ));
            }
        }
    }
    Ok(())
}

/// Inputs of smooth values.
fn inputs(function: &Function) -> Inputs {
    let input = |(index, &id): (usize, &ValueId)| {
        let value = function.value(id);
        let tensor = Tensor::from_f32(&value.ty.shape, wave(value.ty.count(), index as f32));
        (value.name.clone(), tensor.expect("as many values as the shape has"))
    };
    function.inputs().iter().enumerate().map(input).collect()
}

/// Smooth values that differ from place to place.
fn wave(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|index| ((index as f32 * 0.73 + seed) * 1.7).sin() * 1.5).collect()
}

fn floats(b: &mut Builder, shape: &[usize], values: &[f64]) -> ValueId {
    b.literal(Literal::floats(DType::F32, shape, values).unwrap())
}

/// The variations of a group norm.
#[derive(Clone)]
struct Norm {
    shape: Vec<usize>,
    groups: usize,
    axes: Vec<i32>,
    silu: bool,
    mean: f64,
    /// The value that is an output beside the result.
    leak: Option<&'static str>,
    flat: bool,
}

impl Norm {
    fn new(shape: &[usize], groups: usize) -> Self {
        let axes = (2..=shape.len() as i32).collect();
        Norm { shape: shape.to_vec(), groups, axes, silu: false, mean: 0.0, leak: None, flat: false }
    }

    fn build(&self) -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, self.shape.clone())).unwrap();
        let channels = self.shape[1];
        let grouped = [&[self.shape[0], self.groups, channels / self.groups], &self.shape[2..]].concat();
        let ints = |shape: &[usize]| shape.iter().map(|&extent| extent as i32).collect::<Vec<_>>();
        let named = |op: OpBuilder, name: &str| op.named(name).add().unwrap();
        let g = named(b.op("reshape").arg("x", x).arg("shape", ints(&grouped)), "grouped");
        let reduce = |b: &mut Builder, x, name: &str| {
            let op = b.op("reduce_mean").arg("x", x).arg("axes", self.axes.clone()).arg("keep_dims", true);
            op.named(name).add().unwrap()
        };
        let mean = reduce(&mut b, g, "mean");
        let centered = named(b.op("sub").arg("x", g).arg("y", mean), "centered");
        let square = named(b.op("square").arg("x", centered), "square");
        let variance = reduce(&mut b, square, "variance");
        let sum = named(b.op("add").arg("x", variance).arg("y", 1e-5), "sum");
        let deviation = named(b.op("sqrt").arg("x", sum), "deviation");
        let unit = named(b.op("real_div").arg("x", centered).arg("y", deviation), "unit");
        let merged = named(b.op("reshape").arg("x", unit).arg("shape", ints(&self.shape)), "merged");
        let parameter = |b: &mut Builder, shape: &[usize], seed: f64| {
            let values: Vec<f64> = (0..channels).map(|c| (c as f64 * 0.9 + seed).cos() + 0.2).collect();
            floats(b, shape, &values)
        };
        let mut out = if self.flat {
            let column = [&[1, channels], &vec![1; self.shape.len() - 2][..]].concat();
            let (gamma, beta) = (parameter(&mut b, &column, 0.0), parameter(&mut b, &column, 5.0));
            let scaled = named(b.op("mul").arg("x", merged).arg("y", gamma), "scaled");
            named(b.op("add").arg("x", scaled).arg("y", beta), "norm")
        } else {
            let zeros = floats(&mut b, &[channels], &vec![self.mean; channels]);
            let ones = floats(&mut b, &[channels], &vec![1.0; channels]);
            let (gamma, beta) = (parameter(&mut b, &[channels], 0.0), parameter(&mut b, &[channels], 5.0));
            let op = b.op("batch_norm").arg("x", merged).arg("mean", zeros).arg("variance", ones);
            named(op.arg("gamma", gamma).arg("beta", beta).arg("epsilon", 1e-5), "norm")
        };
        if self.silu {
            out = named(b.op("silu").arg("x", out), "silu");
        }
        let made = [("mean", mean), ("centered", centered), ("unit", unit), ("merged", merged)];
        finish(b, out, &made, self.leak)
    }
}

/// Ends a function whose outputs are `out` and, if there is one, the value named `leak`.
fn finish(b: Builder, out: ValueId, made: &[(&str, ValueId)], leak: Option<&str>) -> Function {
    let leaked = made.iter().filter(|(name, _)| Some(*name) == leak).map(|(_, id)| *id);
    b.finish(&std::iter::once(out).chain(leaked).collect::<Vec<_>>()).unwrap()
}

fn group_norms() -> Vec<Variation> {
    let mut all = Vec::new();
    for (shape, groups) in [
        (&[1, 8, 4, 4][..], 4),
        (&[2, 6, 3, 5], 3),
        (&[2, 32, 9, 7], 32),
        (&[1, 5, 1, 1], 1),
        (&[2, 8, 15], 2),
        (&[1, 96, 16, 16], 32),
    ] {
        for (silu, flat) in [(false, false), (true, false), (false, true), (true, true)] {
            let norm = Norm { silu, flat, ..Norm::new(shape, groups) };
            let name = format!("{shape:?} {groups} silu {silu} flat {flat}");
            all.push((name, norm.build(), Expect::Nodes("group_norm")));
        }
    }
    let base = Norm::new(&[2, 6, 3, 5], 3);
    let used = Expect::Declined("used elsewhere");
    let near: [(&str, Norm, Expect); 6] = [
        ("an output on the way", Norm { leak: Some("merged"), ..base.clone() }, used),
        ("a mean that is an output", Norm { leak: Some("mean"), silu: true, ..base.clone() }, used),
        (
            "centered values that are an output",
            Norm { leak: Some("centered"), flat: true, ..base.clone() },
            used,
        ),
        ("other axes", Norm { axes: vec![2, 3], ..base.clone() }, Expect::Declined("whole groups")),
        (
            "other axes, flat",
            Norm { axes: vec![1, 2, 3, 4], flat: true, ..base.clone() },
            Expect::Declined("whole groups"),
        ),
        ("a mean of its own", Norm { mean: 0.5, ..base }, Expect::Declined("statistics of its own")),
    ];
    for (name, norm, expect) in near {
        all.push((name.to_string(), norm.build(), expect));
    }
    all
}

/// The variations of an attention by matrix products.
#[derive(Clone, Copy)]
struct Look {
    heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    /// True if channels come before tokens, as in Apple's `ORIGINAL`.
    channels_first: bool,
    scale: bool,
    mask: Option<[usize; 4]>,
    axis: i32,
    leak: Option<&'static str>,
}

impl Look {
    const BASE: Look = Look {
        heads: 2,
        queries: 5,
        keys: 7,
        dim: 3,
        channels_first: true,
        scale: true,
        mask: None,
        axis: -1,
        leak: None,
    };

    fn build(&self) -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let matrix = |tokens: usize| match self.channels_first {
            true => [2, self.heads, self.dim, tokens],
            false => [2, self.heads, tokens, self.dim],
        };
        let mut input =
            |name: &str, shape: [usize; 4]| b.input(name, TensorType::new(DType::F32, shape)).unwrap();
        let [q, k, v] = [("q", self.queries), ("k", self.keys), ("v", self.keys)]
            .map(|(name, tokens)| input(name, matrix(tokens)));
        let mask = self.mask.map(|shape| input("mask", shape));
        let first = self.channels_first;
        let op = b.op("matmul").arg("x", q).arg("y", k).arg("transpose_x", first);
        let scores = op.arg("transpose_y", !first).named("scores").add().unwrap();
        let mut x = scores;
        if self.scale {
            x = b.op("mul").arg("x", x).arg("y", 0.6).named("scaled").add().unwrap();
        }
        if let Some(mask) = mask {
            x = b.op("add").arg("x", x).arg("y", mask).named("masked").add().unwrap();
        }
        let probabilities =
            b.op("softmax").arg("x", x).arg("axis", self.axis).named("probabilities").add().unwrap();
        let op = match first {
            true => b.op("matmul").arg("x", v).arg("y", probabilities).arg("transpose_y", true),
            false => b.op("matmul").arg("x", probabilities).arg("y", v),
        };
        let out = op.named("attended").add().unwrap();
        finish(b, out, &[("scores", scores), ("probabilities", probabilities)], self.leak)
    }
}

fn attentions() -> Vec<Variation> {
    let mut all = Vec::new();
    for channels_first in [true, false] {
        for (heads, queries, keys, dim) in [(1, 1, 1, 1), (2, 5, 7, 3), (3, 33, 77, 40), (8, 64, 64, 16)] {
            for (scale, masked) in [(true, false), (false, true), (true, true)] {
                let mask = masked.then_some([1, 1, queries, keys]);
                let look = Look { heads, queries, keys, dim, channels_first, scale, mask, ..Look::BASE };
                let name = format!("{heads} {queries} {keys} {dim} {channels_first} {scale} {masked}");
                all.push((name, look.build(), Expect::Nodes("attention")));
            }
        }
    }
    let masks = Look { mask: Some([1, 1, 1, 7]), ..Look::BASE };
    all.push(("a mask of keys".to_string(), masks.build(), Expect::Nodes("attention")));
    let used = Expect::Declined("used elsewhere");
    let near: [(&str, Look, Expect); 5] = [
        ("scores that are an output", Look { leak: Some("scores"), ..Look::BASE }, used),
        (
            "probabilities that are an output",
            Look { leak: Some("probabilities"), ..Look::BASE },
            Expect::Nothing,
        ),
        ("over the queries", Look { axis: 2, ..Look::BASE }, Expect::Declined("not over the keys")),
        (
            "over the heads",
            Look { axis: 1, channels_first: false, ..Look::BASE },
            Expect::Declined("not over the keys"),
        ),
        ("a mask of heads", Look { mask: Some([1, 2, 5, 7]), ..Look::BASE }, Expect::Declined("every head")),
    ];
    for (name, look, expect) in near {
        all.push((name.to_string(), look.build(), expect));
    }
    all
}

fn split_heads() -> Vec<Variation> {
    let mut all = Vec::new();
    for (batch, dim, queries, keys) in [(1, 1, 1, 1), (2, 3, 5, 7), (2, 40, 64, 77)] {
        let build = || -> Result<Function, mixbit_mil::Error> {
            let mut b = Builder::new("main", Opset::Ios16);
            let mut input = |name: &str, shape: [usize; 4]| b.input(name, TensorType::new(DType::F32, shape));
            let (q, k, v) = (
                input("q", [batch, dim, 1, queries])?,
                input("k", [batch, keys, 1, dim])?,
                input("v", [batch, dim, 1, keys])?,
            );
            let scores = b.op("einsum").arg("values", [k, q]).arg("equation", "bkhc,bchq->bkhq").add()?;
            let scaled = b.op("mul").arg("x", scores).arg("y", 0.3).add()?;
            let probabilities = b.op("softmax").arg("x", scaled).arg("axis", 1).add()?;
            let op = b.op("einsum").arg("values", [v, probabilities]).arg("equation", "bchk,bkhq->bchq");
            let out = op.add()?;
            b.finish(&[out])
        };
        let name = format!("{batch} {dim} {queries} {keys}");
        all.push((name, build().expect("a valid function"), Expect::Nodes("attention")));
    }
    all
}

fn gated_gelus() -> Vec<Variation> {
    let build = |mode: &str, swapped: bool, leak: bool| {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [2, 6, 1, 5])).unwrap();
        let op = b.op("split").arg("x", x).arg("num_splits", 2).arg("axis", 1);
        let halves = op.named("halves").add_all().unwrap();
        let (value, gate) = if swapped { (halves[1], halves[0]) } else { (halves[0], halves[1]) };
        let gate = b.op("gelu").arg("x", gate).arg("mode", mode).named("gate").add().unwrap();
        let out = b.op("mul").arg("x", value).arg("y", gate).named("gated").add().unwrap();
        finish(b, out, &[("value", halves[0])], leak.then_some("value"))
    };
    let mut all = Vec::new();
    let mut add = |name: &str, function, expect| all.push((name.to_string(), function, expect));
    add("plain", build("EXACT", false, false), Expect::Nodes("geglu"));
    let approximation = Expect::Declined("approximation");
    add("approximate", build("TANH_APPROXIMATION", false, false), approximation);
    add("the other half", build("EXACT", true, false), Expect::Nothing);
    let used = Expect::Declined("used elsewhere");
    add("a half that is an output", build("EXACT", false, true), used);
    all
}

/// A layer of random weights, a split of its result along an axis, and a gated GELU of the halves.
fn gated_layer(kind: &str, groups: i32, axis: i32, leak: bool) -> Function {
    let mut b = Builder::new("main", Opset::Ios16);
    let (input, weight) = match kind {
        "conv" => (vec![2, 6, 4, 5], vec![14, 6 / groups as usize, 1, 1]),
        _ => (vec![2, 33, 6], vec![14, 6]),
    };
    let x = b.input("x", TensorType::new(DType::F32, input)).unwrap();
    let values = |count: usize, step: f64| (0..count).map(|i| (i as f64 * step).sin()).collect::<Vec<_>>();
    let count = weight.iter().product();
    let (weight, bias) =
        (floats(&mut b, &weight, &values(count, 0.37)), floats(&mut b, &[14], &values(14, 0.9)));
    let mut op = b.op(kind).arg("x", x).arg("weight", weight).arg("bias", bias);
    if kind == "conv" {
        op = op.arg("groups", groups);
    }
    let layer = op.named("layer").add().unwrap();
    let op = b.op("split").arg("x", layer).arg("num_splits", 2).arg("axis", axis);
    let halves = op.named("halves").add_all().unwrap();
    let gate = b.op("gelu").arg("x", halves[1]).arg("mode", "EXACT").named("gate").add().unwrap();
    let out = b.op("mul").arg("x", gate).arg("y", halves[0]).named("gated").add().unwrap();
    finish(b, out, &[("layer", layer)], leak.then_some("layer"))
}

fn gated_layers() -> Vec<Variation> {
    let mut all = Vec::new();
    for (kind, groups, axis, leak, nodes) in [
        ("conv", 1, 1, false, "conv+geglu"),
        ("conv", 1, -3, false, "conv+geglu"),
        ("linear", 1, 2, false, "linear+geglu"),
        ("linear", 1, -1, false, "linear+geglu"),
        ("conv", 2, 1, false, "conv, geglu"),
        ("conv", 1, 2, false, "conv, geglu"),
        ("conv", 1, 1, true, "conv, geglu"),
        ("linear", 1, 2, true, "linear, geglu"),
    ] {
        let name = format!("{kind} of {groups} groups along {axis}, also an output: {leak}");
        all.push((name, gated_layer(kind, groups, axis, leak), Expect::Nodes(nodes)));
    }
    all
}

/// The variations of a decomposed layer norm over the channels of [N, C, 1, S].
#[derive(Clone, Copy)]
struct Channels {
    shape: [usize; 4],
    /// `(n + b) * w` as Apple writes it, `n * w + b`, or nothing after the normalization.
    affine: Option<bool>,
    /// True if the variance is of another axis than the mean.
    mixed: bool,
    leak: Option<&'static str>,
}

impl Channels {
    fn build(&self) -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, self.shape)).unwrap();
        let mean = |b: &mut Builder, x, axis: i32, name: &str| {
            let op = b.op("reduce_mean").arg("x", x).arg("axes", vec![axis]).arg("keep_dims", true);
            op.named(name).add().unwrap()
        };
        let two = |b: &mut Builder, kind, x, y, name: &str| {
            b.op(kind).arg("x", x).arg("y", y).named(name).add().unwrap()
        };
        let m = mean(&mut b, x, 1, "mean");
        let centered = two(&mut b, "sub", x, m, "centered");
        let square = two(&mut b, "mul", centered, centered, "square");
        let variance = mean(&mut b, square, if self.mixed { 3 } else { 1 }, "variance");
        let sum = b.op("add").arg("x", variance).arg("y", 1e-3).named("sum").add().unwrap();
        let inverse = b.op("rsqrt").arg("x", sum).arg("epsilon", 1e-4).named("inverse").add().unwrap();
        let mut out = two(&mut b, "mul", centered, inverse, "unit");
        if let Some(shift_first) = self.affine {
            let mut parameter = |seed: f64| {
                let values: Vec<f64> =
                    (0..self.shape[1]).map(|c| (c as f64 * 0.9 + seed).cos() + 0.2).collect();
                floats(&mut b, &[1, self.shape[1], 1, 1], &values)
            };
            let (shift, scale) = (parameter(5.0), parameter(0.0));
            let order =
                if shift_first { [("add", shift), ("mul", scale)] } else { [("mul", scale), ("add", shift)] };
            for (kind, value) in order {
                out = two(&mut b, kind, out, value, kind);
            }
        }
        finish(b, out, &[("centered", centered)], self.leak)
    }
}

fn layer_norms() -> Vec<Variation> {
    let mut all = Vec::new();
    for shape in [[1, 4, 1, 6], [2, 33, 1, 17], [2, 320, 1, 64], [1, 1, 1, 3]] {
        for affine in [None, Some(true), Some(false)] {
            let norm = Channels { shape, affine, mixed: false, leak: None };
            all.push((format!("{shape:?} {affine:?}"), norm.build(), Expect::Nodes("layer_norm")));
        }
    }
    let base = Channels { shape: [2, 5, 1, 5], affine: Some(true), mixed: false, leak: None };
    let used = Expect::Declined("used elsewhere");
    all.push(("centered".to_string(), Channels { leak: Some("centered"), ..base }.build(), used));
    all.push(("axes".to_string(), Channels { mixed: true, ..base }.build(), Expect::Nothing));
    all
}

/// The ops after a product.
#[derive(Clone, Copy, Debug)]
enum After {
    /// A value of the result's shape that comes before the product, or after it and before the sum.
    Residual {
        late: bool,
    },
    /// A value for each channel, of a number of images.
    Shift(usize),
    Op(&'static str, &'static str),
    QuickGelu,
    /// The result so far is an output, too.
    Leak,
}

/// A product of random weights, and the ops after it.
fn product(is_conv: bool, images: usize, after: &[After]) -> Function {
    let mut b = Builder::new("main", Opset::Ios16);
    let (ins, outs) = (5, 19);
    let (x_shape, y_shape, w_shape) = match is_conv {
        true => (vec![images, ins, 6, 9], vec![images, outs, 6, 9], vec![outs, ins, 3, 3]),
        false => (vec![images, 33, ins], vec![images, 33, outs], vec![outs, ins]),
    };
    let input = |b: &mut Builder, name: &str, shape: &[usize]| {
        b.input(name, TensorType::new(DType::F32, shape.to_vec())).unwrap()
    };
    let x = input(&mut b, "x", &x_shape);
    let residual = input(&mut b, "r", &y_shape);
    let shift = after.iter().find_map(|after| match after {
        After::Shift(images) => Some(input(&mut b, "e", &[*images, outs, 1, 1])),
        _ => None,
    });
    let values =
        |count: usize, step: f64| (0..count).map(|i| (i as f64 * step).sin() * 0.3).collect::<Vec<_>>();
    let weight = floats(&mut b, &w_shape, &values(w_shape.iter().product(), 0.37));
    let bias = floats(&mut b, &[outs], &values(outs, 0.9));
    let mut op = b.op(if is_conv { "conv" } else { "linear" }).arg("x", x);
    op = op.arg("weight", weight).arg("bias", bias);
    if is_conv {
        op = op.arg("pad_type", "custom").arg("pad", vec![1, 1, 1, 1]);
    }
    let mut out = op.named("product").add().unwrap();
    let mut outputs = Vec::new();
    for (index, after) in after.iter().enumerate() {
        let name = format!("after_{index}");
        let mut two =
            |kind: &str, x, y, name: &str| b.op(kind).arg("x", x).arg("y", y).named(name).add().unwrap();
        out = match *after {
            After::Residual { late } => {
                let other = if late { two("add", residual, residual, "late") } else { residual };
                two("add", other, out, &name)
            }
            After::Shift(_) => two("add", out, shift.unwrap(), &name),
            After::Op(kind, "") => b.op(kind).arg("x", out).named(&name).add().unwrap(),
            After::Op(kind, mode) => b.op(kind).arg("x", out).arg("mode", mode).named(&name).add().unwrap(),
            After::QuickGelu => {
                let scaled = b.op("mul").arg("x", out).arg("y", 1.702).named("scaled").add().unwrap();
                let gate = b.op("sigmoid").arg("x", scaled).named("gate").add().unwrap();
                b.op("mul").arg("x", out).arg("y", gate).named(&name).add().unwrap()
            }
            After::Leak => {
                outputs.push(out);
                out
            }
        };
    }
    outputs.push(out);
    b.finish(&outputs).unwrap()
}

fn epilogues() -> Vec<Variation> {
    use After::{Leak, Op, QuickGelu, Residual, Shift};
    let (silu, early) = (Op("silu", ""), Residual { late: false });
    let mut all = Vec::new();
    for (after, conv, linear) in [
        (&[early][..], "conv+residual", "linear+residual"),
        (&[Residual { late: true }], "add, conv+residual", "add, linear+residual"),
        (&[silu], "conv+activation", "linear+activation"),
        (&[Op("relu", "")], "conv+activation", "linear+activation"),
        (&[Op("sigmoid", "")], "conv+activation", "linear+activation"),
        (&[Op("gelu", "EXACT")], "conv+activation", "linear+activation"),
        (&[Op("gelu", "TANH_APPROXIMATION")], "conv+activation", "linear+activation"),
        (&[Op("gelu", "SIGMOID_APPROXIMATION")], "conv+activation", "linear+activation"),
        (&[QuickGelu], "conv+activation", "linear+activation"),
        (&[early, silu], "conv+residual+activation", "linear+residual+activation"),
        (&[early, QuickGelu], "conv+residual+activation", "linear+residual+activation"),
        // An activation ends the epilogue.
        (&[silu, early], "conv+activation, add", "linear+activation, add"),
        (&[early, early], "conv+residual, add", "linear+residual, add"),
        (&[Leak, silu], "conv, silu", "linear, silu"),
        (&[early, Leak, silu], "conv+residual, silu", "linear+residual, silu"),
    ] {
        for images in [1, 2] {
            let name = format!("{after:?} {images}");
            all.push((format!("conv {name}"), product(true, images, after), Expect::Nodes(conv)));
            all.push((format!("linear {name}"), product(false, images, after), Expect::Nodes(linear)));
        }
    }
    for (images, shifts) in [(1, 1), (2, 1), (2, 2)] {
        for (after, nodes) in [
            (&[Shift(shifts)][..], "conv+shift"),
            (&[Shift(shifts), early, silu], "conv+shift+residual+activation"),
            (&[Shift(shifts), silu], "conv+shift+activation"),
        ] {
            let name = format!("conv {after:?} {images}");
            all.push((name, product(true, images, after), Expect::Nodes(nodes)));
        }
    }
    all
}

/// How a text encoder attends to itself.
#[derive(Clone, Copy)]
struct SelfAttention {
    /// Images, tokens, heads, channels of a head.
    sizes: [usize; 4],
    has_bias: bool,
    masked: bool,
    /// The queries are scaled before they are taken apart, or else after it; `None` if not at all.
    scaled: Option<bool>,
    /// True if heads become part of the batch axis.
    flat: bool,
    /// True if keys are of another value than queries.
    crossed: bool,
    /// A value that is a result, too.
    leak: Option<&'static str>,
}

impl SelfAttention {
    const BASE: Self = Self {
        sizes: [2, 7, 3, 5],
        has_bias: true,
        masked: true,
        scaled: Some(false),
        flat: false,
        crossed: false,
        leak: None,
    };

    fn build(self) -> Result<Function, mixbit_mil::Error> {
        let [batch, tokens, heads, width] = self.sizes;
        let channels = heads * width;
        let mut b = Builder::new("main", Opset::Ios16);
        let [x, y] = ["x", "y"]
            .map(|name| b.input(name, TensorType::new(DType::F32, [batch, tokens, channels])).unwrap());
        let numbers = |count: usize, seed: f32| -> Vec<f64> {
            wave(count, seed).into_iter().map(|value| f64::from(value) * 0.3).collect()
        };
        let mut made = vec![];
        let mut operands = vec![];
        for (index, name) in ["query", "key", "value"].into_iter().enumerate() {
            let weight = floats(&mut b, &[channels, channels], &numbers(channels * channels, index as f32));
            let bias = floats(&mut b, &[channels], &numbers(channels, 7.0 + index as f32));
            let source = if self.crossed && index == 1 { y } else { x };
            let op = b.op("linear").arg("x", source).arg("weight", weight);
            let mut value = if self.has_bias { op.arg("bias", bias) } else { op }.add()?;
            made.push((name, value));
            let scale = |b: &mut Builder, value| b.op("mul").arg("x", value).arg("y", 0.4).add();
            if index == 0 && self.scaled == Some(true) {
                value = scale(&mut b, value)?;
            }
            let split = [batch as i32, -1, heads as i32, width as i32];
            value = b.op("reshape").arg("x", value).arg("shape", split).add()?;
            if index == 0 && self.scaled == Some(false) {
                value = scale(&mut b, value)?;
            }
            value = b.op("transpose").arg("x", value).arg("perm", [0, 2, 1, 3]).add()?;
            made.push((["query heads", "key heads", "value heads"][index], value));
            if self.flat {
                let flat = [(batch * heads) as i32, -1, width as i32];
                value = b.op("reshape").arg("x", value).arg("shape", flat).add()?;
            }
            operands.push(value);
        }
        let op = b.op("matmul").arg("x", operands[0]).arg("y", operands[1]).arg("transpose_y", true);
        let mut scores = op.add()?;
        if self.masked {
            let mut values = vec![0.0; tokens * tokens];
            (0..tokens).for_each(|row| values[row * tokens + row + 1..(row + 1) * tokens].fill(-1e4));
            let shape: &[usize] = if self.flat { &[1, tokens, tokens] } else { &[1, 1, tokens, tokens] };
            let mask = floats(&mut b, shape, &values);
            scores = b.op("add").arg("x", scores).arg("y", mask).add()?;
        }
        let probabilities = b.op("softmax").arg("x", scores).arg("axis", -1).add()?;
        let mut out = b.op("matmul").arg("x", probabilities).arg("y", operands[2]).add()?;
        if self.flat {
            let split = [batch as i32, heads as i32, -1, width as i32];
            out = b.op("reshape").arg("x", out).arg("shape", split).add()?;
        }
        made.push(("attended", out));
        out = b.op("transpose").arg("x", out).arg("perm", [0, 2, 1, 3]).add()?;
        out = b.op("reshape").arg("x", out).arg("shape", [batch as i32, -1, channels as i32]).add()?;
        Ok(finish(b, out, &made, self.leak))
    }
}

fn self_attentions() -> Vec<Variation> {
    let mut all = Vec::new();
    let base = SelfAttention::BASE;
    let whole = "linear+linear+linear, attention, reshape";
    let single = "linear, reshape, linear, reshape, linear, reshape, attention, reshape";
    let cases: Vec<(&str, SelfAttention, &str)> = vec![
        ("plain", base, whole),
        ("of one image", SelfAttention { sizes: [1, 7, 3, 5], ..base }, whole),
        ("of two texts", SelfAttention { sizes: [2, 77, 4, 16], ..base }, whole),
        ("scaled first", SelfAttention { scaled: Some(true), ..base }, whole),
        ("not scaled", SelfAttention { scaled: None, ..base }, whole),
        ("flat", SelfAttention { flat: true, ..base }, whole),
        ("without mask and bias", SelfAttention { masked: false, has_bias: false, ..base }, whole),
        ("of two values", SelfAttention { crossed: true, ..base }, single),
        ("a projection that is a result", SelfAttention { leak: Some("key"), ..base }, single),
        (
            "heads that are a result",
            SelfAttention { leak: Some("value heads"), ..base },
            "linear, reshape, linear, reshape, linear, reshape, transpose, attention, reshape",
        ),
        (
            "an output that is a result",
            SelfAttention { leak: Some("attended"), ..base },
            "linear+linear+linear, attention, transpose, reshape",
        ),
    ];
    for (name, look, nodes) in cases {
        all.push((name.to_string(), look.build().expect("a valid function"), Expect::Nodes(nodes)));
    }
    all
}
