//! An analysis as a recipe file.

use std::collections::{BTreeMap, BTreeSet};

use mixbit_compress::Scheme;
use mixbit_packages::recipe::{
    Calibration, Cumulative, Details, Importance, Int8Layers, Measured, ModelIdentity, Recipe, RecipeFile,
};

use super::outcome::{Analysis, Candidate, Curve, Verified};
use super::point::Setting;

impl Analysis {
    /// The recipe file of the analysis of a model `name` in a setting.
    pub fn recipe_file(&self, name: &str, setting: &Setting) -> RecipeFile {
        let counts: BTreeMap<&str, u64> =
            self.candidates.iter().map(|layer| (layer.name.as_str(), layer.count() as u64)).collect();
        let curves = |curves: &[(Scheme, Curve)]| -> BTreeMap<u32, Vec<Measured>> {
            // Apple's keys are bits: the first of several schemes of a width is kept.
            let mut by_bits = BTreeMap::new();
            for (scheme, curve) in curves {
                by_bits.entry(scheme.width.bits()).or_insert_with(|| rounded(curve));
            }
            by_bits
        };
        let cumulative = curves(&self.cumulative).into_iter().map(|(bits, layers)| {
            let sizes =
                layers.iter().map(|(layer, _)| counts.get(layer.as_str()).copied().unwrap_or(0)).collect();
            (bits, Cumulative { layers, sizes })
        });
        let mut prompts: Vec<String> = Vec::new();
        let mut seeds = BTreeSet::new();
        for point in &self.points {
            seeds.insert(point.seed);
            if !prompts.contains(&point.prompt) {
                prompts.push(point.prompt.clone());
            }
        }
        let importance = self.importance.iter().filter(|(layer, _)| counts.contains_key(layer.as_str()));
        RecipeFile {
            model_version: name.to_string(),
            single_layer: curves(&self.single_layer),
            cumulative: cumulative.collect(),
            baselines: self.baselines.iter().chain(&self.recipes).map(baseline).collect(),
            recipes: self.recipes.iter().map(|recipe| (recipe.name.clone(), self.recipe(recipe))).collect(),
            details: Some(Details {
                version: env!("CARGO_PKG_VERSION").to_string(),
                model: ModelIdentity { name: name.to_string(), ..self.identity.clone() },
                calibration: Calibration {
                    prompts,
                    negative_prompt: setting.negative_prompt.clone(),
                    guidance_scale: setting.guidance_scale.into(),
                    seeds: seeds.into_iter().collect(),
                    timesteps: self.timesteps.clone(),
                    size: setting.size,
                },
                importance: importance
                    .filter_map(|(layer, moments)| Some((layer.clone(), Importance::new(moments)?)))
                    .collect(),
                int8: self.int8.as_ref().map(|int8| Int8Layers {
                    target_psnr: int8.target,
                    measured_psnr: hundredth(int8.mean_psnr()),
                    full_precision: int8.full_precision.clone(),
                    single_layer: rounded(&int8.single_layer).into_iter().collect(),
                }),
            }),
            ..RecipeFile::default()
        }
    }

    fn recipe(&self, verified: &Verified) -> Recipe {
        let scheme = |layer: &Candidate| (layer.name.clone(), verified.layers.get(&layer.name).copied());
        Recipe {
            layers: self.candidates.iter().map(scheme).collect(),
            bytes: Some(verified.bytes),
            bits_per_weight: Some(verified.bits),
            predicted_psnr: verified.predicted.map(hundredth),
            measured_psnr: Some(hundredth(verified.mean_psnr())),
        }
    }
}

fn rounded(curve: &Curve) -> Vec<Measured> {
    curve
        .iter()
        .map(|(layer, values)| (layer.clone(), values.iter().copied().map(hundredth).collect()))
        .collect()
}

fn hundredth(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// A baseline and its PSNR, under Apple's name if Apple has one.
fn baseline(verified: &Verified) -> (String, f64) {
    let name = match verified.name.as_str() {
        "linear-8" => "linear_8bit",
        name => name,
    };
    (name.to_string(), hundredth(verified.mean_psnr()))
}
