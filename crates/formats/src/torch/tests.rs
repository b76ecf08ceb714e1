use super::*;
use crate::TensorFile;
use mixbit_mil::DType;
use mixbit_testkit::{Failures, fixture_root};
use serde_json::Value as Json;

/// Every file of `fixtures/checkpoints` has the tensors that PyTorch wrote, under their names.
#[test]
fn files_of_pytorch_are_read() {
    let folder = fixture_root().join("checkpoints");
    let cases: Json = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let expected = TensorFile::open(&folder.join("expected.safetensors")).unwrap();
    let mut failures = Failures::new("files of tensors");
    for case in cases["cases"].as_array().unwrap() {
        let name = case["file"].as_str().unwrap();
        failures.case(name, || {
            let file = TensorFile::open(&folder.join(name)).map_err(|error| error.to_string())?;
            if file.format().name() != case["format"].as_str().unwrap() {
                return Err(format!("it is of the format {}", file.format().name()));
            }
            let names: Vec<&str> =
                case["tensors"].as_array().unwrap().iter().filter_map(Json::as_str).collect();
            if file.names() != names {
                return Err(format!("it has the tensors {:?}", file.names()));
            }
            for tensor in names {
                let (found, wanted) =
                    (file.get(tensor).unwrap(), expected.get(&format!("{name}/{tensor}")).unwrap());
                let equal = found.ty() == wanted.ty() && found.read().unwrap() == wanted.read().unwrap();
                if !equal {
                    return Err(format!("{tensor}: {} {:?}, not {}", found.ty(), found.read(), wanted.ty()));
                }
            }
            for (key, value) in case["metadata"].as_object().unwrap() {
                let found = file.metadata().get(key).map(String::as_str);
                if found != value.as_str() {
                    return Err(format!("{key} is {found:?}"));
                }
            }
            Ok(())
        });
    }
    failures.finish();
}

#[test]
fn tensors_of_one_storage_share_its_bytes() {
    let file = TensorFile::open(&fixture_root().join("checkpoints/views.pt")).unwrap();
    let (whole, row) = (file.get("whole").unwrap(), file.get("row").unwrap());
    let (whole, row) = (whole.read().unwrap(), row.read().unwrap());
    assert!(matches!((&whole, &row), (std::borrow::Cow::Borrowed(_), std::borrow::Cow::Borrowed(_))));
    assert_eq!(whole[20..].as_ptr(), row.as_ptr());
    let narrow = file.get("fp8_transposed").unwrap();
    assert_eq!((narrow.stored_type_name(), narrow.stored_len()), ("fp8 (e4m3)", 6));
    assert_eq!(narrow.ty().dtype, DType::F16);
}

/// Every prefix of a file and every byte of its pickles changed: a result or an error, never a panic.
#[test]
fn damaged_files_are_refused_or_read() {
    for name in ["types.pt", "types-legacy.pt", "views-legacy.pt", "lightning.ckpt"] {
        let sound = std::fs::read(fixture_root().join("checkpoints").join(name)).unwrap();
        let read = |bytes: Vec<u8>| {
            let Ok(file) = Torch::from_bytes(&Bytes::new(bytes)) else { return };
            for tensor in file.names() {
                let tensor = file.get(tensor).unwrap();
                let _ = tensor.read();
            }
        };
        let step = sound.len().div_ceil(600);
        for at in (0..sound.len()).step_by(step) {
            read(sound[..at].to_vec());
        }
        for at in 0..sound.len().min(2500) {
            let mut changed = sound.clone();
            changed[at] ^= 0x41;
            read(changed);
        }
    }
}
