//! Errors of denoised latents.

use mixbit_packages::psnr::{apple_psnr, mean_square, peak};

/// The error of one sample's denoised latents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Distortion {
    /// The mean squared error.
    pub(super) square: f64,
    /// The largest magnitudes of the original and of the changed latents.
    pub(super) peaks: [f64; 2],
}

impl Distortion {
    /// The error of changed latents against the original ones.
    pub(super) fn between(original: &[f32], changed: &[f32]) -> Self {
        let [original, changed] =
            [original, changed].map(|values| values.iter().map(|&value| f64::from(value)));
        let peaks = [peak(original.clone()), peak(changed.clone())];
        Distortion { square: mean_square(original.zip(changed)), peaks }
    }

    /// The PSNR in dB by the formula of Apple's tools, with the changed latents' peak.
    pub(super) fn psnr(&self) -> f64 {
        apple_psnr(self.peaks[1], self.square)
    }

    /// The mean squared error relative to the square of the original's peak.
    pub(super) fn relative(&self) -> f64 {
        self.square / (self.peaks[0] + 1e-5).powi(2)
    }
}

/// The PSNR in dB of each sample.
pub(super) fn psnrs(distortion: &[Distortion]) -> Vec<f64> {
    distortion.iter().map(Distortion::psnr).collect()
}
