//! Allow and block lists: for what is sent, received, and received as a reply; of the organization, a pod, an inbox.
//! Everybody within the scope may read them; an inbox's own key never changes them, a pod's not the organization's
//! (DESIGN.md §4.6).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::identity::ORGANIZATION_ID;
use crate::address::{Address, normalize_domain};
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging::{self, Listing};
use crate::api::path::{self, RawPath};
use crate::api::query::Query;
use crate::clock::rfc3339;
use crate::floor::Floor;
use crate::ids::{InboxKey, pod_id};
use crate::principal::Scope;
use crate::store::event::{self, NewEvent};
use crate::store::list::{self, ListDirection, ListEntry, ListType};
use crate::store::page::Place;
use crate::store::{StoreError, Tx, audit};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_all, create))
        .routes(routes!(get, delete))
        .routes(routes!(list_of_pod, create_of_pod))
        .routes(routes!(get_of_pod, delete_of_pod))
        .routes(routes!(list_of_inbox, create_of_inbox))
        .routes(routes!(get_of_inbox, delete_of_inbox))
}

/// Characters of a reason.
const MAX_REASON: usize = 1_000;

#[derive(Serialize, ToSchema)]
#[schema(as = ListEntry)]
pub(crate) struct EntryView {
    /// An address, or a domain, which covers its subdomains.
    entry: String,
    organization_id: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// `send`, `receive` or `reply`
    direction: &'static str,
    /// `allow` or `block`
    list_type: &'static str,
    /// `email` or `domain`
    entry_type: &'static str,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inbox_id: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CreateListEntryRequest {
    entry: String,
    reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListEntriesResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    entries: Vec<EntryView>,
}

/// The list that a path names.
#[derive(Clone)]
struct Named {
    scope: InboxKey,
    inbox_id: Option<String>,
    direction: ListDirection,
    list_type: ListType,
}

impl Named {
    /// `lists/{direction}/{type}` from segment `at` on.
    fn parse(path: &RawPath, at: usize, scope: InboxKey, inbox_id: Option<String>) -> Answer<Named> {
        let direction = ListDirection::parse(&path.segment(at)?);
        let list_type = ListType::parse(&path.segment(at + 1)?);
        match (direction, list_type) {
            (Some(direction), Some(list_type)) => Ok(Named { scope, inbox_id, direction, list_type }),
            _ => Err(Problem::not_found("List").fix("Lists are {send|receive|reply}/{allow|block}.")),
        }
    }

    fn view(&self, entry: ListEntry) -> EntryView {
        EntryView {
            entry: entry.entry,
            organization_id: ORGANIZATION_ID,
            reason: entry.reason,
            direction: self.direction.text(),
            list_type: self.list_type.text(),
            entry_type: if entry.is_domain { "domain" } else { "email" },
            created_at: rfc3339(entry.created_at),
            pod_id: (self.scope != list::ORGANIZATION).then(|| pod_id(self.scope.pod)),
            inbox_id: self.inbox_id.clone(),
        }
    }
}

async fn of_organization(caller: &Caller, path: &RawPath) -> Answer<Named> {
    // What binds the whole organization is no secret of its inboxes, but out of their scope.
    if caller.0.scope != Scope::Organization {
        return Err(Problem::not_found("List").fix("An inbox's key reads /v0/inboxes/{inbox_id}/lists/…"));
    }
    Named::parse(path, 2, list::ORGANIZATION, None)
}

async fn of_pod(floor: &Floor, caller: &Caller, path: &RawPath) -> Answer<Named> {
    let pod = caller.pod(floor, &path.segment(2)?).await?;
    Named::parse(path, 4, list::pod(pod.pod_key), None)
}

async fn of_inbox(floor: &Floor, caller: &Caller, path: &RawPath) -> Answer<Named> {
    let inbox = caller.inbox(floor, &path.segment(2)?).await?;
    Named::parse(path, 4, inbox.key, Some(inbox.address))
}

/// An address in the form in which addresses are compared, or a domain; whether it is a domain.
fn normalize(entry: &str) -> Option<(String, bool)> {
    if entry.contains('@') && !entry.starts_with('@') {
        return entry.parse::<Address>().ok().map(|a| (a.key(), false));
    }
    normalize_domain(entry.strip_prefix('@').unwrap_or(entry)).ok().map(|d| (d, true))
}

/// A list of the organization.
#[utoipa::path(
    get, path = "/v0/lists/{direction}/{type}", tag = "lists",
    params(
        ("direction" = String, Path), ("type" = String, Path),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = ListEntriesResponse), (status = 404, body = ErrorShape))
)]
async fn list_all(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<ListEntriesResponse>> {
    let named = of_organization(&caller, &path).await?;
    page_of(&floor, &caller, named, query).await
}

/// A list of a pod.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/lists/{direction}/{type}", tag = "lists",
    params(
        ("pod_id" = String, Path), ("direction" = String, Path), ("type" = String, Path),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = ListEntriesResponse), (status = 404, body = ErrorShape))
)]
async fn list_of_pod(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<ListEntriesResponse>> {
    let named = of_pod(&floor, &caller, &path).await?;
    page_of(&floor, &caller, named, query).await
}

/// A list of an inbox.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/lists/{direction}/{type}", tag = "lists",
    params(
        ("inbox_id" = String, Path), ("direction" = String, Path), ("type" = String, Path),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = ListEntriesResponse), (status = 404, body = ErrorShape))
)]
async fn list_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<ListEntriesResponse>> {
    let named = of_inbox(&floor, &caller, &path).await?;
    page_of(&floor, &caller, named, query).await
}

async fn page_of(
    floor: &Floor,
    caller: &Caller,
    named: Named,
    mut query: Query,
) -> Answer<Json<ListEntriesResponse>> {
    caller.require("list_entry_read")?;
    let page = Listing::Lists.page_one_way(&mut query)?;
    query.finish()?;
    let asked = (named.clone(), page.clone());
    let found = floor.store.read(move |tx| {
        let (Named { scope, direction, list_type, .. }, page) = asked;
        Box::pin(async move {
            list::page(tx, scope, direction, list_type, &page.start().text, page.fetch()).await
        })
    });
    let mut entries: Vec<ListEntry> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    let next_page_token = paging::cut(&page, Listing::Lists, &mut entries, |e| Place::named(e.entry.clone()));
    let entries: Vec<EntryView> = entries.into_iter().map(|e| named.view(e)).collect();
    Ok(Json(ListEntriesResponse { count: entries.len(), limit: page.limit, next_page_token, entries }))
}

/// Adds an entry to a list of the organization.
#[utoipa::path(
    post, path = "/v0/lists/{direction}/{type}", tag = "lists",
    params(("direction" = String, Path), ("type" = String, Path)), request_body = CreateListEntryRequest,
    responses((status = 200, body = EntryView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn create(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<CreateListEntryRequest>,
) -> Answer<Json<EntryView>> {
    caller.require_admin("Lists")?;
    let named = of_organization(&caller, &path).await?;
    add(&floor, &caller, named, request).await
}

/// Adds an entry to a list of a pod.
#[utoipa::path(
    post, path = "/v0/pods/{pod_id}/lists/{direction}/{type}", tag = "lists",
    params(("pod_id" = String, Path), ("direction" = String, Path), ("type" = String, Path)),
    request_body = CreateListEntryRequest,
    responses((status = 200, body = EntryView), (status = 400, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn create_of_pod(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<CreateListEntryRequest>,
) -> Answer<Json<EntryView>> {
    let named = of_pod(&floor, &caller, &path).await?;
    add(&floor, &caller, named, request).await
}

/// Adds an entry to a list of an inbox.
#[utoipa::path(
    post, path = "/v0/inboxes/{inbox_id}/lists/{direction}/{type}", tag = "lists",
    params(("inbox_id" = String, Path), ("direction" = String, Path), ("type" = String, Path)),
    request_body = CreateListEntryRequest,
    responses((status = 200, body = EntryView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn create_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<CreateListEntryRequest>,
) -> Answer<Json<EntryView>> {
    let named = of_inbox(&floor, &caller, &path).await?;
    caller.require_admin("Lists")?;
    add(&floor, &caller, named, request).await
}

async fn add(
    floor: &Floor,
    caller: &Caller,
    named: Named,
    request: CreateListEntryRequest,
) -> Answer<Json<EntryView>> {
    caller.require("list_entry_create")?;
    let Some((entry, is_domain)) = normalize(&request.entry) else {
        return Err(Problem::field(&["entry"], "takes a mail address or a domain"));
    };
    let reason = request.reason.filter(|r| !r.is_empty());
    if reason.as_deref().is_some_and(|r| r.chars().count() > MAX_REASON || r.contains('\0')) {
        return Err(Problem::field(&["reason"], format!("takes at most {MAX_REASON} characters")));
    }
    let (asked, actor) = (Arc::new((named.clone(), entry, reason)), caller.0.actor());
    let added = floor.store.write(move |tx| {
        let (asked, actor) = (asked.clone(), actor.clone());
        Box::pin(async move {
            let (named, entry, reason) = &*asked;
            let entry = ListEntry {
                scope: named.scope,
                direction: named.direction,
                list_type: named.list_type,
                entry: entry.clone(),
                is_domain,
                reason: reason.clone(),
                created_at: tx.now(),
            };
            let added = list::put(tx, &entry).await?;
            note(tx, &actor, "list_entry.created", named, &added.entry).await?;
            Ok::<_, StoreError>(added)
        })
    });
    Ok(Json(named.view(added.await?)))
}

async fn note(tx: &mut Tx, actor: &str, action: &str, named: &Named, entry: &str) -> Result<(), StoreError> {
    let detail =
        serde_json::json!({ "direction": named.direction.text(), "list_type": named.list_type.text() });
    let inbox = (named.scope != list::ORGANIZATION).then_some(named.scope);
    let row = audit::Entry { actor, run_id: None, action, inbox, object: entry, detail: detail.to_string() };
    audit::record(tx, row).await?;
    let mut data = detail;
    data["entry"] = entry.into();
    let event = NewEvent { event_type: action, data: data.to_string(), ..NewEvent::default() };
    event::append(tx, named.scope, event).await
}

/// The entry that the end of a path names: what follows `lists/{direction}/{type}/`, slashes included.
fn entry_of(path: &RawPath, at: usize) -> Answer<String> {
    let none = || Problem::not_found("List entry");
    let text = path::decode(&path.tail(at)).ok_or_else(none)?;
    normalize(&text).map(|(entry, _)| entry).ok_or_else(none)
}

/// An entry of the organization.
#[utoipa::path(
    get, path = "/v0/lists/{direction}/{type}/{*entry}", tag = "lists",
    params(("direction" = String, Path), ("type" = String, Path), ("entry" = String, Path)),
    responses((status = 200, body = EntryView), (status = 404, body = ErrorShape))
)]
async fn get(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<EntryView>> {
    query.finish()?;
    let named = of_organization(&caller, &path).await?;
    read(&floor, &caller, named, entry_of(&path, 4)?).await
}

/// An entry of a pod.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/lists/{direction}/{type}/{*entry}", tag = "lists",
    params(("pod_id" = String, Path), ("direction" = String, Path), ("type" = String, Path), ("entry" = String, Path)),
    responses((status = 200, body = EntryView), (status = 404, body = ErrorShape))
)]
async fn get_of_pod(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<EntryView>> {
    query.finish()?;
    let named = of_pod(&floor, &caller, &path).await?;
    read(&floor, &caller, named, entry_of(&path, 6)?).await
}

/// An entry of an inbox.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/lists/{direction}/{type}/{*entry}", tag = "lists",
    params(("inbox_id" = String, Path), ("direction" = String, Path), ("type" = String, Path), ("entry" = String, Path)),
    responses((status = 200, body = EntryView), (status = 404, body = ErrorShape))
)]
async fn get_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<EntryView>> {
    query.finish()?;
    let named = of_inbox(&floor, &caller, &path).await?;
    read(&floor, &caller, named, entry_of(&path, 6)?).await
}

async fn read(floor: &Floor, caller: &Caller, named: Named, entry: String) -> Answer<Json<EntryView>> {
    caller.require("list_entry_read")?;
    let Named { scope, direction, list_type, .. } = named.clone();
    let found = floor
        .store
        .read(move |tx| Box::pin(async move { list::get(tx, scope, direction, list_type, &entry).await }));
    let found: Option<ListEntry> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    found.map(|e| Json(named.view(e))).ok_or_else(|| Problem::not_found("List entry"))
}

/// Removes an entry of the organization.
#[utoipa::path(
    delete, path = "/v0/lists/{direction}/{type}/{*entry}", tag = "lists",
    params(("direction" = String, Path), ("type" = String, Path), ("entry" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    caller.require_admin("Lists")?;
    let named = of_organization(&caller, &path).await?;
    remove(&floor, &caller, named, entry_of(&path, 4)?).await
}

/// Removes an entry of a pod.
#[utoipa::path(
    delete, path = "/v0/pods/{pod_id}/lists/{direction}/{type}/{*entry}", tag = "lists",
    params(("pod_id" = String, Path), ("direction" = String, Path), ("type" = String, Path), ("entry" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorShape))
)]
async fn delete_of_pod(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    let named = of_pod(&floor, &caller, &path).await?;
    remove(&floor, &caller, named, entry_of(&path, 6)?).await
}

/// Removes an entry of an inbox.
#[utoipa::path(
    delete, path = "/v0/inboxes/{inbox_id}/lists/{direction}/{type}/{*entry}", tag = "lists",
    params(("inbox_id" = String, Path), ("direction" = String, Path), ("type" = String, Path), ("entry" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
) -> Answer<StatusCode> {
    let named = of_inbox(&floor, &caller, &path).await?;
    caller.require_admin("Lists")?;
    remove(&floor, &caller, named, entry_of(&path, 6)?).await
}

async fn remove(floor: &Floor, caller: &Caller, named: Named, entry: String) -> Answer<StatusCode> {
    caller.require("list_entry_delete")?;
    let (asked, actor) = (Arc::new((named, entry)), caller.0.actor());
    let removed = floor.store.write(move |tx| {
        let (asked, actor) = (asked.clone(), actor.clone());
        Box::pin(async move {
            let (named, entry) = &*asked;
            let removed = list::remove(tx, named.scope, named.direction, named.list_type, entry).await?;
            if removed {
                note(tx, &actor, "list_entry.deleted", named, entry).await?;
            }
            Ok::<_, StoreError>(removed)
        })
    });
    if removed.await? { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::not_found("List entry")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_an_address_or_a_domain_in_one_form() {
        assert_eq!(normalize("Bob@MÜNCHEN.example"), Some(("bob@xn--mnchen-3ya.example".into(), false)));
        assert_eq!(normalize("Partner.Example."), Some(("partner.example".into(), true)));
        assert_eq!(normalize("@partner.example"), Some(("partner.example".into(), true)));
        for wrong in ["", "@", "a b", "bob@", "*.example", "a@b@"] {
            assert_eq!(normalize(wrong), None, "{wrong}");
        }
    }
}
