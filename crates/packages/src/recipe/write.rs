//! To JSON.

use serde_json::{Map, Value, json};

use mixbit_formats::base64;

use super::{Cumulative, Details, Measured, RecipeFile, bits};

pub(super) fn text(file: &RecipeFile) -> String {
    let mut keys = Map::new();
    keys.insert("model_version".to_string(), json!(file.model_version));
    let single = file.single_layer.iter().map(|(bits, layers)| (bits.to_string(), measured(layers).into()));
    keys.insert("single_layer".to_string(), single.collect::<Map<_, _>>().into());
    let cumulative = file.cumulative.iter().map(|(&bits, curve)| (bits.to_string(), curve_of(bits, curve)));
    keys.insert("cumulative".to_string(), cumulative.collect::<Map<_, _>>().into());
    keys.insert("baselines".to_string(), json!(file.baselines));
    let recipe = |(name, recipe): (&String, &super::Recipe)| {
        let layers = recipe.layers.iter().map(|(layer, scheme)| (layer.clone(), json!(bits(*scheme))));
        (name.clone(), layers.collect::<Map<_, _>>().into())
    };
    keys.insert("recipes".to_string(), file.recipes.iter().map(recipe).collect::<Map<_, _>>().into());
    if let Some(details) = &file.details {
        keys.insert("mixbit".to_string(), own(file, details));
    }
    keys.extend(file.other.iter().map(|(key, value)| (key.clone(), value.clone())));
    format!("{:#}\n", Value::Object(keys))
}

fn measured(layers: &[Measured]) -> Map<String, Value> {
    layers.iter().map(|(layer, values)| (layer.clone(), json!(values))).collect()
}

fn curve_of(bits: u32, curve: &Cumulative) -> Value {
    let metadata = json!({
        "nbits": bits,
        "out_ngroups": 1,
        "in_ngroups": 1,
        "cumulative": true,
        "candidates": curve.layers.iter().map(|(layer, _)| layer).collect::<Vec<_>>(),
        "sizes": curve.sizes,
    });
    let mut keys = Map::new();
    keys.insert("metadata".to_string(), metadata);
    keys.extend(measured(&curve.layers));
    keys.into()
}

/// Our own key.
fn own(file: &RecipeFile, details: &Details) -> Value {
    let recipe = |(name, recipe): (&String, &super::Recipe)| {
        let chosen = recipe.layers.iter().filter_map(|(layer, scheme)| Some((layer, (*scheme)?)));
        let mut keys = Map::new();
        let layers: Map<String, Value> =
            chosen.map(|(layer, scheme)| (layer.clone(), json!(scheme.to_string()))).collect();
        keys.insert("layers".to_string(), layers.into());
        keys.extend(recipe.bytes.map(|bytes| ("bytes".to_string(), json!(bytes))));
        for (field, value) in [
            ("bits_per_weight", recipe.bits_per_weight),
            ("predicted_psnr", recipe.predicted_psnr),
            ("measured_psnr", recipe.measured_psnr),
        ] {
            keys.extend(value.map(|value| (field.to_string(), json!(value))));
        }
        (name.clone(), Value::Object(keys))
    };
    let mut keys = Map::new();
    keys.insert("version".to_string(), json!(details.version));
    keys.insert("model".to_string(), json!(details.model));
    keys.insert("calibration".to_string(), json!(details.calibration));
    if !details.importance.is_empty() {
        let one = |(layer, importance): (&String, &super::Importance)| {
            let bytes: Vec<u8> = importance.0.iter().flat_map(|value| value.to_le_bytes()).collect();
            (layer.clone(), json!(base64::encode(&bytes)))
        };
        keys.insert(
            "importance".to_string(),
            details.importance.iter().map(one).collect::<Map<_, _>>().into(),
        );
    }
    keys.extend(details.int8.iter().map(|int8| ("int8".to_string(), json!(int8))));
    keys.insert("recipes".to_string(), file.recipes.iter().map(recipe).collect::<Map<_, _>>().into());
    keys.into()
}
