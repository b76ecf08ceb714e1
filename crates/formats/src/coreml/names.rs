//! Names that weights have in their checkpoint.
//!
//! MIL's identifiers have no dots, so a file can't hold `down_blocks.0.resnets.0.conv1.weight` as the name of a value.
//! The names travel in the program's build information, a dictionary of texts that Core ML and coremltools pass on and
//! do not look at, under one key: as JSON, the name by function and by place. A place is the name of a constant, or
//! `result.input` for one that stands in an op.

use std::collections::BTreeMap;

use mixbit_mil::{Constant, Def, Function, Op, ValueId};

use super::CoreMlError;

/// The key of the build information.
pub(super) const KEY: &str = "mixbit-weights";

/// Name by function and place. Weights that are called after their place are left out.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(BTreeMap<String, BTreeMap<String, String>>);

/// Where a constant stands, and what it is called if nothing else is known.
pub(super) struct Site {
    place: String,
    pub(super) default: String,
}

impl Site {
    /// A constant of its own.
    pub(super) fn value(name: &str) -> Self {
        Site { place: name.to_string(), default: name.to_string() }
    }

    /// A constant that stands in the op which makes `result`.
    pub(super) fn inside(result: &str, input: &str) -> Self {
        Site { place: format!("{result}.{input}"), default: format!("{result}_{input}") }
    }

    /// Where an op's constant stands when it is written.
    pub(super) fn of(function: &Function, op: &Op, input: &str, id: ValueId) -> Self {
        match op.outputs.first() {
            Some(&output) if op.def.is_constexpr() => Site::inside(&function.value(output).name, input),
            _ => Site::value(&function.value(id).name),
        }
    }
}

impl Names {
    /// Adds the name of a constant of `function`, unless it is called after its site.
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

    /// As a value of the build information; `None` if there is nothing to say.
    pub(super) fn to_text(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| serde_json::to_string(&self.0).unwrap_or_default())
    }

    pub(super) fn from_text(text: &str) -> Result<Self, CoreMlError> {
        serde_json::from_str(text).map(Names).map_err(|error| {
            CoreMlError::inconsistent(format!("`{KEY}` of the build information can't be read: {error}"))
        })
    }
}

/// Every constant that a function's ops and outputs use, in that order, with its place.
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

/// What a reader calls a constant at the place of its first use.
pub(super) fn name_at(constant: &Constant, site: &Site) -> String {
    match constant {
        Constant::Weight(weight) => weight.name().to_string(),
        Constant::Literal(_) => site.default.clone(),
    }
}
