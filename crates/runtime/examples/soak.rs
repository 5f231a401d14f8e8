//! Many conversations at once for a long time, and whether memory grows meanwhile.
//!
//! ```sh
//! cargo run --release -p q35-runtime --example soak -- MODEL_DIR SECONDS SESSIONS
//! ```
//!
//! Each session talks, is cut off, edited, branched and reset by a fixed rule. Every second the resident size is sampled
//! (Linux), less what the chat accounts for: snapshots of prompts may fill their budget, and caches are as long as the
//! conversations just are. The program fails if its median of the last quarter is more than 2 % above that of the second.
#![expect(clippy::print_stdout, reason = "an example")]

use std::time::{Duration, Instant};

use q35_runtime::{Chat, CutReply, LoadOptions, Sampling, Session, WindowPolicy};

fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
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
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut samples = Vec::new();
    let turns = std::thread::scope(|scope| {
        let talks: Vec<_> = (0..sessions)
            .map(|number| {
                let session = chat.session().with_system(format!("You are assistant {}.", number % 3));
                scope.spawn(move || talk(session, number, end))
            })
            .collect();
        while Instant::now() < end {
            std::thread::sleep(Duration::from_secs(1));
            let held = chat.memory_footprint();
            let held = held.snapshot_bytes + held.cache_bytes + held.scratch_bytes + held.text_bytes;
            samples.extend(resident_bytes().map(|resident| resident.saturating_sub(held)));
        }
        let mut turns = 0;
        for talk in talks {
            turns += talk.join().map_err(|_| "a session panicked")??;
        }
        Ok::<u64, Box<dyn std::error::Error>>(turns)
    })?;
    let quarter = samples.len() / 4;
    let (early, late) = (median(&samples[quarter..2 * quarter]), median(&samples[3 * quarter..]));
    let growth = (late as f64 / early as f64 - 1.0) * 100.0;
    println!(
        "{sessions} sessions, {seconds} s, {turns} turns; resident beyond what is accounted for {early} bytes in the second quarter, {late} in the last: {growth:+.2} %"
    );
    let course: Vec<u64> =
        samples.chunks(samples.len().div_ceil(12).max(1)).map(|part| median(part) >> 10).collect();
    println!("medians of twelve parts in KB: {course:?}");
    println!("{:?}", chat.memory_footprint());
    if growth > 2.0 { Err("memory grew".into()) } else { Ok(()) }
}
