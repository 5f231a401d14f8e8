//! Writes a random tiny checkpoint, for scripts that open it with other software.
//!
//! `cargo run -p q35-testkit --example write_checkpoint -- DIR [more-value-heads] [untied] [text-only] [sharded] [f16|f32]`

use q35_testkit::{Precision, TinyCheckpoint, tiny_more_value_heads};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().expect("a directory to write to");
    let mut checkpoint = TinyCheckpoint::new();
    for word in arguments {
        checkpoint = match word.as_str() {
            "more-value-heads" => checkpoint.with_config(tiny_more_value_heads()),
            "untied" => checkpoint.untied(),
            "text-only" => checkpoint.text_only(),
            "sharded" => checkpoint.shards(2),
            "f16" => checkpoint.precision(Precision::F16),
            "f32" => checkpoint.precision(Precision::F32),
            other => panic!("no option `{other}`"),
        };
    }
    checkpoint.write_to(dir.as_ref());
}
