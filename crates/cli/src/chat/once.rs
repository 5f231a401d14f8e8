//! `--prompt`: one reply.

use std::io::Read;

use anyhow::Context as _;
use q35_runtime::{CancelToken, FinishReason, Sampling};

use super::args::Chat;
use super::console::{Console, note_limits, reply_json};
use super::interrupt;
use crate::exit::Outcome;
use crate::output::json;

pub(super) fn run(
    args: &Chat,
    chat: &q35_runtime::Chat,
    prompt: &str,
    sampling: &Sampling,
) -> anyhow::Result<Outcome> {
    let mut text = prompt.to_owned();
    if prompt == "-" {
        text.clear();
        std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    }
    let mut session = chat.session();
    session.set_system(args.system.clone());
    interrupt::listen()?;
    let cancel = CancelToken::new();
    let _guard = interrupt::Guard::new(&cancel);
    let mut stream = session.send_with(text, sampling, cancel)?;
    let end = if args.json {
        let reply = stream.collect_reply()?;
        json(&reply_json(&reply))?;
        Some((!reply.text.is_empty(), reply.finish))
    } else {
        Console::new(args).print(&mut stream)?.map(|printed| (printed.answered, printed.finish))
    };
    let Some((answered, finish)) = end else { return Ok(Outcome::No) };
    note_limits(&finish, answered);
    // A limit within the reasoning leaves no answer.
    let limited = matches!(finish.reason, FinishReason::Length | FinishReason::ContextFull);
    let done = finish.reason != FinishReason::Cancelled && (answered || !limited);
    Ok(if done { Outcome::Done } else { Outcome::No })
}
