//! Packages of other tools: what their metadata lacks is taken from their family.

use std::sync::Arc;

use mixbit_diffusion::arch::{ArchError, Config, GraphOptions, io};
use mixbit_diffusion::family::{Family, FamilyFiles, UnetTraits};
use mixbit_diffusion::model::{
    Autoencoder, Defaults, DiffusionModel, LatentFormat, ModelError, ModelFiles, ModelScheduler, Network,
    TEXT_ENCODERS, TextEncoder, TextStatesLayout, Unet, component_config, zeros_for_absent_negative,
};
use mixbit_diffusion::scheduler::SchedulerError;
use mixbit_diffusion::tokenizer::{Tokenizer, TokenizerFiles};
use mixbit_mil::{Function, TensorType};
use serde_json::{Value, json};

use super::{Bundle, Packaged};
use crate::assumption::Assumption;
use crate::error::OpenError;
use crate::package::keys;

/// A tokenizer's settings, of the family.
const CONFIG: &str = "tokenizer_config.json";

/// Steps of a network that takes the guidance scale as an input.
const DISTILLED_STEPS: usize = 4;

/// The scheduler of a distilled network.
const DISTILLED_SCHEDULER: &str = "LCMScheduler";

/// Image pixels along each side of a latent pixel, for every published model.
const SCALE: usize = 8;

/// A model of the packages of a bundle.
pub(super) fn model(bundle: &Bundle) -> Result<DiffusionModel, OpenError> {
    let unet = unet(bundle)?;
    let decoder =
        bundle.packages.get("vae_decoder").ok_or_else(|| bundle.lacks("package of the vae_decoder"))?;
    let UnetInputs { channels, height, width, time_ids, .. } = UnetInputs::of(bundle, unet)?;
    let family = family(bundle)?.files();
    let mut text_encoders = Vec::new();
    for (name, tokenizer) in TEXT_ENCODERS {
        if let Some(packaged) = bundle.packages.get(name) {
            text_encoders.push(text_encoder(bundle, name, packaged, family.json(tokenizer, CONFIG).ok())?);
        }
    }
    if text_encoders.is_empty() {
        return Err(bundle.lacks("package of a text encoder"));
    }
    // A distilled network, whose guidance is an input, is for few steps of one scheduler.
    let takes_guidance = input(unet, io::TIMESTEP_COND).is_ok();
    let mut file = scheduler(bundle, unet, &family)?;
    if takes_guidance {
        file["_class_name"] = DISTILLED_SCHEDULER.into();
    }
    let scheduler = ModelScheduler::new(file);
    let steps = if takes_guidance { DISTILLED_STEPS } else { Defaults::STEPS };
    Ok(DiffusionModel {
        text_encoders,
        unet: Unet { network: fixed("unet", unet, io::SAMPLE, 1), time_ids, takes_guidance },
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
        scheduler,
        zeros_for_absent_negative: time_ids.is_some() && zeros_for_absent_negative(&family),
        defaults: Defaults {
            size: [width * SCALE, height * SCALE],
            steps,
            guidance_scale: Defaults::GUIDANCE_SCALE,
        },
    })
}

/// What a model of the packages takes from its family without being told so.
pub(super) fn assumptions(bundle: &Bundle) -> Result<Vec<Assumption>, OpenError> {
    let unet = unet(bundle)?;
    if unet.says(keys::SCHEDULER).is_some() {
        return Ok(Vec::new());
    }
    let family = family(bundle)?;
    let scheduler = ModelScheduler::new(scheduler(bundle, unet, &family.files())?);
    let assumed = scheduler.config().map_err(|source| bundle.unusable(source))?.prediction_type().to_string();
    Ok(vec![Assumption::PredictionType { assumed, family: family.name }])
}

fn unet(bundle: &Bundle) -> Result<&Packaged, OpenError> {
    let unet = bundle.packages.get("unet").or_else(|| bundle.packages.get("refiner"));
    unet.ok_or_else(|| bundle.lacks("package of the unet"))
}

/// The sizes of a UNet's inputs.
struct UnetInputs {
    channels: usize,
    height: usize,
    width: usize,
    time_ids: Option<usize>,
    /// Channels of the text states; `None` if no axis has the text encoder's tokens.
    text_channels: Option<usize>,
}

impl UnetInputs {
    fn of(bundle: &Bundle, unet: &Packaged) -> Result<Self, OpenError> {
        let sample = input(unet, io::SAMPLE)?;
        let &[batch, channels, height, width] = &sample.shape[..] else {
            return Err(unet.defect(format!("its input `sample` is of type {sample}, not of four axes")));
        };
        let mut encoders = TEXT_ENCODERS.iter().filter_map(|(name, _)| bundle.packages.get(name));
        let tokens = encoders.find_map(|encoder| Some(input(encoder, io::INPUT_IDS).ok()?.count()));
        let states = input(unet, io::ENCODER_HIDDEN_STATES).ok();
        let layout = states.zip(tokens).and_then(|(ty, tokens)| TextStatesLayout::of(&ty.shape, tokens));
        Ok(UnetInputs {
            channels,
            height,
            width,
            time_ids: input(unet, io::TIME_IDS).ok().map(|ids| ids.count() / batch.max(1)),
            text_channels: layout.map(|(_, channels)| channels),
        })
    }
}

/// The family whose UNet is the most like the bundle's.
fn family(bundle: &Bundle) -> Result<&'static Family, OpenError> {
    let UnetInputs { text_channels, time_ids, height, .. } = UnetInputs::of(bundle, unet(bundle)?)?;
    Ok(Family::nearest(UnetTraits { text_channels, time_ids, latent_height: height }))
}

/// The scheduler that a UNet's package says, else its family's.
fn scheduler(bundle: &Bundle, unet: &Packaged, family: &FamilyFiles) -> Result<Value, OpenError> {
    let config = match unet.says(keys::SCHEDULER) {
        Some(_) => unet.parsed(keys::SCHEDULER),
        None => family.json("scheduler", "scheduler_config.json"),
    };
    config
        .map_err(ModelError::File)
        .and_then(|config| match config {
            Value::Object(_) => Ok(config),
            _ => Err(SchedulerError::NotAnObject.into()),
        })
        .map_err(|source| bundle.unusable(source))
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
    let (vocab, merges, added_tokens) =
        (read("vocab.json")?, read("merges.txt")?, bundle.file("added_tokens.json")?);
    let mut config = settings.unwrap_or_else(|| json!({}));
    config["model_max_length"] = ids.count().into();
    let config = config.to_string();
    let tokenizer = Tokenizer::new(&TokenizerFiles {
        vocab: Some(&vocab),
        merges: Some(&merges),
        config: Some(&config),
        added_tokens: added_tokens.as_deref(),
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
