use super::*;
use crate::TensorFile;
use mixbit_mil::DType;
use mixbit_testkit::fixture_root;

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
