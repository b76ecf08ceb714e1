//! Files of other servers, in mixbit's own cache.
//!
//! A link's folder is named after its checksum. The file keeps the server's name. `source.json` beside it is
//! written when the file is whole.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use mixbit_formats::{hex, read_text, sha256, write_atomically};
use serde::{Deserialize, Serialize};

use super::cache::lock;
use super::download::{Meter, Remote, download};
use super::error::HubError;
use super::http::{Answer, Ask, Client};
use super::name::is_relative;
use super::settings::Settings;
use super::url::{decoded, host, without_query};
use super::{Located, Notice, Watch, check_space, unpacked};

/// The longest name of a file, in characters.
const LONGEST_NAME: usize = 120;

/// The most bytes of a description.
const LARGEST_SOURCE: u64 = 64 << 10;

/// The description of a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Source {
    /// The link without its query, which may hold a secret.
    pub(super) url: String,
    /// The file's name.
    pub(super) file: String,
}

/// The folder of downloaded files.
pub(super) fn folder(settings: &Settings) -> PathBuf {
    settings.own_cache.join("downloads")
}

/// The description in a link's folder, if its file is whole.
pub(super) fn source(folder: &Path) -> Option<Source> {
    let text = read_text(&folder.join("source.json"), LARGEST_SOURCE).ok()?;
    let source: Source = serde_json::from_str(&text).ok()?;
    let is_there =
        is_relative(&source.file) && !source.file.contains('/') && folder.join(&source.file).is_file();
    is_there.then_some(source)
}

/// The file of a link, which is downloaded unless it is there.
pub(super) fn locate(
    client: &Client,
    settings: &Settings,
    url: &str,
    watch: &dyn Watch,
) -> Result<Located, HubError> {
    let key = hex(&sha256(url.as_bytes())[..12]);
    let folder = folder(settings).join(key);
    let shown = without_query(url);
    let located = |file: &str, downloaded: u64| {
        let path = folder.join(file);
        let path = match Path::new(file).extension().is_some_and(|end| end.eq_ignore_ascii_case("zip")) {
            true => unpacked::unpacked(settings, &path, watch)?,
            false => path,
        };
        Ok(Located { path, files: 1, downloaded })
    };
    if let Some(source) = source(&folder) {
        return located(&source.file, 0);
    }
    if settings.offline {
        return Err(HubError::Offline { name: shown.to_string(), missing: "file of it".to_string() });
    }
    fs::create_dir_all(&folder).map_err(|cause| HubError::io("make", &folder, cause))?;
    let _lock = lock(&folder.join("lock"), shown, watch)?;
    if let Some(source) = source(&folder) {
        return located(&source.file, 0);
    }
    let answer = client.with_retries(watch, || {
        let answer = client.send(Ask::get(url), watch).map_err(|error| (error, false))?;
        if answer.status == 200 { Ok(answer) } else { Err((refusal(client, &answer, url), false)) }
    })?;
    let is_page = answer.header("content-type").is_some_and(|kind| kind.trim().starts_with("text/html"));
    if is_page {
        let what = "it is a page, not a file: copy the address of its download button".to_string();
        return Err(HubError::Reply { url: shown.to_string(), what });
    }
    let name = file_name(&answer, url);
    let size = answer.len();
    // Only a strong version says that a part is of the same file.
    let etag = answer.header("etag").filter(|etag| etag.starts_with('"')).map(str::to_string);
    drop(answer);
    let version = hex(&sha256(etag.as_deref().unwrap_or_default().as_bytes())[..8]);
    let partial = folder.join(format!("{version}.incomplete"));
    let begun = partial.metadata().map_or(0, |metadata| metadata.len()).min(size.unwrap_or(0));
    let needed = size.unwrap_or(0) - begun;
    check_space(shown, &folder, needed)?;
    watch.notice(&Notice::Download { name: shown, files: 1, bytes: needed, kept: begun, directory: &folder });
    let remote = Remote { name: &name, url, size, sha256: None, etag: etag.as_deref() };
    download(client, &remote, &partial, &folder.join(&name), &Meter::new(watch, size.unwrap_or(0)))?;
    let source = Source { url: shown.to_string(), file: name.clone() };
    let text = serde_json::to_string(&source).unwrap_or_default();
    write_atomically(&folder.join("source.json"), |file| file.write_all(text.as_bytes()))?;
    located(&name, needed)
}

fn refusal(client: &Client, answer: &Answer, url: &str) -> HubError {
    let shown = without_query(url).to_string();
    match answer.status {
        401 | 403 => HubError::Denied {
            host: host(url),
            name: shown,
            status: answer.status,
            has_token: client.has_token(url),
            variable: if host(url) == "civitai.com" { "CIVITAI_TOKEN" } else { "a link with access" },
        },
        404 | 410 => HubError::Reply { url: shown, what: "there is no such file".to_string() },
        _ => answer.refused(),
    }
}

/// A name for the file: the server's, or the end of its address.
fn file_name(answer: &Answer, url: &str) -> String {
    let given = answer.header("content-disposition").and_then(disposition);
    let end = |url: &str| without_query(url).rsplit('/').next().and_then(decoded);
    let names = [given, end(url), end(&answer.url)];
    let names: Vec<String> = names.into_iter().flatten().map(|name| sanitized(&name)).collect();
    let has_extension =
        |name: &&String| name.rsplit_once('.').is_some_and(|(stem, end)| !stem.is_empty() && end.len() > 2);
    let found = names.iter().find(has_extension).or(names.iter().find(|name| !name.is_empty()));
    found.cloned().unwrap_or_else(|| "model".to_string())
}

/// The file name of a `Content-Disposition` header (RFC 6266).
fn disposition(header: &str) -> Option<String> {
    let parameter = |key: &str| {
        let values = header.split(';').filter_map(|part| part.split_once('='));
        let mut values = values.filter(|(name, _)| name.trim().eq_ignore_ascii_case(key));
        values.next().map(|(_, value)| value.trim().trim_matches('"').to_string())
    };
    let extended = parameter("filename*").and_then(|value| {
        let (_, encoded) = value.split_once("''")?;
        decoded(encoded)
    });
    extended.or_else(|| parameter("filename"))
}

/// A file name that leads nowhere else, hides nothing and is not one of mixbit's own in the folder.
fn sanitized(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let is_allowed = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ' | '(' | ')' | '+');
    let clean: String = name.chars().filter(is_allowed).collect();
    let clean = clean.trim_matches(['.', ' ']).to_string();
    let length = clean.chars().count();
    let clean: String = clean.chars().skip(length.saturating_sub(LONGEST_NAME)).collect();
    match clean.as_str() {
        "lock" | "source.json" => format!("file-{clean}"),
        name if name.ends_with(".incomplete") => format!("{name}.file"),
        _ => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_servers_lead_nowhere_else() {
        for (name, expected) in [
            ("model.safetensors", "model.safetensors"),
            ("../../.bashrc", "bashrc"),
            ("..\\..\\evil.ckpt", "evil.ckpt"),
            ("a\u{202e}b\0c.ckpt", "abc.ckpt"),
            ("source.json", "file-source.json"),
            ("...", ""),
            ("C:\\x.ckpt", "x.ckpt"),
        ] {
            assert_eq!(sanitized(name), expected, "{name:?}");
        }
        assert_eq!(sanitized(&format!("{}.ckpt", "x".repeat(500))).len(), LONGEST_NAME);
    }

    #[test]
    fn dispositions_are_read() {
        for (header, expected) in [
            ("attachment; filename=\"a b.safetensors\"", "a b.safetensors"),
            ("attachment; filename=a.ckpt; size=1", "a.ckpt"),
            ("attachment; filename=\"x\"; filename*=UTF-8''n%C3%A9.ckpt", "né.ckpt"),
        ] {
            assert_eq!(disposition(header).as_deref(), Some(expected), "{header}");
        }
        assert_eq!(disposition("inline"), None);
    }
}
