//! The named tensors of a pickle.

use std::collections::BTreeMap;

use super::error::{DEPTH_LIMIT, TorchError};
use super::pickle::{Id, Unpickled, Value};

/// The entry that holds the weights, where trainers put other things beside them.
const STATE_DICT: &str = "state_dict";

/// The attributes of `torch.nn.Module` that hold its tensors and parts. They add nothing to names.
const MODULE_ATTRIBUTES: [&str; 3] = ["_parameters", "_buffers", "_modules"];

/// The name of a tensor that is alone in its file.
const ALONE: &str = "tensor";

/// The tensors and the texts of a pickle.
#[derive(Debug)]
pub(super) struct Flat {
    pub(super) tensors: BTreeMap<String, Id>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// The tensors of nested dictionaries under dotted names, and the scalars and texts of the outermost one. If
/// that has a dictionary `state_dict`, only its tensors are taken.
///
/// # Errors
/// [`TorchError::Nesting`], [`TorchError::Sharing`], [`TorchError::NoTensors`], and
/// [`TorchError::Unsupported`] for a tensor of another kind.
pub(super) fn flatten(pickle: &Unpickled<'_>) -> Result<Flat, TorchError> {
    let mut walk = Walk::new(pickle);
    let mut metadata = BTreeMap::new();
    match pickle.root() {
        Value::Tensor(_) | Value::Unsupported(_) => walk.take(ALONE.to_string(), pickle.root)?,
        Value::Dict(entries) => {
            let mut weights = pickle.root;
            for (key, value) in entries {
                let Value::Text(key) = pickle.value(*key) else { continue };
                match pickle.value(*value) {
                    Value::Dict(_) if key == STATE_DICT => weights = *value,
                    value => {
                        if let Some(text) = text(value) {
                            walk.charge(key.len() + text.len())?;
                            metadata.insert(key.to_string(), text);
                        }
                    }
                }
            }
            walk.run(weights)?;
        }
        Value::Opaque(Some(_)) => walk.run(pickle.root)?,
        _ => {}
    }
    match walk.tensors.is_empty() {
        true => Err(TorchError::NoTensors),
        false => Ok(Flat { tensors: walk.tensors, metadata }),
    }
}

fn text(value: &Value<'_>) -> Option<String> {
    match value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(value) => Some(value.to_string()),
        Value::Float(value) => Some(value.to_string()),
        Value::Text(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A walk through nested dictionaries and objects.
struct Walk<'p, 'a> {
    pickle: &'p Unpickled<'a>,
    tensors: BTreeMap<String, Id>,
    /// The bytes of names and entries that are left.
    budget: usize,
}

/// A dictionary on the way to the current one.
struct Level {
    dict: Id,
    next: usize,
    /// The length of its name, with the dot.
    prefix: usize,
    /// True for the attributes of an object.
    is_object: bool,
}

impl<'p, 'a> Walk<'p, 'a> {
    fn new(pickle: &'p Unpickled<'a>) -> Self {
        let budget = pickle.len.saturating_mul(16).saturating_add(1 << 16);
        Walk { pickle, tensors: BTreeMap::new(), budget }
    }

    /// Takes the tensors of a dictionary or object and of those inside it.
    fn run(&mut self, root: Id) -> Result<(), TorchError> {
        let pickle = self.pickle;
        let mut name = String::new();
        let mut levels: Vec<Level> = self.level(root, 0).into_iter().collect();
        while let Some(level) = levels.last_mut() {
            let Value::Dict(entries) = pickle.value(level.dict) else { break };
            let Some(&(key, value)) = entries.get(level.next) else {
                levels.pop();
                continue;
            };
            level.next += 1;
            name.truncate(level.prefix);
            let mut prefix = level.prefix;
            match pickle.value(key) {
                Value::Text(key) if level.is_object => {
                    if !MODULE_ATTRIBUTES.contains(&&**key) {
                        continue;
                    }
                }
                Value::Text(key) => name.push_str(key),
                Value::Int(key) => name.push_str(&key.to_string()),
                _ => continue,
            }
            self.charge(1 + name.len())?;
            match pickle.value(value) {
                Value::Tensor(_) | Value::Unsupported(_) => self.take(name.clone(), value)?,
                Value::Dict(_) | Value::Opaque(Some(_)) => {
                    if !level.is_object {
                        name.push('.');
                        prefix = name.len();
                    }
                    let Some(inner) = self.level(value, prefix) else { continue };
                    if levels.len() == DEPTH_LIMIT || levels.iter().any(|level| level.dict == inner.dict) {
                        return Err(TorchError::Nesting);
                    }
                    levels.push(inner);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The level of a dictionary, or of an object's attributes.
    fn level(&self, value: Id, prefix: usize) -> Option<Level> {
        match self.pickle.value(value) {
            Value::Dict(_) => Some(Level { dict: value, next: 0, prefix, is_object: false }),
            Value::Opaque(Some(state)) => match self.pickle.value(*state) {
                Value::Dict(_) => Some(Level { dict: *state, next: 0, prefix, is_object: true }),
                _ => None,
            },
            _ => None,
        }
    }

    fn take(&mut self, name: String, tensor: Id) -> Result<(), TorchError> {
        if let Value::Unsupported(kind) = self.pickle.value(tensor) {
            return Err(TorchError::Unsupported { tensor: name, kind: kind.to_string() });
        }
        self.charge(name.len())?;
        // As in Python, a later entry replaces an earlier one.
        self.tensors.insert(name, tensor);
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), TorchError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(TorchError::Sharing)?;
        Ok(())
    }
}
