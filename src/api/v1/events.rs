//! The event log: oldest first, resumable, in AgentMail's envelope.
//!
//! An event is `{type: "event", event_type, event_id}` and one object named after what it is about; `message` and
//! `thread` of `message.received` are as in a list. Who may not read a label does not hear of its messages.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::work::{self, wait_seconds};
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging;
use crate::api::query::Query;
use crate::api::v0::{domains, filter, load};
use crate::clock::rfc3339;
use crate::config::Config;
use crate::events::{self, EventFilter, EventPage, EventsError, Logged};
use crate::ids::{Prefix, RowId};
use crate::principal::{Permissions, Scope};
use crate::store::{StoreError, Tx};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Events on a page, DESIGN.md §6.
const MAX_EVENTS: usize = 1_000;

#[derive(Serialize, ToSchema)]
pub(crate) struct ListEventsResponse {
    count: usize,
    #[schema(value_type = Vec<Object>)]
    events: Vec<Map<String, Value>>,
    /// `after` of the next request, whether or not there was anything.
    next_cursor: String,
}

/// Events after a cursor, oldest first; without one, from the oldest kept.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(
        ("after" = Option<String>, Query, description = "`next_cursor` of the request before"),
        ("inbox_id" = Option<String>, Query),
        ("event_types" = Option<Vec<String>>, Query, description = "A JSON array, repeated, or one"),
        ("limit" = Option<i64>, Query, description = "50 unless given, at most 1,000"),
        ("wait_seconds" = Option<i64>, Query, description = "0 to 50: how long to wait for the first event")
    ),
    responses(
        (status = 200, body = ListEventsResponse), (status = 400, body = ErrorShape),
        (status = 410, description = "Events that old are not kept", body = ErrorShape)
    )
)]
async fn list(State(app): State<App>, caller: Caller, mut query: Query) -> Answer<Json<ListEventsResponse>> {
    caller.require("message_read")?;
    let after = query.text("after").filter(|after| !after.is_empty());
    let after: Option<Option<i64>> = after.map(|after| after.parse().ok().filter(|n| *n >= 0));
    let inbox_id = query.text("inbox_id");
    let types = query.list("event_types");
    let plain = |c: char| c.is_ascii_lowercase() || "._".contains(c);
    if !types.iter().all(|kind| kind.chars().all(plain)) {
        return Err(Problem::field(&["query", "event_types"], "takes names such as message.received"));
    }
    let limit = paging::clamp(&mut query, MAX_EVENTS)?;
    let wait = wait_seconds(query.integer("wait_seconds"))?;
    query.finish()?;
    let Ok(after) = after.map_or(Ok(None), |after| after.map(Some).ok_or(())) else {
        return Err(Problem::field(&["query", "after"], "is no cursor of this log"));
    };
    let within = match inbox_id {
        Some(id) => Scope::Inbox(caller.inbox(&app.floor, &id).await?.key),
        None => caller.0.scope,
    };
    let page = page(&app, EventFilter { within, types }, after, limit, wait).await?;
    let next_cursor = page.next_cursor.to_string();
    let (permissions, config) = (caller.0.permissions, app.floor.config.clone());
    let shown = app.floor.store.read(move |tx| {
        Box::pin(async move {
            let mut shown = Vec::with_capacity(page.events.len());
            for logged in page.events {
                shown.extend(show(tx, &config, logged, &permissions).await?);
            }
            Ok::<_, StoreError>(shown)
        })
    });
    let events = shown.await?;
    Ok(Json(ListEventsResponse { count: events.len(), events, next_cursor }))
}

async fn page(
    app: &App,
    filter: EventFilter,
    after: Option<i64>,
    limit: usize,
    wait: Duration,
) -> Answer<EventPage> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let waited = tokio::select! {
        // A server that stops answers what it has.
        () = app.stopping.cancelled() => events::page(&app.floor, filter.clone(), after, limit, Duration::ZERO).await,
        page = events::page(&app.floor, filter.clone(), after, limit, wait) => page,
    };
    waited.map_err(|error| match error {
        EventsError::Gone { oldest } => {
            Problem::new(StatusCode::GONE, "cursor_expired", "Events that old are no longer kept.")
                .named("EventExpiredError")
                .fix("Begin without `after`, and look at the inboxes for what was missed.")
                .with("oldest_cursor", oldest.saturating_sub(1).to_string())
        }
        EventsError::Store(error) => error.into(),
    })
}

/// The event as a reader sees it; `None` where its key may not.
async fn show(
    tx: &mut Tx,
    config: &Config,
    logged: Logged,
    permissions: &Permissions,
) -> Result<Option<Map<String, Value>>, StoreError> {
    let Logged { event, inbox_id, message, thread, item } = logged;
    if message.as_ref().is_some_and(|m| !filter::may_read(permissions, &m.labels)) {
        return Ok(None);
    }
    let data: Map<String, Value> = serde_json::from_str(&event.data).unwrap_or_default();
    let inbox_id = inbox_id.unwrap_or_default();
    let timestamp = rfc3339(event.created_at);
    let mut about = Map::new();
    if event.inbox.inbox != 0 {
        about.insert("inbox_id".into(), json!(inbox_id));
    }
    if let Some(thread) = &thread {
        about.insert("thread_id".into(), json!(thread.id()));
    }
    if let Some(message) = &message {
        about.insert("message_id".into(), json!(message.public_id()));
    }
    about.insert("timestamp".into(), json!(timestamp));
    let kind = event.event_type.as_str();
    let mut shown = Map::new();
    shown.insert("type".into(), json!("event"));
    shown.insert("event_type".into(), json!(kind));
    shown.insert("event_id".into(), json!(event.id()));
    shown.insert("cursor".into(), json!(event.cursor.to_string()));
    if event.inbox.inbox != 0 {
        shown.insert("inbox_id".into(), json!(inbox_id));
    }
    shown.insert("created_at".into(), json!(timestamp));
    if kind.starts_with("message.received") {
        if let Some(message) = message {
            shown.insert("message".into(), value(load::items(tx, &inbox_id, vec![message]).await?.pop())?);
        }
        if let Some(thread) = thread {
            shown.insert("thread".into(), value(load::threads(tx, vec![thread]).await?.pop())?);
        }
        return Ok(Some(shown));
    }
    if let Some(name) = data.get("domain_id").and_then(Value::as_str).filter(|_| kind == "domain.verified") {
        // AgentMail's event has the domain as it is shown.
        if let Some(domain) = domains::shown(tx, config, name, event.inbox.pod).await? {
            shown.insert("domain".into(), domain);
            return Ok(Some(shown));
        }
    }
    if kind.starts_with("work_item.") {
        about.extend(data);
        if let Some(item) = item {
            let id = RowId { at: item.created_at, inbox: item.inbox, seq: item.item_key };
            about.insert("work_item_id".into(), json!(id.text(Prefix::WorkItem)));
            shown.insert("work_item".into(), value(work::views(tx, vec![item]).await?.pop())?);
        }
        shown.insert("change".into(), Value::Object(about));
        return Ok(Some(shown));
    }
    if kind == "message.rejected" {
        // A refusal files nothing: AgentMail's body names a thread and a message all the same.
        for name in ["thread_id", "message_id"] {
            about.entry(name).or_insert_with(|| json!(""));
        }
    }
    about.extend(shaped(kind, data));
    shown.insert(object_of(kind).into(), Value::Object(about));
    Ok(Some(shown))
}

fn value(view: Option<impl Serialize>) -> Result<Value, StoreError> {
    serde_json::to_value(view).map_err(|e| StoreError::Damaged(e.to_string()))
}

/// The object that AgentMail names for an event type; ours say `data`.
fn object_of(kind: &str) -> &'static str {
    match kind {
        "message.sent" => "send",
        "message.delivered" => "delivery",
        "message.bounced" => "bounce",
        "message.complained" => "complaint",
        "message.rejected" => "reject",
        _ => "data",
    }
}

/// `type` and `sub_type` of a bounce, in the words of Amazon SES, which AgentMail passes on: permanent is what says
/// something about the address.
fn bounce_words(class: &str) -> (&'static str, &'static str) {
    match class {
        "hard" => ("Permanent", "NoEmail"),
        "mailbox_full" => ("Transient", "MailboxFull"),
        "content" => ("Transient", "ContentRejected"),
        _ => ("Transient", "General"),
    }
}

/// What the event says, with AgentMail's fields beside ours.
fn shaped(kind: &str, mut data: Map<String, Value>) -> Map<String, Value> {
    let recipient = data.get("recipient").cloned();
    match (kind, recipient) {
        ("message.delivered", Some(recipient)) => {
            data.insert("recipients".into(), json!([recipient]));
        }
        ("message.complained", Some(recipient)) => {
            let feedback = data.get("feedback_type").cloned().unwrap_or_else(|| json!("abuse"));
            data.insert("type".into(), feedback);
            data.insert("sub_type".into(), json!(""));
            data.insert("recipients".into(), json!([recipient]));
        }
        ("message.bounced", Some(recipient)) => {
            let status = data.get("status").cloned().unwrap_or_default();
            let class = data.get("class").and_then(Value::as_str).unwrap_or("soft").to_owned();
            let (kind, sub_kind) = bounce_words(&class);
            data.insert("type".into(), json!(kind));
            data.insert("sub_type".into(), json!(sub_kind));
            data.insert(
                "recipients".into(),
                json!([{ "address": recipient, "status": status.as_str().unwrap_or("") }]),
            );
        }
        _ => {}
    }
    data
}
