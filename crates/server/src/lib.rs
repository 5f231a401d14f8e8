//! An OpenAI-compatible HTTP server over the chat runtime.
//!
//! [`Server::bind`] opens the socket and starts loading the model; [`Server::run`] serves until the given future resolves,
//! finishes the replies in progress, and returns.
//!
//! One engine thread generates all replies: it takes requests from a bounded queue and advances the active conversations
//! in turn, one token each. Request handlers translate between HTTP and the runtime, and never compute.
//!
//! ```no_run
//! use q35_runtime::{Chat, LoadOptions};
//! use q35_server::{Server, ServerConfig};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let config = ServerConfig { model_id: "qwen-int4".into(), ..ServerConfig::default() };
//! let open = || Chat::open("models/qwen-int4", &LoadOptions::default(), &|_| {});
//! let server = Server::bind(config, open).await?;
//! println!("listening on http://{}", server.address());
//! server.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
//! # Ok(()) }
//! ```
//!
//! The crate must not know how a model is opened, converted or computed.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod access;
mod anthropic;
mod config;
mod engine;
mod error;
mod info;
mod metrics;
mod openai;
mod openapi;
mod request;
mod server;

pub use config::ServerConfig;
pub use error::ServeError;
pub use openapi::openapi_json;
pub use server::Server;
