//! Weights that are stored divided by scales: fp8 and int8 files of ComfyUI, diffusers and ModelOpt.
//!
//! A layer `X` has `X.weight` and beside it `X.scale_weight` (ComfyUI) or `X.weight_scale`; the weight is
//! their product. A scale is one number, one for each row, or one for each block of rows and columns, which
//! its shape tells. `X.scale_input` and `X.input_scale` are for products in fp8 and not needed here. ComfyUI
//! also names the format, in a tensor of JSON `X.comfy_quant` or for all layers in the safetensors header.
//!
//! The products are `f32`: a scale is one, and products of fp8's range may be too large for `f16`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use mixbit_mil::{Computed, DType, TensorType, WeightRef};
use serde::Deserialize;
use thiserror::Error;

use crate::shown::shown;

/// The reason why a scaled weight can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ScaleError {
    /// A format of quantization that is not supported.
    #[error(
        "layer `{}` is quantized as {}, which is not supported: use a file in fp16, or in fp8 with scales",
        shown(layer),
        shown(format)
    )]
    Format {
        /// The layer.
        layer: String,
        /// The format's name.
        format: String,
    },
    /// A description of a layer's format that can't be read.
    #[error("the description of the quantization of {} can't be read: {}", shown(place), shown(what))]
    Description {
        /// The tensor or the key of the header.
        place: String,
        /// The fault.
        what: String,
    },
    /// A scale that does not fit its weight.
    #[error("tensor `{}` of type {scale} does not scale a weight of type {weight}", shown(tensor))]
    Shape {
        /// The scale's name.
        tensor: String,
        /// Its type.
        scale: TensorType,
        /// The weight's type.
        weight: TensorType,
    },
}

/// The ends of the names of scales of weights.
const OF_WEIGHTS: [&str; 2] = [".weight_scale", ".scale_weight"];

/// The ends of the names of scales that are not needed.
const OF_INPUTS: [&str; 2] = [".input_scale", ".scale_input"];

/// The end of the name of a second scale, which NVFP4 has.
const SECOND_SCALE: &str = ".weight_scale_2";

/// The end of the name of a description.
const DESCRIPTION: &str = ".comfy_quant";

/// The mark of a file of scaled fp8, alone or at the end of a name.
const MARK: &str = "scaled_fp8";

/// The key of the descriptions in a safetensors header.
const DESCRIPTIONS: &str = "_quantization_metadata";

/// A part of the names of bitsandbytes' 4-bit weights.
const BITSANDBYTES: &str = ".quant_state.bitsandbytes__";

/// The most bytes of a layer's description, and of all in a header.
const DESCRIPTION_LIMIT: usize = 4096;
const DESCRIPTIONS_LIMIT: usize = 16 << 20;

/// The formats whose weights are a product with their scale.
const FORMATS: [&str; 6] = [
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fn_rowwise",
    "float8_e4m3fn_blockwise",
    "int8_tensorwise",
    "int8_blockwise",
];

/// A layer's description.
#[derive(Deserialize)]
struct Description {
    format: Option<String>,
    /// True if the weights are rotated.
    #[serde(default)]
    convrot: bool,
}

/// The descriptions in a header.
#[derive(Deserialize)]
struct Descriptions {
    #[serde(default)]
    layers: BTreeMap<String, Description>,
}

/// The scales of a file or of the shards of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Scales {
    /// The scale of every scaled weight.
    scales: BTreeMap<Arc<str>, WeightRef>,
    /// The tensors that are no weights of the model.
    hidden: BTreeSet<Arc<str>>,
}

impl Scales {
    /// The scales among the tensors of those names, which `get` gives. `headers` are the files' metadata.
    ///
    /// # Errors
    /// [`ScaleError`] for formats that are not supported, and for scales that do not fit.
    pub(crate) fn find<'a>(
        names: &[&str],
        get: impl Fn(&str) -> Option<WeightRef>,
        headers: impl Iterator<Item = &'a BTreeMap<String, String>>,
    ) -> Result<Self, ScaleError> {
        for header in headers {
            header.get(DESCRIPTIONS).map_or(Ok(()), |text| check_header(text))?;
        }
        let mut found = Scales::default();
        for &name in names {
            if let Some((layer, kind)) = name.split_once(BITSANDBYTES) {
                let layer = layer.strip_suffix(".weight").unwrap_or(layer);
                return Err(unsupported(layer, &format!("bitsandbytes {kind}")));
            }
            if name == MARK || name.strip_suffix(MARK).is_some_and(|rest| rest.ends_with('.')) {
                found.hidden.insert(name.into());
            } else if let Some(layer) = name.strip_suffix(DESCRIPTION) {
                if let Some(description) = get(name) {
                    check_tensor(layer, &description)?;
                }
                found.hidden.insert(name.into());
            }
            let layer = |ends: &[&str]| ends.iter().find_map(|end| name.strip_suffix(end));
            let Some(layer) =
                layer(&OF_WEIGHTS).or_else(|| layer(&OF_INPUTS)).or_else(|| layer(&[SECOND_SCALE]))
            else {
                continue;
            };
            let weight_name = format!("{layer}.weight");
            let Some(weight) = get(&weight_name) else { continue };
            if name.ends_with(SECOND_SCALE) {
                return Err(unsupported(layer, "NVFP4, in two levels of scales"));
            }
            if OF_WEIGHTS.iter().any(|end| name.ends_with(end))
                && let Some(scale) = get(name)
            {
                check(&scale, &weight)?;
                found.scales.insert(weight_name.into(), scale);
            }
            found.hidden.insert(name.into());
        }
        Ok(found)
    }

    /// True if a tensor is not one of the model.
    pub(crate) fn hides(&self, name: &str) -> bool {
        self.hidden.contains(name)
    }

    /// A tensor of the model, multiplied by its scale if it has one.
    pub(crate) fn apply(&self, weight: WeightRef) -> Option<WeightRef> {
        if self.hides(weight.name()) {
            return None;
        }
        let Some(scale) = self.scales.get(weight.name()) else { return Some(weight) };
        let ty = weight.ty().with_dtype(DType::F32);
        let scaled = Scaled { weight: weight.uncast(), scale: scale.uncast() };
        Some(WeightRef::computed(weight.name(), ty, Arc::new(scaled)))
    }
}

fn unsupported(layer: &str, format: &str) -> ScaleError {
    ScaleError::Format { layer: layer.to_string(), format: format.to_string() }
}

fn check_header(text: &str) -> Result<(), ScaleError> {
    let unreadable =
        |what: String| ScaleError::Description { place: format!("the key `{DESCRIPTIONS}`"), what };
    if text.len() > DESCRIPTIONS_LIMIT {
        return Err(unreadable(format!("it has {} bytes", text.len())));
    }
    let descriptions: Descriptions =
        serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
    descriptions.layers.iter().try_for_each(|(layer, description)| check_description(layer, description))
}

fn check_tensor(layer: &str, description: &WeightRef) -> Result<(), ScaleError> {
    let unreadable = |what: String| ScaleError::Description { place: format!("layer `{layer}`"), what };
    let is_text = description.stored_dtype() == DType::U8 && description.stored_len() <= DESCRIPTION_LIMIT;
    if !is_text {
        return Err(unreadable(format!("it is of type {}", description.ty())));
    }
    let bytes = description.read_stored();
    let description = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
    check_description(layer, &description)
}

fn check_description(layer: &str, description: &Description) -> Result<(), ScaleError> {
    match description.format.as_deref() {
        Some(format) if description.convrot => Err(unsupported(layer, &format!("{format} with rotations"))),
        Some(format) if !FORMATS.contains(&format) => Err(unsupported(layer, format)),
        // ComfyUI writes an empty description for a layer that is not quantized.
        _ => Ok(()),
    }
}

/// Checks that a scale is a float of one number, of one for each row, or of one for each block.
fn check(scale: &WeightRef, weight: &WeightRef) -> Result<(), ScaleError> {
    let is_float = |dtype| matches!(dtype, DType::F16 | DType::BF16 | DType::F32);
    let dtype = weight.stored_dtype();
    let fits = is_float(scale.stored_dtype())
        && (is_float(dtype) || dtype == DType::I8)
        && blocks(&scale.ty().shape, &weight.ty().shape).is_some();
    if fits {
        return Ok(());
    }
    let tensor = scale.name().to_string();
    Err(ScaleError::Shape { tensor, scale: scale.ty().clone(), weight: weight.ty().clone() })
}

/// The number of blocks of each axis of a weight.
fn blocks(scale: &[usize], weight: &[usize]) -> Option<Vec<usize>> {
    let ones = vec![1; weight.len()];
    let count = scale.iter().try_fold(1usize, |count, extent| count.checked_mul(*extent))?;
    if count == 1 {
        return Some(ones);
    }
    let rows = *weight.first()?;
    let is_of_rows = scale.first() == Some(&rows) && scale[1..].iter().all(|&extent| extent == 1);
    if count == rows && is_of_rows {
        return Some([&[rows], &ones[1..]].concat());
    }
    let divides = |(extent, blocks): (&usize, &usize)| *blocks > 0 && extent.is_multiple_of(*blocks);
    (scale.len() == weight.len() && weight.iter().zip(scale).all(divides)).then(|| scale.to_vec())
}

/// A weight times its scale.
#[derive(Debug)]
struct Scaled {
    weight: WeightRef,
    scale: WeightRef,
}

impl Computed for Scaled {
    fn read(&self) -> Vec<u8> {
        let scale = &self.scale;
        let mut scales = vec![0f32; scale.ty().count()];
        widen(&scale.read_stored(), scale.stored_dtype(), &mut scales);
        let shape = &self.weight.ty().shape;
        let Some(blocks) = blocks(&scale.ty().shape, shape) else { return Vec::new() };
        let stored = self.weight.read_stored();
        let width = self.weight.stored_dtype().bits() / 8;
        let mut out = vec![0; stored.len() / width * 4];
        // Elements of one block that follow each other: those of its part of the last axis that is divided.
        let divided = blocks.iter().rposition(|&blocks| blocks > 1);
        let run = divided.map_or(stored.len() / width, |axis| {
            shape[axis] / blocks[axis] * shape[axis + 1..].iter().product::<usize>()
        });
        let mut values = [0f32; BLOCK];
        let runs = stored.chunks((run * width).max(1)).zip(out.chunks_mut((run * 4).max(1)));
        for (at, (elements, out)) in runs.enumerate() {
            let scale = scales[block_of(at * run, shape, &blocks)];
            for (elements, out) in elements.chunks(BLOCK * width).zip(out.chunks_mut(BLOCK * 4)) {
                let values = &mut values[..elements.len() / width];
                widen(elements, self.weight.stored_dtype(), values);
                let scaled = values.iter().map(|value| (value * scale).to_le_bytes());
                out.as_chunks_mut().0.iter_mut().zip(scaled).for_each(|(out, value)| *out = value);
            }
        }
        out
    }

    fn release(&self) {
        self.weight.release();
        self.scale.release();
    }

    fn stored(&self) -> Option<(&'static str, usize)> {
        Some((self.weight.stored_type_name(), self.weight.stored_len() + self.scale.stored_len()))
    }
}

/// The block of an element.
fn block_of(mut element: usize, shape: &[usize], blocks: &[usize]) -> usize {
    let (mut block, mut stride) = (0, 1);
    for (extent, blocks) in shape.iter().zip(blocks).rev() {
        block += element % extent / (extent / blocks) * stride;
        element /= extent;
        stride *= blocks;
    }
    block
}

/// The elements that are widened at once.
const BLOCK: usize = 4096;

/// Little-endian numbers as `f32`, one for each of `out`.
fn widen(bytes: &[u8], dtype: DType, out: &mut [f32]) {
    match dtype {
        DType::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            for (bytes, out) in bytes.chunks(2 * BLOCK).zip(out.chunks_mut(BLOCK)) {
                let halves = &mut halves[..out.len()];
                halves.iter_mut().zip(bytes.as_chunks().0).for_each(|(h, &b)| *h = f16::from_le_bytes(b));
                halves.convert_to_f32_slice(out);
            }
        }
        DType::BF16 => {
            out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, &b)| *v = bf16::from_le_bytes(b).to_f32());
        }
        DType::I8 => out.iter_mut().zip(bytes).for_each(|(v, &b)| *v = f32::from(b as i8)),
        _ => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, &b)| *v = f32::from_le_bytes(b)),
    }
}

#[cfg(test)]
mod tests;
