//! The opcodes that name functions and classes.

use crate::torch::error::TorchError;
use crate::torch::globals::{self, Global};

use super::{Id, Machine, Storage, Tensor, Value};

impl<'a> Machine<'a> {
    pub(super) fn object(&mut self, opcode: u8) -> Result<(), TorchError> {
        match opcode {
            b'c' => {
                let global = self.global_of_lines()?;
                self.push(Value::Global(global))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let global = match (self.value(module), self.value(name)) {
                    (Value::Text(module), Value::Text(name)) => resolve(module, name)?,
                    _ => return Err(self.malformed("the name of a function is no text")),
                };
                self.push(Value::Global(global))
            }
            b'i' => {
                let global = self.global_of_lines()?;
                let arguments = self.pop_mark()?;
                self.call(global, &arguments)
            }
            b'o' => {
                let items = self.pop_mark()?;
                let (class, arguments) =
                    items.split_first().ok_or_else(|| self.malformed("an object has no class"))?;
                let global = self.called(*class)?;
                self.call(global, arguments)
            }
            // A tuple of arguments; keyword arguments are passed over.
            b'R' | 0x81 | 0x92 => {
                if opcode == 0x92 {
                    self.pop()?;
                }
                let (arguments, function) = (self.pop()?, self.pop()?);
                let global = self.called(function)?;
                let arguments = self.tuple_items(arguments)?;
                self.call(global, &arguments)
            }
            b'b' => self.build(),
            b'P' => Err(self.malformed("a storage is named as PyTorch does not name one")),
            b'Q' => self.persistent(),
            // Codes that stand for functions in a registry of the program that wrote the pickle.
            _ => Err(TorchError::Global { name: "a function of the extension registry".to_string() }),
        }
    }

    fn global_of_lines(&mut self) -> Result<Global, TorchError> {
        let (module, name) = (self.reader.line()?, self.reader.line()?);
        resolve(&String::from_utf8_lossy(module), &String::from_utf8_lossy(name))
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    fn called(&self, function: Id) -> Result<Global, TorchError> {
        match self.value(function) {
            Value::Global(global) => Ok(*global),
            _ => Err(self.malformed("it calls what is no function")),
        }
    }

    /// The items of a tuple, which are charged.
    fn tuple_items(&mut self, tuple: Id) -> Result<Vec<Id>, TorchError> {
        let Value::Tuple(items) = self.value(tuple) else {
            return Err(self.malformed("the arguments of a call are no tuple"));
        };
        let items = items.to_vec();
        self.spend(items.len())?;
        Ok(items)
    }

    /// Pushes the meaning of a call: of PyTorch's functions the tensor, of the others an opaque value.
    fn call(&mut self, global: Global, arguments: &[Id]) -> Result<(), TorchError> {
        match global {
            Global::Tensor { is_untyped } => {
                let tensor = self.tensor(is_untyped, arguments)?;
                self.push(Value::Tensor(Box::new(tensor)))
            }
            Global::Parameter => {
                let first = *arguments.first().ok_or_else(|| self.malformed("a parameter has no tensor"))?;
                self.stack.push(first);
                Ok(())
            }
            Global::FromType => {
                let &[function, _, arguments, ..] = arguments else {
                    return Err(self.malformed("a tensor with attributes is incomplete"));
                };
                let function = self.called(function)?;
                // Not itself, so that the depth is two.
                if function == Global::FromType {
                    return Err(self.malformed("a tensor with attributes has attributes"));
                }
                let arguments = self.tuple_items(arguments)?;
                self.call(function, &arguments)
            }
            Global::Unsupported(kind) => self.push(Value::Unsupported(kind)),
            Global::Dict => {
                let entries = self.entries(arguments)?;
                self.push(Value::Dict(entries))
            }
            // The argument itself: what differs is only whether two names are one list.
            Global::List | Global::Tuple => match arguments.first() {
                Some(&items) if matches!(self.value(items), Value::List(_) | Value::Tuple(_)) => {
                    self.stack.push(items);
                    Ok(())
                }
                _ => self.push(Value::List(Vec::new())),
            },
            Global::NewObject => match arguments.first().map(|class| self.value(*class)) {
                Some(Value::Global(Global::Dict)) => self.push(Value::Dict(Vec::new())),
                Some(Value::Global(_)) => self.push(Value::Opaque(None)),
                _ => Err(self.malformed("an object has no class")),
            },
            Global::Storage(_) | Global::Element(_) | Global::Opaque => self.push(Value::Opaque(None)),
        }
    }

    fn tensor(&self, is_untyped: bool, arguments: &[Id]) -> Result<Tensor, TorchError> {
        let &[storage, offset, shape, strides, ref more @ ..] = arguments else {
            return Err(self.malformed("a tensor is incomplete"));
        };
        let element = match (is_untyped, more) {
            (false, _) => None,
            (true, [_, _, element, ..]) => match self.value(*element) {
                Value::Global(Global::Element(element)) => Some(*element),
                _ => return Err(self.malformed("a tensor has no element type")),
            },
            (true, _) => return Err(self.malformed("a tensor has no element type")),
        };
        Ok(Tensor { storage, offset, shape, strides, element })
    }

    /// The entries of a dictionary that is made of pairs; none where it is made empty.
    fn entries(&mut self, arguments: &[Id]) -> Result<Vec<(Id, Id)>, TorchError> {
        let items = match arguments.first().map(|first| self.value(*first)) {
            Some(Value::List(items)) => items,
            Some(Value::Tuple(items)) => &items[..],
            _ => return Ok(Vec::new()),
        };
        let entries: Option<Vec<(Id, Id)>> = items
            .iter()
            .map(|pair| match self.value(*pair) {
                Value::Tuple(pair) => pair[..].try_into().ok().map(|[key, value]: [Id; 2]| (key, value)),
                Value::List(pair) => pair[..].try_into().ok().map(|[key, value]: [Id; 2]| (key, value)),
                _ => None,
            })
            .collect();
        let entries = entries.ok_or_else(|| self.malformed("a dictionary is not made of pairs"))?;
        self.spend(entries.len())?;
        Ok(entries)
    }

    /// Sets the attributes of the object below them. Those of tensors and dictionaries are passed over.
    fn build(&mut self) -> Result<(), TorchError> {
        let (state, object) = (self.pop()?, self.top()?);
        match &mut self.values[object as usize] {
            Value::Opaque(attributes) => *attributes = Some(state),
            Value::Global(_) => return Err(self.malformed("it changes a class")),
            _ => {}
        }
        Ok(())
    }

    /// A storage: `("storage", class, key, location, count)`, in older files with a view of another storage.
    /// A class with its source code, of a pickled model: `("module", class, file, code)`.
    fn persistent(&mut self) -> Result<(), TorchError> {
        let wrong = "a storage is named as PyTorch does not name one";
        let tuple = self.pop()?;
        let Value::Tuple(items) = self.value(tuple) else { return Err(self.malformed(wrong)) };
        let kind = items.first().map(|kind| self.value(*kind));
        let is_kind = |name: &str| matches!(kind, Some(Value::Text(text)) if text == name);
        match items[..] {
            [_, class, ..] if is_kind("module") => {
                self.called(class)?;
                self.stack.push(class);
                Ok(())
            }
            [_, class, key, _, count, ref more @ ..] if is_kind("storage") => {
                let (Value::Global(Global::Storage(element)), Some(count)) =
                    (self.value(class), self.size(count))
                else {
                    return Err(self.malformed(wrong));
                };
                let view = match more.first().map(|view| self.value(*view)) {
                    Some(Value::Tuple(view)) => match view[..] {
                        [_, offset, count] => self.size(offset).zip(self.size(count)),
                        _ => return Err(self.malformed(wrong)),
                    },
                    _ => None,
                };
                self.push(Value::Storage(Box::new(Storage { key, element: *element, count, view })))
            }
            _ => Err(self.malformed(wrong)),
        }
    }

    fn size(&self, id: Id) -> Option<u64> {
        match self.value(id) {
            Value::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }
}

fn resolve(module: &str, name: &str) -> Result<Global, TorchError> {
    globals::resolve(module, name).ok_or_else(|| TorchError::Global { name: format!("{module}.{name}") })
}
