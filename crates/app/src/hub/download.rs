//! The download of one file, which goes on where an earlier one ended.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use mixbit_formats::{Sha256, hex};
use mixbit_mil::Stopped;

use super::Watch;
use super::error::HubError;
use super::http::{Answer, Ask, Client};
use super::url::without_query;

/// A file to download.
pub(super) struct Remote<'a> {
    /// The name for messages.
    pub(super) name: &'a str,
    pub(super) url: &'a str,
    pub(super) size: Option<u64>,
    /// The SHA-256 of the content in hexadecimal digits.
    pub(super) sha256: Option<&'a str>,
    /// The version, as the server of `url` names it.
    pub(super) etag: Option<&'a str>,
}

/// The bytes of a whole download.
pub(super) struct Meter<'w> {
    watch: &'w dyn Watch,
    done: AtomicU64,
    total: u64,
}

impl<'w> Meter<'w> {
    pub(super) fn new(watch: &'w dyn Watch, total: u64) -> Self {
        Meter { watch, done: AtomicU64::new(0), total }
    }

    /// Counts bytes that are there.
    pub(super) fn add(&self, bytes: u64) -> Result<(), Stopped> {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.watch.progress(done, self.total.max(done))
    }

    /// Takes back bytes that were counted.
    fn take(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A file of which a part is there.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    hash: Option<Sha256>,
    len: u64,
}

/// Downloads a file to `to` by way of `partial`, which is kept if the download is interrupted.
///
/// # Errors
/// [`HubError::Checksum`] and [`HubError::Size`], after which nothing is kept; those of the network and of
/// writing.
pub(super) fn download(
    client: &Client,
    remote: &Remote,
    partial: &Path,
    to: &Path,
    meter: &Meter,
) -> Result<(), HubError> {
    let mut part = Partial::open(partial, remote, meter)?;
    let fetched = client.with_retries(meter.watch, || {
        let before = part.len;
        let got = part.fetch(client, remote, meter);
        got.map_err(|error| (error, part.len > before))
    });
    if let Err(HubError::Size { .. } | HubError::Reply { .. }) = fetched {
        let _ = fs::remove_file(partial);
    }
    fetched?;
    part.file.sync_all().map_err(|cause| HubError::io("write", partial, cause))?;
    let found = part.hash.map(|hash| hex(&hash.finish()));
    let len = part.len;
    drop(part.file);
    let name = || remote.name.to_string();
    let damage = match (remote.size, remote.sha256, found) {
        (Some(expected), _, _) if expected != len => {
            Some(HubError::Size { name: name(), expected, found: len })
        }
        (_, Some(expected), Some(found)) if !expected.eq_ignore_ascii_case(&found) => {
            Some(HubError::Checksum { name: name(), expected: expected.to_string(), found })
        }
        _ => None,
    };
    if let Some(error) = damage {
        meter.take(len);
        let _ = fs::remove_file(partial);
        return Err(error);
    }
    fs::rename(partial, to).map_err(|cause| HubError::io("write", to, cause))
}

impl<'a> Partial<'a> {
    /// Opens what an earlier download left.
    fn open(path: &'a Path, remote: &Remote, meter: &Meter) -> Result<Self, HubError> {
        let failed = |cause| HubError::io("write", path, cause);
        if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            fs::remove_file(path).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let hash = remote.sha256.map(|_| Sha256::new());
        let mut part = Partial { path, file, hash, len: 0 };
        let len = part.file.metadata().map_err(failed)?.len();
        let is_usable =
            remote.size.is_none_or(|size| len <= size) && (remote.sha256.is_some() || remote.etag.is_some());
        match is_usable {
            true => part.take_in(len, remote, meter)?,
            false => part.file.set_len(0).map_err(failed)?,
        }
        Ok(part)
    }

    /// Reads what is there for its checksum.
    fn take_in(&mut self, len: u64, remote: &Remote, meter: &Meter) -> Result<(), HubError> {
        let mut buffer = vec![0; 1 << 20];
        while self.len < len {
            let read = match &mut self.hash {
                Some(hash) => {
                    let read = self.file.read(&mut buffer);
                    let read = read.map_err(|cause| HubError::io("read", self.path, cause))?;
                    hash.update(&buffer[..read]);
                    read as u64
                }
                None => len - self.len,
            };
            if read == 0 {
                break;
            }
            self.len += read;
            count(meter, read, remote)?;
        }
        Ok(())
    }

    fn clear(&mut self, meter: &Meter) -> Result<(), HubError> {
        meter.take(self.len);
        self.len = 0;
        self.hash = self.hash.as_ref().map(|_| Sha256::new());
        self.file.set_len(0).map_err(|cause| HubError::io("write", self.path, cause))
    }

    /// Makes one attempt at the rest.
    fn fetch(&mut self, client: &Client, remote: &Remote, meter: &Meter) -> Result<(), HubError> {
        if self.len > 0 && remote.size == Some(self.len) {
            return Ok(());
        }
        let ask = Ask { start: self.len, etag: remote.etag, ..Ask::get(remote.url) };
        let answer = client.send(ask, meter.watch)?;
        let expected = match answer.status {
            206 if start_of(&answer) == Some(self.len) => answer.len().map(|len| len + self.len),
            200 => {
                self.clear(meter)?;
                answer.len()
            }
            // The part that is there is not of this file.
            206 | 416 if self.len > 0 => {
                self.clear(meter)?;
                return self.fetch(client, remote, meter);
            }
            _ => return Err(answer.refused()),
        };
        if let (Some(size), Some(expected)) = (remote.size, expected)
            && size != expected
        {
            return Err(HubError::Size { name: remote.name.to_string(), expected: size, found: expected });
        }
        self.receive(&answer, remote, expected, meter)
    }

    fn receive(
        &mut self,
        answer: &Answer,
        remote: &Remote,
        expected: Option<u64>,
        meter: &Meter,
    ) -> Result<(), HubError> {
        let failed = |cause| HubError::io("write", self.path, cause);
        self.file.seek(std::io::SeekFrom::Start(self.len)).map_err(failed)?;
        while let Some(portion) = answer.portion(meter.watch).map_err(|error| named(error, remote))? {
            self.file.write_all(&portion).map_err(failed)?;
            self.hash.iter_mut().for_each(|hash| hash.update(&portion));
            self.len += portion.len() as u64;
            count(meter, portion.len() as u64, remote)?;
            if let Some(size) = remote.size.or(expected).filter(|size| self.len > *size) {
                let url = without_query(remote.url).to_string();
                let what = format!("it sends more than the {size} bytes of {}", remote.name);
                return Err(HubError::Reply { url, what });
            }
        }
        match remote.size.or(expected) {
            Some(size) if self.len < size => Err(HubError::Network {
                host: super::url::host(&answer.url),
                what: "the connection broke off".to_string(),
            }),
            _ => Ok(()),
        }
    }
}

fn count(meter: &Meter, bytes: u64, remote: &Remote) -> Result<(), HubError> {
    meter.add(bytes).map_err(|Stopped| HubError::Stopped { name: remote.name.to_string() })
}

/// An error with the file's name in place of the server's.
fn named(error: HubError, remote: &Remote) -> HubError {
    match error {
        HubError::Stopped { .. } => HubError::Stopped { name: remote.name.to_string() },
        error => error,
    }
}

/// The first byte of a part, from `Content-Range: bytes 5-9/10`.
fn start_of(answer: &Answer) -> Option<u64> {
    let range = answer.header("content-range")?.trim().strip_prefix("bytes")?;
    range.trim().split('-').next()?.trim().parse().ok()
}
