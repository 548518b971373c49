//! What a caller is told when it cannot be done: `{name, code, message, fix, docs}`, and `errors` for bad input.
//!
//! The status codes are chosen for clients that retry. AgentMail's Python SDK sends again on 408, 409, 429 and
//! 5xx, without an idempotency key, so none of these is used once something took effect, 409 only where
//! `Idempotency-Key` documents it, and 429 only where waiting ten seconds or less helps. A policy refusal is
//! 403, a stale or lost lease 412, and what a key may not see is 404, as if it did not exist.
//!
//! The peer gets a sentence; what went wrong inside is logged once, here, under the id of the request.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::store::StoreError;

pub(crate) type Answer<T> = Result<T, Problem>;

/// One thing that is wrong with the input, and where: `["to", 0]`, `["query", "limit"]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct FieldError {
    pub path: Vec<Value>,
    pub message: String,
}

impl FieldError {
    pub(crate) fn new(path: &[&str], message: impl Into<String>) -> FieldError {
        FieldError { path: path.iter().map(|p| json!(p)).collect(), message: message.into() }
    }
}

/// An error as it goes over the wire. Boxed, because it is the rare half of every result.
#[derive(Debug, Clone)]
pub(crate) struct Problem(Box<Facts>);

#[derive(Debug, Clone)]
struct Facts {
    status: StatusCode,
    name: &'static str,
    code: String,
    message: String,
    fix: Option<String>,
    errors: Vec<FieldError>,
    /// Further fields beside the documented ones: `reasons`, `retry_at`, `current_context_version`.
    extra: Map<String, Value>,
    retry_after_s: Option<u64>,
}

/// The name of the exception that AgentMail's SDKs know for a status.
fn name_of(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "ValidationError",
        401 => "UnauthorizedError",
        403 => "ForbiddenError",
        404 => "NotFoundError",
        405 => "MethodNotAllowedError",
        409 => "ConflictError",
        410 => "GoneError",
        412 => "PreconditionFailedError",
        413 => "PayloadTooLargeError",
        422 => "UnprocessableError",
        429 => "RateLimitError",
        503 => "ServiceUnavailableError",
        _ => "InternalError",
    }
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem(Box::new(Facts {
            status,
            name: name_of(status),
            code: code.into(),
            message: message.into(),
            fix: None,
            errors: Vec::new(),
            extra: Map::new(),
            retry_after_s: None,
        }))
    }

    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Problem {
        self.0.fix = Some(fix.into());
        self
    }

    pub(crate) fn named(mut self, name: &'static str) -> Problem {
        self.0.name = name;
        self
    }

    pub(crate) fn with(mut self, key: &str, value: impl Serialize) -> Problem {
        if let Ok(value) = serde_json::to_value(value) {
            self.0.extra.insert(key.to_owned(), value);
        }
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Problem {
        self.0.retry_after_s = Some(seconds);
        self
    }

    /// 400: what is wrong, field by field.
    pub(crate) fn invalid(errors: Vec<FieldError>) -> Problem {
        let message = match errors.as_slice() {
            [] => "The request is not valid.".to_owned(),
            [first, rest @ ..] => {
                let place =
                    first.path.iter().map(|p| p.as_str().map_or_else(|| p.to_string(), str::to_owned));
                let place = place.collect::<Vec<_>>().join(".");
                let more =
                    if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
                if place.is_empty() {
                    format!("{}{more}", first.message)
                } else {
                    format!("{place}: {}{more}", first.message)
                }
            }
        };
        let mut problem = Problem::new(StatusCode::BAD_REQUEST, "validation_error", message);
        problem.0.errors = errors;
        problem.fix("Correct the fields named in `errors`; /openapi.json has the types.")
    }

    /// 400 for a single field.
    pub(crate) fn field(path: &[&str], message: impl Into<String>) -> Problem {
        Problem::invalid(vec![FieldError::new(path, message)])
    }

    /// 404: it does not exist, or this key may not know that it does.
    pub(crate) fn not_found(what: &str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not_found", format!("{what} not found"))
            .fix("Check the id; what lies outside of this key's scope is not found either.")
    }

    pub(crate) fn forbidden(code: &str, message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, code, message)
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.0.status
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> &str {
        &self.0.code
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        if error.is_temporary() {
            tracing::warn!(%error, "the database did not answer a request");
            return Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                "The database is not available at the moment.",
            )
            .fix("Try again in a few seconds, with the same Idempotency-Key where you sent one.")
            .retry_after(2);
        }
        internal(&error)
    }
}

/// A mistake of ours, not of the caller: logged here, and a general sentence outside.
pub(crate) fn internal(error: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%error, "a request could not be served");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        "Something went wrong inside the server.",
    )
    .fix("The server's log has the reason, under this answer's x-request-id.")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let facts = *self.0;
        let mut body = facts.extra;
        body.insert("name".into(), json!(facts.name));
        body.insert("code".into(), json!(facts.code));
        body.insert("message".into(), json!(facts.message));
        if let Some(fix) = facts.fix {
            body.insert("fix".into(), json!(fix));
        }
        body.insert("docs".into(), json!("/openapi.json"));
        if facts.code == "validation_error" {
            body.insert("errors".into(), json!(facts.errors));
        }
        let mut response = (facts.status, axum::Json(Value::Object(body))).into_response();
        if let Some(seconds) = facts.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The shape of every error, for `/openapi.json`.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = ErrorResponse)]
#[allow(dead_code)] // never built: `Problem` writes it
pub(crate) struct ErrorShape {
    /// The name of the exception in AgentMail's SDKs; branch on `code` instead.
    name: String,
    code: String,
    message: String,
    /// What the caller can do about it.
    fix: Option<String>,
    docs: Option<String>,
    /// `validation_error` only: a list of `{path, message}`.
    errors: Option<Vec<serde_json::Map<String, Value>>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_says_where_and_what_helps() {
        let problem = Problem::invalid(vec![
            FieldError { path: vec![json!("to"), json!(0)], message: "no mail address".into() },
            FieldError::new(&["subject"], "too long"),
        ]);
        let response = problem.into_response();
        assert_eq!(response.status(), 400);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["name"], "ValidationError");
        assert_eq!(body["code"], "validation_error");
        assert_eq!(body["message"], "to.0: no mail address (and 1 more)");
        assert_eq!(body["errors"][0]["path"], json!(["to", 0]));
        assert!(body["fix"].is_string() && body["docs"].is_string());
    }
}
