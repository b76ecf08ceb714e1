//! The reader of programs.

use std::collections::{BTreeMap, HashMap};

use mixbit_mil::ops::lookup;
use mixbit_mil::{Arg, Assembler, Declared, Function, Program, TensorType, ValueId};

use super::names::{self, Names, Site};
use super::value::{Placed, constant, named_type, texts};
use super::wire::Message;
use super::{CoreMlError, OpenAxes, WeightFiles, schema};
use crate::shown::shown;

/// The open axes of a function's values by name.
type OpenValues = BTreeMap<String, Vec<bool>>;

/// More inputs or attributes than any op has.
const ARGUMENT_LIMIT: usize = 64;

/// Reads a program, and the open axes of its values. `inputs` gives the described types of a function's
/// inputs, for open extents.
pub(super) fn read(
    message: Message,
    inputs: &dyn Fn(&str) -> BTreeMap<String, TensorType>,
    weights: &mut WeightFiles,
) -> Result<(Program, OpenAxes), CoreMlError> {
    let (mut functions, mut open) = (Vec::new(), OpenAxes::new());
    let names = names(message)?;
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::program::VERSION if field.number()? != 1 => {
                return Err(CoreMlError::unsupported(format!("a program of version {}", field.number()?)));
            }
            schema::program::FUNCTIONS => {
                let (name, function) = field.message()?.entry()?;
                let (function, open_here) = read_function(name, function, &inputs(name), &names, weights)?;
                functions.push(function);
                if !open_here.is_empty() {
                    open.insert(name.to_string(), open_here);
                }
            }
            _ => {}
        }
    }
    // Maps have no order in the file, but a program has.
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = functions.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(message.malformed(format!("two functions are named `{}`", pair[0].name)));
    }
    Ok((Program { functions, default_function: None }, open))
}

/// The names of weights in the build information.
fn names(message: Message) -> Result<Names, CoreMlError> {
    for field in message.fields() {
        let field = field?;
        if field.number != schema::program::ATTRIBUTES {
            continue;
        }
        if let ("buildInfo", value) = field.message()?.entry()?
            && let Some(text) = texts(value)?.get(names::KEY)
        {
            return Names::from_text(text);
        }
    }
    Ok(Names::default())
}

fn read_function<'a>(
    name: &str,
    message: Message<'a>,
    described: &BTreeMap<String, TensorType>,
    names: &Names,
    weights: &mut WeightFiles,
) -> Result<(Function, OpenValues), CoreMlError> {
    let mut opset_text = "";
    for field in message.fields() {
        let field = field?;
        if field.number == schema::function::OPSET {
            opset_text = field.text()?;
        }
    }
    let opset = schema::opset(opset_text);
    let opset = opset.ok_or_else(|| CoreMlError::unsupported(format!("opset `{}`", shown(opset_text))))?;
    if !mixbit_mil::is_identifier(name) {
        return Err(message.malformed("a function's name is not an identifier"));
    }
    let mut reader = Reader {
        assembler: Assembler::new(name, opset),
        names,
        weights,
        placed: HashMap::new(),
        open: OpenValues::new(),
    };
    let mut block = None;
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::function::INPUTS => {
                let (name, ty) = named_type(field.message()?)?;
                reader.note_open(name, &ty);
                let ty = resolve_input(name, &ty, described)?;
                reader.assembler.input(name, ty)?;
            }
            schema::function::BLOCKS => {
                let (key, message) = field.message()?.entry()?;
                if key == opset_text {
                    block = Some(message);
                }
            }
            _ => {}
        }
    }
    reader.block(block.ok_or_else(|| message.malformed(format!("no block of opset {opset_text}")))?)
}

/// The type of an input, with open extents from the description.
fn resolve_input(
    name: &str,
    declared: &Declared,
    described: &BTreeMap<String, TensorType>,
) -> Result<TensorType, CoreMlError> {
    if let Some(ty) = declared.fixed() {
        return Ok(ty);
    }
    let default = described.get(name).map(|ty| ty.with_dtype(declared.dtype));
    default
        .filter(|ty| declared.admits(ty))
        .ok_or_else(|| CoreMlError::unsupported(format!("input `{}` without a default shape", shown(name))))
}

/// A reader of one function's ops.
struct Reader<'a, 'w> {
    assembler: Assembler,
    names: &'w Names,
    weights: &'w mut WeightFiles,
    /// Constants by their place in a weight file, so that one that several ops use stays one value.
    placed: HashMap<(&'a str, u64), ValueId>,
    open: OpenValues,
}

impl<'a> Reader<'a, '_> {
    /// Notes the open axes of a value.
    fn note_open(&mut self, name: &str, declared: &Declared) {
        if declared.shape.contains(&None) {
            let axes = declared.shape.iter().map(Option::is_none).collect();
            self.open.insert(name.to_string(), axes);
        }
    }

    fn block(mut self, message: Message<'a>) -> Result<(Function, OpenValues), CoreMlError> {
        let mut outputs = Vec::new();
        for field in message.fields() {
            let field = field?;
            match field.number {
                schema::block::INPUTS => return Err(CoreMlError::unsupported("a block with inputs")),
                schema::block::OUTPUTS => outputs.push(field.text()?),
                schema::block::OPERATIONS => self.op(field.message()?)?,
                _ => {}
            }
        }
        Ok((self.assembler.finish(&outputs)?, self.open))
    }

    fn op(&mut self, message: Message<'a>) -> Result<(), CoreMlError> {
        let mut kind = "";
        let (mut inputs, mut outputs, mut attributes) = (Vec::new(), Vec::new(), Vec::new());
        for field in message.fields() {
            let field = field?;
            match field.number {
                schema::operation::TYPE => kind = field.text()?,
                schema::operation::INPUTS => inputs.push(field.message()?.entry()?),
                schema::operation::OUTPUTS => outputs.push(named_type(field.message()?)?),
                schema::operation::BLOCKS => {
                    return Err(CoreMlError::unsupported("an op with blocks of its own"));
                }
                schema::operation::ATTRIBUTES => attributes.push(field.message()?.entry()?),
                _ => {}
            }
            if inputs.len() + attributes.len() > ARGUMENT_LIMIT {
                return Err(message.malformed("an op has too many inputs"));
            }
        }
        let Some(&(first, _)) = outputs.first() else {
            return Err(message.malformed(format!("op `{}` has no result", shown(kind))));
        };
        if kind == "const" {
            return self.constant(message, &outputs, &attributes);
        }
        // Checked before its inputs, so that the message is about the op.
        lookup(kind).ok_or_else(|| mixbit_mil::Error::UnknownOp(shown(kind)))?;
        let mut args = Vec::new();
        for (input, argument) in inputs {
            args.push((input, self.argument(argument, kind, first, input)?));
        }
        for (attribute, value) in attributes {
            if attribute != "name" {
                args.push((attribute, Arg::One(self.inline(value, first, attribute)?)));
            }
        }
        outputs.iter().for_each(|(name, declared)| self.note_open(name, declared));
        Ok(self.assembler.op(kind, &args, &outputs)?)
    }

    fn constant(
        &mut self,
        message: Message<'a>,
        outputs: &[(&str, Declared)],
        attributes: &[(&str, Message<'a>)],
    ) -> Result<(), CoreMlError> {
        let value = attributes.iter().find(|(name, _)| *name == "val");
        let (&[(name, ref declared)], Some(&(_, value))) = (outputs, value) else {
            return Err(message.malformed("a const has not one result and a value"));
        };
        let (names, site) = (self.names, Site::value(name));
        let weight = names.get(&self.assembler.function().name, &site);
        let Placed { constant, place } = constant(value, weight, self.weights)?;
        if !declared.admits(constant.ty()) {
            let name = shown(name);
            return Err(message.malformed(format!("const `{name}` has another type than its value")));
        }
        let id = self.assembler.constant(name, constant)?;
        if let Some(place) = place {
            self.placed.entry(place).or_insert(id);
        }
        Ok(())
    }

    /// The binding of an input: one value or a list, each by name or inline.
    fn argument(
        &mut self,
        message: Message<'a>,
        kind: &str,
        output: &str,
        input: &str,
    ) -> Result<Arg, CoreMlError> {
        let mut values = Vec::new();
        for field in message.fields() {
            let field = field?;
            if field.number != schema::argument::BINDINGS {
                continue;
            }
            let binding = field.message()?;
            let mut bound = None;
            for field in binding.fields() {
                let field = field?;
                bound = Some(match field.number {
                    schema::binding::NAME => {
                        let name = field.text()?;
                        self.assembler.value(name).ok_or_else(|| {
                            let (output, input, name) = (shown(output), shown(input), shown(name));
                            mixbit_mil::Error::Graph(format!(
                                "{kind} `{output}`: `{input}` is `{name}`, which is not made before it"
                            ))
                        })?
                    }
                    schema::binding::VALUE => self.inline(field.message()?, output, input)?,
                    _ => continue,
                });
            }
            values.push(bound.ok_or_else(|| binding.malformed("an input is bound to nothing"))?);
        }
        match values[..] {
            [] => Ok(Arg::Absent),
            [value] => Ok(Arg::One(value)),
            _ => Ok(Arg::Many(values)),
        }
    }

    /// A constant inside an op.
    fn inline(&mut self, message: Message<'a>, output: &str, input: &str) -> Result<ValueId, CoreMlError> {
        let (names, site) = (self.names, Site::inside(output, input));
        let weight = names.get(&self.assembler.function().name, &site);
        let Placed { constant, place } = constant(message, weight, self.weights)?;
        if let Some(&id) = place.and_then(|place| self.placed.get(&place))
            && self.assembler.function().value(id).ty == *constant.ty()
        {
            return Ok(id);
        }
        let id = self.assembler.unnamed(&site.default, constant)?;
        if let Some(place) = place {
            self.placed.entry(place).or_insert(id);
        }
        Ok(id)
    }
}
