//! API keys of the organization and of an inbox. The route gives the scope; a key never grants what it lacks:
//! not a wider scope, not a permission, not a longer life.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::inboxes::given;
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, FieldError, Problem};
use crate::api::paging::{self, Listing, PageParams};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::clock::{parse_rfc3339, rfc3339};
use crate::floor::Floor;
use crate::ids::{InboxKey, pod_id};
use crate::principal::{Permissions, Principal, Scope};
use crate::store::key::{self, ApiKey, NewKey};
use crate::store::page::Place;
use crate::store::{StoreError, Tx, audit, inbox, pod};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, update, delete))
        .routes(routes!(list_of_inbox, create_of_inbox))
        .routes(routes!(get_of_inbox, update_of_inbox, delete_of_inbox))
}

/// Characters of a key's name.
const MAX_NAME: usize = 256;

/// AgentMail's flags, and the TypeScript SDK's two other names.
const FLAGS: [&str; 54] = [
    "inbox_read",
    "inbox_create",
    "inbox_update",
    "inbox_delete",
    "message_read",
    "message_reply",
    "message_send",
    "message_update",
    "message_delete",
    "agent_armor_release",
    "label_spam_read",
    "label_blocked_read",
    "label_unauthenticated_read",
    "label_trash_read",
    "draft_read",
    "draft_create",
    "draft_update",
    "draft_delete",
    "draft_send",
    "webhook_read",
    "webhook_create",
    "webhook_update",
    "webhook_delete",
    "domain_read",
    "domain_create",
    "domain_update",
    "domain_delete",
    "list_entry_read",
    "list_entry_create",
    "list_entry_delete",
    "metrics_read",
    "api_key_read",
    "api_key_create",
    "api_key_update",
    "api_key_delete",
    "app_connect",
    "app_share_owner",
    "provider_connect",
    "provider_share_owner",
    "account_update",
    "pod_read",
    "pod_create",
    "pod_update",
    "pod_delete",
    "calendar_read",
    "calendar_update",
    "calendar_event_read",
    "calendar_event_create",
    "calendar_event_update",
    "calendar_event_delete",
    "file_read",
    "file_create",
    "file_update",
    "file_delete",
];

/// A whitelist of flags; none at all: everything in the key's scope.
type Flags = BTreeMap<String, bool>;

#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub(crate) struct KeyView {
    /// `bearer`
    #[serde(rename = "type")]
    kind: &'static str,
    api_key_id: String,
    /// The key's first characters.
    prefix: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inbox_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<Flags>,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// The key itself, only in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CreateApiKeyRequest {
    name: Option<String>,
    permissions: Option<Flags>,
    expires_at: Option<String>,
    /// AgentMail's other kind of credential: not supported.
    #[schema(ignore)]
    public_key: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct UpdateApiKeyRequest {
    name: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<BTreeMap<String, bool>>)]
    permissions: Option<Option<Flags>>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListApiKeysResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    api_keys: Vec<KeyView>,
}

/// Every key that there is, for organization keys; an inbox's key sees the keys of its inbox.
#[utoipa::path(
    get, path = "/v0/api-keys", tag = "api keys", params(PageParams, ("type" = Option<String>, Query)),
    responses((status = 200, body = ListApiKeysResponse), (status = 400, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    query: Query,
) -> Answer<Json<ListApiKeysResponse>> {
    page_of(&floor, &caller, caller.0.scope, query).await
}

/// The keys of an inbox.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/api-keys", tag = "api keys", params(("inbox_id" = String, Path), PageParams),
    responses((status = 200, body = ListApiKeysResponse), (status = 404, body = ErrorShape))
)]
async fn list_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<ListApiKeysResponse>> {
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?;
    page_of(&floor, &caller, Scope::Inbox(inbox.key), query).await
}

pub(super) async fn page_of(
    floor: &Floor,
    caller: &Caller,
    within: Scope,
    mut query: Query,
) -> Answer<Json<ListApiKeysResponse>> {
    caller.require("api_key_read")?;
    let page = Listing::Keys.page(&mut query)?;
    let bearer = query.word("type", &[("bearer", true), ("public_key", false)]).unwrap_or(true);
    query.finish()?;
    let limit = page.limit;
    if !bearer {
        return Ok(Json(ListApiKeysResponse {
            count: 0,
            limit,
            next_page_token: None,
            api_keys: Vec::new(),
        }));
    }
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let mut keys = key::page(tx, within, &page).await?;
            let next = paging::cut(&page, Listing::Keys, &mut keys, |k| Place::new(0, k.key_id));
            Ok::<_, StoreError>((views(tx, keys).await?, next))
        })
    });
    let (api_keys, next_page_token) = found.await?;
    Ok(Json(ListApiKeysResponse { count: api_keys.len(), limit, next_page_token, api_keys }))
}

async fn views(tx: &mut Tx, keys: Vec<ApiKey>) -> Result<Vec<KeyView>, StoreError> {
    let inboxes: Vec<InboxKey> = keys.iter().filter_map(|k| inbox_of(k.scope)).collect();
    let addresses = inbox::addresses(tx, &inboxes).await?;
    Ok(keys.into_iter().map(|k| view(k, |inbox| addresses.get(&inbox).cloned())).collect())
}

fn inbox_of(scope: Scope) -> Option<InboxKey> {
    match scope {
        Scope::Inbox(inbox) => Some(inbox),
        Scope::Organization | Scope::Pod(_) => None,
    }
}

fn view(key: ApiKey, address: impl Fn(InboxKey) -> Option<String>) -> KeyView {
    KeyView {
        kind: "bearer",
        api_key_id: key.api_key_id,
        prefix: key.prefix,
        name: key.name,
        pod_id: match key.scope {
            Scope::Organization => None,
            Scope::Pod(pod) | Scope::Inbox(InboxKey { pod, .. }) => Some(pod_id(pod)),
        },
        inbox_id: inbox_of(key.scope).and_then(address),
        used_at: key.used_at.map(rfc3339),
        permissions: key.permissions.0.map(|flags| flags.into_iter().map(|flag| (flag, true)).collect()),
        created_at: rfc3339(key.created_at),
        updated_at: rfc3339(key.updated_at),
        expires_at: key.expires_at.map(rfc3339),
        api_key: None,
    }
}

/// Makes a key of the organization. The key itself is in this answer and nowhere else.
#[utoipa::path(
    post, path = "/v0/api-keys", tag = "api keys", request_body = CreateApiKeyRequest,
    responses((status = 200, body = KeyView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn create(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    JsonBody(request): JsonBody<CreateApiKeyRequest>,
) -> Answer<Json<KeyView>> {
    if caller.0.scope != Scope::Organization {
        return Err(escalation("Only an organization's key makes a key of the organization.")
            .fix("POST /v0/inboxes/{inbox_id}/api-keys makes one of the inbox, POST /v0/pods/{pod_id}/api-keys one of the pod."));
    }
    make(&floor, &caller, Scope::Organization, None, request).await
}

/// Makes a key of an inbox: it sees this inbox and nothing else.
#[utoipa::path(
    post, path = "/v0/inboxes/{inbox_id}/api-keys", tag = "api keys", params(("inbox_id" = String, Path)),
    request_body = CreateApiKeyRequest,
    responses((status = 200, body = KeyView), (status = 400, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn create_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<CreateApiKeyRequest>,
) -> Answer<Json<KeyView>> {
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?;
    make(&floor, &caller, Scope::Inbox(inbox.key), Some(inbox.address), request).await
}

pub(super) async fn make(
    floor: &Floor,
    caller: &Caller,
    scope: Scope,
    inbox_id: Option<String>,
    request: CreateApiKeyRequest,
) -> Answer<Json<KeyView>> {
    caller.require("api_key_create")?;
    if request.public_key.is_some() {
        return Err(Problem::field(&["public_key"], "credentials other than bearer keys are not supported"));
    }
    let permissions = checked(request.permissions)?;
    let name = name(request.name.unwrap_or_else(|| "API key".to_owned()))?;
    let now = floor.clock.now();
    let expires_at = match request.expires_at.as_deref().map(parse_rfc3339) {
        None => None,
        Some(Some(at)) if at > now => Some(at),
        Some(_) => {
            return Err(Problem::field(
                &["expires_at"],
                "takes an instant in the future, such as 2030-01-31T12:00:00Z",
            ));
        }
    };
    let secret = key::fresh_secret();
    let new = Arc::new(NewKey { secret: secret.clone(), scope, name, permissions, expires_at });
    let who = Arc::new(caller.0.clone());
    let made = floor.store.write(move |tx| {
        let (new, who) = (new.clone(), who.clone());
        Box::pin(async move {
            // A pod that is deleted takes its keys along: none is made beside that.
            if let Scope::Pod(pod) = new.scope
                && pod::lock(tx, pod, false).await?.is_none()
            {
                return Err(Problem::not_found("Pod"));
            }
            let own = key::by_id(tx, &who.api_key_id).await?.ok_or_else(gone)?;
            if !own.permissions.cover(&new.permissions) {
                return Err(escalation("A key cannot grant permissions that it lacks.")
                    .fix("Give `permissions` that this key has itself."));
            }
            if own.expires_at.is_some_and(|at| new.expires_at.is_none_or(|asked| asked > at)) {
                return Err(escalation("A key cannot make one that outlives it.")
                    .fix("Give an earlier `expires_at`."));
            }
            let made = key::insert(tx, &new).await?;
            note(tx, &who, "api_key.created", &made).await?;
            Ok(made)
        })
    });
    let mut view = view(made.await?, |_| inbox_id.clone());
    view.api_key = Some(secret);
    Ok(Json(view))
}

fn checked(flags: Option<Flags>) -> Answer<Permissions> {
    let Some(flags) = flags else { return Ok(Permissions(None)) };
    let unknown: Vec<FieldError> = flags
        .keys()
        .filter(|flag| !FLAGS.contains(&flag.as_str()))
        .map(|flag| FieldError::new(&["permissions", flag], "is no permission"))
        .collect();
    if !unknown.is_empty() {
        return Err(Problem::invalid(unknown));
    }
    let granted: BTreeSet<String> =
        flags.into_iter().filter(|(_, granted)| *granted).map(|(flag, _)| flag).collect();
    Ok(Permissions(Some(granted)))
}

fn name(name: String) -> Answer<String> {
    if (1..=MAX_NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control) {
        Ok(name)
    } else {
        Err(Problem::field(&["name"], "takes 1 to 256 characters, none of them control characters"))
    }
}

fn escalation(message: &str) -> Problem {
    Problem::forbidden("permission_escalation", message)
}

fn gone() -> Problem {
    Problem::not_found("API key")
}

async fn note(tx: &mut Tx, who: &Principal, action: &str, key: &ApiKey) -> Result<(), StoreError> {
    let detail =
        serde_json::json!({ "permissions": key.permissions.0, "expires_at": key.expires_at }).to_string();
    let actor = who.actor();
    let entry = audit::Entry {
        actor: &actor,
        run_id: None,
        action,
        inbox: inbox_of(key.scope),
        object: &key.api_key_id,
        detail,
    };
    audit::record(tx, entry).await
}

/// The key of this id, where the caller sees it: within its scope, and within the inbox of the path.
async fn find(tx: &mut Tx, who: &Principal, inbox: Option<InboxKey>, id: &str) -> Answer<ApiKey> {
    let found = key::by_id(tx, id).await?;
    let seen = |key: &ApiKey| {
        let within = match (who.scope, key.scope) {
            (Scope::Organization, _) => true,
            (own, Scope::Inbox(theirs)) => own.reaches(theirs),
            (own, theirs) => own == theirs,
        };
        within && inbox.is_none_or(|inbox| key.scope == Scope::Inbox(inbox))
    };
    found.filter(seen).ok_or_else(gone)
}

/// One key.
#[utoipa::path(
    get, path = "/v0/api-keys/{api_key_id}", tag = "api keys", params(("api_key_id" = String, Path)),
    responses((status = 200, body = KeyView), (status = 404, body = ErrorShape))
)]
async fn get(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<KeyView>> {
    query.finish()?;
    read(&floor, caller, None, path.segment(2)?).await
}

/// One key of an inbox.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}/api-keys/{api_key_id}", tag = "api keys",
    params(("inbox_id" = String, Path), ("api_key_id" = String, Path)),
    responses((status = 200, body = KeyView), (status = 404, body = ErrorShape))
)]
async fn get_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<KeyView>> {
    query.finish()?;
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?.key;
    read(&floor, caller, Some(inbox), path.segment(4)?).await
}

pub(super) async fn read(
    floor: &Floor,
    caller: Caller,
    inbox: Option<InboxKey>,
    id: String,
) -> Answer<Json<KeyView>> {
    caller.require("api_key_read")?;
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let found = find(tx, &caller.0, inbox, &id).await?;
            Ok::<_, Problem>(views(tx, vec![found]).await?.pop())
        })
    });
    found.await?.map(Json).ok_or_else(gone)
}

/// Renames a key or changes what it may do.
#[utoipa::path(
    patch, path = "/v0/api-keys/{api_key_id}", tag = "api keys", params(("api_key_id" = String, Path)),
    request_body = UpdateApiKeyRequest,
    responses((status = 200, body = KeyView), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn update(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<UpdateApiKeyRequest>,
) -> Answer<Json<KeyView>> {
    change(&floor, caller, None, path.segment(2)?, request).await
}

/// The same, by inbox.
#[utoipa::path(
    patch, path = "/v0/inboxes/{inbox_id}/api-keys/{api_key_id}", tag = "api keys",
    params(("inbox_id" = String, Path), ("api_key_id" = String, Path)), request_body = UpdateApiKeyRequest,
    responses((status = 200, body = KeyView), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn update_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<UpdateApiKeyRequest>,
) -> Answer<Json<KeyView>> {
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?.key;
    change(&floor, caller, Some(inbox), path.segment(4)?, request).await
}

pub(super) async fn change(
    floor: &Floor,
    caller: Caller,
    inbox: Option<InboxKey>,
    id: String,
    request: UpdateApiKeyRequest,
) -> Answer<Json<KeyView>> {
    caller.require("api_key_update")?;
    if request.name.is_none() && request.permissions.is_none() {
        return Err(Problem::field(&[], "at least one of name, permissions is needed"));
    }
    let new_name = request.name.map(name).transpose()?;
    let permissions = request.permissions.map(checked).transpose()?;
    let asked = Arc::new((caller.0, id, new_name, permissions));
    let changed = floor.store.write(move |tx| {
        let asked = asked.clone();
        Box::pin(async move {
            let (who, id, name, permissions) = &*asked;
            let mut found = find(tx, who, inbox, id).await?;
            let wide = permissions.as_ref().unwrap_or(&found.permissions);
            // Neither may it widen another, nor touch one that may more than itself.
            if !who.permissions.cover(wide) || !who.permissions.cover(&found.permissions) {
                return Err(escalation("A key cannot change one that may more than itself, or make it so.")
                    .fix("Use a key with all of these permissions."));
            }
            found.name = name.clone().unwrap_or(found.name);
            found.permissions = permissions.clone().unwrap_or(found.permissions);
            key::update(tx, &found).await?;
            note(tx, who, "api_key.updated", &found).await?;
            found.updated_at = tx.now();
            Ok::<_, Problem>(views(tx, vec![found]).await?.pop())
        })
    });
    changed.await?.map(Json).ok_or_else(gone)
}

/// Deletes a key: it is dead with this answer.
#[utoipa::path(
    delete, path = "/v0/api-keys/{api_key_id}", tag = "api keys", params(("api_key_id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    remove(&floor, caller, None, path.segment(2)?).await
}

/// The same, by inbox.
#[utoipa::path(
    delete, path = "/v0/inboxes/{inbox_id}/api-keys/{api_key_id}", tag = "api keys",
    params(("inbox_id" = String, Path), ("api_key_id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete_of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
) -> Answer<StatusCode> {
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?.key;
    remove(&floor, caller, Some(inbox), path.segment(4)?).await
}

pub(super) async fn remove(
    floor: &Floor,
    caller: Caller,
    inbox: Option<InboxKey>,
    id: String,
) -> Answer<StatusCode> {
    caller.require("api_key_delete")?;
    let asked = Arc::new((caller.0, id));
    let removed = floor.store.write(move |tx| {
        let asked = asked.clone();
        Box::pin(async move {
            let (who, id) = &*asked;
            let found = find(tx, who, inbox, id).await?;
            if !who.permissions.cover(&found.permissions) {
                return Err(escalation("A key cannot delete one that may more than itself.")
                    .fix("Use a key with all of its permissions."));
            }
            key::delete(tx, found.key_id).await?;
            note(tx, who, "api_key.deleted", &found).await?;
            Ok::<_, Problem>(())
        })
    });
    removed.await?;
    Ok(StatusCode::NO_CONTENT)
}
