//! Messages of an inbox: one route for everything below `messages/`, because ids may hold slashes (path.rs).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::attachments::{self, AttachmentResponse, RawMessageResponse};
use super::filter::{self, Filter, Parameters};
use super::load;
use super::send;
use super::view::MessageView;
use crate::api::auth::Caller;
use crate::api::body;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging::Listing;
use crate::api::path::{MessagePath, RawPath};
use crate::api::query::Query;
use crate::api::{App, no_such_route};
use crate::config::limits;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::inbox::{self, Decision};
use crate::principal::Principal;
use crate::store::inbox::Inbox;
use crate::store::message::{self, Message};
use crate::store::page::{Page, Place};
use crate::store::{StoreError, Tx, label};

/// Rows that one request looks at for a filter; a page may then be empty and still carry a token.
const SCAN: usize = 50_000;
/// Rows looked at with one statement while filtering.
const CHUNK: i64 = 500;
/// Ids in one batch-get and in one batch-update: AgentMail's limits.
const MAX_BATCH_GET: usize = 500;
const MAX_BATCH_UPDATE: usize = 50;
/// Labels on a message or in a request.
const MAX_LABELS: usize = 100;

pub(super) fn routes() -> OpenApiRouter<App> {
    #[derive(OpenApi)]
    #[openapi(paths(
        get_message,
        update_message,
        raw,
        attachment,
        batch_get,
        batch_update,
        send::send,
        send::reply,
        send::reply_all
    ))]
    struct Described;
    let below = Router::new().route("/v0/inboxes/{inbox_id}/messages/{*rest}", axum::routing::any(below));
    OpenApiRouter::with_openapi(Described::openapi()).routes(routes!(list)).merge(below.into())
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListMessagesResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    messages: Vec<MessageView>,
}

/// For `/openapi.json`.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)] // read through `Query`
struct MessageParams {
    limit: Option<i64>,
    page_token: Option<String>,
    /// Oldest first.
    ascending: Option<bool>,
    /// All of them: a JSON array, repeated, or one.
    labels: Option<Vec<String>>,
    before: Option<String>,
    after: Option<String>,
    include_spam: Option<bool>,
    include_blocked: Option<bool>,
    include_unauthenticated: Option<bool>,
    include_trash: Option<bool>,
    /// One of them, as a part of From.
    from: Option<Vec<String>>,
    /// One of them, as a part of To, Cc or Bcc.
    to: Option<Vec<String>>,
    /// One of them, as a part of the subject.
    subject: Option<Vec<String>>,
    /// Ours. One of them: person, auto_reply, bounce, list, calendar, notification, report.
    kind: Option<Vec<String>>,
}

/// The messages of an inbox, newest first.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/messages", tag = "messages",
    params(("inbox_id" = String, Path), MessageParams),
    responses((status = 200, body = ListMessagesResponse), (status = 404, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    mut query: Query,
) -> Answer<Json<ListMessagesResponse>> {
    caller.require("message_read")?;
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?;
    let page = Listing::Messages.page(&mut query)?;
    let names = Parameters { senders: "from", recipients: "to" };
    let filter = Filter::take(&mut query, &names, &caller.0.permissions).of_kind(&mut query);
    query.finish()?;
    let limit = page.limit;
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let (messages, next) = scan(tx, inbox.key, &page, &filter).await?;
            Ok::<_, StoreError>((load::items(tx, &inbox.address, messages).await?, next))
        })
    });
    let (messages, next) = found.await?;
    let next_page_token = next.map(|key| Listing::Messages.token(&Place::new(0, key)));
    Ok(Json(ListMessagesResponse { count: messages.len(), limit, next_page_token, messages }))
}

/// A page of what the filter takes, and the key after which the next one begins.
async fn scan(
    tx: &mut Tx,
    inbox: InboxKey,
    page: &Page,
    filter: &Filter,
) -> Result<(Vec<Message>, Option<i64>), StoreError> {
    let [_, _, mut start] = page.start().key;
    let (mut taken, mut scanned, mut next) = (Vec::new(), 0, None);
    'scan: loop {
        let chunk = if scanned == 0 { page.fetch() } else { CHUNK };
        let headings = message::headings(tx, inbox, start, page.ascending, filter.range(), chunk).await?;
        let last = (headings.len() as i64) < chunk;
        for heading in &headings {
            if filter.takes_message(heading) {
                if taken.len() == page.limit {
                    next = taken.last().copied();
                    break 'scan;
                }
                taken.push(heading.message_key);
            }
            start = heading.message_key;
        }
        scanned += headings.len();
        if last {
            break;
        }
        if scanned >= SCAN {
            next = Some(start);
            break;
        }
    }
    let mut messages = message::by_keys(tx, inbox, &taken).await?;
    if !page.ascending {
        messages.reverse();
    }
    Ok((messages, next))
}

/// Everything below `messages/`, by method and suffix.
async fn below(
    State(app): State<App>,
    method: Method,
    caller: Caller,
    path: RawPath,
    query: Query,
    request: Request,
) -> Response {
    let Some(named) = MessagePath::parse(&path.tail(4)) else {
        return Problem::not_found("Message").into_response();
    };
    match dispatch(&app, &method, &caller, &path, query, named, request).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn dispatch(
    app: &App,
    method: &Method,
    caller: &Caller,
    path: &RawPath,
    query: Query,
    named: MessagePath,
    request: Request,
) -> Answer<Response> {
    if named == MessagePath::Unknown {
        return Err(no_such_route(method.clone(), request).await);
    }
    query.finish()?;
    let inbox = caller.inbox(&app.floor, &path.segment(2)?).await?;
    let floor = &app.floor;
    use MessagePath::*;
    Ok(match (method.as_str(), named) {
        ("POST", Send) => send::send(app, caller, inbox, request).await?,
        ("POST", Reply(id)) => send::reply(app, caller, inbox, &id, request).await?,
        ("POST", ReplyAll(id)) => send::reply_all(app, caller, inbox, &id, request).await?,
        ("POST", BatchGet) => batch_get(app, caller, inbox, request).await?.into_response(),
        ("POST", BatchUpdate) => batch_update(app, caller, inbox, request).await?.into_response(),
        ("GET" | "HEAD", Message(id)) => get_message(floor, caller, inbox, &id).await?.into_response(),
        ("PATCH", Message(id)) => update_message(app, caller, inbox, &id, request).await?.into_response(),
        ("GET" | "HEAD", Raw(id)) => raw(floor, caller, inbox, &id).await?.into_response(),
        ("GET" | "HEAD", Attachment { message, attachment: part }) => {
            attachment(floor, caller, inbox, &message, &part).await?.into_response()
        }
        _ => no_such_route(method.clone(), request).await.into_response(),
    })
}

/// The message of this id in this inbox, if the key may see it.
pub(super) async fn find(floor: &Floor, caller: &Caller, inbox: InboxKey, id: &str) -> Answer<Message> {
    let id = id.to_owned();
    let found =
        floor.store.read(move |tx| Box::pin(async move { message::by_public_id(tx, inbox, &id).await }));
    let found: Option<Message> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    found
        .filter(|message| filter::may_read(&caller.0.permissions, &message.labels))
        .ok_or_else(|| Problem::not_found("Message"))
}

/// A message with its texts, its verdict and, where it is ours, what became of it.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/messages/{message_id}", tag = "messages",
    params(("inbox_id" = String, Path), ("message_id" = String, Path, description = "Its RFC Message-ID or our own id")),
    responses((status = 200, body = MessageView), (status = 404, body = ErrorShape))
)]
async fn get_message(
    floor: &Arc<Floor>,
    caller: &Caller,
    inbox: Inbox,
    id: &str,
) -> Answer<Json<MessageView>> {
    caller.require("message_read")?;
    let found = find(floor, caller, inbox.key, id).await?;
    let view = load::single(floor, &inbox.address, found).await?;
    view.map(Json).ok_or_else(|| Problem::not_found("Message"))
}

/// Labels to set and to remove; removing wins.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct UpdateMessageRequest {
    /// A label or a list of them.
    #[schema(value_type = Option<Vec<String>>)]
    add_labels: Option<OneOrMany>,
    #[schema(value_type = Option<Vec<String>>)]
    remove_labels: Option<OneOrMany>,
}

/// AgentMail takes a string where one is enough.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "takes a text or a list of texts")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(given: OneOrMany) -> Vec<String> {
        match given {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(crate) struct UpdateMessageResponse {
    message_id: String,
    labels: Vec<String>,
}

/// The labels of a request, checked.
struct Change {
    add: Vec<String>,
    remove: Vec<String>,
}

impl Change {
    fn check(add: Option<OneOrMany>, remove: Option<OneOrMany>) -> Answer<Arc<Change>> {
        let add: Vec<String> = add.map(Into::into).unwrap_or_default();
        let remove: Vec<String> = remove.map(Into::into).unwrap_or_default();
        for (path, labels) in [("add_labels", &add), ("remove_labels", &remove)] {
            if labels.len() > MAX_LABELS {
                return Err(Problem::field(&[path], format!("takes at most {MAX_LABELS} labels")));
            }
            for label in labels {
                filter::check_label(path, label)?;
            }
        }
        if add.is_empty() && remove.is_empty() {
            return Err(Problem::field(&[], "add_labels or remove_labels is needed"));
        }
        Ok(Arc::new(Change { add, remove }))
    }
}

/// Sets and removes labels. `unread` is the read state, `trash` and `spam` are moves.
#[utoipa::path(
    patch, path = "/v0/inboxes/{inbox_id}/messages/{message_id}", tag = "messages",
    params(("inbox_id" = String, Path), ("message_id" = String, Path)), request_body = UpdateMessageRequest,
    responses((status = 200, body = UpdateMessageResponse), (status = 404, body = ErrorShape))
)]
async fn update_message(
    app: &App,
    caller: &Caller,
    inbox: Inbox,
    id: &str,
    request: Request,
) -> Answer<Json<UpdateMessageResponse>> {
    caller.require("message_update")?;
    let upload = body::read(app, request, limits::MAX_JSON_BODY).await?;
    let asked: UpdateMessageRequest = body::parse(&upload.bytes)?;
    let change = Change::check(asked.add_labels, asked.remove_labels)?;
    let (id, who) = (id.to_owned(), Arc::new(caller.0.clone()));
    let updated = app.floor.store.write(move |tx| {
        let (id, change, who) = (id.clone(), change.clone(), who.clone());
        Box::pin(async move { relabel(tx, inbox.key, &id, &change, &who).await })
    });
    updated.await?.map(Json).ok_or_else(|| Problem::not_found("Message"))
}

async fn relabel(
    tx: &mut Tx,
    inbox: InboxKey,
    id: &str,
    change: &Change,
    who: &Principal,
) -> Answer<Option<UpdateMessageResponse>> {
    let found = message::by_public_id(tx, inbox, id).await?;
    let Some(found) = found.filter(|m| filter::may_read(&who.permissions, &m.labels)) else {
        return Ok(None);
    };
    let frees = found.held.is_some() && change.remove.iter().any(|l| l == "spam");
    let found = match (frees, who.is_admin()) {
        (false, _) => found,
        // DESIGN.md §4.6: what policy holds, an inbox's own key does not let in.
        (true, false) => {
            return Err(Problem::forbidden(
                "forbidden",
                "Policy holds this message: an inbox's key cannot free it.",
            )
            .fix("Have it released: POST /v1/messages/{message_id}/release, with an organization's key."));
        }
        (true, true) => {
            let freed = inbox::decide(tx, inbox, found.message_key, Decision::Release, &who.actor()).await?;
            let Some(freed) = freed else { return Ok(None) };
            freed
        }
    };
    let added = change.add.iter().filter(|l| !found.labels.contains(l)).count();
    if found.labels.len() + added > MAX_LABELS {
        return Err(Problem::field(&["add_labels"], format!("a message has at most {MAX_LABELS} labels")));
    }
    let labels = label::change(tx, &found, &change.add, &change.remove).await?;
    Ok(labels.map(|labels| UpdateMessageResponse { message_id: found.public_id(), labels }))
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct BatchGetRequest {
    /// At most 500.
    message_ids: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct BatchGetResponse {
    /// How many were asked for.
    limit: usize,
    /// How many there are.
    count: usize,
    messages: Vec<MessageView>,
}

/// Many messages at once, without their texts; ids that name nothing are left out.
#[utoipa::path(
    post, path = "/v0/inboxes/{inbox_id}/messages/batch-get", tag = "messages", params(("inbox_id" = String, Path)),
    request_body = BatchGetRequest, responses((status = 200, body = BatchGetResponse), (status = 400, body = ErrorShape))
)]
async fn batch_get(
    app: &App,
    caller: &Caller,
    inbox: Inbox,
    request: Request,
) -> Answer<Json<BatchGetResponse>> {
    caller.require("message_read")?;
    let upload = body::read(app, request, limits::MAX_JSON_BODY).await?;
    let asked: BatchGetRequest = body::parse(&upload.bytes)?;
    let limit = asked.message_ids.len();
    if limit > MAX_BATCH_GET {
        return Err(Problem::field(&["message_ids"], format!("takes at most {MAX_BATCH_GET} ids")));
    }
    let permissions = caller.0.permissions.clone();
    let found = app.floor.store.read(move |tx| {
        Box::pin(async move {
            let mut messages = Vec::new();
            for id in &asked.message_ids {
                let found = message::by_public_id(tx, inbox.key, id).await?;
                messages.extend(found.filter(|m| filter::may_read(&permissions, &m.labels)));
            }
            load::items(tx, &inbox.address, messages).await
        })
    });
    let messages: Vec<MessageView> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    Ok(Json(BatchGetResponse { limit, count: messages.len(), messages }))
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct BatchUpdateRequest {
    /// At most 50.
    message_ids: Vec<String>,
    #[schema(value_type = Option<Vec<String>>)]
    add_labels: Option<OneOrMany>,
    #[schema(value_type = Option<Vec<String>>)]
    remove_labels: Option<OneOrMany>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct BatchUpdateResponse {
    limit: usize,
    count: usize,
    updates: Vec<UpdateMessageResponse>,
}

/// Labels of many messages, in one transaction; ids that name nothing are left out.
#[utoipa::path(
    post, path = "/v0/inboxes/{inbox_id}/messages/batch-update", tag = "messages", params(("inbox_id" = String, Path)),
    request_body = BatchUpdateRequest,
    responses((status = 200, body = BatchUpdateResponse), (status = 400, body = ErrorShape))
)]
async fn batch_update(
    app: &App,
    caller: &Caller,
    inbox: Inbox,
    request: Request,
) -> Answer<Json<BatchUpdateResponse>> {
    caller.require("message_update")?;
    let upload = body::read(app, request, limits::MAX_JSON_BODY).await?;
    let asked: BatchUpdateRequest = body::parse(&upload.bytes)?;
    let limit = asked.message_ids.len();
    if limit > MAX_BATCH_UPDATE {
        return Err(Problem::field(&["message_ids"], format!("takes at most {MAX_BATCH_UPDATE} ids")));
    }
    let change = Change::check(asked.add_labels, asked.remove_labels)?;
    let (ids, who) = (Arc::new(asked.message_ids), Arc::new(caller.0.clone()));
    let updated = app.floor.store.write(move |tx| {
        let (ids, change, who) = (ids.clone(), change.clone(), who.clone());
        Box::pin(async move {
            let mut updates = Vec::new();
            for id in ids.iter() {
                updates.extend(relabel(tx, inbox.key, id, &change, &who).await?);
            }
            Ok::<_, Problem>(updates)
        })
    });
    let updates = updated.await?;
    Ok(Json(BatchUpdateResponse { limit, count: updates.len(), updates }))
}

/// A link to the message as it was received or sent, for an hour.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/messages/{message_id}/raw", tag = "messages",
    params(("inbox_id" = String, Path), ("message_id" = String, Path)),
    responses((status = 200, body = RawMessageResponse), (status = 404, body = ErrorShape))
)]
async fn raw(floor: &Floor, caller: &Caller, inbox: Inbox, id: &str) -> Answer<Json<RawMessageResponse>> {
    caller.require("message_read")?;
    let found = find(floor, caller, inbox.key, id).await?;
    Ok(Json(attachments::raw(floor, &found)))
}

/// A link to an attachment, for an hour.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/messages/{message_id}/attachments/{attachment_id}", tag = "messages",
    params(("inbox_id" = String, Path), ("message_id" = String, Path), ("attachment_id" = String, Path)),
    responses((status = 200, body = AttachmentResponse), (status = 404, body = ErrorShape))
)]
async fn attachment(
    floor: &Floor,
    caller: &Caller,
    inbox: Inbox,
    id: &str,
    attachment_id: &str,
) -> Answer<Json<AttachmentResponse>> {
    caller.require("message_read")?;
    let found = find(floor, caller, inbox.key, id).await?;
    attachments::attachment(floor, &found, attachment_id)
        .map(Json)
        .ok_or_else(|| Problem::not_found("Attachment"))
}
