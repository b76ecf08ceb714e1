//! The inputs of the benchmarked network: made once, and read by every contender.

use anyhow::{Context, bail};
use mixbit_app::source;
use mixbit_diffusion::arch::GraphOptions;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::{NoiseSource, TorchSource};
use mixbit_engine::Tensor;
use mixbit_formats::safetensors::{self, TensorSpec};
use mixbit_mil::{DType, Function, TensorType, Weights};

use super::options::{Arguments, Network};

/// The seed of random inputs.
const SEED: u64 = 93;

/// The UNet's timestep.
const TIMESTEP: f32 = 500.0;

/// The text encoders' prompt.
const PROMPT: &str = "a lighthouse on a cliff above the sea, in the evening";

/// The graph of the benchmarked network in a model.
pub(super) fn graph(arguments: &Arguments, model: &DiffusionModel) -> anyhow::Result<Function> {
    let scale = model.autoencoder.latent.scale;
    let tokens = model.text_encoders.first().map_or(77, |encoder| encoder.tokenizer.length());
    let options = GraphOptions {
        batch: arguments.samples(),
        height: arguments.size[1] / scale,
        width: arguments.size[0] / scale,
        tokens,
        time_ids: model.unet.time_ids.unwrap_or_default(),
        ..GraphOptions::default()
    };
    Ok(arguments.part.of(model)?.0.graph(&options)?)
}

/// Writes the network's inputs in the layout of diffusers.
pub(super) fn write(arguments: &Arguments) -> anyhow::Result<()> {
    let model = source::load(Some(&arguments.model), &Default::default())?.model;
    let graph = graph(arguments, &model)?;
    let mut noise = TorchSource::new(SEED);
    let (mut specs, mut values) = (Vec::new(), Vec::new());
    for &id in graph.inputs() {
        let value = graph.value(id);
        let mut shape = value.ty.shape.clone();
        let count = shape.iter().product();
        values.push(match value.name.as_str() {
            "timestep" => vec![TIMESTEP; count],
            "time_ids" => time_ids(arguments.size, model.unet.time_ids.unwrap_or_default(), count),
            "input_ids" => token_ids(arguments.part, &model, count)?,
            "sample" | "z" | "text_embeds" | "encoder_hidden_states" => {
                let mut values = vec![0.0; count];
                noise.fill(&mut values);
                values
            }
            other => bail!("the network has an input `{other}`, which this benchmark can't fill"),
        });
        if value.name == "encoder_hidden_states" {
            shape = vec![shape[0], shape[3], shape[1]];
        }
        specs.push(TensorSpec { name: value.name.clone(), ty: TensorType { dtype: DType::F32, shape } });
    }
    let path = arguments.inputs_path();
    safetensors::write(&path, &Default::default(), &specs, |index, writer| {
        values[index].iter().try_for_each(|value| writer.write_all(&value.to_le_bytes()))
    })?;
    Ok(())
}

/// Stable Diffusion XL's size conditioning (height before width), the same for every sample.
fn time_ids([width, height]: [usize; 2], each: usize, count: usize) -> Vec<f32> {
    let ids = [height, width, 0, 0, height, width].map(|extent| extent as f32);
    ids.iter().take(each).cycle().take(count).copied().collect()
}

fn token_ids(part: Network, model: &DiffusionModel, count: usize) -> anyhow::Result<Vec<f32>> {
    let index = usize::from(part == Network::TextEncoder2);
    let encoder = model.text_encoders.get(index).context("the model has no such text encoder")?;
    let ids = encoder.tokenizer.encode(PROMPT)?.ids;
    Ok(ids.iter().cycle().take(count).map(|&id| id as f32).collect())
}

/// Reads the file of [`write()`] in the layout of mixbit's graphs.
pub(super) fn read(arguments: &Arguments, graph: &Function) -> anyhow::Result<Vec<(String, Tensor)>> {
    let weights = safetensors::SafeTensors::open(&arguments.inputs_path())?;
    let read = |&id| {
        let value = graph.value(id);
        let stored = weights.get(&value.name).with_context(|| format!("no input `{}`", value.name))?;
        let values = floats(&stored.read()?);
        let values = match (value.name.as_str(), stored.ty().shape.as_slice()) {
            ("encoder_hidden_states", &[_, tokens, channels]) => transposed(&values, tokens, channels),
            _ => values,
        };
        Ok((value.name.clone(), Tensor::from_f32(&value.ty.shape, values)?))
    };
    graph.inputs().iter().map(read).collect()
}

/// Consecutive matrices, each transposed.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let transpose = |matrix: &[f32]| {
        (0..rows * columns).map(|at| matrix[at % rows * columns + at / rows]).collect::<Vec<f32>>()
    };
    values.chunks_exact(rows * columns).flat_map(transpose).collect()
}

pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_matrix_is_transposed() {
        let values: Vec<f32> = (0..12).map(|index| index as f32).collect();
        let expected = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0];
        assert_eq!(transposed(&values, 2, 3), expected);
        assert_eq!(transposed(&transposed(&values, 2, 3), 3, 2), values);
    }

    #[test]
    fn every_sample_has_the_same_sizes() {
        assert_eq!(time_ids([16, 8], 6, 12), [8.0, 16.0, 0.0, 0.0, 8.0, 16.0].repeat(2));
    }
}
