//! The hub client against a hub of our own on loopback, which drops connections, lies and redirects on demand.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use q35_hub::{Event, HubError, HubOptions, resolve};
use sha1::Sha1;
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How the server treats `model.safetensors`.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    /// The first transfer breaks half-way.
    DropsOnce,
    /// Always sends the whole file, whatever range was asked for, and breaks the first transfer.
    IgnoresRanges,
    /// Declares another hash.
    Lies,
    /// Describes the file and sends the client to another host for it.
    Redirects,
}

struct Hub {
    address: String,
    weights: Vec<u8>,
    manner: Manner,
    storage: Mutex<String>,
    transfers: AtomicUsize,
    log: Mutex<Vec<Request>>,
}

/// What is remembered of a request.
struct Request {
    path: String,
    range: Option<String>,
    authorization: Option<String>,
}

impl Hub {
    fn start(manner: Manner) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Arc::new(Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            weights: (0..300_000u32).map(|i| ((i * 31) >> 3) as u8).collect(),
            manner,
            storage: Mutex::default(),
            transfers: AtomicUsize::new(0),
            log: Mutex::default(),
        });
        let server = Arc::clone(&hub);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&server);
                thread::spawn(move || server.answer(stream));
            }
        });
        hub
    }

    fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            endpoint: self.address.clone(),
            cache_dir: cache.to_owned(),
            token: Some("secret".to_owned()),
            ..HubOptions::from_lookup(|_| None)
        }
    }

    fn ranges(&self) -> Vec<Option<String>> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|r| r.path.ends_with(".safetensors")).map(|r| r.range.clone()).collect()
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut range, mut authorization) = (None, None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "range" => range = Some(value.to_owned()),
                "authorization" => authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        self.log.lock().unwrap().push(Request { path: path.clone(), range: range.clone(), authorization });
        let config = b"{}".as_slice();
        let resolve = format!("/owner/model/resolve/{COMMIT}");
        if path == "/api/models/owner/model/revision/main" {
            let json = format!(
                r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"config.json"}},{{"rfilename":"model.safetensors"}},{{"rfilename":"notes.txt"}}]}}"#
            );
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{json}",
                json.len()
            );
        } else if path == format!("{resolve}/config.json") {
            let etag = hex(Sha1::new().chain_update("blob 2\0").chain_update(config).finalize());
            self.send(&mut stream, config, 0, &etag, usize::MAX);
        } else if path == format!("{resolve}/model.safetensors") {
            self.weights(&mut stream, range.as_deref());
        } else if path == "/storage.safetensors" {
            self.send(&mut stream, &self.weights, 0, "of-the-storage", usize::MAX);
        } else {
            let _ =
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    }

    fn weights(&self, stream: &mut TcpStream, range: Option<&str>) {
        let etag = match self.manner {
            Manner::Lies => "0".repeat(64),
            _ => hex(Sha256::digest(&self.weights)),
        };
        let storage = self.storage.lock().unwrap().clone();
        if self.manner == Manner::Redirects && !storage.is_empty() {
            let size = self.weights.len();
            let _ = write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: {storage}/storage.safetensors\r\nX-Linked-ETag: \"{etag}\"\r\n\
                 X-Linked-Size: {size}\r\nETag: \"other\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return;
        }
        let first = self.transfers.fetch_add(1, Ordering::SeqCst) == 0;
        let drops = first && matches!(self.manner, Manner::DropsOnce | Manner::IgnoresRanges);
        let from = match self.manner {
            Manner::IgnoresRanges => 0,
            _ => range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0),
        };
        self.send(
            stream,
            &self.weights,
            from,
            &etag,
            if drops { self.weights.len() / 2 } else { usize::MAX },
        );
    }

    fn send(&self, stream: &mut TcpStream, body: &[u8], from: usize, etag: &str, at_most: usize) {
        let (status, total) = (if from > 0 { "206 Partial Content" } else { "200 OK" }, body.len());
        let rest = &body[from..];
        let range = if from > 0 {
            format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1)
        } else {
            String::new()
        };
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nETag: \"{etag}\"\r\n{range}Content-Length: {}\r\nConnection: close\r\n\r\n",
            rest.len()
        );
        let _ = stream.write_all(&rest[..rest.len().min(at_most)]);
    }
}

fn wanted(file: &str) -> bool {
    file.ends_with(".json") || file.ends_with(".safetensors")
}

fn read(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("model.safetensors")).unwrap()
}

#[test]
fn a_model_arrives_once_and_is_then_found_offline() {
    let (hub, cache) = (Hub::start(Manner::Honest), tempfile::tempdir().unwrap());
    let options = hub.options(cache.path());
    let found = resolve("owner/model", &options, &wanted, &|_| {}).unwrap();
    assert_eq!(found.commit.as_deref(), Some(COMMIT));
    assert_eq!(found.dir, cache.path().join("models--owner--model/snapshots").join(COMMIT));
    assert_eq!(read(&found.dir), hub.weights);
    assert_eq!(std::fs::read(found.dir.join("config.json")).unwrap(), b"{}");
    assert!(!found.dir.join("notes.txt").exists(), "only wanted files are fetched");

    resolve("owner/model", &options, &wanted, &|event| panic!("fetched again: {event:?}")).unwrap();
    let offline = HubOptions { endpoint: "http://127.0.0.1:1".into(), offline: true, ..options };
    assert_eq!(resolve("owner/model", &offline, &wanted, &|_| {}).unwrap(), found);
}

#[test]
fn a_cut_transfer_goes_on_where_it_stopped() {
    let (hub, cache) = (Hub::start(Manner::DropsOnce), tempfile::tempdir().unwrap());
    let resumed = RefCell::new(Vec::new());
    let events = |event: Event<'_>| {
        if let Event::Started { file: "model.safetensors", resumed_at_bytes, .. } = event {
            resumed.borrow_mut().push(resumed_at_bytes);
        }
    };
    let found = resolve("owner/model", &hub.options(cache.path()), &wanted, &events).unwrap();
    assert_eq!(read(&found.dir), hub.weights);
    assert_eq!(*resumed.borrow(), [0, 150_000]);
    assert_eq!(hub.ranges(), [None, Some("bytes=150000-".to_owned())]);
}

#[test]
fn a_later_run_takes_up_what_an_earlier_one_left() {
    let (hub, cache) = (Hub::start(Manner::DropsOnce), tempfile::tempdir().unwrap());
    let impatient = HubOptions { retries: 0, ..hub.options(cache.path()) };
    let error = resolve("owner/model", &impatient, &wanted, &|_| {}).unwrap_err();
    assert!(matches!(error, HubError::Connection { .. }), "{error}");
    let found = resolve("owner/model", &impatient, &wanted, &|_| {}).unwrap();
    assert_eq!(read(&found.dir), hub.weights);
    assert_eq!(hub.ranges()[1].as_deref(), Some("bytes=150000-"));
}

#[test]
fn a_server_without_ranges_costs_a_fresh_start_and_nothing_else() {
    let (hub, cache) = (Hub::start(Manner::IgnoresRanges), tempfile::tempdir().unwrap());
    let found = resolve("owner/model", &hub.options(cache.path()), &wanted, &|_| {}).unwrap();
    assert_eq!(read(&found.dir), hub.weights);
}

#[test]
fn a_file_with_another_hash_is_refused_and_removed() {
    let (hub, cache) = (Hub::start(Manner::Lies), tempfile::tempdir().unwrap());
    let error = resolve("owner/model", &hub.options(cache.path()), &wanted, &|_| {}).unwrap_err();
    assert!(matches!(&error, HubError::Damaged { file, .. } if file == "model.safetensors"), "{error}");
    let blobs = std::fs::read_dir(cache.path().join("models--owner--model/blobs")).unwrap();
    let left: Vec<_> = blobs.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "only config.json's blob stays: {left:?}");
}

#[test]
fn the_hubs_own_hash_counts_and_the_token_stays_with_the_hub() {
    let (hub, storage) = (Hub::start(Manner::Redirects), Hub::start(Manner::Honest));
    storage.address.clone_into(&mut hub.storage.lock().unwrap());
    let cache = tempfile::tempdir().unwrap();
    let found = resolve("owner/model", &hub.options(cache.path()), &wanted, &|_| {}).unwrap();
    assert_eq!(read(&found.dir), storage.weights);
    assert!(hub.log.lock().unwrap().iter().all(|r| r.authorization.as_deref() == Some("Bearer secret")));
    assert!(storage.log.lock().unwrap().iter().all(|r| r.authorization.is_none()));
}

#[test]
fn refusals_name_the_cause() {
    let (hub, cache) = (Hub::start(Manner::Honest), tempfile::tempdir().unwrap());
    let options = hub.options(cache.path());
    let error = resolve("owner/other", &options, &wanted, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("check the model's id"), "{error}");
    let error = resolve("owner/model", &options, &|_| false, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("notes.txt"), "{error}");
    let offline = HubOptions { offline: true, ..options };
    let error = resolve("owner/model", &offline, &wanted, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("offline") && error.contains("HF_HOME"), "{error}");
    let error = resolve("no such thing", &offline, &wanted, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("`no such thing`"), "{error}");
}

#[test]
fn an_unreachable_hub_falls_back_to_the_cache() {
    let (hub, cache) = (Hub::start(Manner::Honest), tempfile::tempdir().unwrap());
    let options = hub.options(cache.path());
    let found = resolve("owner/model", &options, &wanted, &|_| {}).unwrap();
    let gone = HubOptions { endpoint: "http://127.0.0.1:1".into(), ..options };
    let told = RefCell::new(false);
    let again = resolve("owner/model", &gone, &wanted, &|event| {
        *told.borrow_mut() = matches!(event, Event::Cached { .. })
    });
    assert_eq!(again.unwrap(), found);
    assert!(*told.borrow());
}
