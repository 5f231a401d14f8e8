//! A conversation on a terminal, or over the lines of stdin.

use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use q35_runtime::{CancelToken, Finish, Message, Role, Sampling, Session};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use serde_json::Value;

use super::args::Chat;
use super::console::{Console, finish_line, note_limits, reply_json};
use super::{interrupt, words};
use crate::exit::Outcome;
use crate::output::{bytes, line, note};

const HELP: &str = "\
/system TEXT   set the system prompt (without TEXT: remove it)
/reset         forget the conversation, keep the system prompt
/undo          remove the last question and its reply
/think on|off|auto
               think before answering, never think, or use the template's default
/seed N|off    repeat random choices from a seed, or draw a new seed per reply
/stats         counts and times of the last reply, and memory
/save FILE     write the conversation as JSON
/load FILE     read one, also as OpenAI's chat completions write it
/help          show this list
/quit          leave; so does Ctrl-D
Ctrl-C stops a reply; the text so far stays in the conversation.
Typed lines are kept in ~/.q35_chat_history (the last 1000, readable by you alone; --no-history keeps none).";

/// Number of typed lines in the history file.
const HISTORY_LINES: usize = 1000;

/// The state of the conversation.
struct Conversation<'a> {
    chat: &'a q35_runtime::Chat,
    session: Session,
    sampling: Sampling,
    last: Option<Finish>,
}

/// The effect of a line on the loop.
enum Next {
    Continue,
    Quit,
}

pub(super) fn run(args: &Chat, chat: &q35_runtime::Chat, sampling: Sampling) -> anyhow::Result<Outcome> {
    let mut session = chat.session();
    session.set_system(args.system.clone());
    let mut conversation = Conversation { chat, session, sampling, last: None };
    interrupt::listen()?;
    if std::io::stdin().is_terminal() {
        on_terminal(args, &mut conversation)?
    } else {
        on_lines(args, &mut conversation)?
    }
    Ok(Outcome::Done)
}

/// Handles each line of stdin as a message or command.
fn on_lines(args: &Chat, conversation: &mut Conversation<'_>) -> anyhow::Result<()> {
    for text in std::io::stdin().lock().lines() {
        let text = text.context("cannot read stdin")?;
        if let Next::Quit = conversation.handle(args, text.trim())? {
            break;
        }
    }
    Ok(())
}

fn on_terminal(args: &Chat, conversation: &mut Conversation<'_>) -> anyhow::Result<()> {
    let config = Config::builder().max_history_size(HISTORY_LINES)?.build();
    let mut editor = DefaultEditor::with_config(config)?;
    let history = history_file(args);
    if let Some(path) = &history {
        // The file does not exist at the first start.
        let _ = editor.load_history(path);
    }
    if !args.quiet {
        line("Type a message, or /help.")?;
    }
    loop {
        match editor.readline("> ") {
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => {
                editor.add_history_entry(text.as_str())?;
                if let Next::Quit = conversation.handle(args, text.trim())? {
                    break;
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(path) = &history {
        editor.save_history(path).with_context(|| format!("cannot write {}", path.display()))?;
        keep_private(path)?;
    }
    Ok(())
}

/// The file of typed lines; `None` if there is no home directory or no history is wanted.
fn history_file(args: &Chat) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty() && !args.no_history)?;
    Some(PathBuf::from(home).join(".q35_chat_history"))
}

/// Removes the access of other users.
fn keep_private(path: &Path) -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, private)
            .with_context(|| format!("cannot protect {}", path.display()))?;
    }
    let _ = path;
    Ok(())
}

impl Conversation<'_> {
    /// Handles a message or command. An error is printed and does not end the conversation.
    fn handle(&mut self, args: &Chat, text: &str) -> anyhow::Result<Next> {
        if text == "/quit" || text == "/exit" {
            return Ok(Next::Quit);
        }
        let result = match text.strip_prefix('/') {
            Some(command) => self.command(command),
            None if text.is_empty() => Ok(()),
            None => self.send(args, text),
        };
        match result {
            Err(error) if error.downcast_ref::<std::io::Error>().is_some() => return Err(error),
            Err(error) => note(format!("error: {}", crate::exit::message(&words::in_flags(error)))),
            Ok(()) => {}
        }
        Ok(Next::Continue)
    }

    fn send(&mut self, args: &Chat, text: &str) -> anyhow::Result<()> {
        let cancel = CancelToken::new();
        let _guard = interrupt::Guard::new(&cancel);
        let mut stream = self.session.send_with(text, &self.sampling, cancel)?;
        if args.json {
            let reply = stream.collect_reply()?;
            line(reply_json(&reply).to_string())?;
            self.last = Some(reply.finish);
        } else if let Some(printed) = Console::new(args).print(&mut stream)? {
            note_limits(&printed.finish, printed.answered);
            self.last = Some(printed.finish);
        }
        Ok(())
    }

    fn command(&mut self, command: &str) -> anyhow::Result<()> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("help", _) => line(HELP)?,
            ("system", "") => {
                self.session.set_system(None);
                note("system prompt removed");
            }
            ("system", text) => {
                self.session.set_system(Some(text.to_owned()));
                note("system prompt set");
            }
            ("reset", _) => {
                self.session.reset_conversation();
                let system = !self.session.messages().is_empty();
                note(if system {
                    "conversation forgotten, system prompt kept"
                } else {
                    "conversation forgotten"
                });
            }
            ("undo", _) => note(self.undo()),
            ("think", mode @ ("on" | "off" | "auto")) => {
                let (enable, text) = match mode {
                    "on" => (Some(true), "thinking on"),
                    "off" => (Some(false), "thinking off"),
                    _ => (None, "thinking as the model's template says"),
                };
                self.sampling.thinking.enable = enable;
                note(text);
            }
            ("think", _) => anyhow::bail!("/think takes on, off or auto"),
            ("seed", "off") => {
                self.sampling.seed = None;
                note("a new seed for each reply");
            }
            ("seed", seed) => {
                let seed = seed.parse().context("/seed takes a whole number or off")?;
                self.sampling.seed = Some(seed);
                note(format!("seed {seed}"));
            }
            ("stats", _) => self.stats()?,
            ("save", path) if !path.is_empty() => {
                let text = serde_json::to_string_pretty(&self.session.to_json())?;
                std::fs::write(path, text)
                    .map_err(|error| anyhow::anyhow!("cannot write {path}: {error}"))?;
                note(format!("{} messages written to {path}", self.session.messages().len()));
            }
            ("load", path) if !path.is_empty() => {
                self.session.set_messages(load(path)?)?;
                note(format!("{} messages read from {path}", self.session.messages().len()));
            }
            ("save" | "load", _) => anyhow::bail!("/{name} takes a file"),
            _ => anyhow::bail!("/{command} is not known; /help lists the commands"),
        }
        Ok(())
    }

    /// Removes the last question and everything after it.
    fn undo(&mut self) -> String {
        let messages = self.session.messages();
        let Some(question) = messages.iter().rposition(|message| message.role == Role::User) else {
            return "nothing to undo".into();
        };
        let count = messages.len() - question;
        self.session.drop_last(count);
        format!("{count} messages removed, {} left", self.session.messages().len())
    }

    fn stats(&self) -> anyhow::Result<()> {
        if let Some(finish) = &self.last {
            line(finish_line(finish))?;
            line(format!("seed {}", finish.seed))?;
        }
        let memory = self.chat.memory_footprint();
        line(format!(
            "memory: weights {} mapped and {} owned, caches {}, {} prompt snapshots {}, scratch {}, text {}",
            bytes(memory.mapped_weight_bytes),
            bytes(memory.owned_weight_bytes),
            bytes(memory.cache_bytes),
            memory.snapshots,
            bytes(memory.snapshot_bytes),
            bytes(memory.scratch_bytes),
            bytes(memory.text_bytes),
        ))?;
        Ok(line(self.chat.describe()?)?)
    }
}

fn load(path: &str) -> anyhow::Result<Vec<Message>> {
    let text = std::fs::read(path).map_err(|error| anyhow::anyhow!("cannot read {path}: {error}"))?;
    let json: Value =
        serde_json::from_slice(&text).with_context(|| format!("{path} is not a conversation"))?;
    Message::list_from_json(&json).with_context(|| path.to_owned())
}
