//! `/openapi.json`: written by the annotations beside the handlers, made whole here.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use utoipa::OpenApi;
use utoipa::openapi::RefOr;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

use super::error;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Gatepost",
        description = "A self-hosted mail server for AI agents. `/v0` is wire-compatible with AgentMail's SDKs; \
                       `/v1` is Gatepost's own. Every error is `{name, code, message, fix, docs}`: branch on `code`."
    ),
    components(schemas(error::ErrorShape)),
    modifiers(&BearerKeys),
    security(("api_key" = []))
)]
pub(super) struct Description;

struct BearerKeys;

impl utoipa::Modify for BearerKeys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("api_key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// What the specification wants of every operation, and the annotations leave out.
pub(super) fn complete(description: &mut utoipa::openapi::OpenApi) {
    let paths = std::mem::take(&mut description.paths.paths);
    let mut complete = BTreeMap::new();
    for (path, mut item) in paths {
        // The router's `{*entry}` takes slashes; OpenAPI knows only `{entry}`.
        let path = path.replace("{*", "{");
        for (method, operation) in operations(&mut item) {
            // The names of the handlers (`list`, `get`) are not unique, as an operation's name has to be.
            operation.operation_id = Some(operation_id(method, &path));
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    response.description = reason(status);
                }
            }
        }
        complete.insert(path, item);
    }
    description.paths.paths = complete.into_iter().collect();
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let all = [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

fn operation_id(method: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

fn reason(status: &str) -> String {
    let known = status.parse().ok().and_then(|n: u16| StatusCode::from_u16(n).ok());
    known.and_then(|s| s.canonical_reason()).unwrap_or("Answer").to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn every_operation_has_a_name_of_its_own_and_says_what_it_answers() {
        let (_, mut description) = crate::api::routes();
        let mut names = HashSet::new();
        for (path, item) in &mut description.paths.paths {
            assert!(!path.contains('*'), "{path}");
            for (method, operation) in super::operations(item) {
                let name = operation.operation_id.clone().unwrap();
                assert!(names.insert(name.clone()), "{name} twice");
                assert!(operation.summary.is_some(), "{method} {path} has no summary");
                for (status, response) in &operation.responses.responses {
                    let utoipa::openapi::RefOr::T(response) = response else { continue };
                    assert!(!response.description.is_empty(), "{method} {path} {status}");
                }
            }
        }
        assert!(names.len() > 50, "{}", names.len());
    }
}
