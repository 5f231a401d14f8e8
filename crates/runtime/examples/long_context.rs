//! What prompts of growing length cost: time, caches and work space, each computed from its beginning.
//!
//! ```sh
//! cargo run --release -p q35-runtime --example long_context -- MODEL_DIR [MOST_TOKENS]
//! ```
//!
//! Linear attention costs the same for every token; only the few layers of full attention cost more towards the end.
//! Work space does not grow at all.
#![expect(clippy::print_stdout, reason = "an example")]

use q35_runtime::{Chat, LoadOptions, Sampling};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: long_context MODEL_DIR [MOST_TOKENS]")?;
    let most: usize = arguments.next().map_or(Ok(16_384), |tokens| tokens.parse())?;
    let options = LoadOptions::default().with_max_context(most + 64).with_prompt_cache(0);
    let chat = Chat::open(&model, &options, &|_| {})?;
    let one = Sampling::greedy().with_thinking(false).with_max_tokens(1);
    // One word more is so many tokens more.
    let tokens = |words: usize| -> Result<usize, Box<dyn std::error::Error>> {
        Ok(chat.generate(&" word".repeat(words), None, &one)?.finish.usage.prompt_tokens)
    };
    let (base, per_word) = (tokens(10)?, (tokens(30)? - tokens(10)?) as f64 / 20.0);
    println!("{:>8} {:>10} {:>12} {:>12} {:>12}", "tokens", "seconds", "tokens/s", "caches MB", "work MB");
    let mut length = (most / 64).max(256);
    while length <= most {
        let words = 10 + (length.saturating_sub(base) as f64 / per_word) as usize;
        let mut session = chat.session();
        let finish = session.ask(" word".repeat(words), &one)?.finish;
        let (seconds, memory) = (finish.timing.prefill.as_secs_f64(), chat.memory_footprint());
        println!(
            "{:>8} {seconds:>10.2} {:>12.0} {:>12.1} {:>12.2}",
            finish.usage.prompt_tokens,
            finish.usage.prompt_tokens as f64 / seconds,
            memory.cache_bytes as f64 / 1e6,
            memory.scratch_bytes as f64 / 1e6
        );
        length *= 2;
    }
    Ok(())
}
