//! PyTorch's CPU generator: `torch.randn(n, generator=torch.Generator().manual_seed(seed))` in f32.
//!
//! MT19937 seeded with the low 32 bits of the seed. PyTorch has two paths, `normal_fill` and
//! `normal_distribution` in ATen's CPU distribution templates. The number of elements of the call selects
//! one:
//!
//! - 16 or more: 24-bit uniforms for the whole tensor, then Box-Muller in f32 on blocks of 16, element `j`
//!   with element `j + 8`. A last block that is not full is redrawn over the last 16 elements. `ln`, `sin`
//!   and `cos` are those of PyTorch's vector code, so that x86-64's values come out bit for bit.
//! - fewer: one f64 Box-Muller pair at a time from 53-bit uniforms; the second of a pair is kept for the next
//!   element or the next short call.
//!
//! PyTorch draws an f16 tensor in f32 and rounds it, so the values agree. Only a last block of fewer than 16
//! elements differs.

use std::f64::consts::TAU;

use super::NoiseSource;
use super::mersenne_twister::MersenneTwister;

const BLOCK: usize = 16;

/// A stream of `torch.randn` on the CPU.
#[derive(Debug, Clone)]
pub struct TorchSource {
    bits: MersenneTwister,
    cached: Option<f64>,
}

impl TorchSource {
    /// The stream of a seed. PyTorch takes 64 bits and uses the low 32.
    pub fn new(seed: u64) -> TorchSource {
        TorchSource { bits: MersenneTwister::new(seed as u32), cached: None }
    }

    /// Uniform in [0, 1), 24 bits.
    fn uniform_f32(&mut self) -> f32 {
        (self.bits.next_u32() & 0xff_ffff) as f32 / 16_777_216.0
    }

    /// Uniform in [0, 1), 53 bits; the first draw is the high half.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.bits.next_u32());
        let bits = high << 32 | u64::from(self.bits.next_u32());
        (bits & ((1 << 53) - 1)) as f64 / 9_007_199_254_740_992.0
    }

    fn next_normal(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return value;
        }
        let angle = TAU * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.cached = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

impl NoiseSource for TorchSource {
    fn fill(&mut self, noise: &mut [f32]) {
        if noise.len() < BLOCK {
            noise.fill_with(|| self.next_normal() as f32);
            return;
        }
        noise.fill_with(|| self.uniform_f32());
        let (blocks, rest) = noise.as_chunks_mut::<BLOCK>();
        blocks.iter_mut().for_each(box_muller);
        if !rest.is_empty() {
            let start = noise.len() - BLOCK;
            let mut block = [0.0; BLOCK];
            block.fill_with(|| self.uniform_f32());
            box_muller(&mut block);
            noise[start..].copy_from_slice(&block);
        }
    }
}

/// Turns 16 uniforms into 16 normals; `j` and `j + 8` are a pair.
fn box_muller(block: &mut [f32; BLOCK]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * cephes::ln(1.0 - *a)).sqrt();
        let (sin, cos) = cephes::sin_cos(std::f32::consts::TAU * *b);
        (*a, *b) = (radius * cos, radius * sin);
    }
}

/// The single-precision functions of Moshier's Cephes library as PyTorch's AVX2 code evaluates them. The
/// polynomials and the fused multiply-adds are the same. Arguments outside the range of Box-Muller have no
/// branch.
mod cephes {
    use std::f32::consts::FRAC_1_SQRT_2;

    /// `ln x` for `x` in (0, 1].
    pub(super) fn ln(x: f32) -> f32 {
        const POLYNOMIAL: [f32; 9] = [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_8e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_4e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ];
        /// `ln 2` in two parts, the first with few bits.
        const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

        let mantissa = f32::from_bits(x.to_bits() & 0x007f_ffff | 0x3f00_0000);
        let exponent = (x.to_bits() >> 23) as f32 - 126.0;
        let (z, exponent) = if mantissa < FRAC_1_SQRT_2 {
            ((mantissa - 1.0) + mantissa, exponent - 1.0)
        } else {
            (mantissa - 1.0, exponent)
        };
        let square = z * z;
        let mut y = POLYNOMIAL.into_iter().fold(0.0_f32, |y, c| y.mul_add(z, c)) * z;
        y = y.mul_add(square, exponent * LN_2.1);
        y = (-square).mul_add(0.5, y);
        exponent.mul_add(LN_2.0, z + y)
    }

    /// `sin x` and `cos x` for `x` in [0, 2 pi].
    pub(super) fn sin_cos(x: f32) -> (f32, f32) {
        /// A quarter of pi, negated, in three parts with few bits.
        const QUARTER: [f32; 3] = [-0.785_156_25, -2.418_756_5e-4, -3.774_895e-8];
        const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
        const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];

        let octant = ((x * (4.0 / std::f32::consts::PI)) as u32 + 1) & !1;
        let reduced = QUARTER.into_iter().fold(x, |x, part| (octant as f32).mul_add(part, x));
        let square = reduced * reduced;
        let polynomial = |coefficients: [f32; 3]| {
            coefficients.into_iter().reduce(|y, c| y.mul_add(square, c)).unwrap_or_default()
        };
        let cos = (polynomial(COS) * square).mul_add(square, -(square * 0.5)) + 1.0;
        let sin = (polynomial(SIN) * square).mul_add(reduced, reduced);
        match octant & 6 {
            0 => (sin, cos),
            2 => (cos, -sin),
            4 => (-sin, -cos),
            _ => (-cos, sin),
        }
    }
}
