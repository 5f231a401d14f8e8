//! A model hub on the loopback interface.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files above this size have their SHA-256 as ETag, as large files of the real hub do; others have the git blob hash.
const LARGE_BYTES: usize = 100_000;

/// A fault that the server simulates for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The first transfers, this many, break half-way through the requested range.
    DropsConnection(usize),
    /// Ranges are ignored and the whole file is sent; the first transfer breaks.
    IgnoresRanges,
    /// The declared hash is wrong.
    WrongHash,
    /// No hash is declared.
    NoHash,
    /// The client is redirected to this address for the contents.
    Redirects(String),
    /// Every request is answered with this status.
    Refuses(u16),
    /// Answers 503 to the first so many requests.
    Busy(usize),
}

/// A recorded request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRequest {
    /// Path and query.
    pub path: String,
    /// The header `Range`.
    pub range: Option<String>,
    /// The header `Authorization`.
    pub authorization: Option<String>,
}

/// A hub that serves one repository at one commit until the process ends.
#[derive(Clone, Debug)]
pub struct HubServer {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    id: String,
    files: BTreeMap<String, Arc<Vec<u8>>>,
    faults: BTreeMap<String, Fault>,
    transfers: BTreeMap<String, usize>,
    requests: Vec<HubRequest>,
}

impl HubServer {
    /// The commit of everything served.
    pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// Name for [`Self::with_fault`] of the request that lists the files.
    pub const LISTING: &str = "";

    /// Serves these files as repository `id`, at revision `main`.
    ///
    /// # Panics
    /// No port is free.
    pub fn new(id: &str, files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let files = files.into_iter().map(|(name, bytes)| (name, Arc::new(bytes))).collect();
        let (id, faults, transfers, requests) = (id.to_owned(), BTreeMap::new(), BTreeMap::new(), Vec::new());
        let server =
            Self { address, state: Arc::new(Mutex::new(State { id, files, faults, transfers, requests })) };
        let acceptor = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = acceptor.clone();
                // A client may close its connection at any time.
                std::thread::spawn(move || drop(server.answer(stream)));
            }
        });
        server
    }

    /// As [`HubServer::new`], with the files of a directory.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn of_directory(id: &str, dir: &Path) -> Self {
        let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry"));
        Self::new(
            id,
            entries.map(|entry| {
                let bytes = std::fs::read(entry.path()).expect("a readable file");
                (entry.file_name().into_string().expect("a UTF-8 name"), bytes)
            }),
        )
    }

    /// Simulates `fault` for `file` from now on.
    pub fn with_fault(self, file: &str, fault: Fault) -> Self {
        self.state().faults.insert(file.to_owned(), fault);
        self
    }

    /// Value for `HF_ENDPOINT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Contents of a served file.
    ///
    /// # Panics
    /// There is no such file.
    pub fn file(&self, name: &str) -> Vec<u8> {
        self.state().files[name].to_vec()
    }

    /// URL of a file.
    pub fn address_of(&self, file: &str) -> String {
        format!("{}/{}/resolve/{}/{file}", self.address, self.state().id, Self::COMMIT)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<HubRequest> {
        self.state().requests.clone()
    }

    /// The `Range` headers of all requests for a file.
    pub fn ranges_of(&self, file: &str) -> Vec<Option<String>> {
        let requests = self.requests().into_iter();
        requests.filter(|request| request.path.ends_with(file)).map(|request| request.range).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let request = read_request(&mut BufReader::new(stream.try_clone()?))?;
        self.state().requests.push(request.clone());
        let mut state = self.state();
        let file = request.path.strip_prefix(&format!("/{}/resolve/{}/", state.id, Self::COMMIT));
        if request.path == format!("/api/models/{}/revision/main", state.id) {
            let siblings: Value = state.files.keys().map(|name| json!({"rfilename": name})).collect();
            let body = json!({"sha": Self::COMMIT, "siblings": siblings}).to_string();
            let count = state.transfers.entry(Self::LISTING.to_owned()).or_default();
            *count += 1;
            let (status, at_most) = match state.faults.get(Self::LISTING) {
                Some(Fault::Refuses(status)) => (format!("{status} No"), 0),
                Some(Fault::Busy(times)) if state.transfers[Self::LISTING] <= *times => {
                    ("503 Busy".to_owned(), 0)
                }
                Some(Fault::DropsConnection(times)) if state.transfers[Self::LISTING] <= *times => {
                    ("200 OK".to_owned(), body.len() / 2)
                }
                _ => ("200 OK".to_owned(), usize::MAX),
            };
            drop(state);
            let body = if at_most == 0 { "" } else { &body };
            return respond(&mut stream, &status, &[], body.as_bytes(), at_most);
        }
        let found = file.and_then(|name| Some((name, state.files.get(name)?.clone())));
        let Some((name, bytes)) = found else {
            return respond(&mut stream, "404 Not Found", &[], b"", usize::MAX);
        };
        let transfer = state.transfers.entry(name.to_owned()).or_default();
        *transfer += 1;
        let (transfer, fault) = (*transfer, state.faults.get(name).cloned());
        drop(state);
        send(&mut stream, &request, &bytes, fault.as_ref(), transfer)
    }
}

fn send(
    stream: &mut TcpStream,
    request: &HubRequest,
    bytes: &[u8],
    fault: Option<&Fault>,
    transfer: usize,
) -> std::io::Result<()> {
    let tag = match fault {
        Some(Fault::WrongHash) => "0".repeat(64),
        _ if bytes.len() > LARGE_BYTES => hex(Sha256::digest(bytes)),
        _ => hex(Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize()),
    };
    if let Some(Fault::Refuses(status)) = fault {
        return respond(stream, &format!("{status} No"), &[], b"", usize::MAX);
    }
    if let Some(Fault::Busy(times)) = fault
        && transfer <= *times
    {
        return respond(stream, "503 Busy", &[], b"", usize::MAX);
    }
    if let Some(Fault::Redirects(address)) = fault {
        let headers = [
            ("Location", address.clone()),
            ("X-Linked-ETag", format!("\"{tag}\"")),
            ("X-Linked-Size", bytes.len().to_string()),
            ("ETag", "\"other\"".to_owned()),
        ];
        return respond(stream, "302 Found", &headers, b"", usize::MAX);
    }
    let requested =
        request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let from: usize = requested.and_then(|from| from.parse().ok()).unwrap_or(0);
    let from = if fault == Some(&Fault::IgnoresRanges) { 0 } else { from };
    if from >= bytes.len() && from > 0 {
        return respond(
            stream,
            "416 Range Not Satisfiable",
            &[("ETag", format!("\"{tag}\""))],
            b"",
            usize::MAX,
        );
    }
    let breaks = match fault {
        Some(Fault::DropsConnection(times)) => transfer <= *times,
        Some(Fault::IgnoresRanges) => transfer == 1,
        _ => false,
    };
    let mut headers = Vec::new();
    if fault != Some(&Fault::NoHash) {
        headers.push(("ETag", format!("\"{tag}\"")));
    }
    if from > 0 {
        headers.push(("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())));
    }
    let (status, rest) = (if from > 0 { "206 Partial Content" } else { "200 OK" }, &bytes[from..]);
    respond(stream, status, &headers, rest, if breaks { rest.len() / 2 } else { usize::MAX })
}

/// Sends a response and closes the connection after `at_most` bytes of its body.
fn respond(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, String)],
    body: &[u8],
    at_most: usize,
) -> std::io::Result<()> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
    stream.write_all(&body[..length.min(at_most)])
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<HubRequest> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = HubRequest { path, range: None, authorization: None };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { return Ok(request) };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
