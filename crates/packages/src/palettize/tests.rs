use mixbit_compress::uniform;
use mixbit_mil::{Builder, Bytes, DType, TensorType, WeightRef};
use mixbit_testkit::Scratch;

use super::*;

/// A model of two convolutions, the first of them large.
fn model(opset: Opset) -> coreml::Model {
    let mut b = Builder::new("main", opset);
    let x = b.input("x", TensorType::new(DType::F16, [1, 32, 4, 4])).unwrap();
    let mut value = x;
    for (name, shape) in [("large", [96, 32, 1, 1]), ("small", [4, 96, 1, 1])] {
        let count: usize = shape.iter().product();
        let bytes =
            (0..count).flat_map(|at| half::f16::from_f32(((at * 37) % 1009) as f32 - 500.0).to_le_bytes());
        let bytes = Bytes::new(bytes.collect::<Vec<u8>>());
        let weight =
            WeightRef::new(format!("{name}.weight"), TensorType::new(DType::F16, shape), bytes).unwrap();
        let weight = b.weight(weight);
        value = b.op("conv").arg("x", value).arg("weight", weight).add().unwrap();
    }
    let function = b.finish(&[value]).unwrap();
    let feature = |id| {
        let value = function.value(id);
        coreml::Feature::array(value.name.as_str(), "", value.ty.clone())
    };
    coreml::Model {
        specification_version: if opset == Opset::Ios18 { 9 } else { 7 },
        class: "m".to_string(),
        inputs: function.inputs().iter().map(|&id| feature(id)).collect(),
        outputs: function.outputs().iter().map(|&id| feature(id)).collect(),
        metadata: coreml::Metadata::default(),
        program: Program::new(function),
        form: coreml::Form::default(),
    }
}

#[test]
fn what_is_written_is_checked() {
    for scheme in Scheme::all() {
        let model = model(scheme.since());
        let plan = uniform(&model_layers(&model).unwrap(), scheme, MIN_SIZE);
        assert_eq!(plan.keys().collect::<Vec<_>>(), ["large"]);
        let palettized = palettize(&model, &plan, false, &()).unwrap();
        let scratch = Scratch::new();
        let path = scratch.path().join("m.mlpackage");
        coreml::write_package(&path, &palettized.model, &()).unwrap();
        let report = palettized.check(&path, &()).unwrap();
        assert_eq!(report.layers.len(), 1, "{scheme}");
        assert_eq!((report.weights, report.before), (96 * 32 + 4 * 96, 2 * (96 * 32 + 4 * 96)));
        // In the form of iOS 16 integers on a line have a zero point.
        let zero_point = u64::from(scheme == Scheme::linear());
        let expected = scheme.stored_len(&TensorType::new(DType::F16, [96, 32, 1, 1])) as u64;
        assert_eq!(report.after, expected + 768 + zero_point, "{scheme}");
        assert!(report.layers[0].psnr > 3.0, "{scheme}: {:?}", report.layers[0]);

        // What follows the headers of the file and of the first constant, its indices.
        let weights = path.join("Data/com.apple.CoreML/weights/weight.bin");
        let mut bytes = std::fs::read(&weights).unwrap();
        bytes[128..192].iter_mut().for_each(|byte| *byte ^= 0xff);
        std::fs::write(&weights, bytes).unwrap();
        let error = palettized.check(&path, &()).unwrap_err();
        assert!(matches!(&error, CheckError::Differs { layer } if layer == "large"), "{scheme}: {error}");
    }
}

#[test]
fn new_forms_and_compressed_layers_are_refused() {
    let old = model(Opset::Ios16);
    let layers = model_layers(&old).unwrap();
    let plan = uniform(&layers, "grouped-palette-4".parse().unwrap(), MIN_SIZE);
    let error = palettize(&old, &plan, false, &()).err().unwrap().to_string();
    assert!(error.starts_with("grouped-palette-4 needs macOS15, and the package is for macOS13"), "{error}");
    let plan = uniform(&layers, "palette-4".parse().unwrap(), MIN_SIZE);
    let once = palettize(&old, &plan, false, &()).unwrap().model;
    let error = palettize(&once, &plan, false, &()).err().unwrap().to_string();
    assert!(error.starts_with("1 of the layers, `large` the first, are compressed already"), "{error}");
    // Its sixteen values are a palette of their own: nothing is lost again.
    let twice = palettize(&once, &plan, true, &()).unwrap().model;
    let read = |model: &coreml::Model| model_layers(model).unwrap()[0].weight.read().unwrap().into_owned();
    assert_eq!(read(&twice), read(&once));
}
