//! The cost of an analysis before it begins.

use std::collections::HashSet;

use mixbit_compress::{Scheme, layers};
use mixbit_mil::{Function, multiply_adds, segments};

use super::error::AnalyzeError;
use super::network::SEGMENTS;
use super::options::{Kind, Options};
use super::point::Point;
use super::{states, strategy, verify};

/// The expected work of an analysis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Steps of an image: runs of the whole network for all predictions that guidance takes.
    pub steps: f64,
    /// Layers that are compressed, counted once for every scheme.
    pub layers: usize,
    /// Weights of these.
    pub weights: u64,
    /// Measurements of layers.
    pub measurements: usize,
}

/// The expected work of an analysis of a network, if it is made by one machine from the beginning. No weight
/// is read.
///
/// # Errors
/// If the graph can't be used.
pub fn expected(graph: &Function, options: &Options) -> Result<Cost, AnalyzeError> {
    let function = mixbit_mil::passes::DEAD_CODE.run(&mixbit_mil::constexpr::decoded(graph)?);
    let strategy = strategy::strategy(options);
    let segments = segments(&function, SEGMENTS);
    let work: Vec<u64> = segments
        .iter()
        .map(|segment| segment.ops().iter().map(|op| multiply_adds(&segment.view(op))).sum())
        .collect();
    let all = work.iter().sum::<u64>().max(1) as f64;
    let (mut seen, mut shares, mut weights) = (HashSet::new(), Vec::new(), 0);
    for (index, segment) in segments.iter().enumerate() {
        let rest = work[index..].iter().sum::<u64>() as f64 / all;
        for layer in layers(segment).into_iter().filter(|layer| seen.insert(layer.name.clone())) {
            if layer.count() > options.min_size {
                shares.push(rest);
                weights += layer.count() as u64;
            }
        }
    }
    let measured: Vec<Scheme> = strategy.schemes();
    let points = strategy.points();
    let alone: f64 = shares.iter().sum::<f64>() * measured.len() as f64;
    // A layer together with earlier ones causes the first of them to run again.
    let together = match options.method.kind {
        Kind::Estimate => 0,
        Kind::Exhaustive => measured.len() * shares.len(),
    };
    let int8 = if options.int8.is_some() { shares.iter().sum() } else { 0.0 };
    let each = alone + together as f64 + int8 + 1.0 + strategy.encoder_evaluations() as f64;
    let verified = states::verified_points(options, &points);
    let runs = verify::uniform(&options.schemes).count() + strategy.anchors().len() + options.goals.len();
    let steps = points.len() as f64 * each + (runs * verified.len()) as f64;
    Ok(Cost {
        steps: steps + drawn(&points) + drawn(&verified),
        layers: shares.len() * options.schemes.len(),
        weights: weights * options.schemes.len() as u64,
        measurements: measured.len() * shares.len() + together,
    })
}

/// The steps that drawing to some states takes.
fn drawn(points: &[Point]) -> f64 {
    let mut images: Vec<(&str, u64, usize)> = Vec::new();
    for point in points {
        let is_same =
            |image: &&mut (&str, u64, usize)| (image.0, image.1) == (point.prompt.as_str(), point.seed);
        match images.iter_mut().find(is_same) {
            Some(image) => image.2 = image.2.max(point.evaluation),
            None => images.push((&point.prompt, point.seed, point.evaluation)),
        }
    }
    images.iter().map(|image| image.2 as f64).sum()
}
