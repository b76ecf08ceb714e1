//! `mixbit inspect` on models, packages and weight files.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::{Failures, Scratch, fixture_root};

type Error = Box<dyn std::error::Error>;

fn inspect(path: &Path, more: &[&str]) -> Result<String, Error> {
    let output = Command::new(env!("CARGO_BIN_EXE_mixbit")).arg("inspect").arg(path).args(more).output()?;
    match output.status.code() {
        Some(0) => Ok(String::from_utf8(output.stdout)?),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

fn parts(path: &Path) -> Result<Vec<Value>, Error> {
    let printed: Value = serde_json::from_str(&inspect(path, &["--json"])?)?;
    Ok(printed["parts"].as_array().ok_or("no parts")?.clone())
}

#[test]
fn a_package_has_the_weights_of_its_checkpoint() -> Result<(), Error> {
    let scratch = Scratch::new();
    let model = fixture_root().join("pipelines/sdxl");
    let status = Command::new(env!("CARGO_BIN_EXE_mixbit"))
        .args(["convert", "--quiet", "--attention-implementation", "ORIGINAL", "--model"])
        .arg(&model)
        .arg("--output")
        .arg(scratch.path())
        .output()?;
    assert!(status.status.success());
    let (checkpoint, packages) = (parts(&model)?, parts(scratch.path())?);
    let named = |parts: &[Value], end: &str| {
        parts.iter().find(|part| part["name"].as_str().is_some_and(|name| name.ends_with(end))).cloned()
    };
    let (whole, packaged) = (
        named(&checkpoint, "Unet").ok_or("no UNet")?,
        named(&packages, "_unet.mlpackage").ok_or("no package of the UNet")?,
    );
    for field in ["inputs", "outputs", "operations", "opset"] {
        assert_eq!(whole[field], packaged[field], "{field}");
    }
    // A package's weight file also holds tables of ten elements and more, which are no parameters: statistics of batch
    // norms that do nothing, and the frequencies of sinusoids.
    let count = |part: &Value| part["weights"].as_u64().ok_or("no count");
    let (parameters, constants) = (count(&whole)?, count(&packaged)?);
    assert!(
        (parameters..parameters + 1000).contains(&constants),
        "{parameters} parameters, {constants} constants"
    );
    assert_eq!(whole["bits_per_weight"], 16.0);
    assert_eq!(packaged["specification_version"], 7);
    assert_eq!(packaged["metadata"]["mixbit.component"], "unet");
    let text = inspect(&scratch.path().join(packaged["name"].as_str().ok_or("no name")?), &[])?;
    assert!(text.contains("sample") && text.contains("bits each"), "{text}");
    let mil = inspect(&scratch.path().join(packaged["name"].as_str().ok_or("no name")?), &["--mil"])?;
    assert!(mil.starts_with("program(1.0)") && mil.contains("noise_pred"));
    Ok(())
}

#[test]
fn palettes_count_by_their_bits() -> Result<(), Error> {
    let folder = fixture_root().join("coreml");
    let mut failures = Failures::new("palettized packages");
    let mut found = 0;
    for entry in std::fs::read_dir(&folder)?.filter_map(Result::ok) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".mlpackage") {
            continue;
        }
        found += 1;
        failures.case(&name, || {
            let part = parts(&path)?.remove(0);
            let bits = part["bits_per_weight"].as_f64().ok_or("no bits")?;
            match bits > 0.0 && bits <= 32.0 {
                true => Ok::<(), Error>(()),
                false => Err(format!("{bits} bits").into()),
            }
        });
    }
    assert!(found > 0, "no packages in {}", folder.display());
    failures.finish();
    Ok(())
}

#[test]
fn a_weight_file_lists_its_tensors_and_others_are_refused() -> Result<(), Error> {
    let file = fixture_root().join("pipelines/sd15/unet/diffusion_pytorch_model.safetensors");
    let text = inspect(&file, &[])?;
    assert!(text.contains("conv_in.weight: tensor<") && text.contains("tensors,"), "{text}");
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("file"), b"text")?;
    for path in [scratch.path().join("file"), scratch.path().join("absent"), scratch.path().to_path_buf()] {
        let error = inspect(&path, &[]).err().ok_or("it was accepted")?.to_string();
        assert!(error.starts_with("error: ") && error.trim().lines().count() == 1, "{error}");
    }
    Ok(())
}
