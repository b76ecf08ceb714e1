//! PyTorch's CUDA generator: Philox4x32-10 and cuRAND's Box-Muller.
//!
//! Philox is the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy
//! as 1, 2, 3" (SC 2011). `torch.randn` on CUDA assigns element `i` of a call to thread `i`, which uses
//! subsequence `i`. It takes the first of the four normals that the thread draws; each call advances the
//! counter by one. This holds while the GPU's grid has a thread for every element: about 150,000 on consumer
//! cards, more on others. The latents of one image stay below that limit. For larger tensors a real GPU uses
//! all four normals, in an order that depends on its number of multiprocessors. Here every element is the
//! first normal of its own thread, as in the CPU re-implementations of AUTOMATIC1111 and Apple's sample.

use super::NoiseSource;

/// A stream of `torch.randn` on CUDA.
#[derive(Debug, Clone)]
pub struct PhiloxSource {
    key: [u32; 2],
    calls: u32,
}

impl PhiloxSource {
    /// The stream of a seed.
    pub fn new(seed: u64) -> PhiloxSource {
        PhiloxSource { key: [seed as u32, (seed >> 32) as u32], calls: 0 }
    }
}

impl NoiseSource for PhiloxSource {
    fn fill(&mut self, noise: &mut [f32]) {
        for (index, value) in noise.iter_mut().enumerate() {
            let index = index as u64;
            let counter = [self.calls, 0, index as u32, (index >> 32) as u32];
            let [x, y, ..] = philox4x32_10(counter, self.key);
            *value = box_muller(x, y);
        }
        self.calls = self.calls.wrapping_add(1);
    }
}

/// The block function: ten rounds of Philox4x32.
fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let left = u64::from(a) * 0xd251_1f53;
        let right = u64::from(c) * 0xcd9e_8d57;
        (a, b, c, d) =
            ((right >> 32) as u32 ^ b ^ k0, right as u32, (left >> 32) as u32 ^ d ^ k1, left as u32);
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [a, b, c, d]
}

/// The first normal of cuRAND's pair, `sqrt(-2 ln u) sin v`. The uniforms are f32; the rest is computed in
/// f64 and rounded once, because a GPU's own `ln` and `sin` are not exact.
fn box_muller(x: u32, y: u32) -> f32 {
    /// 2^-32, and 2 pi times that.
    const SCALE: (f32, f32) = (1.0 / 4_294_967_296.0, std::f32::consts::TAU / 4_294_967_296.0);
    let u = (x as f32).mul_add(SCALE.0, SCALE.0 / 2.0);
    let v = (y as f32).mul_add(SCALE.1, SCALE.1 / 2.0);
    ((-2.0 * f64::from(u).ln()).sqrt() * f64::from(v).sin()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers from the Random123 distribution (`kat_vectors`).
    #[test]
    fn the_block_function_gives_the_known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }
}
