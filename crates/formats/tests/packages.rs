//! Packages of Apple's converter, on both executors, against PyTorch's outputs; and every weight encoding
//! against what coremltools decodes it to (`tools/reference/coreml.py`).
//!
//! The repository holds the small packages. `MIXBIT_COREML_FIXTURES` names a directory with more of them, by
//! the names of the table below.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mixbit_engine::{Arithmetic, Backend, Options, Reference, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_formats::coreml::{self, Model};
use mixbit_formats::npy::Npz;
use mixbit_mil::{Constant, DType, Def, Weights};
use mixbit_testkit::{ErrorStats, Failures, Fixture, Scratch};

/// The floats of an archive by name, with their shapes.
fn arrays(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let archive = Npz::open(path).unwrap();
    let read = |name: &str| {
        let weight = archive.get(name).unwrap().cast(DType::F32);
        let bytes = weight.read().unwrap();
        let values = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        (name.to_string(), (weight.ty().shape.clone(), values))
    };
    archive.names().into_iter().map(read).collect()
}

/// Runs a model on the archive's inputs; outputs by name.
fn run(
    model: &Model,
    inputs: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    backend: &dyn Backend,
    arithmetic: Arithmetic,
) -> Vec<(String, Tensor)> {
    let tensors: Vec<(&str, Tensor)> = model
        .inputs
        .iter()
        .map(|feature| {
            let (shape, values) = &inputs[&feature.name];
            (feature.name.as_str(), Tensor::from_f32(shape, values.clone()).unwrap())
        })
        .collect();
    let bound: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let options = Options { arithmetic, ..Options::default() };
    let mut compiled = backend.compile(model.program.main().unwrap(), &options).unwrap();
    let results = compiled.run(&bound).unwrap();
    compiled.outputs().iter().map(|output| output.name.clone()).zip(results).collect()
}

struct Case {
    package: &'static str,
    /// The archive with inputs and outputs, by default the package's own.
    data: &'static str,
    /// The least PSNR in dB of every output, with f32 arithmetic and with every f16 result rounded.
    wide: f64,
    declared: f64,
}

/// Agreement ends where the package does: the UNets' f16 timestep tables, palettes of 6 and 2 bits.
const CASES: [Case; 14] = [
    Case { package: "sd15_text_encoder", data: "", wide: 101.0, declared: 70.0 },
    Case { package: "sdxl_text_encoder_2_neweos", data: "", wide: 93.0, declared: 67.0 },
    Case { package: "sdxl_text_encoder_2_iOS18", data: "", wide: 93.0, declared: 67.0 },
    Case { package: "vae_decoder_fp16", data: "", wide: 117.5, declared: 68.0 },
    Case { package: "vae_encoder_fp16", data: "", wide: 115.0, declared: 66.0 },
    Case { package: "unet_sd15s_split_einsum", data: "", wide: 55.0, declared: 49.0 },
    Case { package: "unet_sd15_split_einsum", data: "", wide: 58.5, declared: 53.0 },
    Case { package: "unet_sdxl_original", data: "", wide: 55.0, declared: 50.0 },
    Case { package: "sd15_text_encoder__pal6", data: "sd15_text_encoder", wide: 34.0, declared: 34.0 },
    Case {
        package: "unet_sdxl_split_einsum__pal2",
        data: "unet_sdxl_split_einsum",
        wide: 15.4,
        declared: 15.4,
    },
    Case {
        package: "unet_sdxl_split_einsum__mixed",
        data: "unet_sdxl_split_einsum",
        wide: 15.1,
        declared: 15.1,
    },
    Case {
        package: "unet_sdxl_split_einsum_iOS18__pal3",
        data: "unet_sdxl_split_einsum_iOS18",
        wide: 18.0,
        declared: 18.0,
    },
    Case {
        package: "unet_sdxl_split_einsum_iOS18__pal4_gs16",
        data: "unet_sdxl_split_einsum_iOS18",
        wide: 22.4,
        declared: 22.4,
    },
    // Two halves of one network, run one after the other.
    Case {
        package: "unet_sd15_split_einsum__pal6_chunk1+unet_sd15_split_einsum__pal6_chunk2",
        data: "unet_sd15_split_einsum",
        wide: 34.0,
        declared: 34.0,
    },
];

/// The repository's packages, and those of the directory that the environment names.
fn roots() -> Vec<PathBuf> {
    let committed = Fixture::open("coreml").path("");
    let more = std::env::var_os("MIXBIT_COREML_FIXTURES").map(PathBuf::from);
    let folders =
        |root: PathBuf| [root.clone(), root.join("compressed"), root.join("compressed/chunks_pal6")];
    [Some(committed), more].into_iter().flatten().flat_map(folders).collect()
}

fn find(roots: &[PathBuf], name: &str) -> Option<PathBuf> {
    roots.iter().map(|root| root.join(name)).find(|path| path.exists())
}

#[test]
fn packages_agree_with_pytorch_on_both_executors() {
    let roots = roots();
    let cpu = Cpu::new(Some(2)).unwrap();
    let mut failures = Failures::new("packages");
    for case in CASES {
        let packages: Option<Vec<PathBuf>> =
            case.package.split('+').map(|name| find(&roots, &format!("{name}.mlpackage"))).collect();
        let Some(packages) = packages else { continue };
        let data = if case.data.is_empty() { case.package } else { case.data };
        let arrays = arrays(&find(&roots, &format!("{data}.npz")).expect("inputs beside the package"));
        let named = |prefix: &str| {
            let of = |(name, array): (&String, &(Vec<usize>, Vec<f32>))| {
                Some((name.strip_prefix(prefix)?.to_string(), array.clone()))
            };
            arrays.iter().filter_map(of).collect::<BTreeMap<_, _>>()
        };
        let expected = named("out.");
        let models: Vec<Model> = packages.iter().map(|path| coreml::read(path).unwrap()).collect();
        let runs: [(&dyn Backend, Arithmetic, f64); 4] = [
            (&Reference, Arithmetic::F32, case.wide),
            (&cpu, Arithmetic::F32, case.wide),
            (&Reference, Arithmetic::AsDeclared, case.declared),
            (&cpu, Arithmetic::AsDeclared, case.declared),
        ];
        for (backend, arithmetic, least) in runs {
            // The reference takes seconds for an image; once is enough.
            if case.package.starts_with("vae")
                && backend.name() == "reference"
                && arithmetic != Arithmetic::F32
            {
                continue;
            }
            let mut values = named("in.");
            for model in &models {
                for (name, tensor) in run(model, &values, backend, arithmetic) {
                    let array = (tensor.shape().to_vec(), tensor.into_f32().unwrap());
                    values.insert(name, array);
                }
            }
            let last = models.last().unwrap();
            for output in &last.outputs {
                let label = format!("{} {} {arithmetic:?} {}", case.package, backend.name(), output.name);
                failures.case(&label, || {
                    let (_, found) = &values[&output.name];
                    let stats = ErrorStats::compare(found, &expected[&output.name].1);
                    println!("{label}: {stats}");
                    match stats.bad == 0 && stats.psnr >= least {
                        true => Ok(()),
                        false => Err(format!("{stats} (least {least} dB)")),
                    }
                });
            }
        }
    }
    failures.finish();
}

/// The model with its compressed constants as plain ones.
fn decompressed(model: &Model) -> mixbit_mil::Function {
    let mut function = mixbit_mil::constexpr::decoded(model.program.main().unwrap()).unwrap();
    let replace = |_, constant: &Constant| {
        let Constant::Weight(weight) = constant else { return Ok(None) };
        let bytes = mixbit_mil::Bytes::new(weight.read()?.into_owned());
        let plain = mixbit_mil::WeightRef::new(weight.name(), weight.ty().clone(), bytes)?;
        Ok::<_, mixbit_mil::WeightError>(Some(Constant::Weight(plain)))
    };
    function.map_constants(replace).unwrap();
    function
}

#[test]
fn compressed_weights_compute_as_decompressed_ones() {
    let roots = roots();
    let cpu = Cpu::new(Some(2)).unwrap();
    let mut failures = Failures::new("compressed packages");
    let mut seen = 0;
    for case in CASES.iter().filter(|case| case.package.contains("__")) {
        let packages: Option<Vec<PathBuf>> =
            case.package.split('+').map(|name| find(&roots, &format!("{name}.mlpackage"))).collect();
        let Some(packages) = packages else { continue };
        let data = arrays(&find(&roots, &format!("{}.npz", case.data)).expect("inputs beside the package"));
        let named = |(name, array): (&String, &(Vec<usize>, Vec<f32>))| {
            Some((name.strip_prefix("in.")?.to_string(), array.clone()))
        };
        let mut inputs: BTreeMap<String, (Vec<usize>, Vec<f32>)> = data.iter().filter_map(named).collect();
        // A part of a network takes its inputs from the one before.
        for (name, path) in case.package.split('+').zip(packages) {
            let model = coreml::read(&path).unwrap();
            let plain = Model {
                program: mixbit_mil::Program::new(decompressed(&model)),
                ..coreml::read(&path).unwrap()
            };
            seen += 1;
            let mut made = Vec::new();
            for backend in [&Reference as &dyn Backend, &cpu] {
                let expected = run(&plain, &inputs, backend, Arithmetic::F32);
                made = run(&model, &inputs, backend, Arithmetic::F32);
                for ((output, expected), (_, found)) in expected.iter().zip(&made) {
                    failures.case(&format!("{name} {} {output}", backend.name()), || {
                        let stats = ErrorStats::compare(found.as_f32().unwrap(), expected.as_f32().unwrap());
                        println!("{name} {} {output}: {stats}", backend.name());
                        match stats.bad == 0 && stats.psnr >= 90.0 {
                            true => Ok(()),
                            false => Err(format!("{stats} (least 90 dB)")),
                        }
                    });
                }
            }
            let array = |tensor: Tensor| (tensor.shape().to_vec(), tensor.into_f32().unwrap());
            inputs.extend(made.into_iter().map(|(name, tensor)| (name, array(tensor))));
        }
    }
    assert!(seen > 0, "no compressed package was found");
    failures.finish();
}

#[test]
fn every_encoding_decodes_as_coremltools_does() {
    let fixture = Fixture::open("coreml");
    let cases = fixture.json("cases.json");
    let mut failures = Failures::new("encodings");
    let mut kinds = std::collections::BTreeSet::new();
    for case in cases["cases"].as_array().unwrap() {
        let package = case["package"].as_str().unwrap();
        let model = coreml::read(&fixture.path(package)).unwrap();
        let main = model.program.main().unwrap();
        mixbit_mil::verify(main).unwrap();
        kinds.extend(main.ops().iter().map(|op| op.def.name).filter(|name| name.starts_with("constexpr")));
        let decoded = mixbit_mil::constexpr::decoded(main).unwrap();
        let constants: BTreeMap<&str, &Constant> = decoded
            .values()
            .iter()
            .filter_map(|value| match &value.def {
                Def::Const(constant) => Some((value.name.as_str(), constant)),
                _ => None,
            })
            .collect();
        for (name, expected) in case["decoded"].as_object().unwrap() {
            failures.case(&format!("{package} {name}"), || {
                let Constant::Weight(weight) = constants[name.as_str()] else {
                    return Err("no weight".into());
                };
                let shape: Vec<u64> = weight.ty().shape.iter().map(|&extent| extent as u64).collect();
                let hash = fnv(&weight.read().map_err(|error| error.to_string())?);
                let found = serde_json::json!({ "shape": shape, "fnv": format!("{hash:016x}") });
                if found == *expected { Ok(()) } else { Err(format!("{found}, expected {expected}")) }
            });
        }
    }
    failures.finish();
    let expected = [
        "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale",
        "constexpr_lut_to_dense",
        "constexpr_sparse_to_dense",
    ];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[test]
fn written_packages_and_compiled_models_compute_the_same() {
    let fixture = Fixture::open("coreml");
    let scratch = Scratch::new();
    let cpu = Cpu::new(Some(2)).unwrap();
    let mut failures = Failures::new("written");
    let cases = [
        ("sd15_text_encoder__pal6", "sd15_text_encoder"),
        ("sdxl_text_encoder_2_iOS18", "sdxl_text_encoder_2_iOS18"),
        ("unet_sd15s_split_einsum", "unet_sd15s_split_einsum"),
        ("vae_encoder_fp16", "vae_encoder_fp16"),
    ];
    for (package, data) in cases {
        let model = coreml::read(&fixture.path(&format!("{package}.mlpackage"))).unwrap();
        let arrays = arrays(&fixture.path(&format!("{data}.npz")));
        let inputs: BTreeMap<_, _> = arrays
            .iter()
            .filter_map(|(name, array)| Some((name.strip_prefix("in.")?.to_string(), array.clone())))
            .collect();
        let expected = run(&model, &inputs, &cpu, Arithmetic::F32);
        for extension in ["mlpackage", "mlmodelc"] {
            let path = scratch.path().join(package).with_extension(extension);
            match extension {
                "mlpackage" => coreml::write_package(&path, &model, &()).unwrap(),
                _ => coreml::write_compiled(&path, &model, &()).unwrap(),
            }
            let again = coreml::read(&path).unwrap();
            failures.case(&format!("{package}.{extension}"), || {
                let found = run(&again, &inputs, &cpu, Arithmetic::F32);
                if found == expected { Ok(()) } else { Err("other outputs") }
            });
        }
    }
    failures.finish();
}

#[test]
fn models_of_apples_compiler_run() {
    let model = coreml::read(&Fixture::open("coreml").path("compiled/test_linear.mlmodelc")).unwrap();
    let values = [0.5, -1.0, 2.0, 0.0];
    let inputs = [("input".to_string(), (vec![1, 4], values.to_vec()))].into();
    let cpu = Cpu::new(Some(1)).unwrap();
    for backend in [&Reference as &dyn Backend, &cpu] {
        let found = run(&model, &inputs, backend, Arithmetic::AsDeclared);
        let expected = Tensor::from_f32(&[1, 4], values.map(|value| 2.0 * value + 1.0).to_vec()).unwrap();
        assert_eq!(found, [("output".to_string(), expected)]);
    }
}

#[test]
fn the_models_of_a_pipeline_become_one() {
    let fixture = Fixture::open("coreml");
    let single = coreml::read(&fixture.path("encodings/ios16_palette4.mlpackage")).unwrap();
    let pipeline = coreml::read(&fixture.path("pipeline.mlpackage")).unwrap();
    mixbit_mil::verify(pipeline.program.main().unwrap()).unwrap();
    let values = (0..32 * 4).map(|index| (index as f32 * 0.37).sin()).collect();
    let inputs = [("x".to_string(), (vec![1, 32, 2, 2], values))].into();
    let [y] = &run(&single, &inputs, &Reference, Arithmetic::F32)[..] else { panic!("one output") };
    let [z] = &run(&pipeline, &inputs, &Reference, Arithmetic::F32)[..] else { panic!("one output") };
    // The second model multiplies each channel by its number.
    let y = y.1.as_f32().unwrap().iter().enumerate();
    let expected: Vec<f32> = y.map(|(index, value)| value * (index / 4) as f32).collect();
    assert_eq!((z.0.as_str(), z.1.as_f32().unwrap()), ("z", &expected[..]));
}
