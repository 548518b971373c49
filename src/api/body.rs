//! Request bodies: bounded in size, in time and in sum, and refused field by field.
//!
//! AgentMail's Python SDK sends no body at all for `inboxes.create()`, so an empty one is `{}`. Its content type
//! is not looked at: `curl -d` says form, and means JSON.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::App;
use super::error::{Answer, FieldError, Problem};
use crate::config::limits;

/// Bodies in memory are counted in units of this many octets.
const UNIT: usize = 64 * 1024;

/// The memory that all bodies share.
#[derive(Clone)]
pub(crate) struct BodyBudget(Arc<Semaphore>);

impl Default for BodyBudget {
    fn default() -> BodyBudget {
        BodyBudget(Arc::new(Semaphore::new(limits::MAX_HTTP_BODIES_IN_FLIGHT / UNIT)))
    }
}

/// A body that has arrived; its share of the memory is given back when it is dropped.
pub(crate) struct Upload {
    pub bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

/// Reads the whole body, of at most `limit` octets.
pub(crate) async fn read(app: &App, request: Request, limit: usize) -> Answer<Upload> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if announced.is_some_and(|n| n > limit) {
        return Err(too_large(limit));
    }
    let units = announced.unwrap_or(limit).div_ceil(UNIT).clamp(1, limits::MAX_HTTP_BODIES_IN_FLIGHT / UNIT);
    let reading = async {
        let share = app.bodies.0.clone().acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX)).await;
        let share = share.map_err(|e| super::error::internal(&e))?;
        let body: Body = request.into_body();
        match Limited::new(body, limit).collect().await {
            Ok(collected) => Ok(Upload { bytes: collected.to_bytes(), _share: share }),
            Err(e) if e.is::<LengthLimitError>() => Err(too_large(limit)),
            Err(e) => Err(Problem::field(&["body"], format!("broke off: {e}"))),
        }
    };
    // Nothing has taken effect yet, so a client may well send it again.
    tokio::time::timeout(limits::HTTP_BODY_DEADLINE, reading).await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The body did not arrive in time.")
            .named("RequestTimeoutError")
            .fix("Send it again over a faster connection, or send less."))
    })
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "payload_too_large",
        format!("The body is larger than {limit} octets."),
    )
    .fix("Send less at once; a message is limited by `smtp.max_message_size`.")
}

/// The JSON of a body, an empty one being `{}`.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    let bytes = match bytes.trim_ascii() {
        b"" => b"{}",
        // serde would take an array for an object without its names.
        object @ [b'{', ..] => object,
        _ => return Err(Problem::field(&[], "the body takes a JSON object")),
    };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().iter().filter_map(segment).collect();
        Problem::invalid(vec![FieldError { path, message: e.into_inner().to_string() }])
    })?;
    json.end().map_err(|e| Problem::field(&[], format!("has more after its JSON value: {e}")))?;
    Ok(parsed)
}

fn segment(segment: &serde_path_to_error::Segment) -> Option<Value> {
    use serde_path_to_error::Segment::*;
    match segment {
        Seq { index } => Some(json!(index)),
        Map { key } => Some(json!(key)),
        Enum { variant } => Some(json!(variant)),
        Unknown => None,
    }
}

/// A JSON body without attachments, as an argument of a handler.
pub(crate) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<JsonBody<T>, Problem> {
        let upload = read(app, request, limits::MAX_JSON_BODY).await?;
        Ok(JsonBody(parse(&upload.bytes)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    #[allow(dead_code)]
    struct Mail {
        to: Vec<String>,
        subject: Option<String>,
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let place = |json: &str| format!("{:?}", parse::<Mail>(json.as_bytes()).unwrap_err());
        assert!(place(r#"{"to": ["a", 7]}"#).contains(r#"[String("to"), Number(1)]"#));
        assert!(place("").contains("missing field `to`"));
        for broken in ["{", "[]", "\"", "{\"to\":[]} x", "\u{feff}{}", "{\"to\":[],\"subject\":\"\\ud800\"}"]
        {
            assert!(parse::<Mail>(broken.as_bytes()).is_err(), "{broken}");
        }
        let deep = "{\"to\":".repeat(100_000);
        assert!(parse::<Value>(deep.as_bytes()).is_err());
    }
}
