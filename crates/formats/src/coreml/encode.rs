//! The writer of specifications: the counterpart of `program` and `value`.

use std::collections::BTreeMap;

use mixbit_mil::{
    Arg, Constant, DType, Def, Function, Literal, Op, OpView, Program, TensorType, ValueId, WeightRef,
};

use super::description::Description;
use super::placement::belongs;
use super::schema::{self, MODEL_PATH, TENSOR_CODES, opset_name};
use super::wire::Writer;
use super::{CoreMlError, Model, StoredModel, build_info};

/// The program with literals for the weights that are not in the weight file.
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

/// The specification of a package. `stored` are the models whose programs it has.
pub(super) fn package(model: &Model, stored: &[StoredModel<'_>]) -> Result<Vec<u8>, CoreMlError> {
    let parts = &model.form.models;
    if let ([], [only]) = (&parts[..], stored) {
        return Ok(specification(only)?.into_bytes());
    }
    let mut pipeline = Writer::new();
    for part in stored {
        pipeline.message(schema::pipeline::MODELS, &specification(part)?);
    }
    if parts.iter().any(|part| !part.name.is_empty()) {
        parts.iter().for_each(|part| pipeline.bytes(schema::pipeline::NAMES, part.name.as_bytes()));
    }
    let mut out = Writer::new();
    out.number(schema::model::SPECIFICATION_VERSION, model.specification_version.into());
    out.message(schema::model::DESCRIPTION, &description(model).write());
    out.message(schema::model::PIPELINE, &pipeline);
    Ok(out.into_bytes())
}

/// The specification of a single model.
pub(super) fn specification(stored: &StoredModel<'_>) -> Result<Writer, CoreMlError> {
    let model = stored.model;
    let mut program = Writer::new();
    program.number(schema::program::VERSION, 1);
    for (index, function) in model.program.functions.iter().enumerate() {
        let open = model.form.open.get(&function.name);
        let writer = FunctionWriter { function, index, stored, open };
        program.entry(schema::program::FUNCTIONS, &function.name, &writer.write()?);
    }
    let names = stored.placement.names(model).to_text();
    let build_info = build_info(names.as_deref());
    program.entry(schema::program::ATTRIBUTES, "buildInfo", &dictionary(&build_info));
    let mut out = Writer::new();
    out.number(schema::model::SPECIFICATION_VERSION, model.specification_version.into());
    out.message(schema::model::DESCRIPTION, &description(model).write());
    out.message(schema::model::ML_PROGRAM, &program);
    Ok(out)
}

pub(super) fn description(model: &Model) -> Description {
    Description {
        inputs: model.inputs.clone(),
        outputs: model.outputs.clone(),
        metadata: model.metadata.clone(),
        functions: model.form.functions.clone(),
        default_function: model.program.default_function.clone(),
    }
}

struct FunctionWriter<'a, 'm> {
    function: &'m Function,
    index: usize,
    stored: &'a StoredModel<'m>,
    /// The open axes of values.
    open: Option<&'m BTreeMap<String, Vec<bool>>>,
}

impl FunctionWriter<'_, '_> {
    fn write(&self) -> Result<Writer, CoreMlError> {
        let function = self.function;
        let mut block = Writer::new();
        function
            .outputs()
            .iter()
            .for_each(|&id| block.text(schema::block::OUTPUTS, &function.value(id).name));
        let mut written = vec![false; function.values().len()];
        let mut write_constant = |block: &mut Writer, id: ValueId| {
            let value = function.value(id);
            if matches!(value.def, Def::Const(_)) && !std::mem::replace(&mut written[id.index()], true) {
                block.message(schema::block::OPERATIONS, &self.constant_op(id)?);
            }
            Ok::<(), CoreMlError>(())
        };
        for op in function.ops() {
            // Constants of constexpr ops stand inside the op.
            if !op.def.is_constexpr() {
                op.args.iter().flat_map(Arg::values).try_for_each(|&id| write_constant(&mut block, id))?;
            }
            block.message(schema::block::OPERATIONS, &self.op(op)?);
        }
        function.outputs().iter().try_for_each(|&id| write_constant(&mut block, id))?;
        let mut out = Writer::new();
        function.inputs().iter().for_each(|&id| out.message(schema::function::INPUTS, &self.named_type(id)));
        let opset = opset_name(function.opset);
        out.text(schema::function::OPSET, opset);
        out.entry(schema::function::BLOCKS, opset, &block);
        Ok(out)
    }

    fn named_type(&self, id: ValueId) -> Writer {
        let value = self.function.value(id);
        let open = self.open.and_then(|open| open.get(&value.name)).map_or(&[][..], |open| open);
        let mut out = Writer::new();
        out.text(schema::named_type::NAME, &value.name);
        out.message(schema::named_type::TYPE, &declared_type(&value.ty, open));
        out
    }

    fn constant_op(&self, id: ValueId) -> Result<Writer, CoreMlError> {
        let name = &self.function.value(id).name;
        let mut out = Writer::new();
        out.text(schema::operation::TYPE, "const");
        out.message(schema::operation::OUTPUTS, &self.named_type(id));
        out.entry(schema::operation::ATTRIBUTES, "name", &literal(&Literal::string(name)));
        out.entry(schema::operation::ATTRIBUTES, "val", &self.constant(id)?);
        Ok(out)
    }

    fn op(&self, op: &Op) -> Result<Writer, CoreMlError> {
        let view: OpView = self.function.view(op);
        let label = op.outputs.first().map_or("", |&id| &self.function.value(id).name);
        // Maps have no order. This one is alphabetical, so that the same program gives the same bytes.
        let mut args: Vec<_> = op.def.params.iter().map(|param| param.name).zip(&op.args).collect();
        args.retain(|(_, arg)| !matches!(arg, Arg::Absent));
        args.sort_by_key(|(name, _)| *name);
        let mut out = Writer::new();
        out.text(schema::operation::TYPE, op.def.name);
        let mut attributes = vec![("name", literal(&Literal::string(label)))];
        for (name, arg) in args {
            if view.has_attributes() {
                let &[id] = arg.values() else { return Err(view.invalid("an attribute is a list").into()) };
                attributes.push((name, self.constant(id)?));
            } else {
                out.entry(schema::operation::INPUTS, name, &self.argument(op, arg)?);
            }
        }
        for &id in &op.outputs {
            out.message(schema::operation::OUTPUTS, &self.named_type(id));
        }
        attributes.sort_by_key(|(name, _)| *name);
        for (name, value) in attributes {
            out.entry(schema::operation::ATTRIBUTES, name, &value);
        }
        Ok(out)
    }

    fn argument(&self, op: &Op, arg: &Arg) -> Result<Writer, CoreMlError> {
        let mut out = Writer::new();
        for &id in arg.values() {
            let value = self.function.value(id);
            let mut binding = Writer::new();
            match value.def {
                Def::Const(_) if op.def.is_constexpr() => {
                    binding.message(schema::binding::VALUE, &self.constant(id)?)
                }
                _ => binding.text(schema::binding::NAME, &value.name),
            }
            out.message(schema::argument::BINDINGS, &binding);
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
        let Some(offset) = self.stored.placement.offset(self.index, id) else {
            return Ok(literal(&to_literal(constant)?));
        };
        let mut out = Writer::new();
        out.message(schema::value::TYPE, &value_type(constant.ty()));
        let mut blob = Writer::new();
        blob.text(schema::blob_value::FILE, &format!("{MODEL_PATH}{}", self.stored.file));
        blob.number(schema::blob_value::OFFSET, offset);
        out.message(schema::value::BLOB, &blob);
        Ok(out)
    }
}

/// A dictionary of texts.
fn dictionary(entries: &[(&str, &str)]) -> Writer {
    let (mut kind, mut ty, mut values) = (Writer::new(), Writer::new(), Writer::new());
    let text = TensorType::scalar(DType::Str);
    kind.message(schema::dictionary_type::KEY, &value_type(&text));
    kind.message(schema::dictionary_type::VALUE, &value_type(&text));
    ty.message(schema::value_type::DICTIONARY, &kind);
    for (key, value) in entries {
        let mut pair = Writer::new();
        pair.message(schema::pair::KEY, &literal(&Literal::string(key)));
        pair.message(schema::pair::VALUE, &literal(&Literal::string(value)));
        values.message(schema::dictionary::PAIRS, &pair);
    }
    let (mut immediate, mut out) = (Writer::new(), Writer::new());
    immediate.message(schema::immediate::DICTIONARY, &values);
    out.message(schema::value::TYPE, &ty);
    out.message(schema::value::IMMEDIATE, &immediate);
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

fn value_type(ty: &TensorType) -> Writer {
    declared_type(ty, &[])
}

/// A type with the open axes of a value.
fn declared_type(ty: &TensorType, open: &[bool]) -> Writer {
    let mut tensor = Writer::new();
    tensor.number(schema::tensor_type::DATA_TYPE, TENSOR_CODES.of(ty.dtype).unwrap_or(0));
    tensor.number(schema::tensor_type::RANK, ty.rank() as u64);
    for (axis, &extent) in ty.shape.iter().enumerate() {
        let (mut inner, mut dimension) = (Writer::new(), Writer::new());
        if open.get(axis) == Some(&true) {
            dimension.message(schema::dimension::UNKNOWN, &inner);
        } else {
            inner.number(schema::constant_dimension::SIZE, extent as u64);
            dimension.message(schema::dimension::CONSTANT, &inner);
        }
        tensor.message(schema::tensor_type::DIMENSIONS, &dimension);
    }
    let mut out = Writer::new();
    out.message(schema::value_type::TENSOR, &tensor);
    out
}

/// An immediate value.
fn literal(literal: &Literal) -> Writer {
    let mut values = Writer::new();
    let field = match literal.ty().dtype {
        DType::F32 => schema::tensor_value::FLOATS,
        DType::I16 | DType::I32 | DType::U16 => schema::tensor_value::INTS,
        DType::Bool => schema::tensor_value::BOOLS,
        DType::Str => schema::tensor_value::STRINGS,
        DType::I64 => schema::tensor_value::LONG_INTS,
        DType::F64 => schema::tensor_value::DOUBLES,
        _ => schema::tensor_value::BYTES,
    };
    match field {
        schema::tensor_value::FLOATS | schema::tensor_value::DOUBLES | schema::tensor_value::BYTES => {
            packed(&mut values, literal.bytes().unwrap_or_default());
        }
        schema::tensor_value::STRINGS => {
            let strings = literal.strings().unwrap_or_default();
            strings.iter().for_each(|text| values.bytes(schema::repeated::VALUES, text.as_bytes()));
        }
        _ => {
            let ints = literal.to_ints().unwrap_or_default();
            values.numbers(schema::repeated::VALUES, ints.into_iter().map(|value| value as u64));
        }
    }
    let (mut tensor, mut immediate, mut out) = (Writer::new(), Writer::new(), Writer::new());
    tensor.message(field, &values);
    immediate.message(schema::immediate::TENSOR, &tensor);
    out.message(schema::value::TYPE, &value_type(literal.ty()));
    out.message(schema::value::IMMEDIATE, &immediate);
    out
}

/// Writes little-endian values unchanged, unless there are none.
fn packed(writer: &mut Writer, bytes: &[u8]) {
    if !bytes.is_empty() {
        writer.bytes(schema::repeated::VALUES, bytes);
    }
}
