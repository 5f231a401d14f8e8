//! Access control: API key, Host header, content type.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq as _;

use crate::error::{ApiError, Kind};
use crate::server::App;

/// Paths that need no key: the health check of supervisors, and the page, which asks for the key itself.
const OPEN_PATHS: [&str; 2] = ["/health", "/"];

/// Refuses requests without the key, and requests to a loopback server under a foreign host name.
///
/// The host check prevents DNS rebinding: a web page whose name resolves to 127.0.0.1 sends its own name as Host.
pub(crate) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if app.config.host.is_loopback() && !is_local_host(headers) {
        let message = "the Host header must name this machine (localhost, 127.0.0.1 or [::1])";
        return ApiError::new(Kind::Host, message).into_response();
    }
    // A browser's preflight request cannot carry a key.
    let open = OPEN_PATHS.contains(&request.uri().path()) || request.method() == Method::OPTIONS;
    if let Some(key) = app.config.api_key.as_deref().filter(|_| !open)
        && !has_key(headers, key)
    {
        let message = "a valid API key is required, as `Authorization: Bearer KEY` or `x-api-key: KEY`";
        return ApiError::new(Kind::Key, message).with_code("invalid_api_key").into_response();
    }
    next.run(request).await
}

fn is_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Compares in constant time, so that response times do not reveal how much of a key is right.
fn has_key(headers: &HeaderMap, key: &str) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let sent = bearer.or_else(|| text("x-api-key"));
    sent.is_some_and(|sent| sent.as_bytes().ct_eq(key.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(axum::http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "LOCALHOST:8035", "127.0.0.1", "127.0.0.1:80", "[::1]:8035", "[::1]"] {
            assert!(is_local_host(&headers("host", host)), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8035", "10.0.0.1", ""]
        {
            assert!(!is_local_host(&headers("host", host)), "{host}");
        }
        assert!(!is_local_host(&HeaderMap::new()));
    }

    #[test]
    fn keys_are_read_from_both_headers() {
        assert!(has_key(&headers("authorization", "Bearer secret"), "secret"));
        assert!(has_key(&headers("authorization", "bearer secret"), "secret"));
        assert!(has_key(&headers("x-api-key", "secret"), "secret"));
        for wrong in ["Bearer secre", "Bearer secrets", "Basic secret", "secret", "Bearer "] {
            assert!(!has_key(&headers("authorization", wrong), "secret"), "{wrong}");
        }
        assert!(!has_key(&HeaderMap::new(), "secret"));
    }
}
