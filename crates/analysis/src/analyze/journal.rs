//! Finished measurements on disk, so that none is repeated.
//!
//! Each process appends lines of JSON to its own file and reads the files of all. The first line identifies
//! the analysis, and files of another analysis are refused. Each further line is one measurement. A process
//! that is killed may leave an incomplete last line, which is ignored.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use mixbit_compress::Scheme;
use mixbit_formats::make_directory;
use serde::{Deserialize, Serialize};

use super::distortion::Distortion;
use super::error::JournalError;
use super::options::Shard;

/// The identity of a measurement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Key {
    /// One layer compressed, the others unchanged.
    Isolated { layer: String, scheme: String },
    /// All layers up to and including one compressed, in the order of their harm.
    Cumulative { layer: String, scheme: String },
    /// One layer in 8-bit integers.
    Int8 { layer: String },
    /// Layers compressed as in a recipe, on the states of the verification. The number stands for both.
    Verified { network: String },
}

impl Key {
    pub(super) fn isolated(layer: &str, scheme: &Scheme) -> Self {
        Key::Isolated { layer: layer.to_string(), scheme: scheme.to_string() }
    }

    pub(super) fn cumulative(layer: &str, scheme: &Scheme) -> Self {
        Key::Cumulative { layer: layer.to_string(), scheme: scheme.to_string() }
    }

    pub(super) fn verified(network: u64) -> Self {
        Key::Verified { network: format!("{network:016x}") }
    }

    pub(super) fn int8(layer: &str) -> Self {
        Key::Int8 { layer: layer.to_string() }
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: Key,
    /// Square and peaks of each sample.
    distortion: Vec<[f64; 3]>,
}

/// The options that measurements depend on, by their names on the command line.
pub(super) type MeasuredOptions = BTreeMap<String, String>;

#[derive(Serialize, Deserialize)]
struct Header {
    measured: String,
    /// For messages; files of older versions lack them.
    #[serde(default)]
    options: MeasuredOptions,
}

/// The measurements of an analysis, by key.
pub(super) struct Journal {
    directory: PathBuf,
    /// The description of the analysis, in the header of every file.
    measured: String,
    options: MeasuredOptions,
    measurements: HashMap<Key, Vec<Distortion>>,
    /// The file of this process, locked; `None` until it is opened.
    own: Option<File>,
}

/// The header and the measurements of a file; `None` if it has no whole line.
fn parse(path: &Path, bytes: &[u8]) -> Result<Option<(Header, Vec<Line>)>, JournalError> {
    // A cut may go through a character.
    let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n') else { return Ok(None) };
    let mut lines = bytes[..end].split(|&byte| byte == b'\n');
    let Some(first) = lines.next() else { return Ok(None) };
    let header = serde_json::from_slice(first)
        .map_err(|source| JournalError::Header { path: path.to_path_buf(), source })?;
    let measurement = |(index, line)| {
        let wrong = |source| JournalError::Line { path: path.to_path_buf(), line: index + 2, source };
        serde_json::from_slice(line).map_err(wrong)
    };
    Ok(Some((header, lines.enumerate().map(measurement).collect::<Result<_, _>>()?)))
}

/// The number of measurements in a journal's bytes. `path` names it in messages.
///
/// # Errors
/// [`JournalError::Header`] or [`JournalError::Line`].
pub fn count_measurements(path: &Path, bytes: &[u8]) -> Result<usize, JournalError> {
    Ok(parse(path, bytes)?.map_or(0, |(_, lines)| lines.len()))
}

/// The difference between two analyses, in words.
fn difference(found: &MeasuredOptions, own: &MeasuredOptions) -> String {
    if found.is_empty() {
        return "of another model or with other options".to_string();
    }
    let mut names: Vec<&String> = found.keys().chain(own.keys()).collect();
    names.sort();
    names.dedup();
    let one = |name: &&String| {
        let [before, after] = [found, own].map(|options| options.get(*name).map(String::as_str));
        let [was, is] = [before, after].map(|value| value.unwrap_or("not given"));
        match name.as_str() {
            _ if before == after => None,
            // Values that nobody can read.
            "prompts" => Some("--prompts has others".to_string()),
            name => Some(format!("--{name} was {was}, and is {is}")),
        }
    };
    let differences: Vec<String> = names.iter().filter_map(one).collect();
    match differences.is_empty() {
        true => "of another model, for the options are the same".to_string(),
        false => format!("with other options ({})", differences.join("; ")),
    }
}

/// The end of the files' names.
const EXTENSION: &str = "measurements.jsonl";

impl Journal {
    /// Reads the measurements in a directory, and opens the file of a shard, or without one that of merges.
    ///
    /// # Errors
    /// If the directory or a file can't be used, a file belongs to another analysis, or another process
    /// writes this one's file.
    pub(super) fn open(
        directory: &Path,
        shard: Option<Shard>,
        measured: &str,
        options: MeasuredOptions,
    ) -> Result<Self, JournalError> {
        make_directory(directory)?;
        let mut journal = Journal {
            directory: directory.to_path_buf(),
            measured: measured.to_string(),
            options,
            measurements: HashMap::new(),
            own: None,
        };
        journal.reload()?;
        let name = match shard {
            Some(shard) => format!("{}-of-{}.{EXTENSION}", shard.index + 1, shard.count),
            None => format!("merge.{EXTENSION}"),
        };
        journal.begin(&directory.join(name))?;
        Ok(journal)
    }

    /// Opens the own file, cuts off an incomplete last line, and writes the header if the file is empty.
    fn begin(&mut self, path: &Path) -> Result<(), JournalError> {
        let own = open_own(path).map_err(|source| io_error(path, "written", source))?;
        let Some((file, len)) = own else { return Err(JournalError::Busy { path: path.to_path_buf() }) };
        self.own = Some(file);
        if len == 0 {
            self.append(&Header { measured: self.measured.clone(), options: self.options.clone() })?;
        }
        Ok(())
    }

    /// Reads the measurements that all processes have made so far.
    ///
    /// # Errors
    /// If a file can't be read, or belongs to another analysis.
    pub(super) fn reload(&mut self) -> Result<(), JournalError> {
        let entries = fs::read_dir(&self.directory);
        let entries = entries.map_err(|source| io_error(&self.directory, "listed", source))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
        paths.retain(|path| path.to_string_lossy().ends_with(EXTENSION));
        paths.sort();
        for path in paths {
            self.read(&path)?;
        }
        Ok(())
    }

    fn read(&mut self, path: &Path) -> Result<(), JournalError> {
        let bytes = fs::read(path).map_err(|source| io_error(path, "read", source))?;
        let Some((header, lines)) = parse(path, &bytes)? else { return Ok(()) };
        if header.measured != self.measured {
            return Err(JournalError::OtherAnalysis {
                path: path.to_path_buf(),
                difference: difference(&header.options, &self.options),
            });
        }
        for line in lines {
            let distortion =
                line.distortion.iter().map(|&[square, a, b]| Distortion { square, peaks: [a, b] });
            self.measurements.insert(line.key, distortion.collect());
        }
        Ok(())
    }

    /// The errors of a measurement, sample by sample; `None` if it is missing.
    pub(super) fn get(&self, key: &Key) -> Option<&[Distortion]> {
        self.measurements.get(key).map(Vec::as_slice)
    }

    /// Keeps a measurement. It is on disk when this returns.
    ///
    /// # Errors
    /// If it can't be written.
    pub(super) fn insert(&mut self, key: Key, distortion: Vec<Distortion>) -> Result<(), JournalError> {
        let numbers = distortion.iter().map(|one| [one.square, one.peaks[0], one.peaks[1]]).collect();
        self.append(&Line { key: key.clone(), distortion: numbers })?;
        self.measurements.insert(key, distortion);
        Ok(())
    }

    fn append(&mut self, line: &impl Serialize) -> Result<(), JournalError> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let mut bytes = Vec::new();
        let written = serde_json::to_writer(&mut bytes, line).map_err(io::Error::from).and_then(|()| {
            bytes.push(b'\n');
            own.write_all(&bytes)?;
            own.sync_data()
        });
        written.map_err(|source| io_error(&self.directory, "written", source))
    }
}

/// Opens a file to append to, cuts off an incomplete last line, and returns the length that is left. Returns
/// `None` if another process has the file. A link of its name is refused.
fn open_own(path: &Path) -> io::Result<Option<(File, u64)>> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other("it is a link, or no file: remove it, or give another --output"));
    }
    let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        // A file system without locks: the shards' files are apart anyway.
        Err(TryLockError::Error(_)) | Ok(()) => {}
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let complete = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at as u64 + 1);
    file.set_len(complete)?;
    Ok(Some((file, complete)))
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> JournalError {
    JournalError::Io { path: path.to_path_buf(), what, source }
}

#[cfg(test)]
mod tests {
    use mixbit_testkit::Scratch;

    use super::*;

    fn key(layer: &str) -> Key {
        Key::Isolated { layer: layer.to_string(), scheme: "palette-4".to_string() }
    }

    const HALF: Option<Shard> = Some(Shard { index: 0, count: 2 });
    const ONE: Distortion = Distortion { square: 0.1 + 0.2, peaks: [1.0 / 3.0, 2.0] };

    fn options() -> MeasuredOptions {
        MeasuredOptions::from([("steps".to_string(), "2".to_string())])
    }

    #[test]
    fn differences_are_told_in_options() {
        let three = MeasuredOptions::from([("steps".to_string(), "3".to_string())]);
        assert_eq!(difference(&options(), &three), "with other options (--steps was 2, and is 3)");
        assert_eq!(difference(&options(), &options()), "of another model, for the options are the same");
        assert_eq!(difference(&MeasuredOptions::new(), &three), "of another model or with other options");
    }

    #[test]
    fn measurements_are_found_again_exactly() {
        let scratch = Scratch::new();
        let mut journal = Journal::open(scratch.path(), HALF, "model a", options()).unwrap();
        journal.insert(key("a"), vec![ONE]).unwrap();
        let mut other =
            Journal::open(scratch.path(), Some(Shard { index: 1, count: 2 }), "model a", options()).unwrap();
        assert_eq!(other.get(&key("a")), Some(&[ONE][..]));
        other.insert(key("b"), vec![ONE, ONE]).unwrap();
        journal.reload().unwrap();
        assert_eq!(journal.get(&key("b")), Some(&[ONE, ONE][..]));
        let error = Journal::open(scratch.path(), HALF, "model a", options()).err().unwrap();
        assert!(matches!(error, JournalError::Busy { .. }), "{error}");
        let error = Journal::open(scratch.path(), HALF, "model b", options()).err().unwrap();
        assert!(error.to_string().contains("another model"), "{error}");
    }

    #[test]
    fn an_incomplete_last_line_is_cut_off() {
        let scratch = Scratch::new();
        let mut journal = Journal::open(scratch.path(), Some(Shard::WHOLE), "m", options()).unwrap();
        journal.insert(key("a"), vec![ONE]).unwrap();
        journal.insert(key("層.é"), vec![ONE]).unwrap();
        drop(journal);
        let path = scratch.path().join("1-of-1.measurements.jsonl");
        let bytes = fs::read(&path).unwrap();
        for len in (0..bytes.len()).rev() {
            fs::write(&path, &bytes[..len]).unwrap();
            let mut journal = Journal::open(scratch.path(), Some(Shard::WHOLE), "m", options()).unwrap();
            journal.insert(key("c"), vec![ONE]).unwrap();
            drop(journal);
            let journal = Journal::open(scratch.path(), Some(Shard::WHOLE), "m", options()).unwrap();
            assert_eq!(journal.get(&key("c")), Some(&[ONE][..]), "cut at {len}");
        }
        fs::write(&path, b"{\"measured\":\"m\"}\ngarbage\n").unwrap();
        let error = Journal::open(scratch.path(), Some(Shard::WHOLE), "m", options()).err().unwrap();
        assert!(error.to_string().contains("line 2 is no measurement"), "{error}");
    }
}
