//! Recipe files: their tables, and the choice of a recipe.

use std::path::Path;

use anyhow::{Context, bail};
use mixbit_packages::recipe::RecipeFile;
use serde_json::{Value, json};

use super::print_line;
use super::printable::visible_line;
use super::table::{Side, Table, counted};

/// Reads a recipe file and chooses a recipe, by its name, a part of it, or a number of bits. A file with one
/// recipe needs no choice.
///
/// # Errors
/// If the file can't be read, or the choice is missing or has several meanings; the recipes are listed.
pub(super) fn chosen(path: &Path, select: Option<&str>) -> anyhow::Result<(RecipeFile, String)> {
    let file = RecipeFile::read(path)?;
    let only = match &file.recipes.keys().collect::<Vec<_>>()[..] {
        [only] => Some(only.to_string()),
        _ => None,
    };
    let name = match (select, only) {
        (Some(select), _) => file.select(select).with_context(|| path.display().to_string())?.0.to_string(),
        (None, Some(only)) => only,
        (None, None) if file.recipes.is_empty() => bail!("{} has no recipes", path.display()),
        (None, None) => bail!("--select says which recipe of {}: {}", path.display(), listed(&file)),
    };
    Ok((file, name))
}

/// The chosen recipe, and how far it is from the bits that were asked for, if it is.
pub(super) fn chosen_in_words(file: &RecipeFile, name: &str, asked: Option<&str>) -> String {
    let bits = file.recipes.get(name).and_then(|recipe| recipe.bits(name));
    let asked = asked.and_then(|asked| asked.parse::<f64>().ok());
    match asked.zip(bits) {
        Some((asked, bits)) if (asked - bits).abs() >= OFF => {
            format!("recipe {name}: {bits:.2} bits per weight, the nearest to {asked}")
        }
        _ => format!("recipe {name}"),
    }
}

/// The distance in bits per weight from which a recipe is not what was asked for.
const OFF: f64 = 0.05;

/// The recipes of a file, each with its bits and PSNR.
fn listed(file: &RecipeFile) -> String {
    let one = |name: &String| {
        let psnr = psnr(file, name).map(|psnr| format!(", {psnr:.1} dB")).unwrap_or_default();
        match file.recipes.get(name).and_then(|recipe| recipe.bits(name)) {
            Some(bits) => format!("{bits:.2} ({name}{psnr})"),
            None => format!("{name}{psnr}"),
        }
    };
    visible_line(&file.recipes.keys().map(one).collect::<Vec<_>>().join(", "))
}

/// The PSNR that was measured with a recipe, in dB.
pub(super) fn psnr(file: &RecipeFile, name: &str) -> Option<f64> {
    let measured = file.recipes.get(name).and_then(|recipe| recipe.measured_psnr);
    measured.or_else(|| file.baselines.get(name).copied())
}

/// Shows a recipe file: the model and the calibration, then a table of its recipes.
pub(super) fn show(path: &Path, json: bool) -> anyhow::Result<()> {
    let file = RecipeFile::read(path)?;
    match json {
        true => print_line(format_args!("{:#}", to_json(&file))),
        false => print_line(to_text(&file)),
    }
}

fn to_text(file: &RecipeFile) -> String {
    let mut text = format!("recipes for {}\n", visible_line(&file.model_version));
    if let Some(details) = &file.details {
        let [width, height] = details.calibration.size;
        text += &format!(
            "  made by mixbit {}: {} weights, {}, {width}x{height}, {}\n",
            visible_line(&details.version),
            details.model.weights,
            counted(details.calibration.prompts.len() as u64, "prompt"),
            counted(details.calibration.timesteps.len() as u64, "state")
        );
    }
    let other = file.baselines.iter().filter(|(name, _)| !file.recipes.contains_key(*name));
    let mut table = Table::new([
        ("bits", Side::Right),
        ("MB", Side::Right),
        ("predicted", Side::Right),
        ("PSNR, dB", Side::Right),
        ("layers", Side::Right),
        ("recipe", Side::Left),
    ]);
    let number =
        |value: Option<f64>, decimals: usize| value.map_or("-".into(), |value| format!("{value:.decimals$}"));
    for (name, recipe) in &file.recipes {
        table.row([
            number(recipe.bits(name), 2),
            number(recipe.bytes.map(|bytes| bytes as f64 / 1e6), 1),
            number(recipe.predicted_psnr, 1),
            number(psnr(file, name), 1),
            recipe.layers.values().flatten().count().to_string(),
            name.clone(),
        ]);
    }
    for (name, psnr) in other {
        let none = || "-".to_string();
        table.row([none(), none(), none(), number(Some(*psnr), 1), none(), format!("{name} (beside)")]);
    }
    text + &table.to_string()
}

fn to_json(file: &RecipeFile) -> Value {
    let one = |name: &String| {
        let recipe = &file.recipes[name];
        json!({
            "name": name,
            "bits_per_weight": recipe.bits(name),
            "bytes": recipe.bytes,
            "predicted_psnr": recipe.predicted_psnr,
            "measured_psnr": psnr(file, name),
            "layers": recipe.layers.values().flatten().count(),
        })
    };
    json!({
        "model": file.model_version,
        "recipes": file.recipes.keys().map(one).collect::<Vec<_>>(),
        "baselines": file.baselines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"model_version": "m", "baselines": {"linear_8bit": 66.025, "recipe_4.50_bit": 75.8},
        "recipes": {"recipe_3.00_bit": {"a": 1, "b": 16}, "recipe_4.50_bit": {"a": 4, "b": 8}}}"#;

    #[test]
    fn a_missing_choice_lists_the_recipes() {
        let scratch = mixbit_testkit::Scratch::new();
        let path = scratch.file("recipe.json", FILE.as_bytes());
        let error = chosen(&path, None).unwrap_err().to_string();
        assert!(error.contains("3.00 (recipe_3.00_bit), 4.50 (recipe_4.50_bit, 75.8 dB)"), "{error}");
        assert_eq!(chosen(&path, Some("4.2")).unwrap().1, "recipe_4.50_bit");
        assert!(chosen(&path, Some("x")).is_err());
        let file = RecipeFile::read(&path).unwrap();
        let words = |asked| chosen_in_words(&file, "recipe_4.50_bit", asked);
        assert_eq!(words(Some("9")), "recipe recipe_4.50_bit: 4.50 bits per weight, the nearest to 9");
        for asked in [Some("4.5"), Some("4.50_bit"), None] {
            assert_eq!(words(asked), "recipe recipe_4.50_bit");
        }
        let one = scratch.file("one.json", br#"{"model_version": "m", "recipes": {"only": {"a": 4}}}"#);
        assert_eq!(chosen(&one, None).unwrap().1, "only");
    }

    #[test]
    fn a_file_is_shown_as_a_table() {
        let expected = "recipes for m\n  bits   MB   predicted   PSNR, dB   layers   recipe\n  \
                        3.00    -           -          -        1   recipe_3.00_bit\n  \
                        4.50    -           -       75.8        2   recipe_4.50_bit\n     \
                        -    -           -       66.0        -   linear_8bit (beside)";
        assert_eq!(to_text(&RecipeFile::parse(FILE).unwrap()), expected);
    }
}
