//! Packages of Apple's converter read, written and read again, and models that lie.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use mixbit_mil::{Builder, DType, Literal, Opset, Stopped, Unit, WeightRef};
use mixbit_testkit::Failures;

use super::*;
use crate::{base64, sha256};
use mixbit_testkit::Scratch;

fn fixtures() -> PathBuf {
    mixbit_testkit::Fixture::open("coreml").path("")
}

fn packages() -> Vec<PathBuf> {
    let folders = [fixtures(), fixtures().join("encodings")];
    let mut paths: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "mlpackage"));
    paths.sort();
    paths
}

/// Every file below a directory, by its path in it.
fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// The files in which two directories differ.
fn differences(a: &Path, b: &Path) -> Vec<String> {
    let (a, b) = (tree(a), tree(b));
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}

fn write(path: &Path, model: &Model) {
    write_package(path, model, &()).unwrap();
}

#[test]
fn packages_are_written_the_same_again() {
    let scratch = Scratch::new();
    let mut failures = Failures::new("round trip");
    for path in packages() {
        failures.case(&path.file_name().unwrap().to_string_lossy(), || {
            let (first, second) =
                (scratch.path().join("first.mlpackage"), scratch.path().join("second.mlpackage"));
            let original = read(&path).map_err(|error| error.to_string())?;
            write(&first, &original);
            let again = read(&first).map_err(|error| error.to_string())?;
            write(&second, &again);
            let written = differences(&first, &second);
            if !written.is_empty() {
                return Err(format!("other bytes: {written:?}"));
            }
            // What was read from a package of Apple's is all there.
            if original.form.models.is_empty() {
                let compiled =
                    [scratch.path().join("first.mlmodelc"), scratch.path().join("second.mlmodelc")];
                write_compiled(&compiled[0], &original, &()).unwrap();
                let from_compiled = read(&compiled[0]).map_err(|error| error.to_string())?;
                write_compiled(&compiled[1], &from_compiled, &()).unwrap();
                let written = differences(&compiled[0], &compiled[1]);
                if !written.is_empty() {
                    return Err(format!("other bytes when it is compiled: {written:?}"));
                }
            }
            let same = again.inputs == original.inputs
                && again.outputs == original.outputs
                && again.metadata == original.metadata
                && again.specification_version == original.specification_version;
            let (ours, theirs) = (again.program.main().unwrap(), original.program.main().unwrap());
            mixbit_mil::verify(ours).map_err(|error| error.to_string())?;
            if same && ours.ops().len() == theirs.ops().len() {
                Ok(())
            } else {
                Err("it changed".to_string())
            }
        });
    }
    failures.finish();
}

/// A model with constants of every kind: weights under checkpoint names, literals large and small, a palette.
fn model() -> Model {
    let mut b = Builder::new("main", Opset::Ios18);
    let weight = |name: &str, ty: TensorType, byte: u8| {
        let bytes = Bytes::new(vec![byte; ty.byte_len().unwrap()]);
        WeightRef::new(name, ty, bytes).unwrap()
    };
    let x = b.input("x", TensorType::new(DType::F16, [1, 4])).unwrap();
    let bias = b.weight(weight("out.bias", TensorType::new(DType::F16, [3]), 0));
    let dense = b.weight(weight("out.weight", TensorType::new(DType::F32, [3, 4]), 1).cast(DType::F16));
    let y = b.op("linear").arg("x", x).arg("weight", dense).arg("bias", bias).add().unwrap();
    let indices = b.weight(weight("proj.weight", TensorType::new(DType::U4, [3, 3]), 0x21));
    let lut: Vec<f64> = (0..16).map(f64::from).collect();
    let lut = Literal::floats(DType::F16, &[1, 1, 16, 1], &lut).unwrap();
    let op = b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut.clone());
    let palette = op.named("proj_weight").add().unwrap();
    // The same indices in a second op.
    let op = b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut);
    let twin = op.named("twin").add().unwrap();
    let y = b.op("linear").arg("x", y).arg("weight", palette).add().unwrap();
    let y = b.op("linear").arg("x", y).arg("weight", twin).add().unwrap();
    let table = Literal::floats(DType::F16, &[4, 3], &[0.5; 12]).unwrap();
    let y = b.op("add").arg("x", y).arg("y", table).named("y").add().unwrap();
    let function = b.finish(&[y]).unwrap();
    let feature = |name: &str, ty: TensorType| Feature::array(name, format!("the {name}"), ty);
    Model {
        specification_version: 9,
        class: "Tiny".to_string(),
        program: Program::new(function),
        inputs: vec![feature("x", TensorType::new(DType::F16, [1, 4]))],
        outputs: vec![feature("y", TensorType::new(DType::F16, [4, 3]))],
        metadata: Metadata {
            author: "nobody".to_string(),
            user_defined: [("key".to_string(), "välue".to_string())].into(),
            ..Metadata::default()
        },
        form: Form::default(),
    }
}

/// The values that are weights, and the weights' own names.
fn weight_names(model: &Model) -> Vec<(String, String)> {
    let values = model.program.main().unwrap().values().iter();
    let weights = values.filter_map(|value| match &value.def {
        mixbit_mil::Def::Const(mixbit_mil::Constant::Weight(weight)) => {
            Some((value.name.clone(), weight.name().to_string()))
        }
        _ => None,
    });
    weights.collect()
}

#[test]
fn writing_that_is_stopped_leaves_what_was_there() {
    struct Stops;
    impl Progress for Stops {
        fn advance(&self, _: u64, _: u64, _: Unit) -> Result<(), Stopped> {
            Err(Stopped)
        }
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("m.mlpackage");
    write(&path, &model());
    let error = write_package(&path, &model(), &Stops).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert!(read(&path).is_ok());
    assert_eq!(scratch.names(), ["m.mlpackage"]);
}

#[test]
fn a_model_keeps_its_weights_and_their_names() {
    let scratch = Scratch::new();
    let path = scratch.path().join("m.mlpackage");
    let calls = Mutex::new(Vec::new());
    let record = |done, total, unit| calls.lock().unwrap().push((done, total, unit));
    write_package(&path, &model(), &record).unwrap();
    // The dense weight as f16, the bias, the indices and the palette, once each, and the table.
    assert_eq!(*calls.lock().unwrap(), [24, 30, 35, 67, 91].map(|done| (done, 91, Unit::Bytes)));
    let read_back = read(&path).unwrap();
    let names = weight_names(&read_back);
    let expected = [
        ("out_weight", "out.weight"),
        ("out_bias", "out.bias"),
        ("proj_weight_1_indices", "proj.weight"),
        ("proj_weight_1_lut", "proj_weight_1_lut"),
        ("const_1", "const_1"),
    ];
    assert_eq!(names, expected.map(|(value, weight)| (value.to_string(), weight.to_string())));
    let again = scratch.path().join("n.mlpackage");
    write(&again, &read_back);
    assert_eq!(differences(&path, &again), [""; 0]);
    let compiled = [scratch.path().join("a.mlmodelc"), scratch.path().join("b.mlmodelc")];
    write_compiled(&compiled[0], &model(), &()).unwrap();
    let from_compiled = read(&compiled[0]).unwrap();
    assert_eq!(from_compiled.class, "Tiny");
    write_compiled(&compiled[1], &from_compiled, &()).unwrap();
    assert_eq!(differences(&compiled[0], &compiled[1]), [""; 0]);
    assert_eq!(from_compiled.inputs, read_back.inputs);
    assert_eq!(weight_names(&from_compiled), names);
    assert_eq!(read_back.class, "m");
    assert_eq!((read_back.inputs, read_back.outputs), (model().inputs, model().outputs));
    assert_eq!(read_back.metadata, model().metadata);
}

/// MIL text without names of ops and of its maker, which a compiler may leave out.
///
/// In order of the lines' own text: a compiler may say constants earlier than they are used.
fn bare(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("[buildInfo")) {
        let mut line = line.to_string();
        for opening in ["name = tensor<string, []>(\"", "name = string(\""] {
            while let Some(start) = line.find(opening) {
                let end = start + line[start..].find("\")").unwrap() + 2;
                line.replace_range(start..end, "");
            }
        }
        let line = line.replace("[, ", "[").replace(", , ", ", ").replace(", ]", "]").replace(")[]", ")");
        out.push(line.replace("weights.bin", "weight.bin"));
    }
    out.sort();
    out
}

#[test]
fn compiled_models_of_apple_are_read_and_written_as_theirs() {
    let scratch = Scratch::new();
    let folder = fixtures().join("compiled");
    // The compiled model, whether its source is there, and what is not ours to write. Flexible shapes are
    // refused.
    let cases = [
        ("fp16-subnormal-cast/expected-macos.mlmodelc", true, &[][..]),
        ("quantized-constexpr/expected-macos.mlmodelc", true, &[]),
        ("neg-0d-scalar/expected-macos.mlmodelc", true, &["functions", "defaultFunctionName"]),
        ("flexible-weighted-legacy/expected-macos.mlmodelc", true, &[]),
        ("test_linear.mlmodelc", false, &[]),
        ("test_multi_io.mlmodelc", false, &[]),
    ];
    let mut failures = Failures::new("compiled");
    for (name, has_source, left_out) in cases {
        failures.case(name, || {
            let path = folder.join(name);
            let ours = scratch.path().join("ours.mlmodelc");
            let mut model = read(&path).map_err(|error| error.to_string())?;
            mixbit_mil::verify(model.program.main().unwrap()).map_err(|error| error.to_string())?;
            if has_source {
                let source = path.parent().unwrap().join("input.mlmodel");
                model = read(&source).map_err(|error| error.to_string())?;
            }
            if let Err(error) = write_compiled(&ours, &model, &()) {
                let error = error.to_string();
                let is_flexible = model.inputs.iter().any(Feature::is_flexible);
                let is_refused = is_flexible && error.contains("flexible shapes");
                return if is_refused { Ok(()) } else { Err(error) };
            }
            let json = |path: &Path| -> serde_json::Value {
                serde_json::from_slice(&fs::read(path.join("metadata.json")).unwrap()).unwrap()
            };
            let (mut found, mut expected) = (json(&ours), json(&path));
            for key in left_out {
                found[0].as_object_mut().unwrap().remove(*key);
                expected[0].as_object_mut().unwrap().remove(*key);
            }
            if found != expected {
                return Err(format!("metadata {found:#}, expected {expected:#}"));
            }
            let (found, expected) = (tree(&ours), tree(&path));
            let text =
                |tree: &BTreeMap<String, Vec<u8>>| bare(std::str::from_utf8(&tree["model.mil"]).unwrap());
            // Constants that stand in an op become constants of their own.
            let stand_in_op = text(&expected).iter().any(|line| line.contains("cast(dtype = string("));
            if left_out.is_empty() && !stand_in_op && text(&found) != text(&expected) {
                return Err(format!("text {:#?}, expected {:#?}", text(&found), text(&expected)));
            }
            if left_out.is_empty() {
                let data = |tree: &BTreeMap<String, Vec<u8>>| {
                    let data = tree["coremldata.bin"].clone();
                    // Maps have no order; where there are entries, only the length can be compared.
                    if model.metadata.user_defined.is_empty() { data } else { vec![0; data.len()] }
                };
                if data(&found) != data(&expected) {
                    return Err("other data".to_string());
                }
            }
            // Theirs may be longer than it must be.
            let weights = |tree: &BTreeMap<String, Vec<u8>>| {
                let mut bytes = tree.iter().find(|(name, _)| name.starts_with("weights/"))?.1.clone();
                bytes.truncate(bytes.iter().rposition(|&byte| byte != 0)? + 1);
                Some(bytes)
            };
            if weights(&found) != weights(&expected) {
                return Err("other weights".to_string());
            }
            // The hash is of the specification, which others write in another order.
            let analytics =
                |tree: &BTreeMap<String, Vec<u8>>| tree["analytics/coremldata.bin"][..0xa9].to_vec();
            if analytics(&found) == analytics(&expected) {
                Ok(())
            } else {
                Err("other analytics".to_string())
            }
        });
    }
    failures.finish();
}

#[test]
fn a_model_hash_is_that_of_the_specification() {
    let path = fixtures().join("compiled/quantized-constexpr");
    let source = fs::read(path.join("input.mlmodel")).unwrap();
    let analytics = fs::read(path.join("expected-macos.mlmodelc/analytics/coremldata.bin")).unwrap();
    let hash = base64::encode(&sha256(&source));
    assert!(analytics.windows(hash.len()).any(|window| window == hash.as_bytes()));
}
