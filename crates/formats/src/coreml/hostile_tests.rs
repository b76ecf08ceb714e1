//! Models that lie: a clear error each, no panic, and no memory beyond what the file's size justifies.

use std::collections::BTreeMap;

use mixbit_mil::Bytes;

use super::wire::Writer;
use super::{Error, Model, from_files};

const MANIFEST: &str = r#"{"fileFormatVersion":"1.0.0","itemInfoEntries":{"A":{"path":"m/model.mlmodel"}},"rootModelIdentifier":"A"}"#;

fn read(specification: &[u8], weights: &[u8]) -> Result<Model, Error> {
    let files = [
        ("Manifest.json", MANIFEST.as_bytes()),
        ("Data/m/model.mlmodel", specification),
        ("Data/m/weights/weight.bin", weights),
    ];
    from_files("model", files.map(|(name, bytes)| (name.to_string(), Bytes::new(bytes.to_vec()))))
}

fn message(build: impl FnOnce(&mut Writer)) -> Writer {
    let mut writer = Writer::new();
    build(&mut writer);
    writer
}

/// A value type: a tensor of the given element type number and extents.
fn tensor(dtype: u64, shape: &[u64]) -> Writer {
    let dimension =
        |&extent: &u64| message(|d| d.message(1, &message(|constant| constant.number(1, extent))));
    let tensor = message(|t| {
        t.number(1, dtype);
        t.number(2, shape.len() as u64);
        shape.iter().for_each(|extent| t.message(3, &dimension(extent)));
    });
    message(|ty| ty.message(1, &tensor))
}

const F32: u64 = 11;
const I32: u64 = 23;

fn named(name: &str, ty: &Writer) -> Writer {
    message(|named| {
        named.text(1, name);
        named.message(2, ty);
    })
}

/// An op with inputs bound by name.
fn op(kind: &str, inputs: &[(&str, &str)], outputs: &[(&str, Writer)]) -> Writer {
    message(|op| {
        op.text(1, kind);
        for (input, value) in inputs {
            let binding = message(|binding| binding.text(1, value));
            op.entry(2, input, &message(|argument| argument.message(1, &binding)));
        }
        outputs.iter().for_each(|(name, ty)| op.message(3, &named(name, ty)));
    })
}

/// A constant of which `value` holds everything but the type.
fn constant(name: &str, ty: &Writer, value: &dyn Fn(&mut Writer)) -> Writer {
    let value = message(|v| {
        v.message(2, ty);
        value(v);
    });
    let mut op = op("const", &[], &[(name, ty.clone())]);
    op.entry(5, "val", &value);
    op
}

fn blob(file: &str, offset: u64) -> Writer {
    message(|blob| {
        blob.text(1, file);
        blob.number(2, offset);
    })
}

/// Ints as an immediate value.
fn ints(values: &[u64]) -> Writer {
    let values = message(|ints| ints.numbers(1, values.iter().copied()));
    message(|immediate| immediate.message(1, &message(|tensor| tensor.message(2, &values))))
}

/// A model with input `x` of 4 floats and output `y` that `ops` make.
fn model(ops: &[Writer]) -> Vec<u8> {
    let block = message(|block| {
        block.text(2, "y");
        ops.iter().for_each(|op| block.message(3, op));
    });
    with_block(&tensor(F32, &[4]), &block)
}

fn with_block(input: &Writer, block: &Writer) -> Vec<u8> {
    let function = message(|function| {
        function.message(1, &named("x", input));
        function.text(2, "CoreML6");
        function.entry(3, "CoreML6", block);
    });
    let program = message(|program| {
        program.number(1, 1);
        program.entry(2, "main", &function);
    });
    with_program(&program)
}

fn with_program(program: &Writer) -> Vec<u8> {
    let feature = |name: &str| {
        let array = message(|array| {
            array.numbers(1, [4]);
            array.number(2, 65568);
        });
        message(|feature| {
            feature.text(1, name);
            feature.message(3, &message(|ty| ty.message(5, &array)));
        })
    };
    let description = message(|description| {
        description.message(1, &feature("x"));
        description.message(10, &feature("y"));
    });
    let model = message(|model| {
        model.number(1, 7);
        model.message(2, &description);
        model.message(502, program);
    });
    model.into_bytes()
}

fn y(kind: &str, inputs: &[(&str, &str)]) -> Writer {
    op(kind, inputs, &[("y", tensor(F32, &[4]))])
}

/// A weight file with one blob of four floats at 64.
fn weights() -> Vec<u8> {
    let mut layout = super::blob::Layout::new();
    layout.add(&mixbit_mil::TensorType::new(mixbit_mil::DType::F32, [4])).unwrap();
    let mut file = Vec::new();
    layout.write(&mut file, |_, writer| writer.write_all(&[0; 16])).unwrap();
    file
}

fn weight_in(file: &str, offset: u64) -> Vec<u8> {
    let place = blob(file, offset);
    let weight = constant("w", &tensor(F32, &[4]), &|value| value.message(5, &place));
    model(&[weight, y("add", &[("x", "x"), ("y", "w")])])
}

#[test]
fn a_sound_model_is_read() {
    read(&model(&[y("relu", &[("x", "x")])]), &[]).unwrap();
    read(&weight_in("@model_path/weights/weight.bin", 64), &weights()).unwrap();
}

#[test]
fn models_that_lie_are_refused() {
    let huge = tensor(F32, &[1 << 40, 1 << 40]);
    let relu = |input: &str, output: &str| op("relu", &[("x", input)], &[(output, tensor(F32, &[4]))]);
    let mut nested = y("relu", &[("x", "x")]);
    for _ in 0..10_000 {
        nested = message(|op| op.message(4, &message(|block| block.message(3, &nested))));
    }
    let mut list = ints(&[1]);
    for _ in 0..10_000 {
        list = message(|value| value.message(3, &message(|inner| inner.message(1, &list))));
    }
    let with_list = constant("y", &tensor(I32, &[1]), &|value| value.message(3, &list));
    let many = constant("n", &tensor(I32, &[]), &|value| value.message(3, &ints(&[0x7fff_ffff])));
    let zero = constant("a", &tensor(I32, &[]), &|value| value.message(3, &ints(&[0])));
    let wide = tensor(F32, &[0x7fff_ffff]);
    let split = with_block(
        &wide,
        &message(|block| {
            block.text(2, "y");
            [&many, &zero].into_iter().for_each(|op| block.message(3, op));
            block.message(3, &y("split", &[("x", "x"), ("num_splits", "n"), ("axis", "a")]));
        }),
    );
    let short = constant("y", &tensor(I32, &[5]), &|value| value.message(3, &ints(&[1, 2])));
    let float = constant("y", &tensor(F32, &[2]), &|value| value.message(3, &ints(&[1, 2])));
    let no_value = constant("y", &tensor(F32, &[4]), &|_| {});
    let mut latin = y("relu", &[("x", "x")]);
    latin.bytes(1, b"r\xe9lu");
    let many_inputs = message(|op| {
        op.text(1, "relu");
        (0..100).for_each(|_| op.message(2, &Writer::new()));
    });
    let empty_ops = message(|block| (0..1000).for_each(|_| block.message(3, &Writer::new())));
    let rank = message(|ty| {
        ty.message(
            1,
            &message(|tensor| {
                tensor.number(1, F32);
                (0..1000).for_each(|_| tensor.message(3, &Writer::new()));
            }),
        )
    });
    let cases: [(&str, Vec<u8>, &str); 26] = [
        ("nothing", vec![], "specification version 0"),
        ("garbage", vec![0xff; 100], "malformed at byte 0"),
        ("an undefined value", model(&[y("relu", &[("x", "z")])]), "`x` is `z`, which is not made before it"),
        (
            "a cycle",
            model(&[relu("b", "a"), relu("a", "b"), relu("a", "y")]),
            "relu `a`: `x` is `b`, which is not",
        ),
        ("its own input", model(&[y("relu", &[("x", "y")])]), "`x` is `y`, which is not made"),
        ("a name twice", model(&[relu("x", "y"), relu("x", "y")]), "two values are named `y`"),
        ("no result", model(&[relu("x", "z")]), "output `y` is not made"),
        ("an unknown op", model(&[y("frobnicate", &[])]), "unknown op `frobnicate`"),
        ("an unknown input", model(&[y("relu", &[("q", "x")])]), "has no input `q`"),
        ("another type", model(&[op("relu", &[("x", "x")], &[("y", tensor(F32, &[5]))])]), "declared as"),
        ("a huge shape", with_block(&huge, &Writer::new()), "is too large"),
        ("a huge result", model(&[op("relu", &[("x", "x")], &[("y", huge)])]), "is too large"),
        ("two thousand million results", split, "has 1 results, not 2147483647"),
        ("a thousand dimensions", with_block(&rank, &Writer::new()), "more than 32 dimensions"),
        ("blocks in blocks", model(&[nested]), "an op with blocks of its own is not supported"),
        ("lists in lists", model(&[with_list]), "an immediate value"),
        ("too few ints", model(&[short]), "has 8 bytes"),
        ("ints for floats", model(&[float]), "not tensor<fp32, [2]>"),
        ("no value", model(&[no_value]), "neither immediate nor in a file"),
        ("text that is not UTF-8", model(&[latin]), "is not UTF-8 text"),
        ("a hundred inputs", model(&[many_inputs]), "too many inputs"),
        ("empty ops", with_block(&tensor(F32, &[4]), &empty_ops), "op `` has no result"),
        ("no function", with_program(&Writer::new()), "without a main function"),
        (
            "an offset outside",
            weight_in("@model_path/weights/weight.bin", 1 << 50),
            "weight `w` at offset 1125899906842624",
        ),
        ("another file", weight_in("@model_path/../../secret", 64), "does not lead to a file of the model"),
        ("an absolute file", weight_in("/etc/passwd", 64), "does not lead to a file of the model"),
    ];
    let mut failures = mixbit_testkit::Failures::new("lies");
    for (name, specification, expected) in cases {
        failures.case(name, || match read(&specification, &weights()) {
            Ok(_) => Err("it was read".to_string()),
            Err(error) if error.to_string().contains(expected) => Ok(()),
            Err(error) => Err(format!("{error}, expected {expected}")),
        });
    }
    failures.finish();
}

#[test]
fn what_mixbit_has_no_use_for_is_refused_by_name() {
    let image = message(|d| {
        let ty = message(|ty| ty.message(4, &Writer::new()));
        d.message(
            1,
            &message(|feature| {
                feature.text(1, "x");
                feature.message(3, &ty);
            }),
        );
    });
    type Build<'a> = &'a dyn Fn(&mut Writer);
    let pipeline = message(|pipeline| pipeline.message(1, &message(|model| model.number(1, 7))));
    let inner = message(|model| {
        model.number(1, 7);
        model.message(202, &pipeline);
    });
    let nested = message(|pipeline| pipeline.message(1, &inner));
    let cases: [(Build, &str); 7] = [
        (&|m| m.message(202, &Writer::new()), "the pipeline is empty"),
        (&|m| m.message(202, &nested), "there is no ML program"),
        (&|m| m.message(500, &Writer::new()), "a model of kind 500, not an ML program, is not supported"),
        (&|m| m.number(10, 1), "a model that is updated on the device is not supported"),
        (&|m| m.number(1, 11), "specification version 11 is not supported"),
        (
            &|m| m.message(2, &message(|d| d.message(13, &Writer::new()))),
            "a model with state is not supported",
        ),
        (&|m| m.message(2, &image), "feature `x`, an image of color space 0, is not supported"),
    ];
    for (build, expected) in cases {
        let model = message(|model| {
            model.number(1, 7);
            model.message(502, &message(|program| program.number(1, 1)));
            build(model);
        });
        let error = read(&model.into_bytes(), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn no_cut_and_no_changed_byte_panics() {
    let specification = weight_in("@model_path/weights/weight.bin", 64);
    let weights = weights();
    for at in 0..specification.len() {
        let _ = read(&specification[..at], &weights);
        for byte in 0..=255 {
            let mut changed = specification.clone();
            changed[at] = byte;
            let _ = read(&changed, &weights);
        }
    }
    for at in 0..weights.len() {
        let _ = read(&specification, &weights[..at]);
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = weights.clone();
            changed[at] = byte;
            let _ = read(&specification, &changed);
        }
    }
}

#[test]
fn compiled_models_that_lie_are_refused() {
    let sound: BTreeMap<&str, Vec<u8>> = {
        let fixture = mixbit_testkit::Fixture::open("coreml")
            .path("compiled/quantized-constexpr/expected-macos.mlmodelc");
        let names = ["coremldata.bin", "metadata.json", "model.mil", "weights/weights.bin"];
        names.into_iter().map(|name| (name, std::fs::read(fixture.join(name)).unwrap())).collect()
    };
    let read = |files: &BTreeMap<&str, Vec<u8>>| {
        let files = files.iter().map(|(name, bytes)| (name.to_string(), Bytes::new(bytes.clone())));
        from_files("model", files)
    };
    read(&sound).unwrap();
    let with = |name: &'static str, bytes: Vec<u8>| {
        let mut files = sound.clone();
        files.insert(name, bytes);
        read(&files)
    };
    let patched = |at: usize, bytes: &[u8]| {
        let mut data = sound["coremldata.bin"].clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        data
    };
    let cases: [(&'static str, Vec<u8>, &str); 7] = [
        ("coremldata.bin", vec![], "has only 0 bytes"),
        ("coremldata.bin", patched(0, &[202, 0]), "a model of kind 202"),
        ("coremldata.bin", patched(0x2b, &[11]), "specification version 11"),
        ("coremldata.bin", patched(0x4b, &[0xff; 8]), "has only"),
        ("model.mil", b"program(1.0)\n{".to_vec(), "line 2, column 2: expected `func`"),
        ("model.mil", vec![0xff], "not UTF-8"),
        ("weights/weights.bin", vec![0; 64], "weight `constant_quantized_data` at offset 64"),
    ];
    for (name, bytes, expected) in cases {
        let error = with(name, bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for at in 0..sound["coremldata.bin"].len() {
        let _ = with("coremldata.bin", sound["coremldata.bin"][..at].to_vec());
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let _ = with("coremldata.bin", patched(at, &[byte]));
        }
    }
}
