//! What policy holds back: seen, released and discarded by people and admin keys, never by an inbox's own key
//! (DESIGN.md §4.6).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::App;
use crate::api::auth::Caller;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging::{self, Listing};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::api::v0::load;
use crate::api::v0::view::MessageView;
use crate::floor::Floor;
use crate::ids::{InboxKey, Prefix, RowId};
use crate::inbox::{self, Decision};
use crate::principal::Scope;
use crate::store::message::{self, Message};
use crate::store::{StoreError, Tx, held};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(release))
        .routes(routes!(discard))
        .routes(routes!(release_of_inbox))
        .routes(routes!(discard_of_inbox))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListHeldResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    /// `policy` says why each is held and who would have refused it; `message_id` is our own id, as
    /// `/v1/messages/{message_id}/release` takes it.
    messages: Vec<MessageView>,
}

/// Messages that are held or blocked and wait for a decision, newest first.
#[utoipa::path(
    get, path = "/v1/held", tag = "held mail",
    params(
        ("inbox_id" = Option<String>, Query),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = ListHeldResponse), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
) -> Answer<Json<ListHeldResponse>> {
    caller.require_admin("Held mail can be seen and")?;
    caller.require("message_read")?;
    let page = Listing::Held.page_one_way(&mut query)?;
    let inbox_id = query.text("inbox_id");
    query.finish()?;
    let within = match inbox_id {
        Some(id) => Scope::Inbox(caller.inbox(&floor, &id).await?.key),
        None => caller.0.scope,
    };
    let limit = page.limit;
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let mut found = held::page(tx, within, &page.start(), page.fetch()).await?;
            let next = paging::cut(&page, Listing::Held, &mut found, held::place);
            let mut views = Vec::with_capacity(found.len());
            for message in found {
                views.extend(view(tx, message).await?);
            }
            Ok::<_, StoreError>((views, next))
        })
    });
    let (messages, next_page_token) = found.await?;
    Ok(Json(ListHeldResponse { count: messages.len(), limit, next_page_token, messages }))
}

/// `None` once the inbox is deleted.
async fn view(tx: &mut Tx, message: Message) -> Result<Option<MessageView>, StoreError> {
    let Some(inbox) = crate::store::inbox::by_key(tx, message.inbox).await? else { return Ok(None) };
    let id = message.id();
    let view = load::items(tx, &inbox.address, vec![message]).await?.pop();
    Ok(view.map(|view| MessageView { message_id: id, ..view }))
}

/// Hands a held or blocked message to its inbox. Repeating it changes nothing.
#[utoipa::path(
    post, path = "/v1/messages/{message_id}/release", tag = "held mail",
    params(("message_id" = String, Path, description = "Our own id: `msg_…`")),
    responses((status = 200, body = MessageView), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn release(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<MessageView>> {
    query.finish()?;
    by_own_id(&floor, &caller, &path.segment(2)?, Decision::Release).await
}

/// Leaves a held or blocked message where it is, as decided. It can still be released.
#[utoipa::path(
    post, path = "/v1/messages/{message_id}/discard", tag = "held mail",
    params(("message_id" = String, Path, description = "Our own id: `msg_…`")),
    responses((status = 200, body = MessageView), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn discard(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<MessageView>> {
    query.finish()?;
    by_own_id(&floor, &caller, &path.segment(2)?, Decision::Discard).await
}

/// The same, by inbox; any id of the message does.
#[utoipa::path(
    post, path = "/v1/inboxes/{inbox_id}/messages/{message_id}/release", tag = "held mail",
    params(("inbox_id" = String, Path), ("message_id" = String, Path)),
    responses((status = 200, body = MessageView), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn release_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<MessageView>> {
    query.finish()?;
    in_inbox(&floor, &caller, &path, Decision::Release).await
}

/// The same, by inbox; any id of the message does.
#[utoipa::path(
    post, path = "/v1/inboxes/{inbox_id}/messages/{message_id}/discard", tag = "held mail",
    params(("inbox_id" = String, Path), ("message_id" = String, Path)),
    responses((status = 200, body = MessageView), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn discard_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<MessageView>> {
    query.finish()?;
    in_inbox(&floor, &caller, &path, Decision::Discard).await
}

fn missing() -> Problem {
    Problem::not_found("Message").fix("GET /v1/held lists what is held, with the ids that are taken here.")
}

async fn by_own_id(
    floor: &Floor,
    caller: &Caller,
    id: &str,
    decision: Decision,
) -> Answer<Json<MessageView>> {
    let inbox = RowId::parse(Prefix::Message, id).map(|row| row.inbox).ok_or_else(missing)?;
    let inbox = caller.inbox_by_key(floor, inbox).await?.ok_or_else(missing)?;
    decide(floor, caller, inbox.key, id, decision).await
}

async fn in_inbox(
    floor: &Floor,
    caller: &Caller,
    path: &RawPath,
    decision: Decision,
) -> Answer<Json<MessageView>> {
    let inbox = caller.inbox(floor, &path.segment(2)?).await?;
    decide(floor, caller, inbox.key, &path.segment(4)?, decision).await
}

async fn decide(
    floor: &Floor,
    caller: &Caller,
    inbox: InboxKey,
    id: &str,
    decision: Decision,
) -> Answer<Json<MessageView>> {
    caller.require_admin("What policy holds")?;
    caller.require("message_update")?;
    let (id, actor) = (id.to_owned(), caller.0.actor());
    let decided = floor.store.write(move |tx| {
        let (id, actor) = (id.clone(), actor.clone());
        Box::pin(async move {
            let Some(found) = message::by_public_id(tx, inbox, &id).await? else { return Ok(None) };
            let Some(message) = inbox::decide(tx, inbox, found.message_key, decision, &actor).await? else {
                return Ok(None);
            };
            view(tx, message).await
        })
    });
    let view: Option<MessageView> = decided.await.map_err(|e: StoreError| Problem::from(e))?;
    view.map(Json).ok_or_else(missing)
}
