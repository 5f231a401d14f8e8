//! Reading JSON bodies and writing event streams.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::error::{ApiError, Kind};

/// A JSON body. A field of the wrong type is an error that names its path.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        // Browsers send other types across origins without asking first.
        if !media_type.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::new(
                Kind::MediaType,
                "the header `Content-Type: application/json` is required",
            ));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(error) if error.status() == 413 => {
                ApiError::new(Kind::TooLarge, "the request body is larger than this server accepts")
            }
            other => ApiError::new(Kind::Invalid, other.body_text()),
        })?;
        let invalid = |error: serde_json::Error| {
            ApiError::new(Kind::Invalid, format!("the body is not valid: {error}"))
        };
        let value: Value = serde_json::from_slice(&bytes).map_err(invalid)?;
        read(value).map(Self)
    }
}

/// Deserializes a request.
///
/// # Errors
/// A 400 that names the field at fault.
pub(crate) fn read<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    let copy = value.clone();
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        match path.as_str() {
            // Below a flattened struct serde knows no path.
            "." | "" | "?" => match field_at_fault::<T>(&copy) {
                Some(field) => ApiError::field(field, message),
                None => ApiError::new(Kind::Invalid, format!("the body is not valid: {message}")),
            },
            _ => ApiError::field(path, message),
        }
    })
}

/// The field without which `value` can be deserialized.
fn field_at_fault<T: DeserializeOwned>(value: &Value) -> Option<&str> {
    let fields = value.as_object()?;
    let is_at_fault = |name: &&String| {
        let mut others = fields.clone();
        others.remove(name.as_str());
        T::deserialize(Value::Object(others)).is_ok()
    };
    fields.keys().find(is_at_fault).map(String::as_str)
}

/// The client has closed the stream.
pub(crate) struct Gone;

/// Sends events to a client.
pub(crate) struct EventSender(mpsc::Sender<sse::Event>);

impl EventSender {
    /// Sends `data: JSON`, with an `event:` line if `name` is given.
    pub(crate) async fn send(&self, name: Option<&str>, data: &impl Serialize) -> Result<(), Gone> {
        let event = sse::Event::default().json_data(data).map_err(|_| Gone)?;
        self.deliver(match name {
            Some(name) => event.event(name),
            None => event,
        })
        .await
    }

    /// Sends `data: TEXT`.
    pub(crate) async fn send_text(&self, text: &str) -> Result<(), Gone> {
        self.deliver(sse::Event::default().data(text)).await
    }

    async fn deliver(&self, event: sse::Event) -> Result<(), Gone> {
        self.0.send(event).await.map_err(|_| Gone)
    }

    /// Resolves when the client has closed the stream.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// An event stream that `produce` fills from a task of its own. The task ends when the client is gone.
pub(crate) fn event_stream<F>(keep_alive: Duration, produce: impl FnOnce(EventSender) -> F) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(32);
    tokio::spawn(produce(EventSender(sender)));
    let keep_alive = KeepAlive::new().interval(keep_alive).text("keep-alive");
    let mut response = Sse::new(Events(receiver)).keep_alive(keep_alive).into_response();
    // Reverse proxies must not buffer the stream.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

struct Events(mpsc::Receiver<sse::Event>);

impl futures_core::Stream for Events {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}
