//! The last lines of a command: what to do with its result.

use std::path::Path;

/// The command that draws with a model.
pub(super) fn drawing(model: &Path) -> String {
    format!("draw with it: mixbit generate \"a red circle\" --model {}", quoted(model))
}

/// The way of compiled models into an app.
pub(super) fn app(resources: &Path) -> String {
    format!("for an app: drag {} into Xcode", quoted(resources))
}

/// The command that applies a recipe to the model that it was made on; `None` stands for the demo model.
pub(super) fn palettizing(model: Option<&Path>, recipe: &Path, select: &str) -> String {
    let model = model.map_or("--demo".to_string(), quoted);
    format!(
        "apply one: mixbit palettize {model} --recipe {} --select {select} --output small",
        quoted(recipe)
    )
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        assert!(drawing(Path::new("out/sdxl")).ends_with("--model out/sdxl"));
        assert!(drawing(Path::new("my models/it's")).ends_with(r"--model 'my models/it'\''s'"));
        assert!(palettizing(None, Path::new("r.json"), "4.50").contains("palettize --demo --recipe r.json"));
    }
}
