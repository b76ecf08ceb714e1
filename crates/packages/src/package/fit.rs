//! Networks of other models that are put beside a model's own: a refiner, an autoencoder, ControlNets.
//!
//! Shapes that agree by chance are no proof of a fit, and shapes that don't would only fail on the device.

use mixbit_diffusion::arch::{Config, unet};
use mixbit_diffusion::model::{LatentFormat, ModelError, ModelFiles, component_config, pooled_channels};

use super::error::PlanError;

const REFINER: &str = "--refiner-version";
const CONTROLNET: &str = "--convert-controlnet";

fn misfit(option: &'static str, what: impl Into<String>) -> PlanError {
    PlanError::Misfit { option, what: what.into() }
}

/// Refuses a refiner's UNet that can't take over the latents and the text states of a model.
///
/// # Errors
/// [`PlanError::Misfit`], or configurations that can't be read.
pub(super) fn refiner(
    model: &dyn ModelFiles,
    own: &unet::Config,
    refiner: &dyn ModelFiles,
    config: &unet::Config,
) -> Result<(), PlanError> {
    let Some(encoder) = model.component("text_encoder_2").map(|_| "text_encoder_2") else {
        return Err(misfit(
            REFINER,
            "refiners are for Stable Diffusion XL, and this model has no second text encoder",
        ));
    };
    if !config.takes_sizes() {
        return Err(misfit(REFINER, "it is no refiner of Stable Diffusion XL, for its UNet takes no sizes"));
    }
    let Config::TextEncoder(text) = component_config(model, encoder)? else {
        return Err(PlanError::wrong_class(model, encoder));
    };
    let [theirs, ours] = [config.text_channels.unwrap_or_default(), text.hidden_size];
    if theirs != ours {
        return Err(misfit(
            REFINER,
            format!(
                "its UNet takes text states of {theirs} channels, and the model's second text encoder makes \
                 {ours}; a base model is no refiner"
            ),
        ));
    }
    same_channels(REFINER, [config.in_channels, own.in_channels])?;
    let pooled = [pooled_channels(refiner)?, pooled_channels(model)?];
    if pooled[0] != pooled[1] {
        let what = format!(
            "its UNet takes a pooled prompt of {} channels, and the model has {}",
            pooled[0], pooled[1]
        );
        return Err(misfit(REFINER, what));
    }
    if let (Some(theirs), Some(ours)) = (latents(refiner)?, latents(model)?) {
        same_latents(REFINER, &theirs, &ours)?;
    }
    Ok(())
}

/// What is wrong with an autoencoder for a model: its latents differ from those of the model's own.
///
/// # Errors
/// Configurations that can't be read.
pub(crate) fn of_autoencoder(
    model: &dyn ModelFiles,
    vae: &dyn ModelFiles,
) -> Result<Option<String>, ModelError> {
    let (Some(own), Some(theirs)) = (latents(model)?, latents(vae)?) else { return Ok(None) };
    Ok(difference(&theirs, &own))
}

/// Refuses a ControlNet of another architecture than the UNet's.
///
/// # Errors
/// [`PlanError::Misfit`].
pub(super) fn controlnet(name: &str, unet: &unet::Config, own: &unet::Config) -> Result<(), PlanError> {
    let channels =
        |config: &unet::Config| -> Vec<usize> { config.down.iter().map(|stage| stage.channels).collect() };
    let fits = unet.text_channels == own.text_channels
        && unet.takes_sizes() == own.takes_sizes()
        && channels(unet) == channels(own);
    if fits {
        return Ok(());
    }
    let [theirs, ours] = [unet, own].map(|config| match config.text_channels {
        Some(text) => format!("blocks of {:?} channels and text states of {text}", channels(config)),
        None => format!("blocks of {:?} channels", channels(config)),
    });
    Err(misfit(CONTROLNET, format!("{name} is for a UNet with {theirs}, and the model's has {ours}")))
}

/// The format of a model's own latents; `None` if it has no autoencoder.
fn latents(model: &dyn ModelFiles) -> Result<Option<LatentFormat>, ModelError> {
    if model.component("vae").is_none() {
        return Ok(None);
    }
    Ok(match component_config(model, "vae")? {
        Config::Vae(config) => Some(LatentFormat::of(&config)),
        _ => None,
    })
}

fn same_channels(option: &'static str, channels: [usize; 2]) -> Result<(), PlanError> {
    different_channels(channels).map_or(Ok(()), |what| Err(misfit(option, what)))
}

fn same_latents(option: &'static str, theirs: &LatentFormat, ours: &LatentFormat) -> Result<(), PlanError> {
    difference(theirs, ours).map_or(Ok(()), |what| Err(misfit(option, what)))
}

fn different_channels([theirs, ours]: [usize; 2]) -> Option<String> {
    (theirs != ours).then(|| format!("its latents have {theirs} channels, and the model's have {ours}"))
}

/// What differs between two formats of latents, in words.
fn difference(theirs: &LatentFormat, ours: &LatentFormat) -> Option<String> {
    let channels = different_channels([theirs.channels, ours.channels]);
    let scale = (theirs.scale != ours.scale).then(|| {
        let [theirs, ours] = [theirs.scale, ours.scale];
        format!("its latents are {theirs} times smaller than the image, and the model's {ours} times")
    });
    let factor = (theirs != ours).then(|| {
        let [theirs, ours] = [theirs.factor(), ours.factor()];
        format!(
            "its latents are scaled by {theirs}, and the model's by {ours}: it is of another family of models"
        )
    });
    channels.or(scale).or(factor)
}
