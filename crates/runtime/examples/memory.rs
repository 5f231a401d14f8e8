//! What a chat says it occupies beside what the process really gained, and what unloading gives back (Linux).
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: memory MODEL_DIR [PROMPT_WORDS]")?;
    let words: usize = arguments.next().map_or(Ok(200), |words| words.parse())?;
    let start = resident_bytes();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!("before: {:.1} MB resident", mb(start));
    let chat = Chat::from_pretrained(&model)?;
    println!("loaded: {:+.1} MB", mb(resident_bytes().saturating_sub(start)));
    let mut session = chat.session();
    for round in 0..2 {
        let sampling = Sampling::default().with_seed(1).with_max_tokens(16);
        session.ask("word ".repeat(words), &sampling)?;
        let (gained, said) = (resident_bytes().saturating_sub(start), chat.memory_footprint());
        println!(
            "talked: {:+.1} MB resident, {:.1} MB by memory_footprint ({:+.1} %): {said:?}",
            mb(gained),
            mb(said.total_bytes()),
            (said.total_bytes() as f64 / gained as f64 - 1.0) * 100.0
        );
        chat.unload()?;
        println!("unloaded: {:+.1} MB", mb(resident_bytes().saturating_sub(start)));
        if round == 0 {
            session.reset_conversation();
        }
    }
    Ok(())
}
