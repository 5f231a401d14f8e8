//! Soak test: many concurrent conversations for a long time, and a check that memory does not grow.
//!
//! ```sh
//! cargo run --release -p q35-runtime --example soak -- MODEL_DIR SECONDS SESSIONS
//! ```
//!
//! Each session talks, is cut off, edited, branched and reset by a fixed rule, in twelve rounds. After each round, when
//! all sessions are dropped, the allocator releases its free memory, and the anonymous memory of the process is read
//! (Linux): during a round the caches vary by more than a leak would show. The program fails if the median of the last
//! three rounds is more than 2 % above that of rounds four to six.
#![expect(clippy::print_stdout, reason = "an example")]

// The crate's private function, which is not part of its API.
#[path = "../src/allocator.rs"]
mod allocator;

use std::time::{Duration, Instant};

use q35_runtime::{Chat, CutReply, LoadOptions, Sampling, Session, WindowPolicy};

const ROUNDS: u64 = 12;

/// Resident anonymous bytes. Mapped weights are not counted: the system evicts and reads them again at any time.
fn anonymous_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    allocator::release_freed_memory();
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB"));
    let kilobytes: u64 = line.ok_or("no RssAnon in /proc/self/status: this needs Linux")?.trim().parse()?;
    Ok(kilobytes * 1024)
}

fn talk(mut session: Session, number: u64, end: Instant) -> Result<u64, q35_runtime::ChatError> {
    let mut turns = 0;
    let questions = ["Tell me a story.", "What is two plus three?", "Why?", "List three colours.", "Go on."];
    while Instant::now() < end {
        let turn = number.wrapping_mul(31).wrapping_add(turns);
        let sampling = Sampling::default().with_max_tokens(48).with_seed(turn);
        let question = questions[(turn % 5) as usize];
        match turn % 7 {
            3 => {
                let mut stream = session.send(question, &sampling)?;
                stream.by_ref().take((turn % 11) as usize).for_each(drop);
                stream.cut(if turn % 2 == 0 { CutReply::Keep } else { CutReply::RollBack });
            }
            5 => session = session.branch(),
            6 if turns % 20 == 6 => session.reset_conversation(),
            _ => drop(session.ask(question, &sampling)?),
        }
        turns += 1;
    }
    Ok(turns)
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, seconds, sessions] = arguments.as_slice() else {
        return Err("usage: soak MODEL_DIR SECONDS SESSIONS".into());
    };
    let (seconds, sessions): (u64, u64) = (seconds.parse()?, sessions.parse()?);
    let options = LoadOptions::default()
        .with_max_context(1024)
        .with_window(WindowPolicy::DropOldest)
        .with_prompt_cache(32 << 20);
    let chat = Chat::open(model, &options, &|_| {})?;
    let (mut turns, mut samples) = (0, Vec::new());
    for round in 0..ROUNDS {
        let end = Instant::now() + Duration::from_secs_f64(seconds as f64 / ROUNDS as f64);
        turns += std::thread::scope(|scope| {
            let talks: Vec<_> = (0..sessions)
                .map(|number| {
                    let session = chat.session().with_system(format!("You are assistant {}.", number % 3));
                    scope.spawn(move || talk(session, round * sessions + number, end))
                })
                .collect();
            let mut turns = 0;
            for talk in talks {
                turns += talk.join().map_err(|_| "a session panicked")??;
            }
            Ok::<u64, Box<dyn std::error::Error>>(turns)
        })?;
        samples.push(anonymous_bytes()?);
    }
    let (early, late) = (median(&samples[3..6]), median(&samples[9..]));
    let growth = (late as f64 / early as f64 - 1.0) * 100.0;
    let kilobytes: Vec<u64> = samples.iter().map(|sample| sample >> 10).collect();
    println!("{sessions} sessions, {seconds} s, {turns} turns");
    println!("anonymous memory after each round in KB: {kilobytes:?}: {growth:+.2} %");
    println!("{:?}", chat.memory_footprint());
    if growth > 2.0 { Err("memory grew".into()) } else { Ok(()) }
}
