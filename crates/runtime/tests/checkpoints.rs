//! Float checkpoints given to a chat: quantized as they are opened, cached by their contents.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use q35_backend_tests::nano_source;
use q35_runtime::{Chat, LoadOptions, OpenEvent, QuantizeEvent, QuantizeOptions, Sampling};

fn options(cache: &Path) -> LoadOptions {
    LoadOptions::default()
        .with_max_context(256)
        .with_quantize(QuantizeOptions { cache_dir: Some(cache.to_owned()), ..QuantizeOptions::default() })
}

/// Directory of the quantized model, and whether it was cached and is temporary.
fn open(model: &str, options: &LoadOptions) -> (Chat, Option<(PathBuf, bool, bool)>) {
    let finished = RefCell::new(None);
    let chat = Chat::open(model, options, &|event| {
        if let OpenEvent::Quantize(QuantizeEvent::Finished { dir, cached, temporary, .. }) = event {
            finished.replace(Some((dir.to_owned(), cached, temporary)));
        }
    });
    (chat.unwrap(), finished.into_inner())
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_float_checkpoint_is_quantized_once() {
    let (source, cache) = (nano_source(), tempfile::tempdir().unwrap());
    let (chat, first) = open(source.path_str(), &options(cache.path()));
    let (dir, cached, temporary) = first.unwrap();
    assert!(!cached && !temporary && dir.starts_with(cache.path()), "{}", dir.display());
    let sampling = Sampling::greedy().with_thinking(false).with_max_tokens(24);
    let reply = chat.session().ask("My name is Ada.", &sampling).unwrap();
    assert!(reply.text.contains("Ada"), "{}", reply.text);

    // Again, and by the name of the embedded model, which is the same checkpoint.
    for model in [source.path_str(), "q35-nano"] {
        let (again, second) = open(model, &options(cache.path()));
        assert_eq!(second.unwrap(), (dir.clone(), true, false));
        assert_eq!(again.session().ask("My name is Ada.", &sampling).unwrap().text, reply.text);
    }
    assert_eq!(entries(cache.path()), 1);

    // Other bits are another model.
    let mut four = options(cache.path());
    four.quantize.bits = 4;
    let (_, other) = open("q35-nano", &four);
    assert_ne!(other.unwrap().0, dir);
    assert_eq!(entries(cache.path()), 2);
}

#[test]
fn another_checkpoint_of_the_same_size_is_another_model() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    q35_nano::write_to(source.path()).unwrap();
    let path = source.path().join("model.safetensors");
    let (_, first) = open(source.path().to_str().unwrap(), &options(cache.path()));
    let mut bytes = std::fs::read(&path).unwrap();
    // The lowest bit of the last weight.
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let (_, second) = open(source.path().to_str().unwrap(), &options(cache.path()));
    let ((first, ..), (second, cached, _)) = (first.unwrap(), second.unwrap());
    assert!(first != second && !cached);
}

#[test]
fn processes_that_quantize_at_the_same_time_do_not_disturb_each_other() {
    let (source, cache) = (nano_source(), tempfile::tempdir().unwrap());
    let dirs: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| open(source.path_str(), &options(cache.path())).1.unwrap().0))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(dirs.iter().all(|dir| *dir == dirs[0]));
    assert_eq!(entries(cache.path()), 1, "nothing but the model is left");
}

#[test]
fn without_a_usable_cache_the_model_is_temporary() {
    let (source, home) = (nano_source(), tempfile::tempdir().unwrap());
    let file = home.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let (chat, finished) = open(source.path_str(), &options(&file));
    let (dir, cached, temporary) = finished.unwrap();
    assert!(temporary && !cached);
    // The files stay for a reload and go with the chat.
    chat.unload().unwrap();
    chat.load().unwrap();
    drop(chat);
    assert!(!dir.exists());
}
