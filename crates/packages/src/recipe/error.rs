use std::path::PathBuf;

use mixbit_compress::Width;
use thiserror::Error;

use super::UNTOUCHED;

/// A defect of a recipe file.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// The defect of a file, with its path.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The defect.
        source: Box<RecipeError>,
    },
    /// The system can't read or write it.
    #[error(transparent)]
    Io(#[from] mixbit_formats::Error),
    /// The text ends before the JSON does.
    #[error(
        "the text ends at line {line}, column {column}, in the middle of the JSON: it was cut short; copy it again"
    )]
    Truncated {
        /// The last line, from 1.
        line: usize,
        /// The last column, from 1.
        column: usize,
    },
    /// The text is not JSON.
    #[error("it is not JSON: {0}")]
    Json(String),
    /// A key is missing.
    #[error("`{key}` is missing: it is not a palettization recipe, or a part of one")]
    Missing {
        /// The key, with those above it.
        key: String,
    },
    /// A value is of another kind.
    #[error("`{key}` is {found}, not {expected}")]
    Kind {
        /// The key, with those above it.
        key: String,
        /// The expected content.
        expected: &'static str,
        /// The content.
        found: String,
    },
    /// A layer has a width that there is not.
    #[error("recipe `{recipe}`, layer `{layer}`: {value} is no width; there are {all}", all = widths())]
    Width {
        /// The recipe.
        recipe: String,
        /// The layer.
        layer: String,
        /// The value.
        value: String,
    },
    /// A layer has an unknown scheme.
    #[error("recipe `{recipe}`, layer `{layer}`: {source}")]
    Scheme {
        /// The recipe.
        recipe: String,
        /// The layer.
        layer: String,
        /// The forms that there are.
        source: mixbit_compress::Error,
    },
    /// The two places with a layer's scheme disagree.
    #[error(
        "recipe `{recipe}`, layer `{layer}`: `recipes` says {bits} and `mixbit.recipes` says {scheme}; make them agree, \
         or remove the latter recipe"
    )]
    Disagree {
        /// The recipe.
        recipe: String,
        /// The layer.
        layer: String,
        /// The value in `recipes`.
        bits: String,
        /// The value in `mixbit.recipes`.
        scheme: String,
    },
    /// No recipe has such a name.
    #[error("no recipe is called `{asked}`; the file has {}", if names.is_empty() { "none" } else { names })]
    NoRecipe {
        /// The name that was given.
        asked: String,
        /// The recipes.
        names: String,
    },
    /// Several recipes have such names.
    #[error("several recipes have `{asked}` in their names: {names}")]
    Ambiguous {
        /// The name that was given.
        asked: String,
        /// The recipes.
        names: String,
    },
}

fn widths() -> String {
    let widths: Vec<String> = Width::ALL.iter().map(|width| width.bits().to_string()).collect();
    format!("{}, and {UNTOUCHED} for a layer that stays as it is", widths.join(", "))
}
