//! Estimates of long work, from quick measurements of this machine.

use std::time::Instant;

use mixbit_compress::{Layer, LayerPlan, Scheme};
use mixbit_diffusion::session::{PipelineStage, Precision};
use mixbit_mil::{Builder, Bytes, DType, Function, Opset, TensorType, WeightRef, multiply_adds};

use super::backends::Machine;

/// The part of the CPU's peak that large networks reach on an idle machine. Small ones reach less, down to an
/// eighth for the demo model: what follows from it is a lower bound, which [`or_more`] says.
const OF_PEAK: f64 = 0.5;

/// Seconds for multiply-adds in a precision; `None` if the machine's peak is not known. Measuring it takes a
/// quarter of a second.
pub(super) fn computing(machine: &Machine, precision: Precision, multiply_adds: f64) -> Option<f64> {
    let peak = machine.peak(precision.arithmetic()).filter(|peak| *peak > 0.0)?;
    Some(2.0 * multiply_adds / (OF_PEAK * peak))
}

/// The multiply-adds of a graph.
pub(super) fn work(graph: &Function) -> f64 {
    graph.ops().iter().map(|op| multiply_adds(&graph.view(op))).sum::<u64>() as f64
}

/// The multiply-adds of one run of a stage; 0 for a decoder in tiles.
pub(super) fn of_stage(stage: &PipelineStage) -> f64 {
    stage.graph().map_or(0.0, work) * stage.evaluations() as f64
}

/// Seconds to store layers in a scheme on all threads, from a trial on random weights of the layers' mean
/// size; `None` if there are none, or the trial fails.
pub(super) fn encoding(scheme: Scheme, layers: usize, weights: u64) -> Option<f64> {
    let side = (weights as f64 / layers.max(1) as f64).sqrt() as usize;
    let layer = random_layer(side.clamp(32, 1024)).filter(|_| layers > 0)?;
    let begin = Instant::now();
    scheme.encode(&layer.weight, LayerPlan::from(scheme).calibration.as_ref()).ok()?;
    let each = begin.elapsed().as_secs_f64();
    let larger = weights as f64 / (layers * layer.count()) as f64;
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    Some(each * larger.max(1.0) * layers as f64 / threads)
}

/// A square layer of random f16 weights.
fn random_layer(side: usize) -> Option<Layer> {
    // A linear congruential generator (Knuth's MMIX); four bits of exponent vary.
    let mut state = 93u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 48) as u16 & 0b1000_1111_1111_1111 | 0b0010_0000_0000_0000
    };
    let bytes: Vec<u8> = (0..side * side).flat_map(|_| next().to_le_bytes()).collect();
    let weight =
        WeightRef::new("w.weight", TensorType::new(DType::F16, [side, side]), Bytes::new(bytes)).ok()?;
    let mut b = Builder::new("main", Opset::Ios16);
    let x = b.input("x", TensorType::new(DType::F16, [1, side])).ok()?;
    let w = b.weight(weight);
    let y = b.op("linear").arg("x", x).arg("weight", w).add().ok()?;
    mixbit_compress::layers(&b.finish(&[y]).ok()?).into_iter().next()
}

/// A duration that may be longer: what [`computing`] gives.
pub(super) fn or_more(seconds: f64) -> String {
    format!("{} or more", about(seconds))
}

/// A duration that is known roughly, as `about 4 min`.
pub(super) fn about(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1.5 => "about a second".to_string(),
        seconds if seconds < 99.5 => format!("about {seconds:.0} s"),
        seconds if seconds < 100.0 * 60.0 => format!("about {:.0} min", seconds / 60.0),
        seconds if seconds < 72.0 * 3600.0 => format!("about {:.0} h", seconds / 3600.0),
        seconds => format!("about {:.0} days", seconds / 86400.0),
    }
}

#[cfg(test)]
mod tests {
    use mixbit_compress::Width;

    use super::*;

    #[test]
    fn rough_durations_have_one_unit() {
        for (seconds, shown) in [
            (0.01, "about a second"),
            (42.3, "about 42 s"),
            (100.0, "about 2 min"),
            (5_400.0, "about 90 min"),
            (7_300.0, "about 2 h"),
            (864_000.0, "about 10 days"),
        ] {
            assert_eq!(about(seconds), shown);
        }
    }

    #[test]
    fn more_work_takes_longer() {
        let scheme = Scheme::palette(Width::Four);
        let [few, many] =
            [10, 10_000].map(|layers| encoding(scheme, layers, 100_000 * layers as u64).unwrap());
        assert!(few > 0.0 && many > 20.0 * few, "{few} {many}");
        assert_eq!(encoding(scheme, 0, 0), None);
        let machine = Machine::new(Some(1)).unwrap();
        if let Some(seconds) = computing(&machine, Precision::F32, 1e9) {
            assert!(seconds > 0.0 && seconds < 100.0, "{seconds}");
        }
    }
}
