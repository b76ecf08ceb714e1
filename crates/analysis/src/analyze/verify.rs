//! Recipes: chosen for each goal, run on the states of the verification, and compared with their prediction.

use std::collections::BTreeMap;

use mixbit_compress::Scheme;
use mixbit_mil::Tally;

use super::correction::Correction;
use super::error::AnalyzeError;
use super::fingerprint;
use super::journal::{Journal, Key};
use super::options::{EarlierRecipe, Goal};
use super::outcome::Verified;
use super::strategy::{Chooser, ChosenRecipe};
use super::subject::Subject;

/// The networks that were run on the states of the verification.
pub(super) struct Verification {
    /// The unchanged network, and all layers in one scheme.
    pub(super) baselines: Vec<Verified>,
    /// The recipes, in the order of their goals.
    pub(super) recipes: Vec<Verified>,
    /// The goals that no recipe reaches.
    pub(super) unreached: Vec<Goal>,
}

/// Runs networks on the states of the verification, and keeps the measurements in the journal: none is made
/// twice.
pub(super) struct Verifier<'v, 'b> {
    pub(super) subject: &'v mut Subject<'b>,
    pub(super) journal: &'v mut Journal,
    /// The states and their setting, in words.
    pub(super) states: String,
}

impl Verifier<'_, '_> {
    fn verify(
        &mut self,
        name: String,
        schemes: BTreeMap<String, Scheme>,
        predicted: Option<f64>,
    ) -> Result<Verified, AnalyzeError> {
        let layers: String = schemes.iter().map(|(layer, scheme)| format!("{layer} {scheme}\n")).collect();
        let key = Key::verified(fingerprint::of_text(&format!("{layers}{}", self.states)));
        if let Some(distortion) = self.journal.get(&key) {
            return Ok(self.subject.verified(name, schemes, predicted, distortion));
        }
        let distortion = self.subject.distortion(&schemes)?;
        let verified = self.subject.verified(name, schemes, predicted, &distortion);
        self.journal.insert(key, distortion)?;
        Ok(verified)
    }
}

/// Runs the network unchanged, with all layers in each scheme, and in linear 8-bit.
///
/// # Errors
/// If a layer's weights can't be compressed, the network can't be run, or the work was cancelled.
pub(super) fn baselines(
    verifier: &mut Verifier<'_, '_>,
    schemes: &[Scheme],
    tally: &Tally<'_>,
) -> Result<Vec<Verified>, AnalyzeError> {
    let mut baselines = Vec::new();
    for scheme in uniform(schemes) {
        let name = scheme.map_or("original".to_string(), |scheme| scheme.to_string());
        let layers = verifier.subject.layers.iter();
        let layers = layers.filter_map(|layer| Some((layer.name.clone(), scheme?))).collect();
        baselines.push(verifier.verify(name, layers, None)?);
        tally.add(1)?;
    }
    Ok(baselines)
}

/// The schemes of the baselines; `None` leaves the network unchanged.
pub(super) fn uniform(schemes: &[Scheme]) -> impl Iterator<Item = Option<Scheme>> {
    let chosen = schemes.iter().copied().chain([Scheme::linear()]);
    [None].into_iter().chain(chosen.map(Some))
}

/// The correction of predictions by running the recipes for some bits per weight.
///
/// # Errors
/// As for [`baselines`].
pub(super) fn correction(
    verifier: &mut Verifier<'_, '_>,
    anchors: Vec<ChosenRecipe>,
    tally: &Tally<'_>,
) -> Result<Correction, AnalyzeError> {
    let mut pairs = Vec::new();
    for ChosenRecipe { layers, predicted } in anchors {
        let verified = verifier.verify(String::new(), layers, None)?;
        pairs.extend(predicted.map(|predicted| (predicted, verified.mean_psnr())));
        tally.add(1)?;
    }
    Ok(Correction::new(pairs))
}

/// Chooses a recipe for each goal, with its corrected prediction, and returns them and the goals that can't
/// be reached.
pub(super) fn choose(
    goals: &[Goal],
    chooser: &dyn Chooser,
    correction: &Correction,
) -> (Vec<ChosenRecipe>, Vec<Goal>) {
    let (mut chosen, mut unreached) = (Vec::new(), Vec::new());
    for &goal in goals {
        let predicted = match goal {
            Goal::Psnr(psnr) => Goal::Psnr(correction.undone(psnr)),
            goal => goal,
        };
        match chooser.choose(predicted) {
            Some(ChosenRecipe { layers, predicted }) => {
                let predicted = predicted.map(|predicted| correction.applied(predicted));
                chosen.push(ChosenRecipe { layers, predicted });
            }
            None => unreached.push(goal),
        }
    }
    (chosen, unreached)
}

/// Runs the recipes of an earlier analysis and the chosen ones, and names the latter. A chosen recipe that the
/// earlier analysis has is not repeated.
///
/// # Errors
/// As for [`baselines`].
pub(super) fn verify(
    verifier: &mut Verifier<'_, '_>,
    earlier: &[EarlierRecipe],
    chosen: Vec<ChosenRecipe>,
    tally: &Tally<'_>,
) -> Result<Vec<Verified>, AnalyzeError> {
    let mut recipes: Vec<Verified> = Vec::new();
    for EarlierRecipe { name, layers, predicted } in earlier {
        recipes.push(verifier.verify(name.clone(), layers.clone(), *predicted)?);
        tally.add(1)?;
    }
    for ChosenRecipe { layers, predicted } in chosen {
        if !earlier.iter().any(|recipe| recipe.layers == layers) {
            let verified = verifier.verify(String::new(), layers, predicted)?;
            let name = unused_name(&recipes, verified.bits, &verified.layers);
            recipes.push(Verified { name, ..verified });
        }
        tally.add(1)?;
    }
    Ok(recipes)
}

/// Apple's name for a recipe, with a number if another recipe has it.
fn unused_name(recipes: &[Verified], bits: f64, layers: &BTreeMap<String, Scheme>) -> String {
    let base = format!("recipe_{bits:.2}_bit_mixedpalette");
    let is_free = |name: &String| recipes.iter().all(|other| other.name != *name || other.layers == *layers);
    let numbered = (2..).map(|number| format!("{base}_{number}"));
    std::iter::once(base.clone()).chain(numbered).find(is_free).unwrap_or(base)
}
