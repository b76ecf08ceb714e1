//! Palettes: every element is an index into a table.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use mixbit_mil::constexpr::{blockwise_shift_scale, lut_to_dense};
use mixbit_mil::{Bytes, Computed, DType, Opset, TensorType, WeightRef};

use super::{Method, divisor, elements, row_importance, row_len};
use crate::calibration::{Calibration, Needs};
use crate::pack::pack;
use crate::{Error, Histogram, Palette, Width};

/// The most output channels that share a table.
const GROUP: usize = 16;

/// The number of elements from which on a table of the index of every f16 pays off.
const TABLE_FROM: usize = 1 << 15;

/// A kind of palettes.
#[derive(Debug)]
pub(super) struct Palettes {
    name: &'static str,
    about: &'static str,
    /// True if groups of output channels have a table each.
    is_grouped: bool,
    /// True if each output channel has a scale.
    is_scaled: bool,
    /// True if entries are scaled 8-bit integers.
    in_bytes: bool,
}

const WHOLE: Palettes = Palettes {
    name: "palette",
    about: "one table for the whole weight",
    is_grouped: false,
    is_scaled: false,
    in_bytes: false,
};

pub(super) static PALETTE: Palettes = WHOLE;

pub(super) static GROUPED: Palettes = Palettes {
    name: "grouped-palette",
    about: "a table for each 16 output channels",
    is_grouped: true,
    ..WHOLE
};

pub(super) static SCALED: Palettes = Palettes {
    name: "scaled-palette",
    about: "one table, and a scale for each output channel",
    is_scaled: true,
    ..WHOLE
};

pub(super) static GROUPED_SCALED: Palettes = Palettes {
    name: "grouped-scaled-palette",
    about: "a table for each 16 output channels, and a scale for each one",
    is_grouped: true,
    is_scaled: true,
    ..WHOLE
};

pub(super) static INT8: Palettes = Palettes {
    name: "int8-palette",
    about: "one table of 8-bit integers and their scale",
    in_bytes: true,
    ..WHOLE
};

impl Palettes {
    /// The number of output channels that share a table.
    fn group(&self, shape: &[usize]) -> usize {
        let rows = shape.first().copied().unwrap_or(1);
        if self.is_grouped { divisor(rows, GROUP) } else { rows.max(1) }
    }

    fn tables(&self, shape: &[usize]) -> usize {
        shape.first().copied().unwrap_or(1) / self.group(shape)
    }
}

impl Method for Palettes {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn widths(&self) -> &'static [Width] {
        &Width::ALL
    }

    fn since(&self, width: Width) -> Opset {
        let is_first = !self.is_grouped && !self.is_scaled && !self.in_bytes && width != Width::Three;
        if is_first { Opset::Ios16 } else { Opset::Ios18 }
    }

    fn stored_len(&self, ty: &TensorType, width: Width) -> usize {
        let shape = &ty.shape;
        let indices = (ty.count() * width.bits() as usize).div_ceil(8);
        let table = if self.in_bytes { width.entries() + 2 } else { 2 * width.entries() };
        let scales = if self.is_scaled { 2 * shape.first().copied().unwrap_or(1) } else { 0 };
        indices + self.tables(shape) * table + scales
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn encode(
        &self,
        weight: &WeightRef,
        width: Width,
        calibration: Option<&Calibration>,
    ) -> Result<WeightRef, Error> {
        let shape = &weight.ty().shape;
        let source = Source { weight: weight.cast(DType::F16), scales: None };
        let scales = if self.is_scaled { Some(scales(&source.elements()?, row_len(shape))) } else { None };
        let source = Source { scales, ..source };
        let palettes = fit(&source, self.group(shape), width, calibration)?;
        let stored = if self.in_bytes {
            let (lut, palette) = in_bytes(&palettes[0], width, shape.len())?;
            stored(source, vec![palette], lut, Indices::Nearest)?
        } else {
            let lut = lut(&palettes, shape.len())?;
            stored(source, palettes, lut, Indices::Nearest)?
        };
        Ok(stored.cast(weight.ty().dtype))
    }
}

/// The indices of a palettized weight.
#[derive(Clone, Debug)]
pub enum Indices {
    /// Those of the nearest entries. They are computed whenever they are read.
    Nearest,
    /// Those that a method chose itself, such as one that compensates errors: a byte for each element,
    /// row-major.
    Kept(Vec<u8>),
}

/// A weight stored by given palettes, one for each of equal groups of output channels.
///
/// # Errors
/// [`Error::Palettes`] if the palettes differ in width or don't divide the output channels, or if kept
/// indices are too many, too few or too large.
pub fn palettized(weight: &WeightRef, palettes: Vec<Palette>, indices: Indices) -> Result<WeightRef, Error> {
    let shape = &weight.ty().shape;
    let misfit = |what: String| Error::Palettes { what, shape: shape.clone() };
    let rows = shape.first().copied().unwrap_or(1);
    let entries = palettes.first().map_or(0, |palette| palette.lut().len());
    if entries == 0 || !rows.is_multiple_of(palettes.len()) {
        return Err(misfit(format!("{} palettes", palettes.len())));
    }
    if palettes.iter().any(|palette| palette.lut().len() != entries) {
        return Err(misfit("palettes of different widths".to_string()));
    }
    if let Indices::Kept(kept) = &indices {
        let large = kept.iter().filter(|&&index| usize::from(index) >= entries).count();
        if kept.len() != weight.ty().count() || large > 0 {
            return Err(misfit(format!(
                "{} indices, {large} of them past the {entries} entries,",
                kept.len()
            )));
        }
    }
    let lut = lut(&palettes, shape.len())?;
    let source = Source { weight: weight.cast(DType::F16), scales: None };
    Ok(stored(source, palettes, lut, indices)?.cast(weight.ty().dtype))
}

/// The tables of palettes, as Core ML has them: blocks of every axis, entries, one value.
fn lut(palettes: &[Palette], rank: usize) -> Result<WeightRef, Error> {
    let entries: Vec<f16> = palettes.iter().flat_map(Palette::lut).copied().collect();
    let mut shape = vec![1; rank];
    if let Some(rows) = shape.first_mut() {
        *rows = palettes.len();
    }
    shape.extend([entries.len() / palettes.len().max(1), 1]);
    constant(DType::F16, shape, halves(&entries))
}

/// A weight as indices into `lut`, the table of its palettes, and its rows' scales.
fn stored(
    source: Source,
    palettes: Vec<Palette>,
    lut: WeightRef,
    indices: Indices,
) -> Result<WeightRef, Error> {
    let (name, shape) = (source.weight.name().to_string(), source.weight.ty().shape.clone());
    let width = palettes[0].width();
    let scales = source.scales.clone();
    let ty = TensorType::new(dtype(width), shape.clone());
    let indices = match indices {
        Indices::Nearest => {
            let group_len = source.weight.ty().count() / palettes.len();
            let nearest = Nearest { source, palettes, width, group_len };
            WeightRef::computed(name.as_str(), ty, Arc::new(nearest))
        }
        Indices::Kept(kept) => {
            WeightRef::new(name.as_str(), ty, Bytes::new(pack(kept.into_iter(), width.bits())))?
        }
    };
    let encoded = lut_to_dense(&name, indices, lut)?;
    let Some(scales) = scales else { return Ok(encoded) };
    let mut scale_shape = vec![1; shape.len()];
    if let Some(rows) = scale_shape.first_mut() {
        *rows = scales.len();
    }
    let scales = constant(DType::F16, scale_shape, halves(&scales))?;
    Ok(blockwise_shift_scale(&name, encoded, scales, None)?)
}

/// The values to palettize: a weight with its rows divided by scales.
#[derive(Debug)]
struct Source {
    weight: WeightRef,
    scales: Option<Vec<f16>>,
}

impl Source {
    fn elements(&self) -> Result<Vec<f16>, Error> {
        let mut elements = elements(&self.weight)?;
        if let Some(scales) = &self.scales {
            let row_len = row_len(&self.weight.ty().shape).max(1);
            for (row, scale) in elements.chunks_exact_mut(row_len).zip(scales) {
                row.iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32() / scale.to_f32()));
            }
        }
        Ok(elements)
    }
}

/// The root of the mean square of each row; 1 for rows of zeros.
fn scales(elements: &[f16], row_len: usize) -> Vec<f16> {
    let scale = |row: &[f16]| {
        let sum: f32 = row.iter().map(|value| value.to_f32().powi(2)).sum();
        let scale = f16::from_f32((sum / row.len() as f32).sqrt());
        if scale.is_normal() { scale } else { f16::ONE }
    };
    elements.chunks_exact(row_len.max(1)).map(scale).collect()
}

/// The best palette of every group of rows.
fn fit(
    source: &Source,
    group: usize,
    width: Width,
    calibration: Option<&Calibration>,
) -> Result<Vec<Palette>, Error> {
    let shape = &source.weight.ty().shape;
    let elements = source.elements()?;
    source.weight.release();
    let group_len = (group * row_len(shape)).max(1);
    let columns = calibration.map(|calibration| row_importance(shape, calibration)).transpose()?;
    // An error in a scaled row counts by the square of its scale.
    let row_factor = |row: usize| source.scales.as_ref().map_or(1.0, |scales| scales[row].to_f64().powi(2));
    let is_plain = columns.is_none() && source.scales.is_none();
    let one = |(index, elements): (usize, &[f16])| {
        let histogram = if is_plain {
            Histogram::new(elements)?
        } else {
            let rows = (index * group..).take(group).map(row_factor);
            let columns = columns.clone().unwrap_or_else(|| vec![1.0; row_len(shape)]);
            Histogram::weighted(
                elements,
                rows.flat_map(|row| columns.iter().map(move |column| row * column).collect::<Vec<_>>()),
            )?
        };
        Ok(Palette::fit(&histogram, width))
    };
    elements.chunks_exact(group_len).enumerate().map(one).collect()
}

/// A palette's entries as scaled 8-bit integers, and the palette of the decoded entries.
fn in_bytes(palette: &Palette, width: Width, rank: usize) -> Result<(WeightRef, Palette), Error> {
    let entries = palette.used();
    let most = entries.iter().map(|entry| entry.to_f32().abs()).fold(0.0, f32::max);
    let scale = f16::from_f32(most / 127.0);
    let scale = if scale.is_normal() { scale } else { f16::ONE };
    let quantized = |entry: &f16| (entry.to_f32() / scale.to_f32()).round().clamp(-127.0, 127.0) as i8;
    let mut bytes: Vec<i8> = entries.iter().map(quantized).collect();
    bytes.dedup();
    let decoded = bytes.iter().map(|&byte| f16::from_f32(f32::from(byte) * scale.to_f32())).collect();
    bytes.resize(width.entries(), 0);
    let ones = vec![1; rank];
    let data = bytes.iter().map(|&byte| byte as u8).collect();
    let data = constant(DType::I8, [&ones[..], &[width.entries(), 1]].concat(), data)?;
    let scale = constant(DType::F16, vec![1; rank + 2], halves(&[scale]))?;
    Ok((blockwise_shift_scale("lut", data, scale, None)?, Palette::of_entries(decoded, width)))
}

fn dtype(width: Width) -> DType {
    match width {
        Width::One => DType::U1,
        Width::Two => DType::U2,
        Width::Three => DType::U3,
        Width::Four => DType::U4,
        Width::Six => DType::U6,
        Width::Eight => DType::U8,
    }
}

pub(super) fn constant(dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> Result<WeightRef, Error> {
    Ok(WeightRef::new("part", TensorType::new(dtype, shape), Bytes::new(bytes))?)
}

pub(super) fn halves(values: &[f16]) -> Vec<u8> {
    values.reinterpret_cast().iter().flat_map(|bits| bits.to_le_bytes()).collect()
}

/// Indices of the nearest entries.
#[derive(Debug)]
struct Nearest {
    source: Source,
    palettes: Vec<Palette>,
    width: Width,
    /// The number of elements that share a palette.
    group_len: usize,
}

impl Computed for Nearest {
    fn read(&self) -> Vec<u8> {
        // Can't fail: the elements were read when the palettes were fitted.
        let elements = self.source.elements().unwrap_or_default();
        let mut indices = Vec::with_capacity(elements.len());
        for (group, palette) in elements.chunks_exact(self.group_len.max(1)).zip(&self.palettes) {
            if group.len() < TABLE_FROM {
                indices.extend(group.iter().map(|&value| palette.index(value)));
            } else {
                let table = palette.table();
                indices.extend(group.iter().map(|value| table[usize::from(value.to_bits())]));
            }
        }
        pack(indices.into_iter(), self.width.bits())
    }

    fn release(&self) {
        self.source.weight.release();
    }
}
