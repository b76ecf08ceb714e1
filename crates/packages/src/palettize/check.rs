//! A written model, compared with its source.

use std::path::Path;

use half::f16;
use mixbit_compress::Layer;
use mixbit_formats::coreml;
use mixbit_mil::{DType, Progress, Stopped, Tally, Unit, WeightError};
use rayon::prelude::*;
use thiserror::Error;

use super::{PalettizeError, Palettized, stored_layers};
use crate::psnr::psnr_of;

/// The layers of a model before and after palettizing.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The layers whose scheme changed.
    pub layers: Vec<LayerReport>,
    /// Weights of all layers.
    pub weights: u64,
    /// Bytes of all layers before.
    pub before: u64,
    /// Bytes of all layers after.
    pub after: u64,
}

/// A layer after palettizing.
#[derive(Clone, Debug)]
pub struct LayerReport {
    /// The layer's name.
    pub name: String,
    /// Bits of one of its weights, tables included.
    pub bits: f64,
    /// The PSNR of its weights beside those before, in dB.
    pub psnr: f64,
}

/// A written model that differs from its plan.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The model can't be read again.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
    /// The model's graph can't be used.
    #[error(transparent)]
    Graph(#[from] PalettizeError),
    /// A weight can't be read.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The progress receiver stopped the check.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The model has other layers.
    #[error(
        "{found} layers were written, not {expected}: a defect of mixbit, or a disk that does not keep what it is given"
    )]
    Layers {
        /// The number of layers in the file.
        found: usize,
        /// The number of layers of the plan.
        expected: usize,
    },
    /// A weight decodes to something else.
    #[error(
        "layer `{layer}` does not decode to what was written: a defect of mixbit, or a disk that does not keep what it is given"
    )]
    Differs {
        /// The layer.
        layer: String,
    },
}

impl Palettized {
    /// Reads a model that was written and decodes every layer: compressed ones must be what they were
    /// compressed to, the others what they were, bit for bit. `progress` counts the layers.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn check(&self, path: &Path, progress: &dyn Progress) -> Result<Report, CheckError> {
        let written = stored_layers(&coreml::read(path)?)?;
        if written.len() != self.after.len() {
            return Err(CheckError::Layers { found: written.len(), expected: self.after.len() });
        }
        let tally = Tally::new(progress, self.before.len() as u64, Unit::Layers);
        let one = |((before, after), written): ((&Layer, &Layer), &Layer)| -> Result<_, CheckError> {
            let report = compare(before, after, written)?;
            for layer in [before, written] {
                layer.weight.release();
            }
            tally.add(1)?;
            Ok(report)
        };
        let triples = self.before.par_iter().zip(&self.after).zip(&written);
        let reports = triples.map(one).collect::<Result<Vec<_>, _>>()?;
        let sum =
            |layers: &[Layer], of: fn(&Layer) -> usize| layers.iter().map(|layer| of(layer) as u64).sum();
        Ok(Report {
            layers: reports.into_iter().flatten().collect(),
            weights: sum(&self.after, Layer::count),
            before: sum(&self.before, stored),
            after: sum(&written, stored),
        })
    }

    /// The number of layers.
    pub fn layer_count(&self) -> usize {
        self.before.len()
    }
}

/// Bytes in a package, where no float is wider than the graph says.
fn stored(layer: &Layer) -> usize {
    match layer.weight.encoding() {
        Some(_) => layer.weight.stored_len(),
        None => layer.ty().byte_len().unwrap_or_default(),
    }
}

/// Compares one layer; `None` if its scheme did not change.
fn compare(before: &Layer, after: &Layer, written: &Layer) -> Result<Option<LayerReport>, CheckError> {
    let differs = || CheckError::Differs { layer: before.name.clone() };
    if after.ty() != written.ty() {
        return Err(differs());
    }
    let found = written.weight.read()?;
    if *found != *after.weight.read()? {
        return Err(differs());
    }
    if after.weight.encoding().is_none() {
        return Ok(None);
    }
    let source = before.weight.read()?;
    let psnr = match before.ty().dtype {
        DType::F16 => psnr_of(halves(&found), halves(&source)),
        _ => psnr_of(singles(&found), singles(&source)),
    };
    let bits = 8.0 * stored(written) as f64 / written.count().max(1) as f64;
    Ok(Some(LayerReport { name: before.name.clone(), bits, psnr }))
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = f64> + Clone {
    bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f64())
}

fn singles(bytes: &[u8]) -> impl Iterator<Item = f64> + Clone {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into())
}
