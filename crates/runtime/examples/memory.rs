//! The memory that a chat reports against the growth of the process, and the memory that unloading frees (Linux).
//!
//! ```sh
//! cargo run --release -p q35-runtime --example memory -- MODEL_DIR [PROMPT_WORDS]
//! ```
#![expect(clippy::print_stdout, reason = "an example")]

use q35_runtime::{Chat, Sampling};

/// Resident bytes of the process.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

const MB: f64 = 1e6;

/// Prints the growth of the process since `start` bytes and the memory that the chat reports. Returns true if they
/// agree within 5 %.
fn compare(when: &str, start: u64, chat: &Chat) -> bool {
    let gained = resident_bytes().saturating_sub(start) as f64;
    let memory = chat.memory_footprint();
    let difference = memory.total_bytes() as f64 / gained - 1.0;
    println!(
        "{when}: {:.1} MB gained, {:.1} MB by memory_footprint ({:+.1} %)\n  {memory:?}",
        gained / MB,
        memory.total_bytes() as f64 / MB,
        difference * 100.0
    );
    difference.abs() <= 0.05
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: memory MODEL_DIR [PROMPT_WORDS]")?;
    let words: usize = arguments.next().map_or(Ok(200), |words| words.parse())?;
    let start = resident_bytes();
    let chat = Chat::from_pretrained(&model)?;
    let mut near = compare("loaded", start, &chat);
    let mut sessions = [chat.session(), chat.session()];
    let mut left = 0;
    for round in ["first", "second"] {
        for session in &mut sessions {
            session.reset_conversation();
            session.ask(" word".repeat(words), &Sampling::default().with_seed(1).with_max_tokens(8))?;
        }
        near &= compare(&format!("two conversations, {round} time"), start, &chat);
        chat.unload()?;
        left = resident_bytes().saturating_sub(start);
        println!("unloaded: {:.1} MB left", left as f64 / MB);
    }
    println!("within 5 %: {near}; left in the end: {:.1} MB", left as f64 / MB);
    Ok(())
}
