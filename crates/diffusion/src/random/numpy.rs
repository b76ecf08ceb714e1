//! NumPy's legacy generator: `np.random.RandomState(seed).standard_normal`.
//!
//! MT19937, 53-bit uniforms from two 32-bit draws, and Marsaglia's polar method in f64. NumPy's policy of
//! stream compatibility (NEP 19) freezes the algorithm. Apple's `ml-stable-diffusion` draws its latents this
//! way.

use super::NoiseSource;
use super::mersenne_twister::MersenneTwister;

/// A stream of `RandomState(seed).standard_normal`, cast to f32.
#[derive(Debug, Clone)]
pub struct NumpySource {
    bits: MersenneTwister,
    cached: Option<f64>,
}

impl NumpySource {
    /// The stream of a seed.
    pub fn new(seed: u32) -> NumpySource {
        NumpySource { bits: MersenneTwister::new(seed), cached: None }
    }

    /// The next normal in f64, before NumPy's cast.
    pub fn next_normal(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return value;
        }
        loop {
            let x1 = 2.0 * self.uniform() - 1.0;
            let x2 = 2.0 * self.uniform() - 1.0;
            let square = x1 * x1 + x2 * x2;
            if square < 1.0 && square != 0.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                self.cached = Some(factor * x1);
                return factor * x2;
            }
        }
    }

    /// Uniform in [0, 1), 53 bits.
    fn uniform(&mut self) -> f64 {
        let high = f64::from(self.bits.next_u32() >> 5);
        let low = f64::from(self.bits.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }
}

impl NoiseSource for NumpySource {
    fn fill(&mut self, noise: &mut [f32]) {
        noise.fill_with(|| self.next_normal() as f32);
    }
}
