//! Pixels to latents.

use super::conditioning::Encoders;
use super::decoder::autoencoder_precision;
use super::error::GenerateError;
use super::event::{Event, OnEvent};
use super::image::Image;
use super::network::{NetworkKey, Section, tensor};
use super::placement::Component;
use super::request::Request;
use crate::arch::io;
use crate::model::DiffusionModel;
use crate::random::NoiseSource;

impl Encoders<'_> {
    /// The UNet's latents (channels, height, width) of an image, which is resized to the request's size.
    /// `noise` samples them from the encoder's distribution.
    ///
    /// # Errors
    /// If the model has no encoder, or it can't be run, or was cancelled, or its result is not finite.
    pub(super) fn image(
        &mut self,
        model: &DiffusionModel,
        request: &Request,
        image: &Image,
        noise: &mut dyn NoiseSource,
        on: &mut OnEvent,
    ) -> Result<Vec<f32>, GenerateError> {
        let network = model.autoencoder.encoder.clone().ok_or_else(|| GenerateError::Option {
            option: "image",
            what: "can't be encoded: the model has no encoder".to_string(),
        })?;
        let backend = self.placement.of(Component::Encoder).clone();
        let precision = autoencoder_precision(model, request, &*backend);
        let graph = request.graph_options(model, precision);
        let key = NetworkKey { network, section: Section::Whole, graph, precision, backend };
        let planned = self.networks.plan(key, 1)?;
        on(Event::Encoding(planned.component()));
        let [width, height] = request.size;
        let pixels = tensor(&[1, 3, height, width], image.resized(request.size).planes)?;
        let results = self.networks.run(&planned, &[(io::X, &pixels)], self.cancel, on)?;
        let moments = planned.output(&results, io::LATENT)?;
        planned.check_finite(moments)?;
        Ok(model.autoencoder.latent.from_encoder(moments, noise))
    }
}
