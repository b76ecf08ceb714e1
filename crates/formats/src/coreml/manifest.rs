//! `Manifest.json` of a package, which names the model's file.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::CoreMlError;
use crate::files::is_plain;
use crate::shown::shown;

#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "fileFormatVersion")]
    version: String,
    #[serde(rename = "itemInfoEntries")]
    items: BTreeMap<String, Item>,
    #[serde(rename = "rootModelIdentifier")]
    root: String,
}

#[derive(Deserialize)]
struct Item {
    path: String,
}

/// The model's file, relative to the package's `Data` folder.
pub(super) fn model_path(text: &str) -> Result<String, CoreMlError> {
    let manifest: Manifest = serde_json::from_str(text)
        .map_err(|error| CoreMlError::inconsistent(format!("the manifest can't be read: {error}")))?;
    if !manifest.version.starts_with("1.") {
        return Err(CoreMlError::unsupported(format!("a package of version {}", shown(&manifest.version))));
    }
    let item = manifest
        .items
        .get(&manifest.root)
        .ok_or_else(|| CoreMlError::inconsistent("the manifest's root model is not among its items"))?;
    if !item.path.split('/').all(is_plain) {
        return Err(CoreMlError::inconsistent(format!(
            "the manifest's model `{}` is not inside the package",
            shown(&item.path)
        )));
    }
    Ok(item.path.clone())
}

/// The manifest of a package with a model and, unless it has none, weights. Identifiers follow from the
/// model's bytes, so that the same model always gives the same package.
pub(super) fn write(model: &[u8], has_weights: bool) -> String {
    let mut items = BTreeMap::new();
    let mut add = |salt: u64, description: &str, name: &str| {
        let entry = json!({
            "author": "com.apple.CoreML",
            "description": description,
            "name": name,
            "path": format!("com.apple.CoreML/{name}"),
        });
        let identifier = identifier(model, salt);
        items.insert(identifier.clone(), entry);
        identifier
    };
    let root = add(0, "CoreML Model Specification", "model.mlmodel");
    if has_weights {
        add(1, "CoreML Model Weights", "weights");
    }
    let manifest = json!({
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": items,
        "rootModelIdentifier": root,
    });
    format!("{manifest:#}\n")
}

/// An identifier in the form of a UUID: an FNV-1a hash of the model's bytes.
fn identifier(model: &[u8], salt: u64) -> String {
    let hash = |seed: u64| {
        model.iter().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    };
    let (high, low) = (hash(2 * salt), hash(2 * salt + 1));
    // Version 8 and the usual variant: an identifier of the maker's own scheme.
    let (high, low) = (high & !0xf000 | 0x8000, low & !(0b11 << 62) | 0b10 << 62);
    format!(
        "{:08X}-{:04X}-{:04X}-{:04X}-{:012X}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_manifest_names_the_model() {
        let text = write(b"model", true);
        assert_eq!(model_path(&text).unwrap(), "com.apple.CoreML/model.mlmodel");
        assert_eq!(text, write(b"model", true));
        assert_ne!(text, write(b"other", true));
        assert!(text.contains("com.apple.CoreML/weights"));
        assert!(!write(b"model", false).contains("com.apple.CoreML/weights"));
        let identifier = identifier(b"model", 0);
        assert_eq!((identifier.len(), &identifier[14..15]), (36, "8"));
    }

    #[test]
    fn manifests_that_lead_astray_are_refused() {
        let manifest = |version: &str, root: &str, path: &str| {
            format!(
                r#"{{"fileFormatVersion":"{version}","itemInfoEntries":{{"A":{{"path":"{path}"}}}},"rootModelIdentifier":"{root}"}}"#
            )
        };
        assert_eq!(model_path(&manifest("1.0.0", "A", "a/b")).unwrap(), "a/b");
        let cases = [
            manifest("2.0.0", "A", "a/b"),
            manifest("1.0.0", "B", "a/b"),
            manifest("1.0.0", "A", "../b"),
            manifest("1.0.0", "A", "/etc/passwd"),
            manifest("1.0.0", "A", ""),
            "{".to_string(),
            "[]".to_string(),
        ];
        for text in cases {
            assert!(model_path(&text).is_err(), "{text}");
        }
    }
}
