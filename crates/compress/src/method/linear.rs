//! Linear quantization: every element is a scale times an integer.

use std::sync::Arc;

use half::f16;
use mixbit_mil::constexpr::blockwise_shift_scale;
use mixbit_mil::{Computed, DType, Opset, TensorType, WeightRef};

use super::palette::{constant, halves};
use super::{Method, divisor, elements, row_importance, row_len};
use crate::calibration::{Calibration, Needs};
use crate::pack::pack;
use crate::{Error, Width};

/// The most input channels of a block.
const BLOCK: usize = 32;

/// The scales tried for a block, as fractions of the one that reaches its largest element.
const TRIED: [f32; 5] = [1.0, 0.95, 0.9, 0.85, 0.8];

/// A kind of symmetric linear quantization.
#[derive(Debug)]
pub(super) struct Linear {
    name: &'static str,
    about: &'static str,
    widths: &'static [Width],
    since: Opset,
    dtype: DType,
    /// The most input channels that share a scale.
    block: usize,
}

pub(super) static CHANNELS: Linear = Linear {
    name: "linear",
    about: "integers, and a scale for each output channel",
    widths: &[Width::Eight],
    since: Opset::Ios16,
    dtype: DType::I8,
    block: usize::MAX,
};

pub(super) static BLOCKS: Linear = Linear {
    name: "linear-block",
    about: "integers, and a scale for each 32 input channels of each output channel",
    widths: &[Width::Four],
    since: Opset::Ios18,
    dtype: DType::I4,
    block: BLOCK,
};

impl Linear {
    /// The number of elements that share a scale, and the number of scales along each axis.
    fn blocks(&self, shape: &[usize]) -> (usize, Vec<usize>) {
        let channels = shape.get(1).copied().unwrap_or(1);
        let block = if self.block > channels { channels.max(1) } else { divisor(channels, self.block) };
        let mut blocks = vec![1; shape.len()];
        if let (Some(rows), Some(&count)) = (blocks.first_mut(), shape.first()) {
            *rows = count;
        }
        if let Some(columns) = blocks.get_mut(1) {
            *columns = channels / block;
        }
        (block * shape.iter().skip(2).product::<usize>(), blocks)
    }

    /// The scale of least error for a block.
    fn scale(&self, elements: &[f16], importance: Option<&[f64]>) -> f16 {
        let most = elements.iter().map(|value| value.to_f32().abs()).fold(0.0, f32::max);
        let limit = limit(self.dtype);
        let error = |scale: f16| -> f64 {
            let scale = scale.to_f32();
            let one = |(index, value): (usize, &f16)| {
                let value = value.to_f32();
                let error = f64::from(f32::from(quantized(value, scale, limit)) * scale - value);
                importance.map_or(1.0, |importance| importance[index]) * error * error
            };
            elements.iter().enumerate().map(one).sum()
        };
        let tried: &[f32] = if self.dtype == DType::I8 { &TRIED[..1] } else { &TRIED };
        let scales = tried.iter().map(|part| f16::from_f32(most / f32::from(limit) * part));
        let scales = scales.filter(|scale| scale.is_normal()).map(|scale| (scale, error(scale)));
        scales.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(f16::ONE, |(scale, _)| scale)
    }
}

/// The largest integer.
fn limit(dtype: DType) -> i8 {
    if dtype == DType::I8 { 127 } else { 7 }
}

fn quantized(value: f32, scale: f32, limit: i8) -> i8 {
    (value / scale).round().clamp(-f32::from(limit), f32::from(limit)) as i8
}

impl Method for Linear {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn widths(&self) -> &'static [Width] {
        self.widths
    }

    fn since(&self, _: Width) -> Opset {
        self.since
    }

    fn stored_len(&self, ty: &TensorType, width: Width) -> usize {
        let scales: usize = self.blocks(&ty.shape).1.iter().product();
        (ty.count() * width.bits() as usize).div_ceil(8) + 2 * scales
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn encode(
        &self,
        weight: &WeightRef,
        _: Width,
        calibration: Option<&Calibration>,
    ) -> Result<WeightRef, Error> {
        let shape = &weight.ty().shape;
        let (block_len, blocks) = self.blocks(shape);
        let all = elements(weight)?;
        weight.release();
        if let Some(index) = all.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { index, value: all[index] });
        }
        if all.is_empty() {
            return Err(Error::Empty);
        }
        let columns = calibration.map(|calibration| row_importance(shape, calibration)).transpose()?;
        let row_len = row_len(shape);
        let scale = |(index, elements): (usize, &[f16])| {
            let start = index * block_len % row_len.max(1);
            self.scale(elements, columns.as_ref().map(|columns| &columns[start..start + block_len]))
        };
        let scales: Vec<f16> = all.chunks_exact(block_len).enumerate().map(scale).collect();
        let scale = constant(DType::F16, blocks, halves(&scales))?;
        let integers = Integers { weight: weight.cast(DType::F16), scales, block_len, dtype: self.dtype };
        let ty = TensorType::new(self.dtype, shape.clone());
        let data = WeightRef::computed(weight.name(), ty, Arc::new(integers));
        Ok(blockwise_shift_scale(weight.name(), data, scale, None)?.cast(weight.ty().dtype))
    }
}

/// The integers of a quantized weight.
#[derive(Debug)]
struct Integers {
    weight: WeightRef,
    scales: Vec<f16>,
    /// The number of elements that share a scale.
    block_len: usize,
    dtype: DType,
}

impl Computed for Integers {
    fn read(&self) -> Vec<u8> {
        // Can't fail: the elements were read when the scales were chosen.
        let elements = elements(&self.weight).unwrap_or_default();
        let limit = limit(self.dtype);
        let mask = if self.dtype == DType::I8 { 0xff } else { 0x0f };
        let mut out = Vec::with_capacity(elements.len());
        for (block, scale) in elements.chunks_exact(self.block_len).zip(&self.scales) {
            let scale = scale.to_f32();
            out.extend(block.iter().map(|value| quantized(value.to_f32(), scale, limit) as u8 & mask));
        }
        pack(out.into_iter(), self.dtype.bits() as u32)
    }

    fn release(&self) {
        self.weight.release();
    }
}
