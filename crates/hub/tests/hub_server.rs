//! The hub client against a hub of our own on loopback, which drops connections, lies and redirects on demand.

use std::cell::RefCell;
use std::path::Path;

use q35_hub::{Event, HubError, HubOptions, resolve};
use q35_testkit::{Fault, HubServer};

const WEIGHTS: &str = "model.safetensors";

fn hub() -> HubServer {
    let weights = (0..300_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let files = [("config.json", b"{}".to_vec()), (WEIGHTS, weights), ("notes.txt", b"notes".to_vec())];
    HubServer::new("owner/model", files.map(|(name, bytes)| (name.to_owned(), bytes)))
}

fn options(hub: &HubServer, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: hub.address().to_owned(),
        cache_dir: cache.to_owned(),
        token: Some("secret".to_owned()),
        ..HubOptions::from_lookup(|_| None)
    }
}

fn wanted(files: &[&str]) -> Vec<String> {
    let is_wanted = |file: &&&str| file.ends_with(".json") || file.ends_with(".safetensors");
    files.iter().filter(is_wanted).map(|file| (*file).to_owned()).collect()
}

fn read(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join(WEIGHTS)).unwrap()
}

#[test]
fn a_model_arrives_once_and_is_then_found_offline() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, cache.path());
    let found = resolve("owner/model", &options, &wanted, &|_| {}).unwrap();
    assert_eq!(found.commit.as_deref(), Some(HubServer::COMMIT));
    assert_eq!(found.dir, cache.path().join("models--owner--model/snapshots").join(HubServer::COMMIT));
    assert_eq!(read(&found.dir), hub.file(WEIGHTS));
    assert_eq!(std::fs::read(found.dir.join("config.json")).unwrap(), b"{}");
    assert!(!found.dir.join("notes.txt").exists(), "only wanted files are fetched");

    resolve("owner/model", &options, &wanted, &|event| panic!("fetched again: {event:?}")).unwrap();
    let offline = HubOptions { endpoint: "http://127.0.0.1:1".into(), offline: true, ..options };
    assert_eq!(resolve("owner/model", &offline, &wanted, &|_| {}).unwrap(), found);
}

#[test]
fn a_cut_transfer_goes_on_where_it_stopped() {
    let (hub, cache) = (hub().with_fault(WEIGHTS, Fault::DropsConnection(1)), tempfile::tempdir().unwrap());
    let resumed = RefCell::new(Vec::new());
    let events = |event: Event<'_>| {
        if let Event::Started { file: "model.safetensors", resumed_at_bytes, .. } = event {
            resumed.borrow_mut().push(resumed_at_bytes);
        }
    };
    let found = resolve("owner/model", &options(&hub, cache.path()), &wanted, &events).unwrap();
    assert_eq!(read(&found.dir), hub.file(WEIGHTS));
    assert_eq!(*resumed.borrow(), [0, 150_000]);
    assert_eq!(hub.ranges_of(WEIGHTS), [None, Some("bytes=150000-".to_owned())]);
}

#[test]
fn a_later_run_takes_up_what_an_earlier_one_left() {
    let (hub, cache) = (hub().with_fault(WEIGHTS, Fault::DropsConnection(1)), tempfile::tempdir().unwrap());
    let impatient = HubOptions { retries: 0, ..options(&hub, cache.path()) };
    let error = resolve("owner/model", &impatient, &wanted, &|_| {}).unwrap_err();
    assert!(matches!(error, HubError::Connection { .. }), "{error}");
    let found = resolve("owner/model", &impatient, &wanted, &|_| {}).unwrap();
    assert_eq!(read(&found.dir), hub.file(WEIGHTS));
    assert_eq!(hub.ranges_of(WEIGHTS)[1].as_deref(), Some("bytes=150000-"));
}

#[test]
fn a_server_without_ranges_costs_a_fresh_start_and_nothing_else() {
    let (hub, cache) = (hub().with_fault(WEIGHTS, Fault::IgnoresRanges), tempfile::tempdir().unwrap());
    let found = resolve("owner/model", &options(&hub, cache.path()), &wanted, &|_| {}).unwrap();
    assert_eq!(read(&found.dir), hub.file(WEIGHTS));
}

#[test]
fn a_file_with_another_hash_is_refused_and_removed() {
    let (hub, cache) = (hub().with_fault(WEIGHTS, Fault::WrongHash), tempfile::tempdir().unwrap());
    let error = resolve("owner/model", &options(&hub, cache.path()), &wanted, &|_| {}).unwrap_err();
    assert!(matches!(&error, HubError::Damaged { file, .. } if file == "model.safetensors"), "{error}");
    let blobs = std::fs::read_dir(cache.path().join("models--owner--model/blobs")).unwrap();
    let left: Vec<_> = blobs.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "only config.json's blob stays: {left:?}");
}

#[test]
fn the_hubs_own_hash_counts_and_the_token_stays_with_the_hub() {
    let storage = hub();
    let hub = hub().with_fault(WEIGHTS, Fault::Redirects(storage.address_of(WEIGHTS)));
    let cache = tempfile::tempdir().unwrap();
    let found = resolve("owner/model", &options(&hub, cache.path()), &wanted, &|_| {}).unwrap();
    assert_eq!(read(&found.dir), hub.file(WEIGHTS));
    assert!(hub.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer secret")));
    assert!(storage.requests().iter().all(|request| request.authorization.is_none()));
}

#[test]
fn a_file_without_a_declared_hash_is_taken_at_its_size() {
    let cache = tempfile::tempdir().unwrap();
    let hub = hub().with_fault(WEIGHTS, Fault::NoHash);
    let found = resolve("owner/model", &options(&hub, cache.path()), &wanted, &|_| {}).unwrap();
    assert_eq!(read(&found.dir), hub.file(WEIGHTS));
}

#[test]
fn refusals_name_the_cause() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, cache.path());
    let error = resolve("owner/other", &options, &wanted, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("check the model's id"), "{error}");
    let error = resolve("owner/model", &options, &|_| Vec::new(), &|_| {}).unwrap_err().to_string();
    assert!(error.contains("notes.txt"), "{error}");
    let offline = HubOptions { offline: true, ..options };
    let error = resolve("owner/model", &offline, &wanted, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("offline") && error.contains("HF_HOME"), "{error}");
    let error = resolve("no such thing", &offline, &wanted, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("`no such thing`"), "{error}");
}

#[test]
fn an_unreachable_hub_falls_back_to_the_cache() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, cache.path());
    let found = resolve("owner/model", &options, &wanted, &|_| {}).unwrap();
    let gone = HubOptions { endpoint: "http://127.0.0.1:1".into(), ..options };
    let told = RefCell::new(false);
    let again = resolve("owner/model", &gone, &wanted, &|event| {
        *told.borrow_mut() = matches!(event, Event::Cached { .. })
    });
    assert_eq!(again.unwrap(), found);
    assert!(*told.borrow());
}
