//! Errors of the server and of single requests.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use q35_runtime::ChatError;
use serde_json::{Value, json};

/// Error of the function that opens the model.
pub(crate) type OpenError = Box<dyn std::error::Error + Send + Sync>;

/// An error that prevents the server from starting or ends it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// An unusable setting.
    #[error("option `{option}`\n  expected: {expected}\n  found:    {found}")]
    Option {
        /// Name of the setting.
        option: &'static str,
        /// Acceptable values.
        expected: String,
        /// The value.
        found: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}\nhint: choose another port, or stop the program that uses it")]
    Listen {
        /// The address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The model could not be opened.
    #[error("cannot open the model")]
    Model(#[source] OpenError),
    /// The socket failed while serving.
    #[error("the server's socket failed")]
    Socket(#[from] std::io::Error),
}

/// Class of a request's failure; decides status and the `type` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 400: a field has an unusable value.
    Invalid,
    /// 401: no key, or a wrong one.
    Key,
    /// 403: the Host header is not this server's.
    Host,
    /// 404: no such model or path.
    NotFound,
    /// 405: the path does not accept this method.
    Method,
    /// 413: the body is too large.
    TooLarge,
    /// 415: the body is not declared as JSON.
    MediaType,
    /// 429: the queue is full.
    Busy,
    /// 500: the model failed.
    Internal,
    /// 503: the model is loading.
    Loading,
}

/// A request's failure, in the form that OpenAI's clients parse.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    /// The field at fault, `messages[1].content`.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, code: None }
    }

    /// A 400 that names the field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("`{param}`: {}", message.into());
        Self { kind: Kind::Invalid, message, param: Some(param), code: None }
    }

    pub(crate) fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Key => StatusCode::UNAUTHORIZED,
            Kind::Host => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Method => StatusCode::METHOD_NOT_ALLOWED,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Busy => StatusCode::TOO_MANY_REQUESTS,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Loading => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The `type` field.
    pub(crate) fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Key => "authentication_error",
            Kind::Host => "permission_error",
            Kind::NotFound => "not_found_error",
            Kind::Busy => "rate_limit_error",
            Kind::Internal => "server_error",
            Kind::Loading => "service_unavailable",
            Kind::Invalid | Kind::Method | Kind::TooLarge | Kind::MediaType => "invalid_request_error",
        }
    }

    /// The body: `{"error": {message, type, param, code}}`.
    pub(crate) fn body(&self) -> Value {
        let (param, code) = (&self.param, self.code);
        json!({"error": {"message": self.message, "type": self.type_name(), "param": param, "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), axum::Json(self.body())).into_response();
        if matches!(self.kind, Kind::Busy | Kind::Loading) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.kind == Kind::Key {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<&ChatError> for ApiError {
    fn from(error: &ChatError) -> Self {
        let message = error.to_string();
        match error {
            ChatError::ContextFull { .. } => {
                Self { param: Some("messages".into()), ..Self::new(Kind::Invalid, message) }
                    .with_code("context_length_exceeded")
            }
            ChatError::Grammar { .. } => {
                Self { param: Some("response_format".into()), ..Self::new(Kind::Invalid, message) }
            }
            ChatError::Option { option, .. } => {
                Self { param: Some((*option).to_owned()), ..Self::new(Kind::Invalid, message) }
            }
            ChatError::Template(_) => {
                Self { param: Some("messages".into()), ..Self::new(Kind::Invalid, message) }
            }
            _ => Self::new(Kind::Internal, message),
        }
    }
}
