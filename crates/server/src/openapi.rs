//! The OpenAPI document, generated from the request and response types.

use axum::Json;
use serde_json::Value;
use utoipa::OpenApi;

use crate::{info, openai};

#[derive(OpenApi)]
#[openapi(
    info(title = "q35", description = "OpenAI-compatible chat over a converted Qwen3.5 model."),
    paths(openai::chat::handle, openai::completions::handle, info::tokenize, info::detokenize)
)]
struct Document;

/// The OpenAPI document as JSON.
pub fn openapi_json() -> Value {
    serde_json::to_value(Document::openapi()).unwrap_or_default()
}

/// `GET /openapi.json`.
pub(crate) async fn serve() -> Json<Value> {
    Json(openapi_json())
}
