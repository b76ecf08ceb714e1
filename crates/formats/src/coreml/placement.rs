//! The constants of a model that go to its weight file, and their places in it.

use std::collections::HashMap;
use std::io::{self, Write};

use mixbit_mil::{Constant, DType, Def, Identity, Progress, Tally, TensorType, Unit, ValueId, WeightRef};

use super::blob::{self, Layout};
use super::error::NotFinite;
use super::names::{self, Names};
use super::schema::IOS_18;
use super::{Model, Values};

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
    ///
    /// # Errors
    /// The writer's, that of `progress`, and [`NotFinite`] if `values` are to be finite.
    pub(super) fn write(
        &self,
        writer: &mut dyn Write,
        values: Values,
        progress: &dyn Progress,
    ) -> io::Result<()> {
        let len = |constant: &Constant| constant.ty().byte_len().unwrap_or(0) as u64;
        let total = self.constants.iter().map(|constant| len(constant)).sum();
        let tally = Tally::new(progress, total, Unit::Bytes);
        self.layout.write(writer, |index, writer| {
            match self.constants[index] {
                Constant::Literal(literal) => writer.write_all(literal.bytes().unwrap_or_default())?,
                Constant::Weight(weight) => {
                    let bytes = weight.read().map_err(io::Error::other)?;
                    if values == Values::Finite && !is_finite(&bytes, weight.ty().dtype) {
                        return Err(io::Error::other(not_finite(weight, &bytes)));
                    }
                    writer.write_all(&bytes)?;
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

/// The first value of a weight that is not finite in `bytes`, its elements as they are written.
fn not_finite(weight: &WeightRef, bytes: &[u8]) -> NotFinite {
    let width = (weight.ty().dtype.bits() / 8).max(1);
    let is_wrong = |element: &[u8]| !is_finite(element, weight.ty().dtype);
    let index = bytes.chunks_exact(width).position(is_wrong).unwrap_or_default();
    let wide = weight.cast(DType::F32);
    let wide = wide.read().unwrap_or_default();
    let value = wide.as_chunks().0.get(index).map_or(f32::NAN, |&element| f32::from_le_bytes(element));
    NotFinite { tensor: weight.name().to_string(), index, value }
}

/// True if all elements are finite: none has an exponent of ones. Other types than floats always are.
fn is_finite(bytes: &[u8], dtype: DType) -> bool {
    // A block at a time: the loop over it has no branch, so that it is vectorised.
    const BLOCK: usize = 4096;
    let halves = |exponent: u16| {
        bytes.chunks(BLOCK).all(|block| {
            let is_wrong = |&element: &[u8; 2]| u16::from_le_bytes(element) & exponent == exponent;
            !block.as_chunks().0.iter().fold(false, |found, element| found | is_wrong(element))
        })
    };
    match dtype {
        DType::F16 => halves(0x7c00),
        DType::BF16 => halves(0x7f80),
        DType::F32 => bytes.chunks(BLOCK).all(|block| {
            let is_wrong = |&element: &[u8; 4]| !f32::from_le_bytes(element).is_finite();
            !block.as_chunks().0.iter().fold(false, |found, element| found | is_wrong(element))
        }),
        _ => true,
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

#[cfg(test)]
mod tests {
    use mixbit_mil::Bytes;

    use super::*;

    #[test]
    fn values_that_are_not_finite_are_found_in_every_place() {
        for (dtype, width, wrong) in [
            (DType::F16, 2, &[0x00, 0x7c][..]),
            (DType::F16, 2, &[0x01, 0xfe]),
            (DType::BF16, 2, &[0x80, 0xff]),
            (DType::F32, 4, &[0, 0, 0xc0, 0x7f]),
            (DType::F32, 4, &[0, 0, 0x80, 0xff]),
        ] {
            let mut bytes = vec![0x7b; 3 * 4096 + 2 * width];
            assert!(is_finite(&bytes, dtype));
            for at in [0, 4096 - width, 4096, 3 * 4096 + width] {
                let before = bytes[at..at + width].to_vec();
                bytes[at..at + width].copy_from_slice(wrong);
                assert!(!is_finite(&bytes, dtype), "{dtype} at {at}");
                let ty = TensorType::new(dtype, [bytes.len() / width]);
                let weight = WeightRef::new("w", ty, Bytes::new(bytes.clone()));
                assert_eq!(not_finite(&weight.unwrap(), &bytes).index, at / width);
                bytes[at..at + width].copy_from_slice(&before);
            }
        }
        assert!(is_finite(&[0xff; 8], DType::U8));
    }

    #[test]
    fn values_that_overflow_are_told_with_what_they_were() {
        let bytes: Vec<u8> =
            [1.0f32, 65519.0, -65520.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let weight = WeightRef::new("w", TensorType::new(DType::F32, [3]), Bytes::new(bytes)).unwrap();
        assert!(is_finite(&weight.read().unwrap(), DType::F32));
        let half = weight.cast(DType::F16);
        let found = not_finite(&half, &half.read().unwrap());
        assert!(found.to_string().contains("-65520 at element 2: a 16-bit float holds at most"), "{found}");
    }
}
