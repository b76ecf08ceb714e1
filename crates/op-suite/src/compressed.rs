//! Ops on compressed constants that are large enough to stay compressed, in every form of iOS 16 and 18: a
//! backend agrees with the reference, gives the bits that it gives for the decoded constants, and keeps them
//! in the memory of their bits.

use half::f16;
use mixbit_engine::{Backend, Options, Reference, Tensor};
use mixbit_mil::{Builder, Bytes, Constant, DType, Function, Opset, TensorType, ValueId, WeightRef};

use crate::arithmetic;
use crate::case::{Inputs, noise};
use crate::check::{self, compare, have_same_bits};
use crate::report::{Collector, Exceptions};

/// How the constant is compressed. Groups are of the first and of the second axis.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// One table for all.
    FlatPalette { bits: usize },
    /// One scale and zero point for each index of the first axis.
    Affine { dtype: DType },
    /// A table for each group.
    Palette { bits: usize, groups: [usize; 2] },
    /// A table whose entries are themselves scaled integers.
    ScaledTable { bits: usize, groups: [usize; 2] },
    /// A palette that is scaled for each index of the first axis.
    ScaledPalette { bits: usize, groups: [usize; 2] },
    /// Integers with a scale for each group.
    Blockwise { dtype: DType, groups: [usize; 2], shifted: bool },
    /// A table of pairs along the first axis.
    Pairs { bits: usize },
    /// Elements of which some are zero.
    Sparse,
}

fn forms() -> Vec<(Opset, Form)> {
    let mut forms = Vec::new();
    for bits in [1, 2, 4, 6, 8] {
        forms.push((Opset::Ios16, Form::FlatPalette { bits }));
    }
    for dtype in [DType::I8, DType::U8] {
        forms.push((Opset::Ios16, Form::Affine { dtype }));
    }
    forms.push((Opset::Ios16, Form::Sparse));
    for bits in [1, 2, 3, 4, 6, 8] {
        for groups in [[1, 1], [6, 1], [1, 4], [3, 2]] {
            forms.push((Opset::Ios18, Form::Palette { bits, groups }));
        }
    }
    for bits in [4, 6] {
        forms.push((Opset::Ios18, Form::ScaledTable { bits, groups: [6, 1] }));
        forms.push((Opset::Ios18, Form::ScaledPalette { bits, groups: [3, 1] }));
    }
    for dtype in [DType::I4, DType::U4, DType::I8, DType::U8] {
        for (groups, shifted) in [([1, 1], true), ([12, 1], false), ([12, 4], true)] {
            forms.push((Opset::Ios18, Form::Blockwise { dtype, groups, shifted }));
        }
    }
    forms.push((Opset::Ios18, Form::Pairs { bits: 4 }));
    forms
}

fn index_type(bits: usize) -> DType {
    let types = [DType::U1, DType::U2, DType::U3, DType::U4, DType::U6, DType::U8];
    types.into_iter().find(|dtype| dtype.bits() == bits).expect("a width of a palette")
}

/// Any bytes.
fn codes(count: usize, bits: usize) -> Vec<u8> {
    noise((count * bits).div_ceil(8), 7, 0.0..256.0).iter().map(|&x| x as u8).collect()
}

fn constant(b: &mut Builder, name: &str, dtype: DType, shape: &[usize], bytes: Vec<u8>) -> ValueId {
    let ty = TensorType::new(dtype, shape);
    b.weight(WeightRef::new(name, ty, Bytes::new(bytes)).expect("bytes of the type's length"))
}

fn halves(b: &mut Builder, name: &str, shape: &[usize], seed: u64) -> ValueId {
    let values = noise(shape.iter().product(), seed, -0.1..0.1);
    let bytes = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    constant(b, name, DType::F16, shape, bytes)
}

impl Form {
    /// Adds the ops that decode a constant of `shape`.
    fn weight(self, b: &mut Builder, shape: &[usize]) -> Result<ValueId, mixbit_mil::Error> {
        let count: usize = shape.iter().product();
        let blocks = |groups: [usize; 2]| {
            let mut blocks = vec![1; shape.len()];
            blocks[..2].copy_from_slice(&groups);
            blocks
        };
        let table = |groups: [usize; 2], bits: usize| [blocks(groups), vec![1 << bits, 1]].concat();
        let flat_shape = |b: &mut Builder| {
            let extents = shape.iter().flat_map(|&extent| (extent as u32).to_le_bytes()).collect();
            constant(b, "w_shape", DType::U32, &[shape.len()], extents)
        };
        match self {
            Form::FlatPalette { bits } => {
                let bytes = codes(count, bits);
                let indices = constant(b, "w_indices", DType::U8, &[bytes.len()], bytes);
                let (lut, shape) = (halves(b, "w_lut", &[1 << bits], 1), flat_shape(b));
                let op = b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut);
                op.arg("shape", shape).named("w").add()
            }
            Form::Affine { dtype } => {
                let data = constant(b, "w_data", dtype, shape, codes(count, 8));
                let zero_point = constant(b, "w_zero", dtype, &[shape[0]], codes(shape[0], 8));
                let scale = halves(b, "w_scale", &[shape[0]], 2);
                let op = b.op("constexpr_affine_dequantize").arg("quantized_data", data).arg("scale", scale);
                op.arg("zero_point", zero_point).arg("axis", 0).named("w").add()
            }
            Form::Palette { bits, groups } => {
                let indices = constant(b, "w_indices", index_type(bits), shape, codes(count, bits));
                let lut = halves(b, "w_lut", &table(groups, bits), 3);
                b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut).named("w").add()
            }
            Form::ScaledTable { bits, groups } => {
                let shape_of_table = table(groups, bits);
                let entries = codes(shape_of_table.iter().product(), 8);
                let entries = constant(b, "lut_data", DType::I8, &shape_of_table, entries);
                let scale = halves(b, "lut_scale", &[blocks(groups), vec![1, 1]].concat(), 4);
                let lut = b.op("constexpr_blockwise_shift_scale").arg("data", entries).arg("scale", scale);
                let lut = lut.named("w_lut").add()?;
                let indices = constant(b, "w_indices", index_type(bits), shape, codes(count, bits));
                b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut).named("w").add()
            }
            Form::ScaledPalette { bits, groups } => {
                let indices = constant(b, "w_indices", index_type(bits), shape, codes(count, bits));
                let lut = halves(b, "w_lut", &table(groups, bits), 5);
                let data = b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut);
                let data = data.named("w_data").add()?;
                let scale = halves(b, "w_scale", &blocks([shape[0], 1]), 6);
                let op = b.op("constexpr_blockwise_shift_scale").arg("data", data).arg("scale", scale);
                op.named("w").add()
            }
            Form::Blockwise { dtype, groups, shifted } => {
                let data = constant(b, "w_data", dtype, shape, codes(count, dtype.bits()));
                let scale = halves(b, "w_scale", &blocks(groups), 7);
                let offsets = codes(groups[0] * groups[1], dtype.bits());
                let offset = shifted.then(|| constant(b, "w_offset", dtype, &blocks(groups), offsets));
                let op = b.op("constexpr_blockwise_shift_scale").arg("data", data).arg("scale", scale);
                op.maybe("offset", offset).named("w").add()
            }
            Form::Pairs { bits } => {
                let mut halved = shape.to_vec();
                halved[0] /= 2;
                let indices = codes(count / 2, bits);
                let indices = constant(b, "w_indices", index_type(bits), &halved, indices);
                let lut = halves(b, "w_lut", &[vec![1; shape.len()], vec![1 << bits, 2]].concat(), 8);
                let op = b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut);
                op.arg("vector_axis", 0).named("w").add()
            }
            Form::Sparse => {
                let mask = codes(count, 1);
                let set = mask.iter().map(|byte| byte.count_ones() as usize).sum();
                let values = halves(b, "w_values", &[set], 9);
                let mask = constant(b, "w_mask", DType::U8, &[mask.len()], mask);
                let shape = flat_shape(b);
                let op = b.op("constexpr_sparse_to_dense").arg("nonzero_data", values).arg("mask", mask);
                op.arg("shape", shape).named("w").add()
            }
        }
    }
}

/// The op that reads the constant.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Conv {
        groups: i32,
        kernel: usize,
    },
    /// With a number of rows.
    Linear(usize),
    MatMul,
    Gather {
        axis: i32,
    },
    Add,
    /// The constant under another shape.
    Reshaped,
}

const READERS: [Reader; 9] = [
    Reader::Conv { groups: 1, kernel: 3 },
    Reader::Conv { groups: 2, kernel: 3 },
    Reader::Conv { groups: 1, kernel: 1 },
    Reader::Linear(9),
    Reader::MatMul,
    Reader::Gather { axis: 0 },
    Reader::Gather { axis: 1 },
    Reader::Add,
    Reader::Reshaped,
];

/// The extents of a constant in two axes: 12 and 4 divide them, a multiple of 8 elements is in a row and 2880
/// are in all.
const SIZE: [usize; 2] = [36, 80];

impl Reader {
    fn function(self, opset: Opset, form: Form) -> Result<(Function, Inputs), mixbit_mil::Error> {
        let mut b = Builder::new("main", opset);
        let mut inputs = Inputs::new();
        let mut input = |b: &mut Builder, shape: &[usize]| {
            let values = noise(shape.iter().product(), 20, -2.0..2.0);
            let values = values.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
            inputs.push(("x".to_string(), Tensor::from_f32(shape, values).expect("as many values")));
            b.input("x", TensorType::new(DType::F16, shape))
        };
        let y = match self {
            Reader::Conv { groups, kernel } => {
                let channels = if kernel == 1 { SIZE[1] } else { 8 };
                let x = input(&mut b, &[2, channels * groups as usize, 5, 7])?;
                let w = form.weight(&mut b, &[SIZE[0], channels, kernel, kernel])?;
                let op = b.op("conv").arg("x", x).arg("weight", w).arg("groups", groups);
                op.arg("pad_type", "same").add()?
            }
            Reader::Linear(rows) => {
                let x = input(&mut b, &[rows, SIZE[1]])?;
                let w = form.weight(&mut b, &SIZE)?;
                b.op("linear").arg("x", x).arg("weight", w).add()?
            }
            Reader::MatMul => {
                let x = input(&mut b, &[7, SIZE[0]])?;
                let w = form.weight(&mut b, &SIZE)?;
                b.op("matmul").arg("x", x).arg("y", w).add()?
            }
            Reader::Gather { axis } => {
                let indices = Tensor::from_i32(&[4], vec![3, 0, -1, 17]).expect("four indices");
                inputs.push(("indices".to_string(), indices));
                let indices = b.input("indices", TensorType::new(DType::I32, [4]))?;
                let w = form.weight(&mut b, &SIZE)?;
                b.op("gather").arg("x", w).arg("indices", indices).arg("axis", axis).add()?
            }
            Reader::Add => {
                let x = input(&mut b, &SIZE)?;
                let w = form.weight(&mut b, &SIZE)?;
                let sum = b.op("add").arg("x", x).arg("y", w).add()?;
                b.op("mul").arg("x", sum).arg("y", w).add()?
            }
            Reader::Reshaped => {
                let x = input(&mut b, &[5, SIZE[1], SIZE[0]])?;
                let w = form.weight(&mut b, &SIZE)?;
                let shape = [SIZE[1] as i32, SIZE[0] as i32];
                let w = b.op("reshape").arg("x", w).arg("shape", &shape[..]).add()?;
                b.op("add").arg("x", x).arg("y", w).add()?
            }
        };
        let function = b.finish(&[y])?;
        mixbit_mil::verify(&function)?;
        Ok((function, inputs))
    }
}

/// The function with its constants decoded.
fn dense(function: &Function) -> Function {
    let mut decoded = mixbit_mil::constexpr::decoded(function).expect("constants decode");
    let replace = |_, constant: &Constant| {
        let Constant::Weight(weight) = constant else { return Ok(None) };
        let bytes = Bytes::new(weight.read()?.into_owned());
        WeightRef::new(weight.name(), weight.ty().clone(), bytes).map(|dense| Some(Constant::Weight(dense)))
    };
    decoded.map_constants(replace).expect("constants are read");
    decoded
}

/// Runs the part of the suite.
pub(crate) fn run(backends: &[&dyn Backend], exceptions: &Exceptions, collector: &mut Collector) {
    let first = backends[0];
    for (opset, form) in forms() {
        for reader in READERS {
            collector.case("compressed", &format!("{opset:?} {form:?} {reader:?}"), || {
                [DType::F32, DType::F16]
                    .into_iter()
                    .try_for_each(|element| check_decoded(first, opset, form, reader, element, exceptions))
            });
        }
        // So few rows are dot products, in another order than with the packed weights of a small model.
        for rows in [1, 4] {
            collector.case("compressed", &format!("{opset:?} {form:?} {rows} rows"), || {
                let function = Reader::Linear(rows).function(opset, form);
                let (function, inputs) = function.map_err(|error| error.to_string())?;
                let run =
                    |backend: &dyn Backend| check::run(backend, &function, &Options::default(), &inputs);
                compare(&run(first)?[0], &run(&Reference)?[0], DType::F32, exceptions)
            });
        }
    }
    check_memory(first, collector);
}

/// Compares an op on a compressed constant with the same on the decoded constant.
fn check_decoded(
    backend: &dyn Backend,
    opset: Opset,
    form: Form,
    reader: Reader,
    element: DType,
    exceptions: &Exceptions,
) -> Result<(), String> {
    let (function, inputs) = reader.function(opset, form).map_err(|error| error.to_string())?;
    let dense = dense(&function);
    let options = Options { arithmetic: arithmetic(element), ..Options::default() };
    let run = |backend: &dyn Backend, function: &Function| check::run(backend, function, &options, &inputs);
    let expected = run(&Reference, &dense)?;
    if run(&Reference, &function)? != expected {
        return Err(format!("{element}: the reference differs from the decoded constants"));
    }
    let found = run(backend, &function)?;
    if !have_same_bits(&found, &run(backend, &dense)?) {
        return Err(format!("{element}: other bits than the decoded constants"));
    }
    compare(&found[0], &expected[0], element, exceptions)
}

/// Compares the memory of compressed constants with that of half-precision ones.
fn check_memory(backend: &dyn Backend, collector: &mut Collector) {
    let cases = [
        (Form::Palette { bits: 4, groups: [1, 1] }, 0.3),
        (Form::Palette { bits: 4, groups: [3, 1] }, 0.3),
        (Form::Palette { bits: 2, groups: [1, 1] }, 0.15),
        (Form::Palette { bits: 8, groups: [1, 1] }, 0.7),
        (Form::ScaledPalette { bits: 4, groups: [1, 1] }, 0.3),
        (Form::Blockwise { dtype: DType::I4, groups: [36, 1], shifted: false }, 0.3),
        (Form::Pairs { bits: 4 }, 0.15),
    ];
    let readers = [
        Reader::Conv { groups: 1, kernel: 1 },
        Reader::Linear(9),
        Reader::MatMul,
        Reader::Gather { axis: 0 },
        Reader::Gather { axis: 1 },
        Reader::Reshaped,
    ];
    for (form, most) in cases {
        for reader in readers {
            collector.case("compressed", &format!("memory of {form:?} {reader:?}"), || {
                let (function, _) = reader.function(Opset::Ios18, form).map_err(|error| error.to_string())?;
                let bytes = |function: &Function| {
                    let model = backend.compile(function, &Options::default());
                    model.map(|model| model.weight_bytes()).map_err(|error| error.to_string())
                };
                let half = 2 * SIZE[0] * SIZE[1];
                let decoded = bytes(&dense(&function))?;
                if decoded < half {
                    return Err(format!("{decoded} bytes of dense weights"));
                }
                let ratio = bytes(&function)? as f64 / half as f64;
                if ratio > most || ratio == 0.0 {
                    return Err(format!("{ratio:.3} of f16, at most {most}"));
                }
                Ok(())
            });
        }
    }
}
