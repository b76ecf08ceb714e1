//! The options of the benchmark.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use mixbit_diffusion::model::{self, DiffusionModel};
use mixbit_engine::Arithmetic;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A checkpoint in the diffusers layout, such as `cargo xtask synth sd15 DIR` writes, for the peers
    #[arg(long)]
    pub(super) model: PathBuf,
    /// Core ML packages of the same model for mixbit, such as `mixbit palettize` writes [default: the
    /// checkpoint]
    #[arg(long)]
    pub(super) palettized: Option<PathBuf>,
    /// The network
    #[arg(long, value_enum, default_value_t = Network::Unet)]
    pub(super) part: Network,
    /// Width and height of the image
    #[arg(long, value_parser = parse_size, default_value = "512x512")]
    pub(super) size: [usize; 2],
    /// Samples in a step [default: 2 for the UNet, 1 otherwise]
    #[arg(long)]
    pub(super) batch: Option<usize>,
    /// Threads of each contender [default: one for each CPU]
    #[arg(long)]
    pub(super) threads: Option<usize>,
    /// Rounds: every contender takes one step in each
    #[arg(long, default_value_t = 5)]
    pub(super) rounds: usize,
    /// Precisions of mixbit
    #[arg(long, value_enum, value_delimiter = ',', default_value = "f32,bf16")]
    pub(super) ours: Vec<Precision>,
    /// Let mixbit keep the text's keys and values from step to step, as `generate` does, though the peers
    /// compute them
    #[arg(long)]
    pub(super) keep_text: bool,
    /// The other frameworks; all are in memory at once
    #[arg(long, value_enum, value_delimiter = ',', num_args = 0.., default_value = "openvino-bf16,torch-bf16")]
    pub(super) peers: Vec<Peer>,
    /// A Python with the packages of `tools/bench-peers/requirements.txt` [default: an environment in the
    /// scratch folder]
    #[arg(long)]
    pub(super) python: Option<PathBuf>,
    /// The folder of the environment, inputs and results
    #[arg(long, default_value = "target/bench-peers")]
    pub(super) scratch: PathBuf,
    /// Run as a contender
    #[arg(long, value_enum, hide = true)]
    pub(super) serve: Option<Precision>,
}

/// A network of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Network {
    Unet,
    /// The autoencoder's decoder
    Vae,
    #[value(name = "text_encoder")]
    TextEncoder,
    #[value(name = "text_encoder_2")]
    TextEncoder2,
}

/// A precision of mixbit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Precision {
    F32,
    Bf16,
    Int8,
}

/// Another framework in a precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Peer {
    #[value(name = "openvino-f32")]
    OpenvinoF32,
    #[value(name = "openvino-bf16")]
    OpenvinoBf16,
    #[value(name = "torch-f32")]
    TorchF32,
    #[value(name = "torch-bf16")]
    TorchBf16,
}

impl Network {
    fn batch(self) -> usize {
        if self == Network::Unet { 2 } else { 1 }
    }

    /// The network in a model, and the name of the compared output.
    pub(super) fn of(self, model: &DiffusionModel) -> anyhow::Result<(&model::Network, &'static str)> {
        let encoder = |index: usize| {
            let encoder = model.text_encoders.get(index).context("the model has no such text encoder")?;
            Ok((&encoder.network, encoder.states))
        };
        match self {
            Network::Unet => Ok((&model.unet.network, "noise_pred")),
            Network::Vae => Ok((&model.autoencoder.decoder, "image")),
            Network::TextEncoder => encoder(0),
            Network::TextEncoder2 => encoder(1),
        }
    }
}

impl Precision {
    pub(super) fn arithmetic(self) -> Arithmetic {
        match self {
            Precision::F32 => Arithmetic::F32,
            Precision::Bf16 => Arithmetic::Bf16,
            Precision::Int8 => Arithmetic::Int8,
        }
    }
}

impl Peer {
    /// The framework and the precision, as arguments of the script.
    pub(super) fn words(self) -> [&'static str; 2] {
        match self {
            Peer::OpenvinoF32 => ["openvino", "f32"],
            Peer::OpenvinoBf16 => ["openvino", "bf16"],
            Peer::TorchF32 => ["torch", "f32"],
            Peer::TorchBf16 => ["torch", "bf16"],
        }
    }
}

/// The name of a value on the command line.
pub(super) fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
}

fn parse_size(text: &str) -> Result<[usize; 2], String> {
    mixbit_app::request::parse_size(text)
        .filter(|extents| extents.iter().all(|extent| extent.is_multiple_of(8)))
        .ok_or_else(|| format!("`{text}` is not WIDTHxHEIGHT in multiples of 8, such as 512x512"))
}

impl Arguments {
    pub(super) fn samples(&self) -> usize {
        self.batch.unwrap_or(self.part.batch())
    }

    /// The file of the network's inputs.
    pub(super) fn inputs_path(&self) -> PathBuf {
        self.scratch.join("inputs.safetensors")
    }

    /// The file of a contender's last result.
    pub(super) fn output_path(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("{name}.npy"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_of_eight() {
        assert_eq!(parse_size("1024x768"), Ok([1024, 768]));
        for wrong in ["512x", "x512", "512x510", "0x512", "512x512x3", "-8x8"] {
            assert!(parse_size(wrong).is_err_and(|error| error.contains(wrong)), "{wrong}");
        }
    }
}
