//! Scalar arithmetic that matches PyTorch on 0-dimensional f32 tensors.
//!
//! A scheduler's coefficients are differences of nearly equal numbers, so the rounding of each operation
//! shows in the trajectory. Rust's f32 sums and products round like PyTorch's. The functions here compute in
//! f64 and round once. That equals PyTorch's vector library except in rare last-bit cases, and is the same on
//! every platform.

/// `ln x`.
pub(super) fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// `exp x`.
pub(super) fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// `exp x - 1`.
pub(super) fn exp_m1(x: f32) -> f32 {
    f64::from(x).exp_m1() as f32
}

/// `np.log` of a normal positive f32, as NumPy's AVX2 and AVX-512 loops compute it. It is a rational
/// approximation on `[sqrt(1/2), sqrt(2))`. Its last bit decides whether a timestep is 999, or 998.9999 and
/// truncated to 998.
pub(super) fn numpy_ln(x: f32) -> f32 {
    const NUMERATOR: [f32; 6] = [0.0, 1.0, 2.112_677_5, 1.480_000_6, 0.380_883_77, 0.025_899_792];
    const DENOMINATOR: [f32; 6] = [1.0, 2.612_677_5, 2.453_006, 0.986_494_3, 0.154_647_64, 0.005_875_095_4];
    let mut mantissa = f32::from_bits(x.to_bits() & 0x007f_ffff | 0x3f00_0000);
    let mut exponent = (x.to_bits() >> 23) as i32 - 126;
    if mantissa <= std::f32::consts::FRAC_1_SQRT_2 {
        mantissa += mantissa;
        exponent -= 1;
    }
    let z = mantissa - 1.0;
    let polynomial =
        |coefficients: [f32; 6]| coefficients.into_iter().rev().reduce(|sum, c| sum.mul_add(z, c));
    let ratio = polynomial(NUMERATOR).unwrap_or_default() / polynomial(DENOMINATOR).unwrap_or(1.0);
    (exponent as f32).mul_add(std::f32::consts::LN_2, ratio)
}

/// `torch.linspace(start, end, steps)`: counted from the nearer end, with a fused multiply-add.
pub(super) fn torch_linspace(start: f32, end: f32, steps: usize) -> Vec<f32> {
    if steps == 1 {
        return vec![start];
    }
    let step = (end - start) / (steps - 1) as f32;
    let value = |index: usize| {
        if index < steps / 2 {
            step.mul_add(index as f32, start)
        } else {
            (-step).mul_add((steps - 1 - index) as f32, end)
        }
    };
    (0..steps).map(value).collect()
}

/// `np.linspace(start, stop, count)`.
pub(super) fn numpy_linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    let step = (stop - start) / count.saturating_sub(1).max(1) as f64;
    let mut values: Vec<f64> = (0..count).map(|index| index as f64 * step + start).collect();
    if count > 1 {
        values[count - 1] = stop;
    }
    values
}

/// Combines two tensors of equal length element by element.
pub(super) fn zip_map(a: &[f32], b: &[f32], function: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    a.iter().zip(b).map(|(&a, &b)| function(a, b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `np.log(np.float32(x))`, NumPy 2 on x86-64 with AVX-512; the first is not the nearest f32.
    #[test]
    fn numpys_logarithm_is_reproduced() {
        for (x, bits) in NUMPY_LOGS {
            assert_eq!(numpy_ln(x).to_bits(), bits, "{x}");
        }
        assert!(NUMPY_LOGS.iter().any(|&(x, bits)| ln(x).to_bits() != bits));
    }

    const NUMPY_LOGS: [(f32, u32); 8] = [
        (0.14292753, 0xbff90372),
        (2.3113925, 0x3f567d5a),
        (0.0268746, 0xc06775f2),
        (6.285894, 0x3feb4dae),
        (439.0191, 0x40c2b493),
        (0.01834499, 0xc07fe5c4),
        (1.2619473, 0x3e6e3d5f),
        (0.14292753, 0xbff90372),
    ];
}
