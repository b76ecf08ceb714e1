//! `mixbit compare`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Output};

use mixbit_testkit::Scratch;
use serde_json::Value;

type Error = Box<dyn std::error::Error>;

const PROMPT: &str = "a small red circle above a large blue square on a white background";

fn compare(output: &Path, arguments: &[&str]) -> Result<Output, Error> {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../app/demo");
    let output = output.to_str().ok_or("the path is not UTF-8")?;
    let models = format!("{demo},{demo}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.args(["compare", "--models", &models, "--output", output, "--steps", "2", PROMPT]);
    Ok(command.args(arguments).output()?)
}

#[test]
fn equal_models_are_equal_and_fewer_bits_are_worse() -> Result<(), Error> {
    let scratch = Scratch::new();
    let grid = scratch.path().join("grid.png");
    let output = compare(&grid, &["<b>", "--schemes", "palette-8,palette-2", "--json"])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout)?;
    let images = summary["images"].as_array().ok_or("no images")?;
    // Two prompts; two models as they are, and in two forms each.
    assert_eq!(images.len(), 12);
    for row in images.chunks(6) {
        let equal: Vec<bool> = row.iter().map(|image| image["is_equal"] == true).collect();
        assert_eq!(equal, [true, false, false, true, false, false]);
        for kind in ["latents_psnr", "pixels_psnr"] {
            let psnr = |at: usize| row[at][kind].as_f64().unwrap_or(f64::INFINITY);
            assert!(psnr(1) > psnr(2) + 10.0, "{kind}: {} {}", psnr(1), psnr(2));
            assert_eq!((psnr(1), psnr(2)), (psnr(4), psnr(5)), "{kind}");
        }
    }
    let info = png::Decoder::new(BufReader::new(File::open(&grid)?)).read_info()?;
    // Lines of 16 pixels: at least a name and the MB above, and below each image its PSNR.
    let (width, height) = (info.info().width, info.info().height);
    assert_eq!(width, 8 + 6 * 136);
    let header = height - 8 - 2 * (16 + 4 + 128 + 16 + 8);
    assert!(header >= 32 && header % 16 == 0, "{header}");
    Ok(())
}

#[test]
fn what_can_t_be_compared_is_refused() -> Result<(), Error> {
    let scratch = Scratch::new();
    let grid = scratch.path().join("grid.png");
    let recipe =
        scratch.file("recipe.json", br#"{"model_version": "m", "recipes": {"a": {"no.such.layer": 4}}}"#);
    let recipe = recipe.to_str().ok_or("the path is not UTF-8")?;
    for (arguments, message) in [
        (vec!["--recipes", "/no/such/file"], "/no/such/file"),
        (vec!["--recipes", recipe, "--select", "b"], "`b`"),
        (vec!["--recipes", recipe], "no.such.layer"),
        (vec!["--size", "9x9"], "width"),
        (vec!["--schemes", "palette-5"], "palette-5"),
    ] {
        let output = compare(&grid, &arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(message), "{arguments:?}: {error}");
        assert!(!grid.exists());
    }
    Ok(())
}
