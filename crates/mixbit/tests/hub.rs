//! Models by name: downloads from a server on loopback that speaks the Hub's API, and everything that goes
//! wrong on the way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use mixbit_formats::sha256;
use mixbit_testkit::{
    Failures, Faults, HubFile, HubRepository, HubRequest, HubServer, Scratch, fixture_root, read_tree,
};
use serde_json::Value;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file of a repository; large ones come from the other server.
fn file(content: &[u8], is_large: bool) -> HubFile {
    let digest: String = sha256(content).iter().map(|byte| format!("{byte:02x}")).collect();
    let etag = if is_large { digest } else { digest[..40].to_string() };
    HubFile { content: content.to_vec(), etag, is_large }
}

fn repository(files: impl IntoIterator<Item = (String, HubFile)>) -> HubRepository {
    let tags = vec!["v1".to_string(), "refs%2Fpr%2F1".to_string()];
    HubRepository { commit: COMMIT.to_string(), tags, files: files.into_iter().collect(), refusal: None }
}

/// The tiny model of the fixtures, with all that real repositories have beside it.
fn tiny() -> HubRepository {
    let mut files: Vec<(String, HubFile)> = read_tree(&fixture_root().join("pipelines/sd15"))
        .unwrap()
        .into_iter()
        .map(|(path, content)| {
            let path = path.to_string_lossy().replace('\\', "/");
            (path.clone(), file(&content, path.ends_with(".safetensors")))
        })
        .collect();
    for other in [
        "README.md",
        "v1-5-pruned.safetensors",
        "v1-5-pruned.ckpt",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_flax_model.msgpack",
        "text_encoder/model.onnx",
        "vae_decoder/model.onnx",
    ] {
        files.push((other.to_string(), file(other.as_bytes(), true)));
    }
    repository(files)
}

/// Bytes that no other file has.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A server with a tiny model, a large file, packages and a recipe.
fn server() -> HubServer {
    let packages = ["original/compiled", "split_einsum/compiled"].into_iter().flat_map(|folder| {
        [
            "Unet.mlmodelc/model.mil",
            "UnetChunk1.mlmodelc/model.mil",
            "SafetyChecker.mlmodelc/model.mil",
            "vocab.json",
        ]
        .map(|name| format!("{folder}/{name}"))
    });
    let packages = packages.map(|path| (path.clone(), file(path.as_bytes(), false)));
    let recipe = br#"{"model_version": "m", "recipes": {"only": {"a": 4}}}"#;
    HubServer::start([
        ("org/tiny".to_string(), tiny()),
        (
            "org/big".to_string(),
            repository([("big.safetensors".to_string(), file(&noise(2_000_000, 7), true))]),
        ),
        ("org/coreml".to_string(), repository(packages)),
        ("org/recipes".to_string(), repository([("r/recipe.json".to_string(), file(recipe, false))])),
    ])
}

/// A user with caches of their own.
struct User {
    home: Scratch,
    server: HubServer,
}

impl User {
    fn new() -> Self {
        User { home: Scratch::new(), server: server() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut mixbit = Command::new(env!("CARGO_BIN_EXE_mixbit"));
        mixbit.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in [
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "XDG_CACHE_HOME",
            "MIXBIT_MODEL",
            "HTTP_PROXY",
            "http_proxy",
        ] {
            mixbit.env_remove(name);
        }
        mixbit.env("HOME", self.home.path()).env("HF_HOME", self.home.path().join("hf"));
        mixbit.env("MIXBIT_CACHE", self.home.path().join("own")).env("HF_ENDPOINT", self.server.endpoint());
        mixbit.current_dir(self.home.path());
        mixbit
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that succeeds. Returns its output and messages.
    fn succeed(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        (out, err)
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.home.path().join("hf/hub").join(format!("models--{}", name.replace('/', "--")))
    }

    fn big(&self) -> PathBuf {
        self.repository("org/big").join(format!("snapshots/{COMMIT}/big.safetensors"))
    }

    /// The unfinished files of a repository.
    fn unfinished(&self, name: &str) -> Vec<PathBuf> {
        let blobs = fs::read_dir(self.repository(name).join("blobs")).into_iter().flatten();
        let blobs = blobs.map(|entry| entry.unwrap().path());
        blobs.filter(|path| path.extension().is_some_and(|end| end == "incomplete")).collect()
    }
}

/// The only line of a failed command's messages.
fn refusal(output: &Output) -> Result<String, String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("note:")).collect();
    match (output.status.code(), &lines[..]) {
        (Some(1), [line]) if line.starts_with("error: ") => Ok(line.to_string()),
        (code, _) => Err(format!("code {code:?}: {text}")),
    }
}

fn paths(requests: &[HubRequest], method: &str) -> Vec<String> {
    requests.iter().filter(|request| request.method == method).map(|request| request.path.clone()).collect()
}

#[test]
fn a_model_comes_with_the_files_that_it_needs_and_no_other() {
    let user = User::new();
    let (by_name, messages) = user.succeed(&["inspect", "org/tiny", "--json"]);
    let (_, again) = user.succeed(&["pull", "org/tiny"]);
    assert!(again.contains("org/tiny: 11 files, there already"), "{again}");
    let fixture = fixture_root().join("pipelines/sd15");
    let (by_path, _) = user.succeed(&["inspect", &fixture.to_string_lossy(), "--json"]);
    let [by_name, by_path] = [by_name, by_path].map(|text| serde_json::from_str::<Value>(&text).unwrap());
    assert_eq!(by_name["parts"].as_array().unwrap().len(), by_path["parts"].as_array().unwrap().len());
    assert!(
        messages.starts_with("downloading org/tiny: 10 files, ") && messages.lines().count() == 1,
        "{messages}"
    );

    let snapshot = user.repository("org/tiny").join("snapshots").join(COMMIT);
    let found: Vec<PathBuf> = read_tree(&snapshot).unwrap().into_keys().collect();
    let expected: Vec<PathBuf> = read_tree(&fixture).unwrap().into_keys().collect();
    assert_eq!(found, expected);
    assert_eq!(fs::read_to_string(user.repository("org/tiny").join("refs/main")).unwrap(), COMMIT);

    // From now on nothing is asked.
    user.server.take_requests();
    user.succeed(&["inspect", "org/tiny", "--offline"]);
    user.succeed(&["--offline", "inspect", &format!("org/tiny@{COMMIT}")]);
    user.succeed(&["inspect", &format!("org/tiny@{COMMIT}")]);
    assert_eq!(user.server.take_requests().len(), 0);
}

#[test]
fn every_command_takes_names() {
    let user = User::new();
    let commands: [&[&str]; 8] = [
        &["generate", "a", "--model", "org/tiny", "--steps", "1", "--output", "a.png"],
        &["compare", "--models", "org/tiny", "a", "--steps", "1", "--output", "grid.png"],
        &["convert", "org/tiny@v1", "--output", "converted"],
        &["palettize", "org/tiny", "--nbits", "4", "--min-size", "100", "--output", "small"],
        &[
            "analyze",
            "org/tiny",
            "--effort",
            "low",
            "--steps",
            "2",
            "--target-bits",
            "8",
            "--output",
            "analysis",
        ],
        &["bench", "org/tiny", "--runs", "1", "--steps", "1"],
        &["inspect", "https://huggingface.co/org/tiny"],
        &["diff", "org/tiny", "converted"],
    ];
    let mut failures = Failures::new("commands that take names");
    for command in commands {
        failures.case(command[0], || {
            let mut command = user.command(&[command, &["--offline"]].concat());
            let line = refusal(&command.output().unwrap()).or_else(|text| {
                // `diff` has another code for failures.
                if text.starts_with("code Some(2): error: ") { Ok(text) } else { Err(text) }
            })?;
            if line.contains("org/tiny") && line.contains("is not downloaded") { Ok(()) } else { Err(line) }
        });
    }
    for command in commands.iter().filter(|command| !command.contains(&"https://huggingface.co/org/tiny")) {
        failures.case(&format!("{}, downloaded", command[0]), || {
            let output = user.run(command);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_difference = command[0] == "diff" && output.status.code() == Some(1);
            if output.status.success() || is_difference { Ok(()) } else { Err(text) }
        });
    }
    failures.finish();
}

#[test]
fn one_line_says_what_is_downloaded() {
    let user = User::new();
    let (path, messages) = user.succeed(&["pull", "org/big"]);
    assert_eq!(fs::read(path.trim()).unwrap(), noise(2_000_000, 7));
    let lines: Vec<&str> = messages.lines().collect();
    assert!(lines[0].starts_with("downloading org/big: 1 file, 2.0 MB, into "), "{messages}");
    assert_eq!(lines[1..], ["org/big: 1 file, 2.0 MB downloaded"]);
    let link = fs::read_link(user.big()).unwrap();
    assert!(link.starts_with("../../blobs"), "{}", link.display());
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let user = User::new();
    let output = user.command(&["pull", "org/big"]).env("HF_TOKEN", "hf_secret").output().unwrap();
    assert!(output.status.success());
    for request in user.server.take_requests() {
        let token = request.headers.get("authorization").map(String::as_str);
        let expected = (!request.is_for_content).then_some("Bearer hf_secret");
        assert_eq!(token, expected, "{request:?}");
    }
}

#[test]
fn a_download_goes_on_where_it_broke_off() {
    let user = User::new();
    user.server.set_faults(Faults { cuts: vec![300_000, 500_000], ..Faults::default() });
    let (_, messages) = user.succeed(&["pull", "org/big"]);
    assert_eq!(messages.lines().filter(|line| line.starts_with("note: ")).count(), 2, "{messages}");
    assert_eq!(fs::read(user.big()).unwrap(), noise(2_000_000, 7));
    let requests = user.server.take_requests();
    let ranges: Vec<_> =
        requests.iter().filter(|it| it.is_for_content).map(|it| it.headers.get("range")).collect();
    let expected = ["bytes=300000-", "bytes=800000-"].map(str::to_string);
    assert_eq!(ranges, [None, Some(&expected[0]), Some(&expected[1])]);

    let user = User::new();
    user.server.set_faults(Faults { statuses: vec![503, 429], ..Faults::default() });
    user.succeed(&["pull", "org/big", "--quiet"]);
}

/// Starts a slow download, and returns when some of it is there.
fn begun(user: &User) -> Child {
    user.server.set_faults(Faults { pause: Duration::from_millis(100), ..Faults::default() });
    let child = user.command(&["pull", "org/big"]).spawn().unwrap();
    let begin = Instant::now();
    while user.unfinished("org/big").iter().all(|path| path.metadata().unwrap().len() < 200_000) {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing is downloaded");
        sleep(Duration::from_millis(20));
    }
    child
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_there() {
    let user = User::new();
    let child = begun(&user);
    let begin = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    // A second, and another for a busy machine.
    assert!(begin.elapsed() < Duration::from_secs(2), "it took {:?}", begin.elapsed());
    let messages = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{messages}");
    let last = messages.lines().last().unwrap();
    assert!(last.starts_with("error: stopped") && last.ends_with("run it again to go on"), "{last}");
    assert!(!user.big().exists());

    user.server.set_faults(Faults::default());
    user.server.take_requests();
    let (_, messages) = user.succeed(&["pull", "org/big"]);
    assert!(messages.contains("are there already"), "{messages}");
    assert_eq!(fs::read(user.big()).unwrap(), noise(2_000_000, 7));
    let requests = user.server.take_requests();
    let content = requests.iter().find(|request| request.is_for_content).unwrap();
    assert!(content.headers.contains_key("range"), "{content:?}");
}

#[test]
fn two_processes_download_once() {
    let user = User::new();
    let first = begun(&user);
    let second = user.command(&["pull", "org/big"]).spawn().unwrap();
    for child in [first, second] {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(fs::read(user.big()).unwrap(), noise(2_000_000, 7));
    let requests = user.server.take_requests();
    assert_eq!(requests.iter().filter(|request| request.is_for_content).count(), 1);
}

#[test]
fn refusals_are_one_line() {
    struct Case {
        arguments: &'static [&'static str],
        refusal: Option<(u16, &'static str)>,
        token: bool,
        expected: &'static [&'static str],
    }
    let case = |arguments, refusal, token, expected| Case { arguments, refusal, token, expected };
    let cases = [
        case(&["inspect", "org/tiny"], Some((401, "GatedRepo")), false, &["gated", "/org/tiny,", "HF_TOKEN"]),
        case(&["inspect", "org/tiny"], Some((403, "GatedRepo")), true, &["gated", "account of your token"]),
        case(&["inspect", "org/tiny"], Some((401, "")), false, &["`org/tiny`", "HF_TOKEN"]),
        case(&["inspect", "org/tiny"], Some((401, "")), true, &["check HF_TOKEN"]),
        case(
            &["inspect", "org/none"],
            None,
            false,
            &["`org/none` is not a path that exists", "no such model"],
        ),
        case(&["inspect", "org/tiny@v9"], None, false, &["no revision `v9`"]),
        case(
            &["inspect", "org/tiny/unet/x.safetensors"],
            None,
            false,
            &["org/tiny has no `unet/x.safetensors`"],
        ),
        case(&["pull", "org/tiny", "--variant", "ema"], None, false, &["no variant `ema`, but fp16"]),
        case(
            &["pull", "org/coreml"],
            None,
            false,
            &["give one of org/coreml/original/compiled, org/coreml/split"],
        ),
        case(&["inspect", "~/tiny"], None, false, &["`~`", "home directory"]),
        case(&["pull", "./org/tiny"], None, false, &["neither"]),
        case(
            &["inspect", "org/tiny", "--offline"],
            None,
            false,
            &["org/tiny is not downloaded", "--offline"],
        ),
        case(&["inspect", "http://example.org/x.ckpt"], None, false, &["https:// only"]),
    ];
    let mut failures = Failures::new("refusals of the Hub");
    for Case { arguments, refusal: answer, token, expected } in cases {
        failures.case(&format!("{arguments:?} {answer:?} {token}"), || {
            let user = User::new();
            user.server.change("org/tiny", |repository| repository.refusal = answer);
            let mut command = user.command(arguments);
            if token {
                command.env("HF_TOKEN", "hf_x");
            }
            let line = refusal(&command.output().unwrap())?;
            match expected.iter().find(|text| !line.contains(**text)) {
                Some(text) => Err(format!("no `{text}` in {line}")),
                None => Ok(()),
            }
        });
    }
    failures.finish();
}

#[test]
fn damage_is_found_and_removed() {
    let user = User::new();
    user.server.set_faults(Faults { instead: Some(noise(2_000_000, 9)), ..Faults::default() });
    let output = user.command(&["pull", "org/big", "--quiet"]).output().unwrap();
    let line = refusal(&output).unwrap();
    assert!(line.contains("org/big/big.safetensors: its checksum is"), "{line}");
    assert!(user.unfinished("org/big").is_empty() && !user.big().exists());
    user.server.set_faults(Faults { instead: Some(noise(3_000_000, 9)), ..Faults::default() });
    let line = refusal(&user.run(&["pull", "org/big", "--quiet"])).unwrap();
    assert!(line.contains("has 3000000 bytes, not 2000000"), "{line}");
    user.server.set_faults(Faults::default());
    user.succeed(&["pull", "org/big"]);
}

#[test]
fn a_full_disk_is_told_before_the_download() {
    let user = User::new();
    let output = user.command(&["pull", "org/big"]).env("MIXBIT_FREE_SPACE", "1000000").output().unwrap();
    let line = refusal(&output).unwrap();
    assert!(line.contains("org/big needs 2.0 MB more") && line.contains("1.0 MB free"), "{line}");
    assert!(!user.server.take_requests().iter().any(|request| request.is_for_content));
}

#[test]
fn without_a_network_the_cache_serves() {
    let user = User::new();
    let nowhere = |arguments: &[&str]| {
        user.command(arguments).env("HF_ENDPOINT", "http://127.0.0.1:1").output().unwrap()
    };
    let line = refusal(&nowhere(&["inspect", "org/tiny"])).unwrap();
    assert!(line.contains("127.0.0.1:1 can't be reached"), "{line}");
    user.succeed(&["pull", "org/tiny"]);
    let output = nowhere(&["bench", "--help"]);
    assert!(output.status.success());
    let output = nowhere(&["diff", "org/tiny", "org/tiny"]);
    let messages = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{messages}");
    assert!(messages.contains("org/tiny is taken as it was last downloaded"), "{messages}");
    // So it does if the Hub refuses what it gave before.
    user.server.change("org/tiny", |repository| repository.refusal = Some((401, "GatedRepo")));
    let (_, messages) = user.succeed(&["inspect", "org/tiny"]);
    assert!(messages.contains("gated") && messages.contains("taken as it was"), "{messages}");
    // A download that was interrupted is no model.
    let snapshot = user.repository("org/tiny").join("snapshots").join(COMMIT);
    fs::remove_file(snapshot.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let line = refusal(&user.run(&["inspect", "org/tiny", "--offline"])).unwrap();
    assert!(line.contains("the cache has no weights in `unet`"), "{line}");
}

#[test]
fn hostile_replies_write_nothing() {
    let listing = |name: &str| {
        serde_json::json!({"sha": COMMIT, "siblings": [{"rfilename": name, "size": 1}]}).to_string()
    };
    let api = "/api/models/org/big/revision/main";
    let resolve = format!("/org/big/resolve/{COMMIT}/big.safetensors");
    let mut huge = listing("a").into_bytes();
    huge.resize(40 << 20, b' ');
    let ok = "Content-Type: application/json\r\n".to_string();
    let head = |etag: &str| format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\n");
    let cases: [(&str, u16, String, Vec<u8>, &str); 9] = [
        (api, 200, ok.clone(), listing("../../evil").into(), "leads out"),
        (api, 200, ok.clone(), listing("/etc/evil").into(), "leads out"),
        (api, 200, ok.clone(), listing("a/../../evil").into(), "leads out"),
        (api, 200, ok.clone(), br#"{"sha": "../..", "siblings": []}"#.to_vec(), "does not say the commit"),
        (api, 200, ok.clone(), huge, "more than"),
        (api, 200, ok, b"<html>login</html>".to_vec(), "not that of a Hub"),
        (&resolve, 200, head("../../../evil"), b"x".to_vec(), "ETag"),
        (&resolve, 302, "Location: file:///etc/passwd\r\n".into(), Vec::new(), "redirects to an address"),
        (&resolve, 302, format!("Location: {resolve}\r\n"), Vec::new(), "more than 10 times"),
    ];
    let mut failures = Failures::new("hostile replies");
    for (path, status, headers, content, expected) in cases {
        failures.case(&format!("{path} {status} {expected}"), || {
            let user = User::new();
            user.server.set_reply(path, status, &headers, &content);
            let line = refusal(&user.run(&["pull", "org/big", "--quiet"]))?;
            let written = read_tree(&user.home.path().join("hf")).unwrap_or_default();
            match line.contains(expected) && written.keys().all(|path| path.starts_with("hub/.locks")) {
                true => Ok(()),
                false => Err(format!("{line}; {:?}", written.keys())),
            }
        });
    }
    failures.finish();
}

#[cfg(unix)]
#[test]
fn links_in_the_cache_lead_no_download_elsewhere() {
    use std::os::unix::fs::symlink;
    let user = User::new();
    let victim = user.home.file("victim", b"precious");
    user.succeed(&["pull", "org/coreml/split_einsum/compiled"]);
    let blobs = user.repository("org/big").join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let etag = file(&noise(2_000_000, 7), true).etag;
    symlink(&victim, blobs.join(format!("{etag}.incomplete"))).unwrap();
    user.succeed(&["pull", "org/big"]);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    let user = User::new();
    let elsewhere = user.home.path().join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    fs::create_dir_all(user.repository("org/big")).unwrap();
    symlink(&elsewhere, user.repository("org/big").join("blobs")).unwrap();
    let line = refusal(&user.run(&["pull", "org/big", "--quiet"])).unwrap();
    assert!(line.contains("a link has that name"), "{line}");
    assert_eq!(fs::read_dir(elsewhere).unwrap().count(), 0);
}

#[test]
fn packages_and_recipes_come_by_their_paths() {
    let user = User::new();
    let (path, _) = user.succeed(&["pull", "org/coreml/split_einsum/compiled"]);
    assert!(path.trim().ends_with("split_einsum/compiled"), "{path}");
    let found: Vec<PathBuf> = read_tree(Path::new(path.trim())).unwrap().into_keys().collect();
    assert_eq!(found, ["Unet.mlmodelc/model.mil", "vocab.json"].map(PathBuf::from));
    let gets = paths(&user.server.take_requests(), "GET");
    assert!(!gets.iter().any(|path| path.contains("Chunk1") || path.contains("original")), "{gets:?}");
    let (recipe, _) = user.succeed(&["inspect", "org/recipes/r/recipe.json"]);
    assert!(recipe.starts_with("recipes for m"), "{recipe}");
}

/// A zip archive of uncompressed files.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        let bit = |crc: u32, _: u32| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
    };
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let numbers = [crc(content), content.len() as u32, content.len() as u32, name.len() as u32];
        let common: Vec<u8> = [20, 0, 0, 0, 0]
            .map(u16::to_le_bytes)
            .concat()
            .into_iter()
            .chain(numbers.map(u32::to_le_bytes).concat())
            .collect();
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend((archive.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        archive.extend(b"PK\x03\x04");
        archive.extend(common);
        archive.extend(name.as_bytes());
        archive.extend(*content);
    }
    let [start, len] = [archive.len() as u32, directory.len() as u32];
    archive.extend(directory);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    archive.extend([files.len() as u16; 2].map(u16::to_le_bytes).concat());
    archive.extend([len, start].map(u32::to_le_bytes).concat());
    archive.extend([0; 2]);
    archive
}

#[test]
fn archives_are_unpacked_once() {
    let good = zip(&[("m/Unet.mlmodelc/model.mil", b"mil"), ("m/vocab.json", b"{}")]);
    let evil = zip(&[("m/Unet.mlmodelc/model.mil", b"mil"), ("../../evil", b"evil")]);
    let archive = |content: &[u8]| repository([("coreml-m_compiled.zip".to_string(), file(content, true))]);
    let repositories = [("org/good", archive(&good)), ("org/evil", archive(&evil))];
    let repositories = repositories.map(|(name, repository)| (name.to_string(), repository));
    let user = User { home: Scratch::new(), server: HubServer::start(repositories) };
    let (path, _) = user.succeed(&["pull", "org/good"]);
    let path = PathBuf::from(path.trim());
    assert!(path.ends_with("coreml-m_compiled/m") && path.starts_with(user.home.path().join("own")));
    assert_eq!(fs::read(path.join("Unet.mlmodelc/model.mil")).unwrap(), b"mil");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let (again, _) = user.succeed(&["pull", "org/good/coreml-m_compiled.zip", "--offline"]);
    assert_eq!(Path::new(again.trim()), path);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified);
    let (listed, _) = user.succeed(&["models"]);
    assert!(listed.contains("unpacked") && listed.contains("coreml-m_compiled"), "{listed}");

    let line = refusal(&user.run(&["pull", "org/evil", "--quiet"])).unwrap();
    assert!(line.contains("the name `../../evil` leads out of the archive"), "{line}");
    assert!(!user.home.path().join("evil").exists() && !user.home.path().join("own/evil").exists());
    user.succeed(&["models", "--remove", "coreml-m_compiled", "org/good"]);
    assert!(!path.exists());
}

#[test]
fn links_are_downloaded_by_name_and_listed() {
    let user = User::new();
    let headers = "Content-Disposition: attachment; filename=\"../../my model.ckpt\"\r\nETag: \"1\"\r\n";
    user.server.set_reply("/api/download/models/5", 200, headers, b"content");
    user.server.set_reply("/page", 200, "Content-Type: text/html; charset=utf-8\r\n", b"<html>");
    // The other server is none of a Hub.
    let origin = user.server.content_address();
    let link = format!("{origin}/api/download/models/5?token=secret");
    let (path, _) = user.succeed(&["pull", &link]);
    let path = Path::new(path.trim());
    assert_eq!(path.file_name().unwrap(), "my model.ckpt");
    assert!(path.starts_with(user.home.path().join("own/downloads")));
    user.server.take_requests();
    user.succeed(&["pull", &link, "--offline"]);
    assert_eq!(user.server.take_requests().len(), 0);
    let line = refusal(&user.run(&["inspect", &format!("{origin}/page")])).unwrap();
    assert!(line.contains("it is a page, not a file"), "{line}");

    user.succeed(&["pull", "org/tiny", "org/big"]);
    let (listed, _) = user.succeed(&["models", "--json"]);
    assert!(!listed.contains("secret"), "{listed}");
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let models = listed["models"].as_array().unwrap();
    let shown: Vec<_> =
        models.iter().map(|it| (it["name"].as_str().unwrap(), it["kind"].as_str().unwrap())).collect();
    let name = format!("{origin}/api/download/models/5");
    let expected = [(name.as_str(), "file"), ("org/big", "weight file"), ("org/tiny", "diffusers")];
    assert_eq!(shown, expected);
    assert_eq!(models[1]["bytes"], 2_000_000 + COMMIT.len());
    let (table, _) = user.succeed(&["models"]);
    assert!(table.contains("main") && table.contains("org/tiny"), "{table}");
    let (removed, _) = user.succeed(&["models", "--remove", "org/big", &name]);
    assert_eq!(removed.lines().next().unwrap(), "org/big: 2.0 MB removed");
    assert!(!user.repository("org/big").exists() && !path.exists());
    assert!(refusal(&user.run(&["models", "--remove", "org/big"])).unwrap().contains("there is org/tiny"));
}

/// Python with `huggingface_hub`, if there is one.
fn python() -> Option<String> {
    let named = std::env::var("MIXBIT_PYTHON").ok();
    let candidates = named.into_iter().chain(["python3".to_string()]);
    candidates.into_iter().find(|python| {
        let mut command = Command::new(python);
        command.args(["-c", "import huggingface_hub"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// Runs a line of Python with the user's cache.
fn run_python(user: &User, python: &str, code: &str) -> String {
    let mut command = Command::new(python);
    command.args(["-c", &format!("from huggingface_hub import *\nprint({code})")]);
    command.env("HF_HOME", user.home.path().join("hf")).env("HF_ENDPOINT", user.server.endpoint());
    command.env("HF_HUB_DISABLE_XET", "1").env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

#[test]
fn the_cache_is_shared_with_python() {
    let Some(python) = python() else {
        println!("skipped: no Python with huggingface_hub; MIXBIT_PYTHON names one");
        return;
    };
    // Python downloads, mixbit reads.
    let user = User::new();
    let snapshot = run_python(&user, &python, "snapshot_download('org/tiny')");
    user.server.take_requests();
    let (path, _) = user.succeed(&["pull", "org/tiny", "--offline"]);
    assert_eq!(Path::new(path.trim()).canonicalize().unwrap(), Path::new(&snapshot).canonicalize().unwrap());
    user.succeed(&["inspect", "org/tiny", "--offline"]);
    assert_eq!(user.server.take_requests().len(), 0);
    let (_, messages) = user.succeed(&["pull", "org/tiny"]);
    assert!(messages.contains("there already"), "{messages}");
    // mixbit downloads, Python reads.
    let user = User::new();
    let (path, _) = user.succeed(&["pull", "org/tiny"]);
    user.succeed(&["pull", "org/big@v1"]);
    let found = run_python(&user, &python, "snapshot_download('org/tiny', local_files_only=True)");
    assert_eq!(Path::new(&found), Path::new(path.trim()));
    let code = "hf_hub_download('org/big', 'big.safetensors', revision='v1', local_files_only=True)";
    assert_eq!(run_python(&user, &python, code), user.big().to_string_lossy());
    // What both need is not downloaded twice.
    user.server.take_requests();
    run_python(&user, &python, "hf_hub_download('org/big', 'big.safetensors')");
    assert!(!user.server.take_requests().iter().any(|request| request.is_for_content));
}
