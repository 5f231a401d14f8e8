//! The cost of prompts of growing length: time, caches and scratch buffers, without a prompt cache.
//!
//! ```sh
//! cargo run --release -p q35-runtime --example long_context -- MODEL_DIR [MAX_TOKENS]
//! ```
//!
//! Linear attention costs the same for every token; only the few layers of full attention cost more towards the end.
//! Scratch buffers do not grow.
#![expect(clippy::print_stdout, reason = "an example")]

use q35_runtime::{Chat, LoadOptions, Sampling};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: long_context MODEL_DIR [MAX_TOKENS]")?;
    let max_tokens: usize = arguments.next().map_or(Ok(16_384), |tokens| tokens.parse())?;
    let options = LoadOptions::default().with_max_context(max_tokens + 64).with_prompt_cache(0);
    let chat = Chat::open(&model, &options, &|_| {})?;
    let sampling = Sampling::greedy().with_thinking(false).with_max_tokens(1);
    // The number of tokens is linear in the number of words.
    let tokens = |words: usize| -> Result<usize, Box<dyn std::error::Error>> {
        Ok(chat.generate(&" word".repeat(words), None, &sampling)?.finish.usage.prompt_tokens)
    };
    let (base, per_word) = (tokens(10)?, (tokens(30)? - tokens(10)?) as f64 / 20.0);
    println!("{:>8} {:>10} {:>12} {:>12} {:>12}", "tokens", "seconds", "tokens/s", "caches MB", "scratch MB");
    let mut length = (max_tokens / 64).max(256);
    while length <= max_tokens {
        let words = 10 + (length.saturating_sub(base) as f64 / per_word) as usize;
        let mut session = chat.session();
        let finish = session.ask(" word".repeat(words), &sampling)?.finish;
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
