//! The progress of a request.

/// The progress of a request, reported as it happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// A text encoder begins to encode a prompt, or the autoencoder an image, named by its folder. Prompts
    /// that the session has encoded before are not encoded again.
    Encoding(&'a str),
    /// A network, named by its folder, begins to be compiled. Networks that the session keeps are not
    /// compiled again.
    Compiling(&'a str),
    /// An evaluation of the UNet is done.
    Step {
        /// Evaluations so far.
        done: usize,
        /// Evaluations of the whole run.
        total: usize,
        /// The final latents (channels, height, width) that this evaluation predicts, for previews.
        predicted: &'a [f32],
    },
    /// The latents begin to be decoded.
    Decoding,
}

/// A receiver of events.
pub type OnEvent<'a> = dyn FnMut(Event<'_>) + 'a;
