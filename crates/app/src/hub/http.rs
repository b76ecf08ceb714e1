//! Exchanges over HTTP that can be stopped at any time.
//!
//! A thread makes each exchange and hands over what it reads. The caller looks at the request to stop ten
//! times a second, whatever the network does. A thread that nobody listens to ends with its next portion or
//! its timeout.

use std::fs;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use mixbit_mil::Stopped;
use ureq::Agent;
use ureq::http::HeaderMap;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::error::HubError;
use super::settings::{Settings, Token};
use super::url::{followed, host, origin_and_path, without_query};
use super::{Notice, Watch};

/// The interval at which the request to stop is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// The bytes of a portion of content.
const PORTION: usize = 256 << 10;

/// The portions that the thread may be ahead.
const AHEAD: usize = 8;

/// The most redirections of one request.
const MOST_REDIRECTIONS: usize = 10;

/// The most attempts at a request that makes no progress.
const MOST_ATTEMPTS: u32 = 4;

/// The most attempts before any server has answered.
const MOST_FIRST_ATTEMPTS: u32 = 2;

/// The longest pause before a retry that a server can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The largest file of certificates.
const LARGEST_CERTIFICATES: u64 = 16 << 20;

/// A client with its settings.
pub(super) struct Client {
    agent: Agent,
    /// Secrets by the origin that may see them.
    tokens: Vec<(String, Token)>,
    stall: Duration,
    pause: Duration,
    /// True once a server has answered: until then there may be no network at all.
    was_answered: AtomicBool,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) url: &'a str,
    /// True if only the header is asked for.
    pub(super) is_head: bool,
    /// True if redirections to other servers are followed.
    pub(super) leaves: bool,
    /// The first byte that is asked for.
    pub(super) start: u64,
    /// The version of which the bytes are asked for.
    pub(super) etag: Option<&'a str>,
}

impl<'a> Ask<'a> {
    /// A request for all of an address.
    pub(super) fn get(url: &'a str) -> Self {
        Ask { url, is_head: false, leaves: true, start: 0, etag: None }
    }
}

/// An answer, whose content is on its way.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The address that answered.
    pub(super) url: String,
    headers: HeaderMap,
    parts: Receiver<Part>,
    stall: Duration,
}

/// What the thread of an exchange hands over.
enum Part {
    Head(u16, HeaderMap),
    Content(Vec<u8>),
    End,
    Failed(String),
}

impl Client {
    /// A client. Proxies are those of the environment.
    pub(super) fn new(settings: &Settings) -> Result<Self, HubError> {
        let mut tokens = Vec::new();
        let origin = origin_and_path(&settings.endpoint).map(|(origin, _)| origin);
        let what = "it is not an address such as https://huggingface.co".to_string();
        let origin = origin.ok_or(HubError::Setting { name: "HF_ENDPOINT", what })?;
        let secrets = [
            ("HF_TOKEN", origin, &settings.token),
            ("CIVITAI_TOKEN", "https://civitai.com", &settings.civitai_token),
        ];
        for (name, origin, token) in secrets {
            let Some(token) = token else { continue };
            if !token.0.bytes().all(|byte| byte.is_ascii_graphic()) {
                let what = "it has characters that no token has".to_string();
                return Err(HubError::Setting { name, what });
            }
            tokens.push((origin.to_string(), token.clone()));
        }
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.certificates {
            tls = tls.root_certs(certificates(path)?);
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("mixbit/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .tls_config(tls.build())
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(settings.stall))
            .timeout_per_read(Some(settings.stall));
        Ok(Client {
            agent: config.build().new_agent(),
            tokens,
            stall: settings.stall,
            pause: settings.pause,
            was_answered: AtomicBool::new(false),
        })
    }

    /// True if requests to an address carry a token.
    pub(super) fn has_token(&self, url: &str) -> bool {
        self.token(url).is_some()
    }

    fn token(&self, url: &str) -> Option<&Token> {
        let (origin, _) = origin_and_path(url)?;
        self.tokens.iter().find(|(other, _)| other == origin).map(|(_, token)| token)
    }

    /// Sends a request and follows redirections. Statuses are the caller's to judge.
    ///
    /// # Errors
    /// [`HubError::Network`], [`HubError::Reply`], [`HubError::Stopped`].
    pub(super) fn send(&self, ask: Ask, watch: &dyn Watch) -> Result<Answer, HubError> {
        let mut url = ask.url.to_string();
        for _ in 0..MOST_REDIRECTIONS {
            let answer = self.exchange(&Ask { url: &url, ..ask }, watch)?;
            let Some(location) = answer.header("location").filter(|_| (301..=308).contains(&answer.status))
            else {
                return Ok(answer);
            };
            let next = followed(&url, location).ok_or_else(|| HubError::Reply {
                url: without_query(&url).to_string(),
                what: "it redirects to an address that is not followed".to_string(),
            })?;
            // The Hub's own answer says more of a large file than the server that has it.
            let is_enough = !ask.leaves && answer.header("x-linked-etag").is_some();
            let is_same = origin_and_path(&url).map(|(origin, _)| origin)
                == origin_and_path(&next).map(|(origin, _)| origin);
            if is_enough || (!is_same && !ask.leaves) {
                return Ok(answer);
            }
            url = next;
        }
        let what = format!("it redirects more than {MOST_REDIRECTIONS} times");
        Err(HubError::Reply { url: without_query(ask.url).to_string(), what })
    }

    /// One request and the header of its answer. The token goes to its own server only.
    fn exchange(&self, ask: &Ask, watch: &dyn Watch) -> Result<Answer, HubError> {
        let mut request = match ask.is_head {
            true => self.agent.head(ask.url),
            false => self.agent.get(ask.url),
        };
        if let Some(token) = self.token(ask.url) {
            request = request.header("authorization", format!("Bearer {}", token.0));
        }
        if ask.start > 0 {
            request = request.header("range", format!("bytes={}-", ask.start));
            if let Some(etag) = ask.etag {
                request = request.header("if-range", etag);
            }
        }
        let (sender, parts) = sync_channel(AHEAD);
        let work = move || {
            let failure = match request.call() {
                Ok(answer) => hand_over(answer, &sender),
                Err(error) => Some(reason(&error)),
            };
            let _ = sender.send(failure.map_or(Part::End, Part::Failed));
        };
        let spawned = thread::Builder::new().name("download".to_string()).spawn(work);
        spawned.map_err(|error| network(ask.url, error.to_string()))?;
        let mut answer = Answer {
            status: 0,
            url: ask.url.to_string(),
            headers: HeaderMap::new(),
            parts,
            stall: self.stall,
        };
        // Names are resolved, and connections made, before the server can be silent.
        match answer.part(watch, self.stall + Duration::from_secs(20))? {
            Part::Head(status, headers) => {
                (answer.status, answer.headers) = (status, headers);
                self.was_answered.store(true, Ordering::Relaxed);
                Ok(answer)
            }
            Part::Failed(what) => Err(network(ask.url, what + &self.by_proxy())),
            Part::Content(_) | Part::End => Err(network(ask.url, "there is no answer".to_string())),
        }
    }

    /// The proxy that an exchange went by, for messages.
    fn by_proxy(&self) -> String {
        let proxy = self.agent.config().proxy();
        proxy.map(|proxy| format!(" (by the proxy {}:{})", proxy.host(), proxy.port())).unwrap_or_default()
    }

    /// Tries an operation again, after pauses that grow, while it fails for reasons that pass. `attempt`
    /// returns with its error whether it got on.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub(super) fn with_retries<T>(
        &self,
        watch: &dyn Watch,
        mut attempt: impl FnMut() -> Result<T, (HubError, bool)>,
    ) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            let (error, got_on) = match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            failures = if got_on { 1 } else { failures + 1 };
            let most = match self.was_answered.load(Ordering::Relaxed) {
                true => MOST_ATTEMPTS,
                false => MOST_FIRST_ATTEMPTS,
            };
            if !error.is_transient() || failures >= most {
                return Err(error);
            }
            let asked = match &error {
                HubError::Status { wait, .. } => wait.map(Duration::from_secs),
                _ => None,
            };
            let pause = asked.unwrap_or(self.pause * 2u32.pow(failures - 1)).min(LONGEST_PAUSE);
            watch.notice(&Notice::Retrying { reason: &error.to_string(), pause });
            let end = Instant::now() + pause;
            while let Some(left) = end.checked_duration_since(Instant::now()) {
                check(watch, "the download")?;
                thread::sleep(left.min(INTERVAL));
            }
        }
    }
}

impl Answer {
    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The number of bytes that follow.
    pub(super) fn len(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// The next portion of content; `None` at its end.
    ///
    /// # Errors
    /// [`HubError::Network`], [`HubError::Stopped`].
    pub(super) fn portion(&self, watch: &dyn Watch) -> Result<Option<Vec<u8>>, HubError> {
        match self.part(watch, self.stall)? {
            Part::Content(bytes) => Ok(Some(bytes)),
            Part::End => Ok(None),
            Part::Failed(what) => Err(network(&self.url, what)),
            Part::Head(..) => Ok(Some(Vec::new())),
        }
    }

    /// The whole content.
    ///
    /// # Errors
    /// [`HubError::Reply`] if it has more than `limit` bytes; those of [`portion`](Self::portion).
    pub(super) fn content(&self, limit: usize, watch: &dyn Watch) -> Result<Vec<u8>, HubError> {
        let mut content = Vec::new();
        while let Some(portion) = self.portion(watch)? {
            if content.len() + portion.len() > limit {
                let what = format!("the answer has more than {limit} bytes");
                return Err(HubError::Reply { url: without_query(&self.url).to_string(), what });
            }
            content.extend(portion);
        }
        Ok(content)
    }

    /// The error of an answer with a status that has no meaning of its own.
    pub(super) fn refused(&self) -> HubError {
        let wait = self.header("retry-after").and_then(|text| text.trim().parse().ok());
        HubError::Status { url: without_query(&self.url).to_string(), status: self.status, wait }
    }

    fn part(&self, watch: &dyn Watch, patience: Duration) -> Result<Part, HubError> {
        let begin = Instant::now();
        loop {
            check(watch, &host(&self.url))?;
            match self.parts.recv_timeout(INTERVAL) {
                Ok(part) => return Ok(part),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(network(&self.url, "the connection broke off".to_string()));
                }
                Err(RecvTimeoutError::Timeout) if begin.elapsed() > patience => {
                    let what = format!("it was silent for {} seconds", patience.as_secs());
                    return Err(network(&self.url, what));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Fails if the user asked to stop.
pub(super) fn check(watch: &dyn Watch, name: &str) -> Result<(), HubError> {
    watch.check().map_err(|Stopped| HubError::Stopped { name: name.to_string() })
}

/// Hands over an answer. Returns why it ended early.
fn hand_over(answer: ureq::http::Response<ureq::Body>, sender: &SyncSender<Part>) -> Option<String> {
    let (head, body) = answer.into_parts();
    sender.send(Part::Head(head.status.as_u16(), head.headers)).ok()?;
    let mut reader = body.into_reader();
    loop {
        let mut portion = vec![0; PORTION];
        match reader.read(&mut portion) {
            Ok(0) => return None,
            Ok(len) => {
                portion.truncate(len);
                // Nobody listens any more.
                sender.send(Part::Content(portion)).ok()?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Some(format!("the connection broke off ({error})")),
        }
    }
}

/// The error of a failed exchange. That of a certificate does not pass.
fn network(url: &str, what: String) -> HubError {
    match what.contains("certificate") {
        true => HubError::Certificate { host: host(url), what },
        false => HubError::Network { host: host(url), what },
    }
}

/// The reason of a failed exchange, in words that say what to do.
fn reason(error: &ureq::Error) -> String {
    use std::io::ErrorKind;

    use ureq::Error as E;
    const UNKNOWN: &str = "its name is not known: is this machine connected to the network?";
    const CLOSED: &str = "nothing accepts connections there";
    match error {
        E::HostNotFound => UNKNOWN.to_string(),
        E::ConnectionFailed => CLOSED.to_string(),
        E::Timeout(_) => "it does not answer in time".to_string(),
        E::InvalidProxyUrl => "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY is not an address of a proxy".to_string(),
        E::Io(error) => match error.kind() {
            ErrorKind::ConnectionRefused => CLOSED.to_string(),
            ErrorKind::TimedOut => "it does not answer in time".to_string(),
            _ if error.to_string().contains("lookup address") => UNKNOWN.to_string(),
            _ => error.to_string(),
        },
        error => error.to_string(),
    }
}

/// The certificates of a file in the PEM form.
fn certificates(path: &std::path::Path) -> Result<RootCerts, HubError> {
    let defect = |what: String| HubError::Setting {
        name: "SSL_CERT_FILE",
        what: format!("{}: {what}", path.display()),
    };
    let mut pem = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(LARGEST_CERTIFICATES).read_to_end(&mut pem));
    read.map_err(|error| defect(error.to_string()))?;
    let items = parse_pem(&pem).filter_map(Result::ok);
    let found: Vec<_> = items
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    match found.is_empty() {
        true => Err(defect("it has no certificate".to_string())),
        false => Ok(RootCerts::from(found)),
    }
}
