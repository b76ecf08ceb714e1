use std::path::PathBuf;

use mixbit_compress::Width;
use thiserror::Error;

use super::UNTOUCHED;

/// What is wrong with a recipe file.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// What is wrong with a file, by its path.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A layer has a width that there is not.
    #[error("recipe `{recipe}`, layer `{layer}`: {value} is no width; there are {all}", all = widths())]
    Width {
        /// The recipe.
        recipe: String,
        /// The layer.
        layer: String,
        /// What it says.
        value: String,
    },
    /// A layer has a form that there is not.
    #[error("recipe `{recipe}`, layer `{layer}`: {source}")]
    Scheme {
        /// The recipe.
        recipe: String,
        /// The layer.
        layer: String,
        /// The forms that there are.
        source: mixbit_compress::Error,
    },
    /// The two places that say how a layer is stored disagree.
    #[error(
        "recipe `{recipe}`, layer `{layer}`: `recipes` says {bits} and `mixbit.recipes` says {scheme}; make them agree, \
         or remove the latter recipe"
    )]
    Disagree {
        /// The recipe.
        recipe: String,
        /// The layer.
        layer: String,
        /// What `recipes` says.
        bits: String,
        /// What `mixbit.recipes` says.
        scheme: String,
    },
    /// No recipe has such a name.
    #[error("no recipe is called `{asked}`; there are {names}")]
    NoRecipe {
        /// What was asked for.
        asked: String,
        /// The recipes.
        names: String,
    },
    /// Several recipes have such names.
    #[error("several recipes have `{asked}` in their names: {names}")]
    Ambiguous {
        /// What was asked for.
        asked: String,
        /// The recipes.
        names: String,
    },
}

fn widths() -> String {
    let widths: Vec<String> = Width::ALL.iter().map(|width| width.bits().to_string()).collect();
    format!("{}, and {UNTOUCHED} for a layer that stays as it is", widths.join(", "))
}
