//! Packages of other tools: what their metadata lacks is taken from their family.

use std::sync::Arc;

use mixbit_diffusion::arch::{ArchError, Config, GraphOptions, io};
use mixbit_diffusion::family::{Family, FamilyFiles, UnetTraits};
use mixbit_diffusion::model::{
    Autoencoder, Defaults, DiffusionModel, LatentFormat, ModelError, ModelFiles, ModelScheduler, Network,
    TEXT_ENCODERS, TextEncoder, Unet, component_config, zeros_for_absent_negative,
};
use mixbit_diffusion::tokenizer::{Tokenizer, TokenizerFiles};
use mixbit_mil::{Function, TensorType};
use serde_json::{Value, json};

use super::{Bundle, Packaged};
use crate::error::OpenError;

/// A tokenizer's settings, of the family.
const CONFIG: &str = "tokenizer_config.json";

/// Image pixels along each side of a latent pixel, for every published model.
const SCALE: usize = 8;

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
    let text_channels = match input(unet, io::ENCODER_HIDDEN_STATES).map(|states| &states.shape[..]) {
        Ok(&[_, channels, 1, _]) => Some(channels),
        _ => None,
    };
    let family = Family::nearest(UnetTraits { text_channels, time_ids, latent_height: height }).files();
    let mut text_encoders = Vec::new();
    for (name, tokenizer) in TEXT_ENCODERS {
        if let Some(packaged) = bundle.packages.get(name) {
            text_encoders.push(text_encoder(bundle, name, packaged, family.json(tokenizer, CONFIG).ok())?);
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
            latent: LatentFormat::scaled(
                channels,
                SCALE,
                scaling_factor(&family).map_err(|source| bundle.unusable(source))?,
            ),
            force_upcast: false,
        },
        scheduler: family
            .json("scheduler", "scheduler_config.json")
            .map(ModelScheduler::new)
            .map_err(|error| bundle.unusable(ModelError::File(error)))?,
        zeros_for_absent_negative: time_ids.is_some() && zeros_for_absent_negative(&family),
        defaults: Defaults {
            size: [width * SCALE, height * SCALE],
            steps: Defaults::STEPS,
            guidance_scale: Defaults::GUIDANCE_SCALE,
        },
    })
}

/// The factor of the latents for the family's UNets.
fn scaling_factor(family: &FamilyFiles) -> Result<f64, ModelError> {
    match component_config(family, "vae")? {
        Config::Vae(config) => Ok(config.scaling_factor),
        _ => Err(ModelError::Pipeline { class: family.class().into(), what: "it has no autoencoder".into() }),
    }
}

/// A text encoder, and a tokenizer of the bundle's vocabulary and the family's settings.
fn text_encoder(
    bundle: &Bundle,
    name: &str,
    packaged: &Packaged,
    settings: Option<Value>,
) -> Result<TextEncoder, OpenError> {
    let ids = input(packaged, io::INPUT_IDS)?;
    let outputs = packaged.function.outputs().iter().map(|&id| packaged.function.value(id));
    let states = [io::HIDDEN_EMBEDS, io::LAST_HIDDEN_STATE]
        .into_iter()
        .find(|&name| outputs.clone().any(|value| value.name == name));
    let no_states = || packaged.defect("it has no output of prompt embeddings".to_string());
    let states = states.ok_or_else(no_states)?;
    let read =
        |file| bundle.file(file)?.ok_or_else(|| bundle.lacks(&format!("{file}, which its tokenizer needs")));
    let (vocab, merges) = (read("vocab.json")?, read("merges.txt")?);
    let mut config = settings.unwrap_or_else(|| json!({}));
    config["model_max_length"] = ids.count().into();
    let config = config.to_string();
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
