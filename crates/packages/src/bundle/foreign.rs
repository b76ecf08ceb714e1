//! Packages of other tools: what their metadata lacks is taken from their family.

use std::sync::Arc;

use mixbit_diffusion::arch::{ArchError, GraphOptions, io};
use mixbit_diffusion::model::{
    Autoencoder, Defaults, DiffusionModel, LatentFormat, ModelError, Network, TextEncoder, Unet,
};
use mixbit_diffusion::scheduler::SchedulerConfig;
use mixbit_diffusion::tokenizer::{Tokenizer, TokenizerFiles};
use mixbit_mil::{Function, TensorType};
use serde_json::json;

use super::{Bundle, Packaged};
use crate::error::OpenError;

/// Image pixels along each side of a latent pixel, for every published model.
const SCALE: usize = 8;

/// The properties of a family that its packages lack.
struct Family {
    /// The factor of the latents for the UNet.
    scaling_factor: f64,
    /// The class of the scheduler.
    scheduler: &'static str,
    /// True if an absent negative prompt is zeros.
    zeros_for_absent_negative: bool,
}

/// Stable Diffusion 1 and 2.
const ONE_AND_TWO: Family =
    Family { scaling_factor: 0.18215, scheduler: "PNDMScheduler", zeros_for_absent_negative: false };
/// Stable Diffusion XL.
const XL: Family =
    Family { scaling_factor: 0.13025, scheduler: "EulerDiscreteScheduler", zeros_for_absent_negative: true };

/// The width of the text states of Stable Diffusion 2, whose tokenizer pads as XL's second one does.
const WIDTH_OF_2: usize = 1024;

/// A model of the packages of a bundle.
pub(super) fn model(bundle: &Bundle) -> Result<DiffusionModel, OpenError> {
    let package =
        |name: &str| bundle.packages.get(name).ok_or_else(|| bundle.lacks(&format!("package of the {name}")));
    let unet = package("unet").or_else(|_| package("refiner"))?;
    let decoder = package("vae_decoder")?;
    let sample = input(unet, io::SAMPLE)?;
    let &[batch, channels, height, width] = &sample.shape[..] else {
        return Err(unet.defect(format!("its input `sample` is of type {sample}, not of four axes")));
    };
    let time_ids = input(unet, io::TIME_IDS).ok().map(|ids| ids.count() / batch.max(1));
    let family = if time_ids.is_some() { XL } else { ONE_AND_TWO };
    let mut text_encoders = Vec::new();
    for name in ["text_encoder", "text_encoder_2"] {
        if let Some(packaged) = bundle.packages.get(name) {
            text_encoders.push(text_encoder(bundle, name, packaged)?);
        }
    }
    if text_encoders.is_empty() {
        return Err(bundle.lacks("package of a text encoder"));
    }
    Ok(DiffusionModel {
        text_encoders,
        unet: Unet { network: fixed("unet", unet, io::SAMPLE, 1), time_ids, takes_guidance: false },
        autoencoder: Autoencoder {
            encoder: bundle
                .packages
                .get("vae_encoder")
                .map(|encoder| fixed("vae_encoder", encoder, io::X, SCALE)),
            decoder: fixed("vae_decoder", decoder, io::Z, 1),
            latent: LatentFormat::scaled(channels, SCALE, family.scaling_factor),
            force_upcast: false,
        },
        scheduler: SchedulerConfig::from_json(&json!({
            "_class_name": family.scheduler,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "steps_offset": 1,
            "skip_prk_steps": true,
            "timestep_spacing": "leading",
        }))
        .map_err(|source| bundle.unusable(source))?,
        zeros_for_absent_negative: family.zeros_for_absent_negative,
        defaults: Defaults {
            size: [width * SCALE, height * SCALE],
            steps: Defaults::STEPS,
            guidance_scale: Defaults::GUIDANCE_SCALE,
        },
    })
}

fn text_encoder(bundle: &Bundle, name: &str, packaged: &Packaged) -> Result<TextEncoder, OpenError> {
    let ids = input(packaged, io::INPUT_IDS)?;
    let outputs = packaged.function.outputs().iter().map(|&id| packaged.function.value(id));
    let states = [io::HIDDEN_EMBEDS, io::LAST_HIDDEN_STATE]
        .into_iter()
        .find_map(|name| outputs.clone().find(|value| value.name == name).map(|value| (name, value)));
    let no_states = || packaged.defect("it has no output of prompt embeddings".to_string());
    let (states, value) = states.ok_or_else(no_states)?;
    let width = value.ty.shape.last().copied().unwrap_or(0);
    let padding = match (name, width) {
        ("text_encoder_2", _) | (_, WIDTH_OF_2) => "!",
        _ => "<|endoftext|>",
    };
    let read =
        |file| bundle.file(file)?.ok_or_else(|| bundle.lacks(&format!("{file}, which its tokenizer needs")));
    let (vocab, merges) = (read("vocab.json")?, read("merges.txt")?);
    let config = json!({"model_max_length": ids.count(), "pad_token": padding}).to_string();
    let tokenizer = Tokenizer::new(&TokenizerFiles {
        vocab: Some(&vocab),
        merges: Some(&merges),
        config: Some(&config),
        ..TokenizerFiles::default()
    });
    let component = || name.to_string();
    let tokenizer = tokenizer
        .map_err(|source| bundle.unusable(ModelError::Tokenizer { component: component(), source }))?;
    Ok(TextEncoder {
        tokenizer: Arc::new(tokenizer),
        network: fixed(name, packaged, io::INPUT_IDS, 1),
        states,
    })
}

fn input<'a>(packaged: &'a Packaged, name: &str) -> Result<&'a TensorType, OpenError> {
    let inputs = packaged.function.inputs().iter().map(|&id| packaged.function.value(id));
    let found = inputs.clone().find(|value| value.name == name);
    let value = found.ok_or_else(|| {
        let names: Vec<&str> = inputs.map(|value| value.name.as_str()).collect();
        packaged.defect(format!("it has no input `{name}`; it has {}", names.join(", ")))
    })?;
    Ok(&value.ty)
}

/// A network that has one size: that of its input `sized`, of `scale` pixels for one latent pixel.
fn fixed(name: &str, packaged: &Packaged, sized: &'static str, scale: usize) -> Network {
    let function: Arc<Function> = Arc::new(packaged.function.clone());
    let shape = input(packaged, sized).map(|ty| ty.shape.clone()).unwrap_or_default();
    Network::new(name, move |options: &GraphOptions| {
        if let &[_, _, height, width] = &shape[..]
            && [height, width] != [options.height * scale, options.width * scale]
        {
            let what = format!(
                "the package is for images of {}x{}, and holds no configuration to build it for another",
                width / scale * SCALE,
                height / scale * SCALE
            );
            return Err(ArchError::Option { option: "size", what });
        }
        Ok((*function).clone())
    })
}
