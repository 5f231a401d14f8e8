//! The hub client behind proxies, certificates, refusals and failing connections.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use q35_hub::{Event, HubError, HubOptions, Resolved, resolve};
use q35_testkit::{Fault, HubServer};
use tempfile::TempDir;

const ID: &str = "owner/model";

fn hub() -> HubServer {
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors", vec![7; 1000])];
    HubServer::new(ID, files.map(|(name, bytes)| (name.to_owned(), bytes)))
}

fn options(hub: &HubServer, cache: &TempDir) -> HubOptions {
    HubOptions {
        endpoint: hub.address().to_owned(),
        cache_dir: cache.path().to_owned(),
        token: Some("secret".to_owned()),
        retries: 2,
        ..HubOptions::from_lookup(|_| None)
    }
}

fn all(files: &[&str]) -> Vec<String> {
    files.iter().map(|file| (*file).to_owned()).collect()
}

fn find(options: &HubOptions) -> Result<Resolved, HubError> {
    resolve(ID, options, &all, &|_| {})
}

/// Passes one request and its answer on; every connection carries one.
fn relay(client: &mut (impl Read + Write), target: &str) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    let mut server = TcpStream::connect(target)?;
    server.write_all(&request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    client.write_all(&answer)?;
    client.flush()
}

/// Serves every connection in a thread; returns the address and the number of connections so far.
fn serve(
    handle: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (handle, connections) = (Arc::new(handle), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&connections);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            let handle = Arc::clone(&handle);
            std::thread::spawn(move || drop(handle(stream)));
        }
    });
    (address, connections)
}

/// A SOCKS proxy of version 4 or 5 (RFC 1928, without authentication) for IPv4 targets.
fn socks_proxy() -> (String, Arc<AtomicUsize>) {
    serve(|mut client| {
        let mut version = [0];
        client.read_exact(&mut version)?;
        let (port, host) = if version[0] == 5 {
            let mut count = [0];
            client.read_exact(&mut count)?;
            client.read_exact(&mut vec![0; usize::from(count[0])])?;
            client.write_all(&[5, 0])?;
            let mut request = [0; 10];
            client.read_exact(&mut request)?;
            assert_eq!(request[..4], [5, 1, 0, 1], "connect to an IPv4 address");
            client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
            ([request[8], request[9]], [request[4], request[5], request[6], request[7]])
        } else {
            let mut request = [0; 7];
            client.read_exact(&mut request)?;
            let mut byte = [1];
            while byte[0] != 0 {
                client.read_exact(&mut byte)?;
            }
            client.write_all(&[0, 90, 0, 0, 0, 0, 0, 0])?;
            ([request[1], request[2]], [request[3], request[4], request[5], request[6]])
        };
        let target = format!("{}:{}", std::net::Ipv4Addr::from(host), u16::from_be_bytes(port));
        relay(&mut client, &target)
    })
}

#[test]
fn socks_proxies_are_used() {
    for scheme in ["socks5", "socks5h", "socks4", "socks4a"] {
        let (hub, cache, (proxy, connections)) = (hub(), tempfile::tempdir().unwrap(), socks_proxy());
        let options = HubOptions { proxy: Some(format!("{scheme}://{proxy}")), ..options(&hub, &cache) };
        let found = find(&options).unwrap_or_else(|error| panic!("{scheme}: {error}"));
        assert_eq!(std::fs::read(found.dir.join("config.json")).unwrap(), b"{}");
        assert_eq!(
            connections.load(Ordering::SeqCst),
            hub.requests().len(),
            "{scheme}: all through the proxy"
        );
        let direct = HubOptions { no_proxy: Some("example.com, 127.0.0.1".to_owned()), ..options };
        find(&direct).unwrap();
        assert!(connections.load(Ordering::SeqCst) < hub.requests().len(), "{scheme}: none for this host");
    }
}

#[test]
fn a_proxy_that_cannot_be_used_is_an_error_and_the_hub_is_not_reached() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    for proxy in ["sock5://user:password@127.0.0.1:1", "quic://127.0.0.1:1", "socks5://"] {
        let options = HubOptions { proxy: Some(proxy.to_owned()), ..options(&hub, &cache) };
        let error = find(&options).unwrap_err();
        assert!(matches!(error, HubError::Proxy { .. }), "{proxy}: {error:?}");
        assert!(!error.to_string().contains("password"), "{error}");
    }
    let gone = HubOptions { proxy: Some("socks5://127.0.0.1:1".to_owned()), ..options(&hub, &cache) };
    let error = find(&gone).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
    assert!(hub.requests().is_empty());
}

#[test]
fn a_complete_cache_serves_when_the_hub_refuses() {
    for status in [401, 404, 429, 500, 503] {
        let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
        let options = options(&hub, &cache);
        let found = find(&options).unwrap();
        let hub = hub.with_fault(HubServer::LISTING, Fault::Refuses(status));
        let seen = RefCell::new(None);
        let again = resolve(ID, &options, &all, &|event| {
            if let Event::Cached { status, .. } = event {
                seen.replace(status);
            }
        });
        assert_eq!(again.unwrap(), found, "{status}");
        assert_eq!(*seen.borrow(), Some(status));
        // 403 is the answer about a model that one may not have.
        let hub = hub.with_fault(HubServer::LISTING, Fault::Refuses(403));
        assert!(matches!(find(&options), Err(HubError::Status { status: 403, .. })));
        // An incomplete cache does not serve.
        std::fs::remove_file(found.dir.join("model.safetensors")).unwrap();
        std::fs::remove_file(found.dir.join("config.json")).unwrap();
        hub.with_fault(HubServer::LISTING, Fault::Refuses(status));
        assert!(matches!(find(&options), Err(HubError::Status { .. })), "{status}");
    }
}

#[test]
fn an_unfinished_download_does_not_serve() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, &cache);
    find(&options).unwrap();
    let blobs = cache.path().join("models--owner--model/blobs");
    std::fs::write(blobs.join(format!("{}-model.safetensors.incomplete", HubServer::COMMIT)), "").unwrap();
    hub.with_fault(HubServer::LISTING, Fault::Refuses(503));
    assert!(matches!(find(&options), Err(HubError::Status { status: 503, .. })));
}

#[test]
fn the_first_request_is_repeated_like_the_others() {
    for fault in [Fault::DropsConnection(2), Fault::Busy(2)] {
        let (hub, cache) =
            (hub().with_fault(HubServer::LISTING, fault.clone()), tempfile::tempdir().unwrap());
        find(&options(&hub, &cache)).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
    }
    let (hub, cache) = (hub().with_fault(HubServer::LISTING, Fault::Busy(3)), tempfile::tempdir().unwrap());
    assert!(matches!(find(&options(&hub, &cache)), Err(HubError::Status { status: 503, .. })));
}

#[test]
fn refusals_say_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let refused = |status: u16, token: Option<&str>| {
        let hub = hub().with_fault(HubServer::LISTING, Fault::Refuses(status));
        let options = HubOptions { token: token.map(str::to_owned), retries: 0, ..options(&hub, &cache) };
        find(&options).unwrap_err().to_string()
    };
    let expired = refused(401, Some("secret"));
    assert!(expired.contains("token is invalid or has expired"), "{expired}");
    assert!(refused(401, None).contains("set HF_TOKEN"));
    assert!(refused(429, None).contains("too many requests"));
    let nowhere = HubOptions {
        endpoint: "http://127.0.0.1:1".to_owned(),
        retries: 0,
        cache_dir: cache.path().to_owned(),
        ..HubOptions::from_lookup(|_| None)
    };
    let error = find(&nowhere).unwrap_err().to_string();
    assert!(error.contains("check the network connection") && !error.contains("goes on"), "{error}");
}

#[test]
fn a_mistyped_path_is_not_looked_up() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, &home);
    std::fs::create_dir(home.path().join("int4")).unwrap();
    let missing = home.path().join("int8");
    for path in [missing.to_str().unwrap(), "./int8", "../int8", "a/b/c", "src/missing", "model.gguf"] {
        let error = resolve(path, &options, &all, &|_| {}).unwrap_err();
        assert!(matches!(error, HubError::Path { .. }), "{path}: {error:?}");
    }
    let error = resolve(missing.to_str().unwrap(), &options, &all, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("holds int4"), "{error}");
    assert!(hub.requests().is_empty());
}

#[test]
fn a_certificate_file_that_cannot_be_used_is_an_error() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let file = cache.path().join("certificates.pem");
    for contents in
        [None, Some("no certificate"), Some("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")]
    {
        if let Some(contents) = contents {
            std::fs::write(&file, contents).unwrap();
        }
        let options = HubOptions { certificates: Some(file.clone()), ..options(&hub, &cache) };
        let error = find(&options).unwrap_err();
        assert!(matches!(error, HubError::CertificateFile { .. }), "{contents:?}: {error:?}");
    }
    assert!(hub.requests().is_empty());
}

#[cfg(not(target_vendor = "apple"))]
mod tls {
    use super::*;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    fn data(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
    }

    /// A TLS server with a self-signed certificate in front of the hub.
    fn tls_server(hub: &HubServer) -> String {
        let certificate = CertificateDer::from_pem_file(data("localhost.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(data("localhost.key")).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
                .unwrap();
        let (config, target) = (Arc::new(config), hub.address().trim_start_matches("http://").to_owned());
        let (address, _) = serve(move |client| {
            let connection =
                rustls::ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
            let mut stream = rustls::StreamOwned::new(connection, client);
            relay(&mut stream, &target)?;
            stream.conn.send_close_notify();
            stream.flush()
        });
        format!("https://{address}")
    }

    #[test]
    fn a_certificate_of_ones_own_is_trusted_where_it_is_named() {
        let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
        let untrusted = HubOptions { endpoint: tls_server(&hub), ..options(&hub, &cache) };
        let error = find(&untrusted).unwrap_err();
        assert!(matches!(error, HubError::Certificate { .. }), "{error:?}");
        assert!(error.to_string().contains("SSL_CERT_FILE"), "{error}");
        let trusted = HubOptions { certificates: Some(data("localhost.pem")), ..untrusted };
        find(&trusted).unwrap();
    }

    #[test]
    fn a_server_without_tls_is_not_tried_again() {
        let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
        let endpoint = hub.address().replace("http://", "https://");
        let error = find(&HubOptions { endpoint, ..options(&hub, &cache) }).unwrap_err();
        assert!(!error.to_string().contains("goes on"), "{error}");
    }
}
