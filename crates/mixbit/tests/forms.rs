//! Packages with more than one function of fixed shapes, made by coremltools
//! (`tools/reference/coreml_forms.py`): read, palettized, shown and run.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mixbit_formats::coreml::{self, ColorSpace, Feature, FeatureKind, Model, ShapeFlexibility};
use mixbit_formats::npy::{NamedArray, Npz, write_npz};
use mixbit_mil::{DType, TensorType, Weights};
use mixbit_packages::inspect::open;
use mixbit_packages::package::ConversionOptions;
use mixbit_packages::source::OpenOptions;
use mixbit_testkit::{ErrorStats, Failures, Scratch, fixture_root};
use serde_json::{Map, Value, json};

type Error = Box<dyn std::error::Error>;

fn forms() -> PathBuf {
    fixture_root().join("coreml/forms")
}

fn mixbit(arguments: &[&OsStr]) -> Result<Output, Error> {
    Ok(Command::new(env!("CARGO_BIN_EXE_mixbit")).args(arguments).env_remove("MIXBIT_MODEL").output()?)
}

/// The standard output of a command that must succeed.
fn printed(arguments: &[&OsStr]) -> Result<String, Error> {
    let output = mixbit(arguments)?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

/// The error of a command that must fail.
fn refused(arguments: &[&OsStr]) -> Result<String, Error> {
    let output = mixbit(arguments)?;
    match output.status.success() {
        true => Err("it succeeded".into()),
        false => Ok(String::from_utf8(output.stderr)?),
    }
}

fn cases() -> Vec<Value> {
    let text = std::fs::read_to_string(forms().join("cases.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

/// The form of a model, as the script writes that of coremltools.
fn form(name: &str, model: &Model) -> Value {
    let shape = |feature: &Feature| match &feature.kind {
        FeatureKind::Array(ShapeFlexibility::Fixed) => json!(feature.ty.shape),
        FeatureKind::Array(ShapeFlexibility::Enumerated(shapes)) => json!({ "enumerated": shapes }),
        FeatureKind::Array(ShapeFlexibility::Ranges(ranges)) => {
            let ranges: Vec<_> = ranges.iter().map(|range| json!([range.least, range.most])).collect();
            json!({ "ranges": ranges })
        }
        FeatureKind::Image(color) => {
            let code = if *color == ColorSpace::Rgb { 20 } else { 0 };
            json!({ "image": [feature.ty.shape[3], feature.ty.shape[2], code] })
        }
    };
    let inputs = |features: &[Feature]| -> Value {
        features.iter().map(|feature| (feature.name.clone(), shape(feature))).collect::<Map<_, _>>().into()
    };
    let mut functions = Map::new();
    for function in &model.form.functions {
        functions.insert(function.name.clone(), inputs(&function.inputs));
    }
    if functions.is_empty() {
        functions.insert("main".to_string(), inputs(&model.inputs));
    }
    json!({
        "package": name,
        "specification": model.specification_version,
        "default": model.program.default_function.clone().unwrap_or_default(),
        "models": model.form.models.len(),
        "functions": functions,
    })
}

fn same(found: Value, expected: &Value) -> Result<(), Error> {
    if found == *expected { Ok(()) } else { Err(format!("{found}, not {expected}").into()) }
}

#[test]
fn forms_are_read_and_survive_palettizing() {
    let mut failures = Failures::new("forms of packages");
    for case in cases() {
        let name = case["package"].as_str().unwrap();
        let path = forms().join(name);
        failures.case(&format!("{name} read"), || same(form(name, &coreml::read(&path)?), &case));
        if name.starts_with("sparse") {
            continue;
        }
        failures.case(&format!("{name} palettized"), || {
            let scratch = Scratch::new();
            let output = scratch.path().join(name);
            let arguments =
                ["palettize", "--quiet", "--nbits", "4", "--min-size", "10", "--model"].map(OsStr::new);
            let paths = [path.as_os_str(), "--output".as_ref(), output.as_os_str()];
            printed(&[&arguments[..], &paths].concat())?;
            let written = coreml::read(&output)?;
            same(form(name, &written), &case)?;
            // Weights that functions share are stored once, with one palette.
            let bytes = std::fs::metadata(output.join("Data/com.apple.CoreML/weights/weight.bin"));
            match bytes {
                Ok(bytes) if bytes.len() > 64 + 2 * 128 + 64 => {
                    Err(format!("{} bytes of weights", bytes.len()).into())
                }
                _ => Ok::<(), Error>(()),
            }
        });
    }
    failures.finish();
}

#[test]
fn a_compiled_model_can_not_have_them() -> Result<(), Error> {
    let scratch = Scratch::new();
    let output = scratch.path().join("m.mlmodelc");
    for (name, what) in [
        ("range", "flexible shapes"),
        ("functions_main", "several functions"),
        ("pipeline", "a pipeline of models"),
        ("image", "image inputs"),
    ] {
        let path = forms().join(format!("{name}.mlpackage"));
        let arguments = ["palettize", "--nbits", "4", "--min-size", "10", "--model"].map(OsStr::new);
        let paths = [path.as_os_str(), "--output".as_ref(), output.as_os_str()];
        let error = refused(&[&arguments[..], &paths].concat())?;
        assert!(error.contains(what) && error.contains(".mlpackage"), "{error}");
        assert!(!output.exists());
    }
    Ok(())
}

#[test]
fn forms_are_shown() -> Result<(), Error> {
    for (name, texts) in [
        ("range", &["x: tensor<fp16, [1, 8, 4, 4]>, or [1, 8, 4..16, 4..32]"][..]),
        ("enumerated", &["or [1, 8, 4, 4], [1, 8, 6, 6]"]),
        ("functions_main", &["functions_main.mlpackage, function large", "[1, 8, 6, 6]"]),
        ("functions_large", &["functions_large.mlpackage, function main"]),
        ("image", &["an image, RGB", "pixel_shuffle 1"]),
        ("pipeline", &["of 2 models", "conv 2"]),
        ("ios26", &["ios26, specification 10"]),
    ] {
        let path = forms().join(format!("{name}.mlpackage"));
        let text = printed(&["inspect".as_ref(), path.as_os_str()])?;
        for expected in texts {
            assert!(text.contains(expected), "{name}: {text}");
        }
    }
    // The same default function: only the other one differs.
    let [fixed, several] = ["fixed.mlpackage", "functions_main.mlpackage"].map(|name| forms().join(name));
    let output = mixbit(&["diff".as_ref(), fixed.as_os_str(), several.as_os_str()])?;
    let text = String::from_utf8(output.stdout)?;
    assert!(output.status.code() == Some(1) && text.contains("function large"), "{text}");
    let range = forms().join("range.mlpackage");
    let output = mixbit(&["diff".as_ref(), fixed.as_os_str(), range.as_os_str()])?;
    let text = String::from_utf8(output.stdout)?;
    assert!(output.status.code() == Some(1) && text.contains("4..16"), "{text}");
    Ok(())
}

#[test]
fn jointly_compressed_weights_decode_as_in_coremltools() -> Result<(), Error> {
    let decoded = Npz::open(&forms().join("decoded.npz"))?;
    for (name, kind) in [("sparse_palette", "sparse 4-bit palette"), ("sparse_int8", "sparse 8-bit linear")] {
        let path = forms().join(format!("{name}.mlpackage"));
        let networks = open(&path, &ConversionOptions::default(), &OpenOptions::default())?;
        let weight = networks[0].tensors.iter().find(|tensor| tensor.weight.ty().rank() == 4);
        let weight = weight.ok_or("there is no weight")?;
        assert_eq!(weight.kind(), kind);
        let expected = decoded.get(name).ok_or("it is not decoded")?.cast(DType::F16);
        assert_eq!(weight.weight.read()?, expected.read()?, "{name}");
        assert!(weight.bits() < 16.0, "{} bits", weight.bits());
    }
    Ok(())
}

fn floats(archive: &Path, name: &str) -> Result<(TensorType, Vec<f32>), Error> {
    let array = Npz::open(archive)?.get(name).ok_or("an array is missing")?;
    let wide = array.cast(DType::F32);
    let bytes = wide.read()?;
    Ok((array.ty().clone(), bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()))
}

/// Writes an archive with the input of another.
fn inputs(archive: &Path, to: &Path) -> Result<(), Error> {
    let x = Npz::open(archive)?.get("x").ok_or("there is no x")?;
    let bytes = x.read()?.into_owned();
    Ok(write_npz(to, &[NamedArray { name: "x".to_string(), ty: x.ty().clone(), bytes }])?)
}

#[test]
fn predictions_are_those_of_numpy() -> Result<(), Error> {
    let mut failures = Failures::new("predict");
    for (package, data, options) in [
        ("fixed", "fixed", &[][..]),
        ("ios26", "fixed", &["--precision", "f16"]),
        ("range", "fixed", &["--threads", "1"]),
        ("functions_main", "fixed", &["--profile"]),
        ("functions_main", "large", &["--function", "large"]),
        ("functions_large", "large", &[]),
        ("functions_large", "fixed", &["--function", "main"]),
    ] {
        failures.case(&format!("{package} on {data}"), || {
            let scratch = Scratch::new();
            let [given, output] = ["in.npz", "out.npz"].map(|name| scratch.path().join(name));
            let (path, data) =
                (forms().join(format!("{package}.mlpackage")), forms().join(format!("{data}.npz")));
            inputs(&data, &given)?;
            let mut arguments = vec![OsStr::new("predict"), path.as_os_str(), "--inputs".as_ref()];
            arguments.extend([given.as_os_str(), "-o".as_ref(), output.as_os_str()]);
            arguments.extend(options.iter().map(OsStr::new));
            printed(&arguments)?;
            let (ty, found) = floats(&output, "y")?;
            let (expected_ty, expected) = floats(&data, "y")?;
            // The package declares fp16.
            assert_eq!((ty.dtype, ty.shape), (DType::F16, expected_ty.shape));
            ErrorStats::compare(&found, &expected).within(1e-3)?;
            Ok::<(), Error>(())
        });
    }
    failures.finish();
    Ok(())
}

#[test]
fn inputs_that_do_not_fit_are_named() -> Result<(), Error> {
    let scratch = Scratch::new();
    let (given, output) = (scratch.path().join("in.npz"), scratch.path().join("out.npz"));
    let path = forms().join("fixed.mlpackage");
    let zeros = |name: &str, dtype, shape: &[usize]| {
        let ty = TensorType::new(dtype, shape);
        NamedArray { name: name.to_string(), bytes: vec![0; ty.byte_len().unwrap_or(0)], ty }
    };
    let fits = || zeros("x", DType::F32, &[1, 8, 4, 4]);
    for (arrays, message) in [
        (vec![], "the input `x` is not given; the package takes x: tensor<fp16, [1, 8, 4, 4]>"),
        (vec![fits(), zeros("z", DType::F32, &[1])], "`z` is no input; the package takes x"),
        (vec![zeros("x", DType::F32, &[1, 8, 5, 4])], "given as tensor<fp32, [1, 8, 5, 4]>"),
        (vec![zeros("x", DType::I32, &[1, 8, 4, 4])], "convert it to floats"),
    ] {
        write_npz(&given, &arrays)?;
        let arguments = [
            OsStr::new("predict"),
            path.as_os_str(),
            "--inputs".as_ref(),
            given.as_os_str(),
            "-o".as_ref(),
            output.as_os_str(),
        ];
        let error = refused(&arguments)?;
        assert!(error.contains(message), "{error}");
        assert!(!output.exists());
    }
    write_npz(&given, &[fits()])?;
    let several = forms().join("functions_main.mlpackage");
    let arguments = [
        OsStr::new("predict"),
        several.as_os_str(),
        "--inputs".as_ref(),
        given.as_os_str(),
        "-o".as_ref(),
        output.as_os_str(),
        "--function".as_ref(),
        "small".as_ref(),
    ];
    let error = refused(&arguments)?;
    assert!(error.contains("no function `small`; it has large, main"), "{error}");
    Ok(())
}
