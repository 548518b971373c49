//! Threads: of one inbox, and of everything that the key sees.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::attachments::{self, AttachmentResponse};
use super::filter::{self, Filter, Parameters};
use super::load;
use super::view::{AttachmentId, MessageView, ThreadView};
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging::{self, Listing};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::floor::Floor;
use crate::ids::{InboxKey, Prefix, RowId};
use crate::principal::Scope;
use crate::store::message::{self, Message};
use crate::store::page::{Page, Place};
use crate::store::thread::{self, Thread};
use crate::store::{StoreError, Tx};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(list_of_inbox))
        .routes(routes!(get))
        .routes(routes!(get_of_inbox))
        .routes(routes!(attachment))
        .routes(routes!(attachment_of_inbox))
}

/// Rows that one request looks at for a filter; a page may then be empty and still carry a token.
const SCAN: usize = 20_000;
/// Rows looked at with one statement while filtering.
const CHUNK: i64 = 200;

#[derive(Serialize, ToSchema)]
pub(crate) struct ListThreadsResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    threads: Vec<ThreadView>,
}

/// A thread with a page of its messages: the newest first page, oldest first within it.
#[derive(Serialize, ToSchema)]
#[schema(as = Thread)]
pub(crate) struct WholeThread {
    #[serde(flatten)]
    thread: ThreadView,
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
pub(super) struct ThreadParams {
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
    /// One of them, as a part of a sender.
    senders: Option<Vec<String>>,
    /// One of them, as a part of a recipient.
    recipients: Option<Vec<String>>,
    /// One of them, as a part of the subject.
    subject: Option<Vec<String>>,
}

/// The threads of every inbox that the key sees, newest first.
#[utoipa::path(
    get, path = "/v0/threads", tag = "threads", params(ThreadParams),
    responses((status = 200, body = ListThreadsResponse), (status = 400, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    query: Query,
) -> Answer<Json<ListThreadsResponse>> {
    page_of(&floor, &caller, caller.0.scope, query).await
}

/// The threads of an inbox, newest first.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/threads", tag = "threads", params(("inbox_id" = String, Path), ThreadParams),
    responses((status = 200, body = ListThreadsResponse), (status = 404, body = ErrorShape))
)]
async fn list_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<ListThreadsResponse>> {
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?;
    page_of(&floor, &caller, Scope::Inbox(inbox.key), query).await
}

pub(super) async fn page_of(
    floor: &Floor,
    caller: &Caller,
    within: Scope,
    mut query: Query,
) -> Answer<Json<ListThreadsResponse>> {
    caller.require("message_read")?;
    let page = Listing::Threads.page(&mut query)?;
    let names = Parameters { senders: "senders", recipients: "recipients" };
    let filter = Filter::take(&mut query, &names, &caller.0.permissions);
    query.finish()?;
    let limit = page.limit;
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let (threads, next) = scan(tx, within, &page, &filter).await?;
            Ok::<_, StoreError>((load::threads(tx, threads).await?, next))
        })
    });
    let (threads, next) = found.await?;
    let next_page_token = next.map(|place| Listing::Threads.token(&place));
    Ok(Json(ListThreadsResponse { count: threads.len(), limit, next_page_token, threads }))
}

/// A page of what the filter takes, and the place after which the next one begins.
async fn scan(
    tx: &mut Tx,
    within: Scope,
    page: &Page,
    filter: &Filter,
) -> Result<(Vec<Thread>, Option<Place>), StoreError> {
    let (mut taken, mut scanned): (Vec<Thread>, usize) = (Vec::new(), 0);
    let mut start = page.start();
    loop {
        let chunk = if scanned == 0 { page.fetch() } else { CHUNK };
        let rows = thread::page(tx, within, &start, page.ascending, filter.range(), chunk).await?;
        let last = (rows.len() as i64) < chunk;
        scanned += rows.len();
        for row in rows {
            start = thread::place(&row);
            if filter.takes_thread(&row) {
                if taken.len() == page.limit {
                    let next = taken.last().map(thread::place);
                    return Ok((taken, next));
                }
                taken.push(row);
            }
        }
        if last {
            return Ok((taken, None));
        }
        if scanned >= SCAN {
            return Ok((taken, Some(start)));
        }
    }
}

/// A thread with its messages.
#[utoipa::path(
    get, path = "/v0/threads/{thread_id}", tag = "threads",
    params(("thread_id" = String, Path), ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)),
    responses((status = 200, body = WholeThread), (status = 404, body = ErrorShape))
)]
async fn get(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<WholeThread>> {
    whole(&floor, &caller, None, &path.segment(2)?, query).await
}

/// A thread of an inbox with its messages.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/threads/{thread_id}", tag = "threads",
    params(
        ("inbox_id" = String, Path), ("thread_id" = String, Path),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = WholeThread), (status = 404, body = ErrorShape))
)]
async fn get_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<WholeThread>> {
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?;
    whole(&floor, &caller, Some(inbox.key), &path.segment(4)?, query).await
}

/// The thread of this id, with the address of its inbox, if the key sees it.
async fn find(
    floor: &Floor,
    caller: &Caller,
    inbox: Option<InboxKey>,
    thread_id: &str,
) -> Answer<(String, Thread)> {
    caller.require("message_read")?;
    let none = || Problem::not_found("Thread");
    let id = RowId::parse(Prefix::Thread, thread_id).ok_or_else(none)?;
    if inbox.is_some_and(|inbox| inbox != id.inbox) {
        return Err(none());
    }
    let inbox = caller.inbox_by_key(floor, id.inbox).await?.ok_or_else(none)?;
    let found = floor.store.read(move |tx| Box::pin(thread::by_key(tx, id.inbox, id.seq)));
    let found: Option<Thread> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    let seen = |t: &Thread| t.created_at == id.at && filter::may_read(&caller.0.permissions, &t.labels);
    Ok((inbox.address, found.filter(seen).ok_or_else(none)?))
}

pub(super) async fn whole(
    floor: &Arc<Floor>,
    caller: &Caller,
    inbox: Option<InboxKey>,
    thread_id: &str,
    mut query: Query,
) -> Answer<Json<WholeThread>> {
    let page = Listing::ThreadMessages.page_one_way(&mut query)?;
    query.finish()?;
    let (inbox_id, thread) = find(floor, caller, inbox, thread_id).await?;
    let limit = page.limit;
    let permissions = caller.0.permissions.clone();
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let [_, _, before] = page.start().key;
            let mut messages =
                message::of_thread(tx, thread.inbox, thread.thread_key, before, page.fetch()).await?;
            let place = |m: &Message| Place::new(0, m.message_key);
            let next = paging::cut(&page, Listing::ThreadMessages, &mut messages, place);
            messages.retain(|m| filter::may_read(&permissions, &m.labels));
            // Pages go back in time; within a page one reads from top to bottom.
            messages.reverse();
            let view = load::threads(tx, vec![thread]).await?.pop();
            Ok::<_, StoreError>((view, load::named(tx, &inbox_id, messages).await?, next))
        })
    });
    let (view, named, next_page_token) = found.await?;
    let thread = view.ok_or_else(|| Problem::not_found("Thread"))?;
    let messages = load::whole(floor, named).await?;
    Ok(Json(WholeThread { thread, count: messages.len(), limit, next_page_token, messages }))
}

/// A link to an attachment of one of the thread's messages, for an hour.
#[utoipa::path(
    get, path = "/v0/threads/{thread_id}/attachments/{attachment_id}", tag = "threads",
    params(("thread_id" = String, Path), ("attachment_id" = String, Path)),
    responses((status = 200, body = AttachmentResponse), (status = 404, body = ErrorShape))
)]
async fn attachment(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<AttachmentResponse>> {
    query.finish()?;
    attachment_by_id(&floor, &caller, &path.segment(2)?, &path.segment(4)?).await
}

pub(super) async fn attachment_by_id(
    floor: &Floor,
    caller: &Caller,
    thread_id: &str,
    attachment_id: &str,
) -> Answer<Json<AttachmentResponse>> {
    let (_, thread) = find(floor, caller, None, thread_id).await?;
    attachment_of(floor, caller, &thread, attachment_id).await
}

/// The same, by inbox.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/threads/{thread_id}/attachments/{attachment_id}", tag = "threads",
    params(("inbox_id" = String, Path), ("thread_id" = String, Path), ("attachment_id" = String, Path)),
    responses((status = 200, body = AttachmentResponse), (status = 404, body = ErrorShape))
)]
async fn attachment_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<AttachmentResponse>> {
    query.finish()?;
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?;
    let (_, thread) = find(&floor, &caller, Some(inbox.key), &path.segment(4)?).await?;
    attachment_of(&floor, &caller, &thread, &path.segment(6)?).await
}

async fn attachment_of(
    floor: &Floor,
    caller: &Caller,
    thread: &Thread,
    attachment_id: &str,
) -> Answer<Json<AttachmentResponse>> {
    let none = || Problem::not_found("Attachment");
    let id = AttachmentId::parse(attachment_id).ok_or_else(none)?;
    if id.message.inbox != thread.inbox {
        return Err(none());
    }
    let found = floor.store.read(move |tx| Box::pin(message::by_key(tx, id.message.inbox, id.message.seq)));
    let found: Option<Message> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    let seen =
        |m: &Message| m.thread_key == thread.thread_key && filter::may_read(&caller.0.permissions, &m.labels);
    let message = found.filter(seen).ok_or_else(none)?;
    attachments::attachment(floor, &message, attachment_id).map(Json).ok_or_else(none)
}
