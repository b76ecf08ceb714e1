//! The quantile function of the symmetric beta distribution, for beta-spaced sigmas.

/// The `x` with `I_x(shape, shape) = p`, to about 1e-14, for `p` in [0, 1].
pub(super) fn beta_quantile(p: f64, shape: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - lower_quantile(1.0 - p, shape);
    }
    lower_quantile(p, shape)
}

/// The quantile for `p` at most 0.5, by bisection down to neighbouring floats.
fn lower_quantile(p: f64, shape: f64) -> f64 {
    let (mut low, mut high) = (0.0, 0.5);
    if p <= 0.0 {
        return low;
    }
    let log_beta = 2.0 * ln_gamma(shape) - ln_gamma(2.0 * shape);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return high;
        }
        if cumulative(middle, shape, log_beta) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// `I_x(shape, shape)` for `x` in (0, 0.5], by its power series
/// `x^a / (a B(a, a)) * sum_n (1 - a)_n a / (n! (a + n)) x^n` (DLMF 8.17.7).
fn cumulative(x: f64, shape: f64, log_beta: f64) -> f64 {
    let (mut term, mut sum) = (1.0, 1.0 / shape);
    for n in 1..2000 {
        let n = f64::from(n);
        term *= (n - shape) / n * x;
        let next = term / (shape + n);
        sum += next;
        if next.abs() < sum * 1e-17 {
            break;
        }
    }
    (shape * x.ln() - log_beta).exp() * sum
}

/// `ln Gamma(x)` for positive `x`: Stirling's series (DLMF 5.11.1) after shifting the argument past 16.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 16.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series = 1.0 / 12.0
        - inverse * (1.0 / 360.0 - inverse * (1.0 / 1260.0 - inverse * (1.0 / 1680.0 - inverse / 1188.0)));
    shift + (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series / x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.beta.ppf(p, 0.6, 0.6)`, scipy 1.17.1.
    const SCIPY: [(f64, f64); 6] = [
        (0.0, 0.0),
        (0.001, 1.855873851745199e-05),
        (0.1, 0.03958440558878085),
        (0.5, 0.5),
        (0.9, 0.9604155944112192),
        (1.0, 1.0),
    ];

    #[test]
    fn quantiles_equal_scipys() {
        for (p, expected) in SCIPY {
            let x = beta_quantile(p, 0.6);
            assert!((x - expected).abs() <= 1e-13 * expected.max(1e-3), "{p}: {x} for {expected}");
        }
    }
}
