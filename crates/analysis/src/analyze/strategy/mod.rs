//! The methods of analysis: the states and schemes that each measures, and its choice of recipes.

mod estimate;
mod exhaustive;

use std::collections::BTreeMap;

use mixbit_compress::{Layer, Scheme};

use super::encoder::CalibratedEncoder;
use super::error::AnalyzeError;
use super::evaluator::Evaluator;
use super::journal::Journal;
use super::measurements::{Measurements, Order};
use super::options::{Goal, Kind, Options};
use super::point::{Point, Setting};
use super::subject::Subject;

/// A method of analysis with its options.
pub(super) trait Strategy {
    /// The settings of the images that are measured on.
    fn setting(&self) -> Setting;

    /// The states to measure on.
    fn points(&self) -> Vec<Point>;

    /// The schemes to measure. The other schemes are inferred.
    fn schemes(&self) -> Vec<Scheme>;

    /// The encoder of trial weights.
    ///
    /// # Errors
    /// If the network can't be run.
    fn encoder(&self, evaluator: &Evaluator<'_>) -> Result<CalibratedEncoder, AnalyzeError>;

    /// The evaluations of the network for each state that [`encoder`](Self::encoder) takes.
    fn encoder_evaluations(&self) -> usize;

    /// The orders in which layers are also measured together; none if they are measured alone only. The
    /// number of layers in them does not depend on the journal.
    fn orders(&self, layers: &[Layer], journal: &Journal) -> Vec<Order>;

    /// The bits per weight at which predictions are compared with measurements, to correct them elsewhere.
    fn anchors(&self) -> &'static [f64];

    /// The choice of recipes by complete measurements.
    ///
    /// # Errors
    /// If a layer's weights can't be compressed.
    fn chooser(
        &self,
        subject: &Subject<'_>,
        measurements: &Measurements,
    ) -> Result<Box<dyn Chooser>, AnalyzeError>;
}

/// A choice of recipes.
pub(super) trait Chooser {
    /// The best recipe for a goal; `None` if the goal can't be reached.
    fn choose(&self, goal: Goal) -> Option<ChosenRecipe>;
}

/// A recipe that was chosen.
pub(super) struct ChosenRecipe {
    /// The scheme of each compressed layer.
    pub(super) layers: BTreeMap<String, Scheme>,
    /// The predicted mean PSNR in dB.
    pub(super) predicted: Option<f64>,
}

/// The strategy of the options' method.
pub(super) fn strategy(options: &Options) -> Box<dyn Strategy + '_> {
    match options.method.kind {
        Kind::Estimate => Box::new(estimate::Estimate { options }),
        Kind::Exhaustive => Box::new(exhaustive::Exhaustive { options }),
    }
}
