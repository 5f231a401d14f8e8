//! Socket, routes and shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use q35_runtime::Chat;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower_http::cors::CorsLayer;

use crate::engine::Engine;
use crate::error::{ApiError, Kind, OpenError};
use crate::metrics::Metrics;
use crate::{ServeError, ServerConfig, access, anthropic, info, openai, openapi};

/// State that all request handlers share.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: ServerConfig,
    pub(crate) engine: Engine,
    pub(crate) metrics: Metrics,
    /// Unix time of the start, in seconds.
    pub(crate) started: u64,
}

impl std::ops::Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// A server that listens. It answers `/health` with status 503 until the model is loaded.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: App,
    opened: oneshot::Receiver<Result<(), OpenError>>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Opens the socket and starts loading the model with `open` on the engine thread.
    ///
    /// # Errors
    /// A setting that cannot be used, or an address that cannot be listened on.
    pub async fn bind<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        config: ServerConfig,
        open: impl FnOnce() -> Result<Chat, E> + Send + 'static,
    ) -> Result<Self, ServeError> {
        config.check()?;
        let address = SocketAddr::new(config.host, config.port);
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ServeError::Listen { address: address.to_string(), source })?;
        let address = listener.local_addr()?;
        let (engine, opened, thread) = Engine::start(&config, || open().map_err(Into::into));
        let started = unix_time();
        let app = App(Arc::new(Inner { config, engine, metrics: Metrics::default(), started }));
        Ok(Self { listener, address, app, opened, thread })
    }

    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves, then finishes the replies in progress.
    ///
    /// # Errors
    /// The model cannot be opened, or the socket fails.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let routes = routes(self.app);
        let serve = axum::serve(self.listener, routes).with_graceful_shutdown(async move {
            tokio::select! {
                () = shutdown => {}
                _ = stopped => {}
            }
        });
        let serving = tokio::spawn(serve.into_future());
        let opened = self.opened.await;
        if let Ok(Err(error)) = opened {
            drop(stop);
            let _ = serving.await;
            return Err(ServeError::Model(error));
        }
        match serving.await {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
        drop(stop);
        // All handlers are gone, so the engine's queue is closed and its thread ends.
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
        Ok(())
    }
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn routes(app: App) -> Router {
    Router::new()
        .route("/", get(info::page))
        .route("/health", get(info::health))
        .route("/metrics", get(info::metrics))
        .route("/openapi.json", get(openapi::serve))
        .route("/tokenize", post(info::tokenize))
        .route("/detokenize", post(info::detokenize))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{id}", get(info::model))
        .route("/v1/chat/completions", post(openai::chat::handle))
        .route("/v1/completions", post(openai::completions::handle))
        .route("/v1/responses", post(openai::responses::handle))
        .route("/v1/messages", post(anthropic::handle))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .fallback(async || ApiError::new(Kind::NotFound, "there is no such path; see /openapi.json"))
        .method_not_allowed_fallback(async || {
            ApiError::new(Kind::Method, "this path does not accept this method")
        })
        .layer(from_fn_with_state(app.clone(), access::check))
        .layer(cors(&app.config))
        .layer(from_fn_with_state(app.clone(), count))
        .layer(DefaultBodyLimit::max(app.config.body_bytes))
        .with_state(app)
}

fn cors(config: &ServerConfig) -> CorsLayer {
    let origins: Vec<HeaderValue> =
        config.cors_origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    if origins.is_empty() {
        return CorsLayer::new();
    }
    CorsLayer::new().allow_origin(origins).allow_methods([Method::GET, Method::POST]).allow_headers([
        header::CONTENT_TYPE,
        header::AUTHORIZATION,
        HeaderName::from_static("x-api-key"),
    ])
}

/// Counts requests by route and status.
async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    const PATHS: [&str; 13] = [
        "/",
        "/health",
        "/metrics",
        "/openapi.json",
        "/tokenize",
        "/detokenize",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v1/models/{id}",
    ];
    // A fixed set of labels: paths that clients invent must not fill the memory.
    let path = request.uri().path();
    let label = PATHS.into_iter().find(|known| *known == path).unwrap_or("other");
    let response = next.run(request).await.into_response();
    app.metrics.request(label, response.status().as_u16());
    response
}
