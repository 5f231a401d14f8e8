//! Serves the scripted model of the tests, for clients in other languages: `scripted [PORT]`. The key is `test`.

#![allow(clippy::print_stdout, reason = "the address is the result of the program")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use q35_server::{Server, ServerConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).map_or(Ok(0), |port| port.parse())?;
    let config = ServerConfig {
        port,
        model_id: "scripted".into(),
        api_key: Some("test".into()),
        ..ServerConfig::default()
    };
    let open = || support::scripted_chat(Duration::from_millis(1)).map(|(chat, _)| chat);
    let server = Server::bind(config, open).await?;
    println!("{}", server.address());
    server.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
    Ok(())
}
