//! Small endpoints: page, health, metrics, models, tokenizer.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::error::{ApiError, Kind};
use crate::metrics::Gauges;
use crate::request::Body;
use crate::server::App;

const PAGE: &str = include_str!("page.html");

/// The chat page. Its content security policy permits requests to this server only.
pub(crate) async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                  img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers: [(HeaderName, &str); 2] =
        [(header::CONTENT_SECURITY_POLICY, policy), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, Html(PAGE))
}

/// Status 200 once the model is loaded (or unloaded for idleness), 503 while it is loading.
pub(crate) async fn health(State(app): State<App>) -> impl IntoResponse {
    match app.engine.chat() {
        Ok(_) => (StatusCode::OK, Json(json!({"status": "ok"}))),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "loading"}))),
    }
}

/// Counters for Prometheus.
pub(crate) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let (waiting, active) = app.engine.load();
    let chat = app.engine.chat().ok();
    let gauges = Gauges {
        waiting,
        active,
        loaded: chat.is_some_and(q35_runtime::Chat::is_loaded),
        memory_bytes: chat.map_or(0, |chat| chat.memory_footprint().total_bytes()),
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render(&gauges))
}

fn model_object(app: &App) -> Value {
    json!({"id": app.config.model_id, "object": "model", "created": app.started, "owned_by": "q35"})
}

/// The served model.
pub(crate) async fn models(State(app): State<App>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_object(&app)]}))
}

/// The served model by name.
pub(crate) async fn model(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    check_model(&app, Some(&id))?;
    Ok(Json(model_object(&app)))
}

/// Refuses a request for another model than the served one.
pub(crate) fn check_model(app: &App, name: Option<&str>) -> Result<(), ApiError> {
    match name {
        Some(name) if !app.config.serves(name) => {
            let message = format!("`model`: this server has `{}`, not `{name}`", app.config.model_id);
            Err(ApiError { param: Some("model".into()), ..ApiError::new(Kind::NotFound, message) }
                .with_code("model_not_found"))
        }
        _ => Ok(()),
    }
}

/// Text to tokenize.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// The text; special tokens are recognised.
    content: String,
}

/// Token ids of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenizeResponse {
    /// The ids.
    tokens: Vec<u32>,
    /// Number of ids.
    count: usize,
}

/// Tokenizes a text.
#[utoipa::path(post, path = "/tokenize", request_body = TokenizeRequest, responses((status = 200, body = TokenizeResponse)))]
pub(crate) async fn tokenize(
    State(app): State<App>,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let chat = app.engine.chat()?.clone();
    let tokens = blocking(move || chat.tokenize(&request.content)).await?;
    Ok(Json(TokenizeResponse { count: tokens.len(), tokens }))
}

/// Token ids to turn into text.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DetokenizeRequest {
    /// The ids.
    tokens: Vec<u32>,
}

/// The text of token ids.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DetokenizeResponse {
    /// The text; bytes that are no UTF-8 become U+FFFD.
    content: String,
}

/// Turns token ids into text.
#[utoipa::path(post, path = "/detokenize", request_body = DetokenizeRequest, responses((status = 200, body = DetokenizeResponse)))]
pub(crate) async fn detokenize(
    State(app): State<App>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let chat = app.engine.chat()?.clone();
    let bytes = blocking(move || chat.token_bytes(&request.tokens)).await?;
    Ok(Json(DetokenizeResponse { content: String::from_utf8_lossy(&bytes).into_owned() }))
}

/// Runs `work` where it may load the model again.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, q35_runtime::ChatError> + Send + 'static,
) -> Result<T, ApiError> {
    let stopped = |_| ApiError::new(Kind::Internal, "the task failed");
    tokio::task::spawn_blocking(work).await.map_err(stopped)?.map_err(|error| ApiError::from(&error))
}
