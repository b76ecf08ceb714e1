//! Writing a specification: the counterpart of `program` and `value`.

use std::collections::HashMap;
use std::io::{self, Write};

use mixbit_mil::{
    Arg, Constant, DType, Def, Function, Literal, Op, OpView, Program, Progress, Tally, TensorType, Unit,
    ValueId, WeightRef,
};

use super::blob::{self, Layout};
use super::description::Description;
use super::program::opset_name;
use super::specification::ML_PROGRAM;
use super::value::DTYPES;
use super::wire::Writer;
use super::{CoreMlError, Model, names};

/// The weight file's name in a specification.
pub(super) const WEIGHT_FILE: &str = "@model_path/weights/weight.bin";

/// Literals of fewer elements stay in the specification, as coremltools does it.
const BLOB_COUNT: usize = 10;

/// Which constants go to the weight file, and where.
#[derive(Debug)]
pub(super) struct Blobs<'m> {
    pub(super) layout: Layout,
    constants: Vec<&'m Constant>,
    placed: HashMap<(usize, ValueId), Placed>,
}

/// A constant in the weight file.
#[derive(Debug)]
struct Placed {
    offset: u64,
    /// What a reader calls the constant: a weight's own name, else what its first place makes of it.
    name: String,
}

impl<'m> Blobs<'m> {
    /// Plans the weight file: constants in the order in which they are used first.
    pub(super) fn plan(program: &'m Program, specification_version: u32) -> Self {
        let mut blobs = Blobs { layout: Layout::new(), constants: Vec::new(), placed: HashMap::new() };
        for (index, function) in program.functions.iter().enumerate() {
            for (id, site) in names::sites(function) {
                let Def::Const(constant) = &function.value(id).def else { continue };
                if blobs.placed.contains_key(&(index, id)) || !belongs(constant, specification_version) {
                    continue;
                }
                if let Some(offset) = blobs.layout.add(constant.ty()) {
                    let name = names::name_at(constant, &site);
                    blobs.placed.insert((index, id), Placed { offset, name });
                    blobs.constants.push(constant);
                }
            }
        }
        blobs
    }

    /// Writes the weight file, one constant after the other.
    pub(super) fn write(&self, writer: &mut dyn Write, progress: &dyn Progress) -> io::Result<()> {
        let len = |constant: &Constant| constant.ty().byte_len().unwrap_or(0) as u64;
        let tally =
            Tally::new(progress, self.constants.iter().map(|constant| len(constant)).sum(), Unit::Bytes);
        self.layout.write(writer, |index, writer| {
            match self.constants[index] {
                Constant::Literal(literal) => writer.write_all(literal.bytes().unwrap_or_default())?,
                Constant::Weight(weight) => {
                    writer.write_all(&weight.read().map_err(io::Error::other)?)?;
                    weight.release();
                }
            }
            tally.add(len(self.constants[index])).map_err(io::Error::other)
        })
    }

    /// Where a constant lies in the weight file.
    pub(super) fn offset(&self, function: usize, id: ValueId) -> Option<u64> {
        self.placed.get(&(function, id)).map(|placed| placed.offset)
    }

    /// What a constant in the weight file is called.
    pub(super) fn name(&self, function: usize, id: ValueId) -> Option<&str> {
        self.placed.get(&(function, id)).map(|placed| placed.name.as_str())
    }
}

/// Whether a constant goes to the weight file.
fn belongs(constant: &Constant, specification_version: u32) -> bool {
    let ty = constant.ty();
    let always = matches!(ty.dtype, DType::F16 | DType::F32 | DType::U8 | DType::I8);
    let known = always || (specification_version >= 9 && blob::holds(ty.dtype));
    match constant {
        // However small, so that it keeps its name.
        Constant::Weight(_) => known && ty.rank() > 0 && ty.count() > 0,
        Constant::Literal(_) => known && ty.count() >= BLOB_COUNT,
    }
}

/// The program with weights that are not in the weight file as literals.
pub(super) fn with_literals(model: &Model) -> Result<Program, CoreMlError> {
    let mut out = model.program.clone();
    for function in &mut out.functions {
        function.map_constants(|_, constant| match constant {
            Constant::Weight(_) if !belongs(constant, model.specification_version) => {
                to_literal(constant).map(Constant::Literal).map(Some)
            }
            _ => Ok::<_, CoreMlError>(None),
        })?;
    }
    Ok(out)
}

/// The specification of a model.
pub(super) fn specification(
    model: &Model,
    blobs: &Blobs,
    build_info: &[(&str, &str)],
) -> Result<Vec<u8>, CoreMlError> {
    let mut program = Writer::new();
    program.number(1, 1);
    for (index, function) in model.program.functions.iter().enumerate() {
        program.entry(2, &function.name, &FunctionWriter { function, index, blobs }.write()?);
    }
    program.entry(4, "buildInfo", &dictionary(build_info));
    let mut out = Writer::new();
    out.number(1, model.specification_version.into());
    out.message(2, &description(model).write());
    out.message(ML_PROGRAM, &program);
    Ok(out.into_bytes())
}

pub(super) fn description(model: &Model) -> Description {
    Description {
        inputs: model.inputs.clone(),
        outputs: model.outputs.clone(),
        metadata: model.metadata.clone(),
        default_function: None,
    }
}

struct FunctionWriter<'a, 'm> {
    function: &'m Function,
    index: usize,
    blobs: &'a Blobs<'m>,
}

impl FunctionWriter<'_, '_> {
    fn write(&self) -> Result<Writer, CoreMlError> {
        let function = self.function;
        let mut block = Writer::new();
        function.outputs().iter().for_each(|&id| block.text(2, &function.value(id).name));
        let mut written = vec![false; function.values().len()];
        let mut write_constant = |block: &mut Writer, id: ValueId| {
            let value = function.value(id);
            if matches!(value.def, Def::Const(_)) && !std::mem::replace(&mut written[id.index()], true) {
                block.message(3, &self.constant_op(id)?);
            }
            Ok::<(), CoreMlError>(())
        };
        for op in function.ops() {
            // Constants of constexpr ops stand in the op itself.
            if !op.def.is_constexpr() {
                op.args.iter().flat_map(Arg::values).try_for_each(|&id| write_constant(&mut block, id))?;
            }
            block.message(3, &self.op(op)?);
        }
        function.outputs().iter().try_for_each(|&id| write_constant(&mut block, id))?;
        let mut out = Writer::new();
        function.inputs().iter().for_each(|&id| out.message(1, &named_type(function, id)));
        let opset = opset_name(function.opset);
        out.text(2, opset);
        out.entry(3, opset, &block);
        Ok(out)
    }

    fn constant_op(&self, id: ValueId) -> Result<Writer, CoreMlError> {
        let name = &self.function.value(id).name;
        let mut out = Writer::new();
        out.text(1, "const");
        out.message(3, &named_type(self.function, id));
        out.entry(5, "name", &literal(&Literal::string(name)));
        out.entry(5, "val", &self.constant(id)?);
        Ok(out)
    }

    fn op(&self, op: &Op) -> Result<Writer, CoreMlError> {
        let view: OpView = self.function.view(op);
        let label = op.outputs.first().map_or("", |&id| &self.function.value(id).name);
        // Maps have no order; this one is alphabetical, so that the same program gives the same bytes.
        let mut args: Vec<_> = op.def.params.iter().map(|param| param.name).zip(&op.args).collect();
        args.retain(|(_, arg)| !matches!(arg, Arg::Absent));
        args.sort_by_key(|(name, _)| *name);
        let mut out = Writer::new();
        out.text(1, op.def.name);
        let mut attributes = vec![("name", literal(&Literal::string(label)))];
        for (name, arg) in args {
            if view.has_attributes() {
                let &[id] = arg.values() else { return Err(view.invalid("an attribute is a list").into()) };
                attributes.push((name, self.constant(id)?));
            } else {
                out.entry(2, name, &self.argument(op, arg)?);
            }
        }
        op.outputs.iter().for_each(|&id| out.message(3, &named_type(self.function, id)));
        attributes.sort_by_key(|(name, _)| *name);
        attributes.iter().for_each(|(name, value)| out.entry(5, name, value));
        Ok(out)
    }

    fn argument(&self, op: &Op, arg: &Arg) -> Result<Writer, CoreMlError> {
        let mut out = Writer::new();
        for &id in arg.values() {
            let value = self.function.value(id);
            let mut binding = Writer::new();
            match value.def {
                Def::Const(_) if op.def.is_constexpr() => binding.message(2, &self.constant(id)?),
                _ => binding.text(1, &value.name),
            }
            out.message(1, &binding);
        }
        Ok(out)
    }

    /// A constant's value.
    fn constant(&self, id: ValueId) -> Result<Writer, CoreMlError> {
        let value = self.function.value(id);
        let constant = match &value.def {
            Def::Const(constant) => constant,
            _ => return Err(CoreMlError::inconsistent(format!("`{}` is not a constant", value.name))),
        };
        let Some(offset) = self.blobs.offset(self.index, id) else {
            return Ok(literal(&to_literal(constant)?));
        };
        let mut out = Writer::new();
        out.message(2, &value_type(constant.ty()));
        let mut blob = Writer::new();
        blob.text(1, WEIGHT_FILE);
        blob.number(2, offset);
        out.message(5, &blob);
        Ok(out)
    }
}

/// A dictionary of texts.
fn dictionary(entries: &[(&str, &str)]) -> Writer {
    let (mut kind, mut ty, mut values) = (Writer::new(), Writer::new(), Writer::new());
    let text = TensorType::scalar(DType::Str);
    kind.message(1, &value_type(&text));
    kind.message(2, &value_type(&text));
    ty.message(4, &kind);
    for (key, value) in entries {
        let mut pair = Writer::new();
        pair.message(1, &literal(&Literal::string(key)));
        pair.message(2, &literal(&Literal::string(value)));
        values.message(1, &pair);
    }
    let (mut immediate, mut out) = (Writer::new(), Writer::new());
    immediate.message(4, &values);
    out.message(2, &ty);
    out.message(3, &immediate);
    out
}

/// A constant as a literal, read if it is a weight.
fn to_literal(constant: &Constant) -> Result<Literal, CoreMlError> {
    match constant {
        Constant::Literal(literal) => Ok(literal.clone()),
        Constant::Weight(weight) => read_literal(weight).map_err(CoreMlError::Program),
    }
}

fn read_literal(weight: &WeightRef) -> Result<Literal, mixbit_mil::Error> {
    let bytes = weight.read()?.into_owned();
    let found = bytes.len();
    Literal::from_bytes(weight.ty().clone(), bytes).ok_or_else(|| {
        mixbit_mil::WeightError::Size { name: weight.name().to_string(), ty: weight.ty().clone(), found }
            .into()
    })
}

fn named_type(function: &Function, id: ValueId) -> Writer {
    let value = function.value(id);
    let mut out = Writer::new();
    out.text(1, &value.name);
    out.message(2, &value_type(&value.ty));
    out
}

fn value_type(ty: &TensorType) -> Writer {
    let mut tensor = Writer::new();
    tensor.number(1, DTYPES.iter().find(|(_, dtype)| *dtype == ty.dtype).map_or(0, |(code, _)| *code));
    tensor.number(2, ty.rank() as u64);
    for &extent in &ty.shape {
        let (mut constant, mut dimension) = (Writer::new(), Writer::new());
        constant.number(1, extent as u64);
        dimension.message(1, &constant);
        tensor.message(3, &dimension);
    }
    let mut out = Writer::new();
    out.message(1, &tensor);
    out
}

/// An immediate value.
fn literal(literal: &Literal) -> Writer {
    let mut values = Writer::new();
    let bytes = literal.bytes().unwrap_or_default();
    let ints = || literal.to_ints().unwrap_or_default().into_iter().map(|value| value as u64);
    let field = match literal.ty().dtype {
        DType::F32 => {
            packed(&mut values, bytes);
            1
        }
        DType::I16 | DType::I32 | DType::U16 => {
            values.numbers(1, ints());
            2
        }
        DType::Bool => {
            values.numbers(1, ints());
            3
        }
        DType::Str => {
            let strings = literal.strings().unwrap_or_default();
            strings.iter().for_each(|text| values.bytes(1, text.as_bytes()));
            4
        }
        DType::I64 => {
            values.numbers(1, ints());
            5
        }
        DType::F64 => {
            packed(&mut values, bytes);
            6
        }
        _ => {
            packed(&mut values, bytes);
            7
        }
    };
    let (mut tensor, mut immediate, mut out) = (Writer::new(), Writer::new(), Writer::new());
    tensor.message(field, &values);
    immediate.message(1, &tensor);
    out.message(2, &value_type(literal.ty()));
    out.message(3, &immediate);
    out
}

/// Little-endian values as they lie, left out if there are none.
fn packed(writer: &mut Writer, bytes: &[u8]) {
    if !bytes.is_empty() {
        writer.bytes(1, bytes);
    }
}
