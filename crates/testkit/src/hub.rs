//! A server on loopback that speaks the part of the Hugging Face Hub's API that downloads use.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// A file of a repository.
#[derive(Clone, Debug)]
pub struct HubFile {
    /// The content.
    pub content: Vec<u8>,
    /// The name of the content: its SHA-256 in hexadecimal digits for large files.
    pub etag: String,
    /// True if the content comes from the other server, as large files' do.
    pub is_large: bool,
}

/// A repository with one commit.
#[derive(Clone, Debug, Default)]
pub struct HubRepository {
    /// The commit, which `main` and the tags name.
    pub commit: String,
    /// Other names of the commit.
    pub tags: Vec<String>,
    /// The files by path.
    pub files: BTreeMap<String, HubFile>,
    /// The status and the `X-Error-Code` of every answer.
    pub refusal: Option<(u16, &'static str)>,
}

/// Misbehaviour of the server of large files.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The bytes after which a connection breaks off, for each of the next answers.
    pub cuts: Vec<usize>,
    /// Bytes that are sent in place of the content.
    pub instead: Option<Vec<u8>>,
    /// The pause after every 64 KiB.
    pub pause: Duration,
    /// The statuses of the next answers.
    pub statuses: Vec<u16>,
}

/// A request, as it came.
#[derive(Clone, Debug)]
pub struct HubRequest {
    /// True at the server of large files.
    pub is_for_content: bool,
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// The headers by name in lower case.
    pub headers: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    repositories: BTreeMap<String, HubRepository>,
    faults: Faults,
    /// Answers of an own making by path.
    replies: BTreeMap<String, (u16, String, Vec<u8>)>,
    requests: Vec<HubRequest>,
}

/// The server. It runs until the process ends.
#[derive(Clone, Debug)]
pub struct HubServer {
    endpoint: String,
    content: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    /// Starts a server, and another one for large files.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub fn start(repositories: impl IntoIterator<Item = (String, HubRepository)>) -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [endpoint, content] =
            listeners.each_ref().map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        let state = State { repositories: repositories.into_iter().collect(), ..State::default() };
        let server = HubServer { endpoint, content, state: Arc::new(Mutex::new(state)) };
        for (index, listener) in listeners.into_iter().enumerate() {
            let server = server.clone();
            thread::spawn(move || {
                for stream in listener.incoming().filter_map(Result::ok) {
                    let server = server.clone();
                    thread::spawn(move || server.serve(stream, index == 1));
                }
            });
        }
        server
    }

    /// The address, for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The address of the server of large files.
    pub fn content_address(&self) -> &str {
        &self.content
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.with(|state| state.faults = faults);
    }

    /// Sets the answer to a path: a status, header lines and content.
    pub fn set_reply(&self, path: &str, status: u16, headers: &str, content: &[u8]) {
        let reply = (status, headers.to_string(), content.to_vec());
        self.with(|state| state.replies.insert(path.to_string(), reply));
    }

    /// Changes a repository.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut HubRepository)) {
        self.with(|state| state.repositories.get_mut(name).map(change));
    }

    /// The requests since the last call.
    pub fn take_requests(&self) -> Vec<HubRequest> {
        self.with(|state| std::mem::take(&mut state.requests))
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers the requests of one connection.
    fn serve(&self, stream: TcpStream, is_for_content: bool) {
        let Ok(mut writer) = stream.try_clone() else { return };
        let mut reader = BufReader::new(stream);
        while let Some(request) = read(&mut reader, is_for_content) {
            self.with(|state| state.requests.push(request.clone()));
            let path = request.path.split('?').next().unwrap_or_default().to_string();
            let reply = self.with(|state| state.replies.get(&path).cloned());
            let is_head = request.method == "HEAD";
            let is_whole = match reply {
                Some((status, headers, content)) => answer(
                    &mut writer,
                    status,
                    &headers,
                    if is_head { None } else { Some(&content) },
                    content.len(),
                ),
                None if is_for_content => self.content(&mut writer, &request, &path),
                None => self.page(&mut writer, &path, is_head),
            };
            if !is_whole {
                let _ = writer.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }

    fn page(&self, writer: &mut TcpStream, path: &str, is_head: bool) -> bool {
        let (status, headers, content) = self.with(|state| self.reply(state, path));
        answer(writer, status, &headers, if is_head { None } else { Some(&content) }, content.len())
    }

    /// The status, headers and content of a page of the Hub.
    fn reply(&self, state: &State, path: &str) -> (u16, String, Vec<u8>) {
        let error = |status: u16, code: &str| {
            (status, format!("X-Error-Code: {code}\r\nX-Error-Message: {code}\r\n"), b"{}".to_vec())
        };
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (owner, name, rest) = match parts[..] {
            ["api", "models", owner, name, ref rest @ ..] | [owner, name, ref rest @ ..] => {
                (owner, name, rest)
            }
            _ => return error(404, "RepoNotFound"),
        };
        let Some(repository) = state.repositories.get(&format!("{owner}/{name}")) else {
            return error(404, "RepoNotFound");
        };
        if let Some((status, code)) = repository.refusal {
            return error(status, code);
        }
        let is_known = |revision: &str| {
            revision == "main"
                || revision == repository.commit
                || repository.tags.iter().any(|tag| tag == revision)
        };
        match rest {
            [] | ["revision" | "tree" | "resolve", ..] if rest.get(1).is_some_and(|it| !is_known(it)) => {
                error(404, "RevisionNotFound")
            }
            [] | ["revision", _] => json_reply(&model(&format!("{owner}/{name}"), repository)),
            ["tree", ..] => json_reply(&tree(repository)),
            ["resolve", _, path @ ..] => match repository.files.get(&unescaped(&path.join("/"))) {
                Some(file) => self.resolved(repository, file),
                None => error(404, "EntryNotFound"),
            },
            _ => error(404, "RepoNotFound"),
        }
    }

    fn resolved(&self, repository: &HubRepository, file: &HubFile) -> (u16, String, Vec<u8>) {
        let commit = format!("X-Repo-Commit: {}\r\n", repository.commit);
        match file.is_large {
            true => {
                let location = format!("{}/{}?signature=1", self.content, file.etag);
                let (etag, len) = (&file.etag, file.content.len());
                let headers = format!(
                    "{commit}ETag: \"pointer\"\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {len}\r\n\
                     Location: {location}\r\n"
                );
                (302, headers, Vec::new())
            }
            false => (200, format!("{commit}ETag: \"{}\"\r\n", file.etag), file.content.clone()),
        }
    }

    /// Sends a large file, or a part of it.
    fn content(&self, writer: &mut TcpStream, request: &HubRequest, path: &str) -> bool {
        let etag = path.trim_start_matches('/');
        let (file, cut, status, faults) = self.with(|state| {
            let mut files = state.repositories.values().flat_map(|repository| repository.files.values());
            let file = files.find(|file| file.etag == etag).cloned();
            let take =
                |values: &mut Vec<usize>| if values.is_empty() { None } else { Some(values.remove(0)) };
            let cut = take(&mut state.faults.cuts);
            let statuses = &mut state.faults.statuses;
            let status = if statuses.is_empty() { None } else { Some(statuses.remove(0)) };
            (file, cut, status, state.faults.clone())
        });
        let Some(file) = file else { return answer(writer, 404, "", Some(b""), 0) };
        if let Some(status) = status {
            return answer(writer, status, "", Some(b""), 0);
        }
        let content = faults.instead.unwrap_or(file.content);
        let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        let start: usize = range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
        if start > content.len() {
            return answer(writer, 416, "", Some(b""), 0);
        }
        let rest = &content[start..];
        let (status, headers) = match range {
            Some(_) => {
                let last = content.len().saturating_sub(1);
                (206, format!("Content-Range: bytes {start}-{last}/{}\r\n", content.len()))
            }
            None => (200, String::new()),
        };
        if !answer(writer, status, &headers, None, rest.len()) {
            return false;
        }
        let sent = &rest[..cut.unwrap_or(rest.len()).min(rest.len())];
        for portion in sent.chunks(64 << 10) {
            if writer.write_all(portion).is_err() {
                return false;
            }
            thread::sleep(faults.pause);
        }
        sent.len() == rest.len()
    }
}

/// The description of a repository.
fn model(id: &str, repository: &HubRepository) -> Value {
    let siblings = repository.files.iter().map(|(path, file)| {
        let mut sibling = json!({"rfilename": path, "size": file.content.len(), "blobId": "0".repeat(40)});
        if file.is_large {
            sibling["lfs"] = json!({"sha256": file.etag, "size": file.content.len(), "pointerSize": 134});
        }
        sibling
    });
    json!({"id": id, "modelId": id, "sha": repository.commit, "private": false, "tags": [], "downloads": 0,
           "likes": 0, "siblings": siblings.collect::<Vec<_>>()})
}

/// The listing of a repository's files.
fn tree(repository: &HubRepository) -> Value {
    let entries = repository.files.iter().map(|(path, file)| {
        let mut entry =
            json!({"type": "file", "path": path, "size": file.content.len(), "oid": "0".repeat(40)});
        if file.is_large {
            entry["lfs"] = json!({"oid": file.etag, "size": file.content.len(), "pointerSize": 134});
        }
        entry
    });
    entries.collect()
}

fn json_reply(value: &Value) -> (u16, String, Vec<u8>) {
    (200, "Content-Type: application/json\r\n".to_string(), value.to_string().into_bytes())
}

/// A path without escapes, of which tests use those of blanks only.
fn unescaped(path: &str) -> String {
    path.replace("%20", " ")
}

/// Reads a request; `None` at the end of the connection.
fn read(reader: &mut impl BufRead, is_for_content: bool) -> Option<HubRequest> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_string()),
            None => return Some(HubRequest { is_for_content, method, path, headers }),
        };
    }
}

/// Sends an answer. Returns false if the connection is broken.
fn answer(writer: &mut TcpStream, status: u16, headers: &str, content: Option<&[u8]>, len: usize) -> bool {
    let head = format!("HTTP/1.1 {status} Status\r\n{headers}Content-Length: {len}\r\n\r\n");
    let sent = writer.write_all(head.as_bytes());
    sent.and_then(|()| writer.write_all(content.unwrap_or_default())).is_ok()
}
