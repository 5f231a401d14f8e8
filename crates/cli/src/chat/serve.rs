//! `q35-chat serve`: the HTTP server.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use q35_server::{Server, ServerConfig};
use tracing_subscriber::filter::LevelFilter;

use super::args::{LoadArgs, SamplingArgs};
use super::open;
use crate::exit::Outcome;
use crate::interrupt;
use crate::output::note;
use crate::source::NANO;

/// Arguments of `q35-chat serve`.
///
/// Sampling options are defaults that a request's own settings replace.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// A model: a directory, a hub id, or q35-nano for the small model in this program
    #[arg(long, value_name = "DIR|ID", default_value = NANO)]
    pub model: String,

    /// Loading.
    #[command(flatten)]
    pub load: LoadArgs,

    /// Sampling.
    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// Address to listen on; any but a loopback address needs --api-key or --no-key
    #[arg(long, value_name = "IP", default_value = "127.0.0.1", help_heading = "Server")]
    pub host: IpAddr,

    /// Port to listen on; 0 lets the system choose one
    #[arg(long, default_value_t = 8035, help_heading = "Server")]
    pub port: u16,

    /// Name of the model in the API [default: the last part of --model]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub name: Option<String>,

    /// Further name that requests may use for the model; may be given several times
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub alias: Vec<String>,

    /// Key that requests must send [env: Q35_API_KEY]
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    pub api_key: Option<String>,

    /// Serve other than loopback addresses without a key
    #[arg(long, help_heading = "Server")]
    pub no_key: bool,

    /// Origin that browsers may call from; may be given several times
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    pub cors_origin: Vec<String>,

    /// Conversations that generate at the same time
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Server")]
    pub concurrent: usize,

    /// Requests that wait for a place before further ones are refused
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Server")]
    pub queue: usize,

    /// Largest number of tokens of a reply, and the value where a request names none
    #[arg(long, value_name = "N", default_value_t = 4096, help_heading = "Server")]
    pub reply_limit: usize,

    /// Unload the weights after this time without requests
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    pub idle_unload: Option<u64>,

    /// Send the reasoning as `reasoning` too, beside `reasoning_content`
    #[arg(long, help_heading = "Server")]
    pub reasoning_alias: bool,

    /// Print errors only
    #[arg(long, short)]
    pub quiet: bool,
}

impl Serve {
    pub(super) fn run(&self) -> anyhow::Result<Outcome> {
        let level = if self.quiet { LevelFilter::ERROR } else { LevelFilter::INFO };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .with_target(false)
            .init();
        let config = self.config()?;
        let cancel = interrupt::token()?;
        let (model, load, quiet) = (self.model.clone(), self.load.clone(), self.quiet);
        let open = move || open::open(Some(&model), &load, quiet);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let server = Server::bind(config, open).await?;
            note(format!("{} on http://{}", self.model, server.address()));
            let stop = async move {
                while !cancel.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            server.run(stop).await
        })?;
        Ok(Outcome::Done)
    }

    fn config(&self) -> anyhow::Result<ServerConfig> {
        let last = self.model.trim_end_matches('/').rsplit('/').next().unwrap_or(&self.model);
        let sampling = self.sampling.build()?;
        let api_key = self.api_key.clone().or_else(|| std::env::var("Q35_API_KEY").ok());
        let config = ServerConfig {
            host: self.host,
            port: self.port,
            model_id: self.name.clone().unwrap_or_else(|| last.to_owned()),
            model_aliases: self.alias.iter().cloned().chain([self.model.clone()]).collect(),
            api_key,
            allow_without_key: self.no_key,
            cors_origins: self.cors_origin.clone(),
            sampling,
            max_tokens: self.reply_limit,
            concurrent: self.concurrent,
            queue: self.queue,
            idle_unload: self.idle_unload.map(Duration::from_secs),
            reasoning_alias: self.reasoning_alias,
            ..ServerConfig::default()
        };
        config.check().context("cannot serve")?;
        Ok(config)
    }
}
