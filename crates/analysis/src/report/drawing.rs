//! Images of a model, and the latents that they are decoded from.

use mixbit_diffusion::random::TorchSource;
use mixbit_diffusion::session::{Cancel, GenerateError, Image, Request, Run, Session};
use mixbit_mil::{Progress, Stopped, Unit};

/// An image and the latents that it was decoded from.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The image.
    pub image: Image,
    /// Its latents (channels, height, width).
    pub latents: Vec<f32>,
}

/// Draws an image from the noise of PyTorch's generator. `progress` counts evaluations of the UNet.
///
/// # Errors
/// If the model or the request can't be run, or the work was cancelled.
pub fn draw(
    session: &mut Session,
    request: &Request,
    seed: u64,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Picture, GenerateError> {
    let report = |run: &Run| {
        let (done, total) = (run.done() as u64, run.total() as u64);
        progress.advance(done, total, Unit::Steps).map_err(|Stopped| GenerateError::Cancelled)
    };
    let mut noise = TorchSource::new(seed);
    let mut run = session.begin(request, &mut noise, cancel, &mut |_| {})?;
    report(&run)?;
    while session.step(&mut run, &mut noise, &mut |_| {})? {
        report(&run)?;
    }
    let image = session.decode(&run, run.latents(), &mut |_| {})?;
    Ok(Picture { image, latents: run.latents().to_vec() })
}

/// The progress of one of several equal pieces of work, as that of all of them.
#[derive(Clone, Copy)]
pub struct OneOf<'p> {
    /// The receiver of the progress of all pieces.
    pub progress: &'p dyn Progress,
    /// The position of the piece, from 0.
    pub index: usize,
    /// The number of pieces.
    pub count: usize,
}

impl Progress for OneOf<'_> {
    fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped> {
        self.progress.advance(self.index as u64 * total + done, self.count as u64 * total, unit)
    }
}
