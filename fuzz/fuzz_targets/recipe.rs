//! Any bytes as a recipe file: no panic, and what is accepted is written and read back as the same recipes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mixbit_packages::recipe::RecipeFile;

fuzz_target!(|file: &[u8]| {
    let Ok(text) = std::str::from_utf8(file) else { return };
    let Ok(recipes) = RecipeFile::parse(text) else { return };
    let again = RecipeFile::parse(&recipes.to_text()).expect("what is written parses");
    assert_eq!(again.to_text(), recipes.to_text());
});
