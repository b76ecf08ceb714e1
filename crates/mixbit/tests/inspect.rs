//! `mixbit inspect` on models, packages and weight files.

use std::path::Path;
use std::process::Command;

use mixbit_testkit::{Failures, Scratch, fixture_root};
use serde_json::Value;

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
    // A package's weight file also holds tables of ten elements and more, which are no parameters: statistics
    // of batch norms that do nothing, and the frequencies of sinusoids.
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
    // Every weight of the checkpoint is a layer of the package, by name and size.
    let layers = |part: &Value| part["layers"].as_array().cloned().ok_or("no layers");
    let packaged = layers(&packaged)?;
    for layer in layers(&whole)? {
        assert!(packaged.contains(&layer), "{layer}");
    }
    assert_eq!(packaged.iter().filter(|layer| layer["name"] == "conv_in.weight").count(), 1);
    Ok(())
}

/// What every encoding is called, and what it takes.
#[test]
fn layers_are_listed_with_their_encodings() -> Result<(), Error> {
    let mut failures = Failures::new("encodings");
    for (name, encoding, bytes, bits) in [
        ("ios16_linear_uint8", "8-bit linear, 16 groups", 4608 + 16 + 32, "8.08"),
        ("ios16_palette4", "4-bit palette", 2304 + 32, "4.06"),
        ("ios16_sparse", "sparse fp16", 2304 * 2 + 576, "9.00"),
        ("ios18_linear_int4_blocks8", "4-bit linear, 64 groups", 2304 + 128, "4.22"),
        ("ios18_palette3_groups4_axis1", "3-bit palette, 8 groups", 1728 + 128, "3.22"),
        ("ios18_palette4_int8", "4-bit palette in int8, 2 groups", 2304 + 32 + 2, "4.06"),
        ("ios18_sparse", "sparse fp16", 2304 * 2 + 576, "9.00"),
    ] {
        failures.case(name, || {
            let package = fixture_root().join("coreml/encodings").join(name).with_extension("mlpackage");
            let text = inspect(&package, &["--layers"])?;
            let row = text.lines().find(|line| line.contains("[16, 32, 3, 3]")).ok_or("no row")?;
            let cells: Vec<&str> = row.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
            let expected = [bits, &bytes.to_string(), encoding, "[16, 32, 3, 3]"];
            match cells.starts_with(&expected) {
                true => Ok::<(), Error>(()),
                false => Err(text.into()),
            }
        });
    }
    failures.finish();
    // The totals are those of the whole.
    let package = fixture_root().join("coreml/unet_sdxl_split_einsum__pal2.mlpackage");
    let part = parts(&package)?.remove(0);
    let layers = part["layers"].as_array().ok_or("no layers")?;
    let bytes: u64 = layers.iter().filter_map(|layer| layer["bytes"].as_u64()).sum();
    assert_eq!(part["weight_bytes"], bytes);
    let text = inspect(&package, &["--layers"])?;
    let all = text.lines().find(|line| line.ends_with("  all")).ok_or("no total")?;
    assert!(all.contains(&format!(" {bytes} ")) && all.contains(&format!(" {} ", layers.len())), "{all}");
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
    let layers = inspect(&file, &["--layers"])?;
    assert!(
        layers.lines().any(|line| line.contains("16.00") && line.ends_with("conv_in.weight")),
        "{layers}"
    );
    assert!(inspect(&file, &["--mil"]).is_err());
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("file"), b"text")?;
    for path in [scratch.path().join("file"), scratch.path().join("absent"), scratch.path().to_path_buf()] {
        let error = inspect(&path, &[]).err().ok_or("it was accepted")?.to_string();
        assert!(error.starts_with("error: ") && error.trim().lines().count() == 1, "{error}");
    }
    Ok(())
}
