//! The checkpoint names of weights.
//!
//! MIL's identifiers have no dots, so `down_blocks.0.resnets.0.conv1.weight` can't be the name of a value.
//! The names are stored in the program's build information, a dictionary of texts that Core ML and
//! coremltools pass on unread, under one key: JSON with the name by function and place. A place is the name
//! of a constant, or `result.input` for a constant inside an op.

use std::collections::BTreeMap;

use mixbit_mil::{Constant, Def, Function, Op, ValueId};

use super::CoreMlError;

/// The key of the build information.
pub(super) const KEY: &str = "mixbit-weights";

/// Names by function and place, without those that follow from the place.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(BTreeMap<String, BTreeMap<String, String>>);

/// The place of a constant, and its default name.
pub(super) struct Site {
    place: String,
    pub(super) default: String,
}

impl Site {
    /// The site of a constant with a name of its own.
    pub(super) fn value(name: &str) -> Self {
        Site { place: name.to_string(), default: name.to_string() }
    }

    /// The site of a constant inside the op that makes `result`.
    pub(super) fn inside(result: &str, input: &str) -> Self {
        Site { place: format!("{result}.{input}"), default: format!("{result}_{input}") }
    }

    /// The site of an op's constant in a written program.
    pub(super) fn of(function: &Function, op: &Op, input: &str, id: ValueId) -> Self {
        match op.outputs.first() {
            Some(&output) if op.def.is_constexpr() => Site::inside(&function.value(output).name, input),
            _ => Site::value(&function.value(id).name),
        }
    }
}

impl Names {
    /// Adds the name of a constant of `function`, unless it is the site's default.
    pub(super) fn insert(&mut self, function: &str, site: Site, name: &str) {
        if name != site.default {
            let names = self.0.entry(function.to_string()).or_default();
            names.insert(site.place, name.to_string());
        }
    }

    /// The name of a constant of `function`.
    pub(super) fn get<'a>(&'a self, function: &str, site: &'a Site) -> &'a str {
        self.0.get(function).and_then(|names| names.get(&site.place)).unwrap_or(&site.default)
    }

    /// The text for the build information, or `None` if there are no names.
    pub(super) fn to_text(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| serde_json::to_string(&self.0).unwrap_or_default())
    }

    pub(super) fn from_text(text: &str) -> Result<Self, CoreMlError> {
        serde_json::from_str(text).map(Names).map_err(|error| {
            CoreMlError::inconsistent(format!("`{KEY}` of the build information can't be read: {error}"))
        })
    }
}

/// Every constant that a function's ops and outputs use, in that order, with its site.
pub(super) fn sites<'f>(function: &'f Function) -> impl Iterator<Item = (ValueId, Site)> + 'f {
    let of_op = move |op: &'f Op| {
        let args = op.def.params.iter().zip(&op.args);
        args.flat_map(move |(param, arg)| {
            arg.values().iter().map(move |&id| (id, Site::of(function, op, param.name, id)))
        })
    };
    let outputs = function.outputs().iter().map(|&id| (id, Site::value(&function.value(id).name)));
    let is_constant = |(id, _): &(ValueId, Site)| matches!(function.value(*id).def, Def::Const(_));
    function.ops().iter().flat_map(of_op).chain(outputs).filter(is_constant)
}

/// The name that a reader gives a constant at the site of its first use.
pub(super) fn name_at(constant: &Constant, site: &Site) -> String {
    match constant {
        Constant::Weight(weight) => weight.name().to_string(),
        Constant::Literal(_) => site.default.clone(),
    }
}
