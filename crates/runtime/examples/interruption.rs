//! A conversation with a listener who interrupts: the steps of a voice application between recognition and speech.
//!
//! ```sh
//! cargo run -p q35-runtime --example interruption -- MODEL_DIR
//! ```
//!
//! Speech recognition is scripted: each utterance has the number of sentences that the user listens to before
//! interrupting. Exactly the spoken sentences stay in the conversation.
#![expect(clippy::print_stdout, reason = "an example")]

use std::convert::Infallible;

use q35_runtime::{Chat, Sampling, Speaker, Speech, speak};

/// A speaker that is interrupted after some sentences.
struct Listener {
    patience: usize,
}

impl Speaker for Listener {
    type Error = Infallible;

    fn speak(&mut self, sentence: &str) -> Result<Speech, Infallible> {
        if self.patience == 0 {
            println!("  [interrupted before: {sentence}]");
            return Ok(Speech::Interrupted);
        }
        self.patience -= 1;
        println!("  ♪ {sentence}");
        Ok(Speech::GoOn)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).ok_or("usage: interruption MODEL_DIR")?;
    let chat = Chat::from_pretrained(&model)?;
    let mut session = chat.session();
    let recognised = [("What is a piano?", 1), ("My name is Ada.", 9), ("What is my name?", 9)];
    for (utterance, patience) in recognised {
        println!("user: {utterance}");
        let reply = session.send(utterance, &Sampling::greedy().with_thinking(false))?;
        let spoken = speak(reply, &mut Listener { patience })?;
        match (spoken.first_sentence, spoken.finish) {
            (first, Some(finish)) => {
                println!("  said to the end, {first:?} to the first sentence; {:?}", finish.usage)
            }
            (first, None) => println!("  interrupted, {first:?} to the first sentence"),
        }
        // While the user speaks, the beginning of the next prompt is computed.
        println!("  {} tokens computed in advance", session.warm()?);
    }
    println!("{}", serde_json::to_string_pretty(&session.to_json())?);
    Ok(())
}
