//! From JSON.

use std::collections::BTreeMap;

use half::f16;
use mixbit_compress::{Scheme, Width};
use serde::Deserialize;
use serde_json::{Map, Value};

use mixbit_formats::{base64, json};

use super::{Cumulative, Details, Importance, Measured, Recipe, RecipeError, RecipeFile, UNTOUCHED, bits};

pub(super) fn parse(text: &str) -> Result<RecipeFile, RecipeError> {
    // Python writes a PSNR that is not finite as a bare word.
    let value = json::parse(text).map_err(|error| match error.is_eof() {
        true => RecipeError::Truncated { line: error.line(), column: error.column() },
        false => RecipeError::Json(error.to_string()),
    })?;
    let Value::Object(mut keys) = value else { return Err(kind("the whole", "an object", &value)) };
    let mut take = |key: &str| keys.shift_remove(key);
    let missing = |key: &str| RecipeError::Missing { key: key.to_string() };
    let model_version = take("model_version").ok_or_else(|| missing("model_version"))?;
    let recipes = take("recipes").ok_or_else(|| missing("recipes"))?;
    let mut file =
        RecipeFile { model_version: string("model_version", &model_version)?, ..RecipeFile::default() };
    if let Some(curves) = take("single_layer") {
        file.single_layer = by_bits("single_layer", &curves, measured)?;
    }
    if let Some(curves) = take("cumulative") {
        file.cumulative = by_bits("cumulative", &curves, cumulative)?;
    }
    if let Some(baselines) = take("baselines") {
        for (name, value) in object("baselines", &baselines)? {
            file.baselines.insert(name.clone(), number(&format!("baselines.{name}"), value)?);
        }
    }
    for (name, layers) in object("recipes", &recipes)? {
        file.recipes.insert(name.clone(), recipe(name, layers)?);
    }
    if let Some(details) = take("mixbit") {
        let details = object("mixbit", &details)?;
        own_recipes(&mut file.recipes, details)?;
        file.details = Some(self::details(details)?);
    }
    file.other = keys;
    Ok(file)
}

fn kind(key: &str, expected: &'static str, value: &Value) -> RecipeError {
    let found = match value {
        Value::Null => "null".to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "text".to_string(),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
    };
    RecipeError::Kind { key: key.to_string(), expected, found }
}

fn object<'a>(key: &str, value: &'a Value) -> Result<&'a Map<String, Value>, RecipeError> {
    value.as_object().ok_or_else(|| kind(key, "an object", value))
}

fn string(key: &str, value: &Value) -> Result<String, RecipeError> {
    value.as_str().map(str::to_string).ok_or_else(|| kind(key, "text", value))
}

fn number(key: &str, value: &Value) -> Result<f64, RecipeError> {
    let number = match value.as_str() {
        // What JSON's own writers make of it.
        None if value.is_null() => Some(f64::NAN),
        Some("NaN") => Some(f64::NAN),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        _ => value.as_f64(),
    };
    number.ok_or_else(|| kind(key, "a number", value))
}

/// Reads each value of an object whose keys are widths.
fn by_bits<T>(
    key: &str,
    value: &Value,
    read: impl Fn(&str, &Value) -> Result<T, RecipeError>,
) -> Result<BTreeMap<u32, T>, RecipeError> {
    let one = |(name, value): (&String, &Value)| {
        let key = format!("{key}.{name}");
        let bits = name.parse().map_err(|_| RecipeError::Kind {
            key: key.clone(),
            expected: "a number of bits",
            found: format!("`{name}`"),
        })?;
        Ok((bits, read(&key, value)?))
    };
    object(key, value)?.iter().map(one).collect()
}

fn measured(key: &str, value: &Value) -> Result<Vec<Measured>, RecipeError> {
    let layers = object(key, value)?.iter().filter(|(layer, _)| *layer != "metadata");
    let one = |(layer, value): (&String, &Value)| {
        let key = format!("{key}.{layer}");
        let list = value.as_array().ok_or_else(|| kind(&key, "a list of dB", value))?;
        let values = list.iter().map(|value| number(&key, value)).collect::<Result<_, _>>()?;
        Ok((layer.clone(), values))
    };
    layers.map(one).collect()
}

fn cumulative(key: &str, value: &Value) -> Result<Cumulative, RecipeError> {
    let layers = measured(key, value)?;
    let sizes = object(key, value)?.get("metadata").and_then(|metadata| metadata.get("sizes"));
    let key = format!("{key}.metadata.sizes");
    let size =
        |value: &Value| value.as_u64().ok_or_else(|| kind(&key, "a list of numbers of weights", value));
    let sizes = match sizes {
        None => Vec::new(),
        Some(Value::Array(sizes)) => sizes.iter().map(size).collect::<Result<_, _>>()?,
        Some(other) => return Err(kind(&key, "a list", other)),
    };
    Ok(Cumulative { layers, sizes })
}

/// A recipe in Apple's form: bits by layer.
fn recipe(name: &str, value: &Value) -> Result<Recipe, RecipeError> {
    let one = |(layer, value): (&String, &Value)| {
        let illegal = || RecipeError::Width {
            recipe: name.to_string(),
            layer: layer.clone(),
            value: value.to_string(),
        };
        let bits = value.as_u64().and_then(|bits| u32::try_from(bits).ok()).ok_or_else(illegal)?;
        let scheme = match bits {
            UNTOUCHED => None,
            bits => Some(Scheme::palette(Width::of_bits(bits).ok_or_else(illegal)?)),
        };
        Ok::<_, RecipeError>((layer.clone(), scheme))
    };
    let layers = object(&format!("recipes.{name}"), value)?.iter().map(one).collect::<Result<_, _>>()?;
    Ok(Recipe { layers, ..Recipe::default() })
}

/// Reads the recipes under mixbit's own key into those of Apple's keys.
fn own_recipes(
    recipes: &mut BTreeMap<String, Recipe>,
    details: &Map<String, Value>,
) -> Result<(), RecipeError> {
    let Some(own) = details.get("recipes") else { return Ok(()) };
    for (name, value) in object("mixbit.recipes", own)? {
        let key = format!("mixbit.recipes.{name}");
        let value = object(&key, value)?;
        let recipe =
            recipes.get_mut(name).ok_or_else(|| RecipeError::Missing { key: format!("recipes.{name}") })?;
        let layers =
            value.get("layers").ok_or_else(|| RecipeError::Missing { key: format!("{key}.layers") })?;
        let mut own = BTreeMap::new();
        for (layer, text) in object(&format!("{key}.layers"), layers)? {
            let text = string(&format!("{key}.layers.{layer}"), text)?;
            let scheme = text.parse().map_err(|source| RecipeError::Scheme {
                recipe: name.clone(),
                layer: layer.clone(),
                source,
            })?;
            own.insert(layer.clone(), Some(scheme));
        }
        agree(name, recipe, &own)?;
        recipe.layers.extend(own);
        let optional =
            |field: &str| value.get(field).map(|value| number(&format!("{key}.{field}"), value)).transpose();
        let bytes = value.get("bytes");
        recipe.bytes = bytes
            .map(|value| {
                value.as_u64().ok_or_else(|| kind(&format!("{key}.bytes"), "a number of bytes", value))
            })
            .transpose()?;
        recipe.bits_per_weight = optional("bits_per_weight")?;
        recipe.predicted_psnr = optional("predicted_psnr")?;
        recipe.measured_psnr = optional("measured_psnr")?;
    }
    Ok(())
}

/// Refuses a recipe that does not have the same layers with the same bits in both forms.
fn agree(name: &str, recipe: &Recipe, own: &BTreeMap<String, Option<Scheme>>) -> Result<(), RecipeError> {
    let said = |scheme: Option<&Option<Scheme>>| {
        scheme.map_or("nothing".to_string(), |scheme| bits(*scheme).to_string())
    };
    for layer in recipe.layers.keys().chain(own.keys()) {
        // Ours names only the layers that change.
        let (theirs, ours) = (recipe.layers.get(layer), own.get(layer));
        if theirs.is_none() || bits(theirs.copied().flatten()) != bits(ours.copied().flatten()) {
            return Err(RecipeError::Disagree {
                recipe: name.to_string(),
                layer: layer.clone(),
                bits: said(theirs),
                scheme: ours.copied().flatten().map_or("nothing".to_string(), |scheme| scheme.to_string()),
            });
        }
    }
    Ok(())
}

fn details(keys: &Map<String, Value>) -> Result<Details, RecipeError> {
    let mut importance = BTreeMap::new();
    if let Some(value) = keys.get("importance") {
        for (layer, value) in object("mixbit.importance", value)? {
            let key = format!("mixbit.importance.{layer}");
            let bytes = base64::decode(&string(&key, value)?);
            let values = bytes.as_deref().map(|bytes| bytes.as_chunks::<2>());
            let values: Vec<f16> = match values {
                Some((halves, [])) => halves.iter().map(|&half| f16::from_le_bytes(half)).collect(),
                _ => return Err(kind(&key, "halves in base 64", value)),
            };
            if values.iter().any(|value| !value.is_finite() || value.to_f32() < 0.0) {
                return Err(kind(&key, "a list of finite numbers that are not negative", value));
            }
            importance.insert(layer.clone(), Importance(values));
        }
    }
    Ok(Details {
        version: string("mixbit.version", keys.get("version").unwrap_or(&Value::Null))?,
        model: typed("model", keys)?,
        calibration: typed("calibration", keys)?,
        importance,
        int8: keys.contains_key("int8").then(|| typed("int8", keys)).transpose()?,
    })
}

fn typed<T: for<'a> Deserialize<'a>>(key: &str, keys: &Map<String, Value>) -> Result<T, RecipeError> {
    let full = format!("mixbit.{key}");
    let value = keys.get(key).ok_or_else(|| RecipeError::Missing { key: full.clone() })?;
    T::deserialize(value).map_err(|error| RecipeError::Json(format!("`{full}`: {error}")))
}
