//! Every method over edge sizes.

use mixbit_mil::{Builder, Bytes, Constant, Def, Function, constexpr};

use super::*;
use crate::{Calibration, Encoder, Gram, Histogram, LayerPlan, Palette, Plan, layers, uniform};

fn random(count: usize, seed: u64) -> Vec<f16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count).map(|_| f16::from_f32((0..6).map(|_| next()).sum::<f32>() - 3.0)).collect()
}

fn weight(shape: &[usize], values: &[f16]) -> WeightRef {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    WeightRef::new("mid.conv.weight", TensorType::new(DType::F16, shape), Bytes::new(bytes)).unwrap()
}

fn floats(weight: &WeightRef) -> Vec<f64> {
    let wide = weight.cast(DType::F32);
    wide.read().unwrap().as_chunks::<4>().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect()
}

fn mean_square(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / a.len() as f64
}

fn adds(weight: &WeightRef, opset: Opset) -> Function {
    let mut b = Builder::new("main", opset);
    let x = b.input("x", TensorType::new(DType::F16, [1, weight.ty().shape[1], 5, 5])).unwrap();
    let w = b.weight(weight.clone());
    let y = b.op("conv").arg("x", x).arg("weight", w).arg("pad_type", "same").add().unwrap();
    b.finish(&[y]).unwrap()
}

fn everywhere(function: &Function, scheme: Scheme) -> Plan {
    uniform(&layers(function), scheme, 0)
}

const SHAPES: [&[usize]; 6] =
    [&[1, 1, 1, 1], &[3, 5, 1, 1], &[16, 4, 3, 3], &[20, 33, 1, 1], &[17, 64, 3, 3], &[96, 40, 3, 3]];

#[test]
fn every_scheme_is_written_as_it_decodes() {
    for (index, shape) in SHAPES.iter().enumerate() {
        let source = weight(shape, &random(shape.iter().product(), index as u64));
        for scheme in Scheme::all() {
            let encoded = scheme.encode(&source, None).unwrap();
            assert_eq!((encoded.name(), encoded.ty()), (source.name(), source.ty()), "{scheme}");
            assert_eq!(encoded.stored_len(), scheme.stored_len(source.ty()), "{scheme} {shape:?}");
            let function = adds(&source, scheme.since());
            let compressed = Encoder::new().apply(&function, &everywhere(&function, scheme), &()).unwrap();
            let written = constexpr::encoded(&compressed).unwrap();
            mixbit_mil::verify(&written).unwrap();
            let read = constexpr::decoded(&written).unwrap();
            let found = &layers(&read)[0];
            assert_eq!(found.name, "mid.conv");
            assert_eq!(found.weight.read().unwrap(), encoded.read().unwrap(), "{scheme} {shape:?}");
        }
    }
}

#[test]
fn more_bits_and_more_tables_are_never_worse() {
    let source = weight(&[64, 24, 3, 3], &random(64 * 24 * 9, 7));
    let values = floats(&source);
    let error = |scheme: Scheme| mean_square(&floats(&scheme.encode(&source, None).unwrap()), &values);
    for method in METHODS {
        let errors: Vec<f64> =
            method.widths().iter().map(|&width| error(Scheme { method: *method, width })).collect();
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{}: {errors:?}", method.name());
    }
    for &width in &Width::ALL {
        let named = |name: &str| error(format!("{name}-{}", width.bits()).parse().unwrap());
        assert!(named("grouped-palette") <= named("palette"), "{width:?}");
        assert!(named("palette") <= named("int8-palette"), "{width:?}");
    }
    assert!(error("palette-8".parse().unwrap()) < error(Scheme::linear()));
}

#[test]
fn scales_help_where_channels_differ() {
    let mut values = random(32 * 128, 8);
    for (row, values) in values.chunks_exact_mut(128).enumerate() {
        values.iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32() * (1.0 + row as f32)));
    }
    let source = weight(&[32, 128, 1, 1], &values);
    let error = |name: &str| {
        let scheme: Scheme = name.parse().unwrap();
        mean_square(&floats(&scheme.encode(&source, None).unwrap()), &floats(&source))
    };
    assert!(error("scaled-palette-4") < 0.7 * error("palette-4"));
    assert!(error("grouped-scaled-palette-4") < error("grouped-palette-4"));
}

#[test]
fn importance_moves_error_to_channels_that_matter_less() {
    let source = weight(&[32, 8, 3, 3], &random(32 * 8 * 9, 9));
    let importance = [0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 9.0f32];
    let calibration = Calibration::of_mean_square(importance.to_vec());
    let values = floats(&source);
    // Entries of 8 bits are rounded to integers after the fit, regardless of importance.
    for scheme in Scheme::all().filter(|scheme| scheme.to_string() != "int8-palette-8") {
        let weighted = |calibration: Option<&Calibration>| -> f64 {
            let found = floats(&scheme.encode(&source, calibration).unwrap());
            let error = |at: usize| (found[at] - values[at]).powi(2) * f64::from(importance[at / 9 % 8]);
            (0..values.len()).map(error).sum()
        };
        let (plain, aware) = (weighted(None), weighted(Some(&calibration)));
        // Tables that hold every value have no error, and scales by the largest element ignore importance.
        assert!(aware <= plain * 1.0001, "{scheme}: {aware} against {plain}");
        if scheme == Scheme::palette(Width::Four) {
            assert!(aware < plain, "{scheme}: {aware} against {plain}");
        }
    }
    let narrow = Calibration::of_mean_square(vec![1.0; 7]);
    let error = Scheme::palette(Width::One).encode(&source, Some(&narrow)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the calibration has 7 input channels, which does not fit a weight of shape [32, 8, 3, 3]"
    );
}

#[test]
fn bad_weights_are_refused_by_name() {
    let mut values = random(16, 1);
    values[3] = f16::NAN;
    let function = adds(&weight(&[4, 4, 1, 1], &values), Opset::Ios18);
    for scheme in Scheme::all() {
        let error = Encoder::new().apply(&function, &everywhere(&function, scheme), &()).unwrap_err();
        let Error::Layer { layer, source } = error else { panic!("{scheme}: {error}") };
        assert_eq!((layer.as_str(), source.to_string().contains("is NaN")), ("mid.conv", true), "{scheme}");
    }
}

#[test]
fn wide_constants_stay_wide() {
    let source = weight(&[8, 8, 1, 1], &random(64, 2)).cast(DType::F32);
    for scheme in Scheme::all() {
        let encoded = scheme.encode(&source, None).unwrap();
        assert_eq!(encoded.ty(), source.ty(), "{scheme}");
        let narrow = scheme.encode(&source.cast(DType::F16), None).unwrap();
        assert_eq!(floats(&encoded), floats(&narrow), "{scheme}");
    }
}

#[test]
fn schemes_have_names() {
    for scheme in Scheme::all() {
        assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
    }
    let error = "palette-5".parse::<Scheme>().unwrap_err().to_string();
    assert!(error.starts_with("there is no scheme `palette-5`; known are palette-1, palette-2,"), "{error}");
}

#[test]
fn only_chosen_layers_change() {
    let source = weight(&[8, 8, 1, 1], &random(64, 2));
    let function = adds(&source, Opset::Ios16);
    let plan = Plan::from([("other".to_string(), LayerPlan::from(Scheme::linear()))]);
    let same = Encoder::new().apply(&function, &plan, &()).unwrap();
    let Def::Const(Constant::Weight(found)) = &same.value(layers(&same)[0].value).def else {
        panic!("no weight")
    };
    assert!(found.encoding().is_none());
}

/// A method that compensates errors, of which only the needs matter here.
#[derive(Debug)]
struct Compensating;

impl Method for Compensating {
    fn name(&self) -> &'static str {
        "compensating"
    }

    fn about(&self) -> &'static str {
        "for tests"
    }

    fn widths(&self) -> &'static [Width] {
        &[Width::Two]
    }

    fn since(&self, _: Width) -> Opset {
        Opset::Ios16
    }

    fn stored_len(&self, ty: &TensorType, _: Width) -> usize {
        ty.count()
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn encode(&self, weight: &WeightRef, _: Width, _: Option<&Calibration>) -> Result<WeightRef, Error> {
        Ok(weight.clone())
    }
}

#[test]
fn a_method_without_what_it_needs_is_refused() {
    let source = weight(&[4, 2], &random(8, 3));
    let scheme = Scheme { method: &Compensating, width: Width::Two };
    let plain = Calibration::of_mean_square(vec![1.0, 2.0]);
    for calibration in [None, Some(&plain)] {
        let error = scheme.encode(&source, calibration).unwrap_err();
        assert_eq!(
            error.to_string(),
            "compensating-2 needs the Gram matrix of the input channels, which was not measured: take a recipe of \
             `mixbit analyze`"
        );
    }
    assert!(Gram::new(2, vec![1.0; 3]).is_none());
    let gram = Gram::new(2, vec![1.0, 0.5, 0.5, 2.0]);
    assert!(scheme.encode(&source, Some(&Calibration { gram, ..plain })).is_ok());
}

#[test]
fn indices_can_be_chosen_by_the_method() {
    let values = random(6 * 8, 4);
    let source = weight(&[6, 8], &values);
    let palette = Palette::fit(&Histogram::new(&values).unwrap(), Width::Two);
    let nearest: Vec<u8> = values.iter().map(|&value| palette.index(value)).collect();
    let read = |indices: Indices| {
        palettized(&source, vec![palette.clone()], indices).unwrap().read().unwrap().into_owned()
    };
    let expected = Scheme::palette(Width::Two).encode(&source, None).unwrap();
    assert_eq!(read(Indices::Nearest), *expected.read().unwrap());
    assert_eq!(read(Indices::Kept(nearest.clone())), *expected.read().unwrap());
    let turned: Vec<u8> = nearest.iter().map(|index| 3 - index).collect();
    assert_ne!(read(Indices::Kept(turned)), *expected.read().unwrap());
    for kept in [nearest[1..].to_vec(), vec![4; 48]] {
        let refused = palettized(&source, vec![palette.clone()], Indices::Kept(kept));
        assert!(matches!(refused, Err(Error::Palettes { .. })));
    }
    assert!(palettized(&source, vec![palette.clone(); 4], Indices::Nearest).is_err());
    assert!(palettized(&source, Vec::new(), Indices::Nearest).is_err());
}
