//! `q35-chat`: a conversation on a terminal, one answer, a scripted conversation, one rendering of a chat template, a
//! measurement of speed, or an HTTP server.

mod args;
mod bench;
mod console;
mod interactive;
mod interrupt;
mod once;
mod open;
mod render;
mod script;
mod serve;
mod words;

pub use args::{Chat, Command};

use self::script::Script;
use crate::exit::Outcome;

impl Chat {
    /// Runs the command.
    ///
    /// # Errors
    /// It could not run.
    pub fn run(self) -> anyhow::Result<Outcome> {
        self.dispatch().map_err(words::in_flags)
    }

    fn dispatch(self) -> anyhow::Result<Outcome> {
        match &self.command {
            Some(Command::Bench(bench)) => return bench.run(),
            Some(Command::Serve(serve)) => return serve.run(),
            None => {}
        }
        if let Some(case) = &self.render {
            return render::run(&self, case);
        }
        // Invalid settings and scripts are reported before anything is loaded.
        let mut sampling = self.sampling.build()?;
        let script = self.script.as_deref().map(Script::read).transpose()?;
        let chat = open::open(self.model.as_deref(), &self.load, self.quiet || self.json)?;
        if self.checkpoint_sampling {
            sampling = self.sampling.apply_to(chat.checkpoint_sampling()?)?;
        }
        match (&script, &self.prompt) {
            (Some(script), _) => script::run(&self, &chat, script, &sampling),
            (None, Some(prompt)) => once::run(&self, &chat, prompt, &sampling),
            (None, None) => interactive::run(&self, &chat, sampling),
        }
    }
}
