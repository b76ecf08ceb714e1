//! The constants of a model that go to its weight file, and their places in it.

use std::collections::HashMap;
use std::io::{self, Write};

use mixbit_mil::{Constant, DType, Def, Identity, Progress, Tally, TensorType, Unit, ValueId};

use super::Model;
use super::blob::{self, Layout};
use super::names::{self, Names};
use super::schema::IOS_18;

/// Literals of fewer elements stay in the specification, as coremltools does it.
const BLOB_COUNT: usize = 10;

/// The constants in the weight file.
#[derive(Debug)]
pub(super) struct Placement<'m> {
    layout: Layout,
    constants: Vec<&'m Constant>,
    /// By function and value.
    places: HashMap<(usize, ValueId), Place>,
}

/// The elements of a constant, by which functions share it.
#[derive(PartialEq, Eq, Hash)]
enum Content<'m> {
    Weight(Identity),
    Literal(Option<&'m [u8]>),
}

/// The place of a constant.
#[derive(Debug)]
struct Place {
    offset: u64,
    /// The name that a reader gives the constant: a weight's own, else one made from its first use.
    name: String,
}

impl<'m> Placement<'m> {
    /// Places constants in the order of their first use.
    pub(super) fn plan(model: &'m Model) -> Self {
        let (program, specification_version) = (&model.program, model.specification_version);
        let mut plan = Placement { layout: Layout::new(), constants: Vec::new(), places: HashMap::new() };
        let mut shared: HashMap<(Content<'m>, &'m TensorType), u64> = HashMap::new();
        for (index, function) in program.functions.iter().enumerate() {
            for (id, site) in names::sites(function) {
                let Def::Const(constant) = &function.value(id).def else { continue };
                if plan.places.contains_key(&(index, id)) || !belongs(constant, specification_version) {
                    continue;
                }
                let content = match constant {
                    Constant::Weight(weight) => Content::Weight(weight.identity()),
                    Constant::Literal(literal) => Content::Literal(literal.bytes()),
                };
                let key = (content, constant.ty());
                // Weights that functions share are stored once.
                let known = shared.get(&key).filter(|_| index > 0).copied();
                let Some(offset) = known.or_else(|| plan.layout.add(constant.ty())) else { continue };
                if known.is_none() {
                    plan.constants.push(constant);
                    shared.insert(key, offset);
                }
                let name = names::name_at(constant, &site);
                plan.places.insert((index, id), Place { offset, name });
            }
        }
        plan
    }

    /// True if there is no constant to place, and so no weight file.
    pub(super) fn is_empty(&self) -> bool {
        self.constants.is_empty()
    }

    /// Writes the weight file, one constant after the other.
    pub(super) fn write(&self, writer: &mut dyn Write, progress: &dyn Progress) -> io::Result<()> {
        let len = |constant: &Constant| constant.ty().byte_len().unwrap_or(0) as u64;
        let total = self.constants.iter().map(|constant| len(constant)).sum();
        let tally = Tally::new(progress, total, Unit::Bytes);
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

    /// The offset of a constant in the weight file, if it is there.
    pub(super) fn offset(&self, function: usize, id: ValueId) -> Option<u64> {
        self.places.get(&(function, id)).map(|place| place.offset)
    }

    /// The names of the constants in the weight file that don't follow from their sites.
    pub(super) fn names(&self, model: &Model) -> Names {
        let mut names = Names::default();
        for (index, function) in model.program.functions.iter().enumerate() {
            for (id, site) in names::sites(function) {
                if let Some(place) = self.places.get(&(index, id)) {
                    names.insert(&function.name, site, &place.name);
                }
            }
        }
        names
    }
}

/// True if a constant goes to the weight file.
pub(super) fn belongs(constant: &Constant, specification_version: u32) -> bool {
    let ty = constant.ty();
    let always = matches!(ty.dtype, DType::F16 | DType::F32 | DType::U8 | DType::I8);
    let known = always || (specification_version >= IOS_18 && blob::holds(ty.dtype));
    match constant {
        // However small, so that it keeps its name.
        Constant::Weight(_) => known && ty.rank() > 0 && ty.count() > 0,
        Constant::Literal(_) => known && ty.count() >= BLOB_COUNT,
    }
}
