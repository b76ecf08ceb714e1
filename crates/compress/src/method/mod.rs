//! The table of compression methods.

mod linear;
mod palette;

use std::fmt;
use std::str::FromStr;

use half::f16;
use mixbit_mil::{DType, Opset, TensorType, WeightRef};

pub use palette::{Indices, palettized};

use crate::calibration::{Calibration, Needs};
use crate::{Error, Width};

/// A way to store a weight in fewer bits.
pub trait Method: fmt::Debug + Sync {
    /// The name, as in `palette` of `palette-4`.
    fn name(&self) -> &'static str;

    /// A one-line description.
    fn about(&self) -> &'static str;

    /// The supported widths, ascending.
    fn widths(&self) -> &'static [Width];

    /// The opset that introduced it.
    fn since(&self, width: Width) -> Opset;

    /// The bytes that a weight of type `ty` takes.
    fn stored_len(&self, ty: &TensorType, width: Width) -> usize;

    /// The calibration that it requires.
    fn needs(&self) -> Needs;

    /// The weight in fewer bits. Tables and scales are kept; indices and integers are computed whenever they
    /// are read.
    ///
    /// `calibration` meets the method's [`needs`](Self::needs).
    ///
    /// # Errors
    /// A weight that is not finite or not of floats, or a calibration that does not fit it.
    fn encode(
        &self,
        weight: &WeightRef,
        width: Width,
        calibration: Option<&Calibration>,
    ) -> Result<WeightRef, Error>;
}

/// Every method.
pub static METHODS: &[&dyn Method] = &[
    &palette::PALETTE,
    &palette::GROUPED,
    &palette::SCALED,
    &palette::GROUPED_SCALED,
    &palette::INT8,
    &linear::CHANNELS,
    &linear::BLOCKS,
];

/// A method at one of its widths.
#[derive(Clone, Copy, Debug)]
pub struct Scheme {
    /// The method.
    pub method: &'static dyn Method,
    /// The bits of one element.
    pub width: Width,
}

impl Scheme {
    /// One palette for the whole tensor, as in Apple's recipes.
    pub fn palette(width: Width) -> Self {
        Scheme { method: &palette::PALETTE, width }
    }

    /// 8-bit integers with a scale for each output channel.
    pub fn linear() -> Self {
        Scheme { method: &linear::CHANNELS, width: Width::Eight }
    }

    /// Every method at every width.
    pub fn all() -> impl Iterator<Item = Scheme> {
        METHODS.iter().flat_map(|&method| method.widths().iter().map(move |&width| Scheme { method, width }))
    }

    /// The bytes that a weight of type `ty` takes.
    pub fn stored_len(self, ty: &TensorType) -> usize {
        self.method.stored_len(ty, self.width)
    }

    /// The opset that introduced it.
    pub fn since(self) -> Opset {
        self.method.since(self.width)
    }

    /// The weight in this scheme; see [`Method::encode`].
    ///
    /// # Errors
    /// [`Error::Uncalibrated`] if the method needs more than `calibration` has; those of [`Method::encode`].
    pub fn encode(self, weight: &WeightRef, calibration: Option<&Calibration>) -> Result<WeightRef, Error> {
        let needs = self.method.needs();
        if !needs.are_met_by(calibration) {
            return Err(Error::Uncalibrated { scheme: self.to_string(), needs });
        }
        self.method.encode(weight, self.width, calibration)
    }
}

impl PartialEq for Scheme {
    fn eq(&self, other: &Self) -> bool {
        self.method.name() == other.method.name() && self.width == other.width
    }
}

impl Eq for Scheme {}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.method.name(), self.width.bits())
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Scheme::all().find(|scheme| scheme.to_string() == text);
        found.ok_or_else(|| Error::UnknownScheme { asked: text.to_string(), known: names() })
    }
}

/// The names of all schemes.
fn names() -> String {
    Scheme::all().map(|scheme| scheme.to_string()).collect::<Vec<_>>().join(", ")
}

/// The elements in f16, as Core ML stores them.
fn elements(weight: &WeightRef) -> Result<Vec<f16>, Error> {
    let narrow = weight.cast(DType::F16);
    let bytes = narrow.read()?;
    Ok(bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect())
}

/// The number of elements of one output channel (axis 0).
fn row_len(shape: &[usize]) -> usize {
    shape.iter().skip(1).product()
}

/// The importance of every element of one output channel: the mean square of its input channel.
fn row_importance(shape: &[usize], calibration: &Calibration) -> Result<Vec<f64>, Error> {
    let mean_square = &calibration.mean_square;
    if shape.get(1) != Some(&mean_square.len()) {
        return Err(Error::Channels { found: mean_square.len(), shape: shape.to_vec() });
    }
    let window: usize = shape[2..].iter().product();
    Ok(mean_square.iter().flat_map(|&value| std::iter::repeat_n(f64::from(value), window)).collect())
}

/// The largest number of at most `most` that divides `extent`.
fn divisor(extent: usize, most: usize) -> usize {
    (1..=most).rev().find(|&size| extent.is_multiple_of(size)).unwrap_or(1)
}

#[cfg(test)]
mod tests;
