//! Inboxes: make, list, change, delete.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::address::normalize_domain;
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, FieldError, Problem};
use crate::api::paging::{self, Listing, PageParams};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::clock::rfc3339;
use crate::floor::Floor;
use crate::ids::{pod_id, random_bytes};
use crate::principal::{Principal, Scope};
use crate::store::inbox::{self, Inbox, InboxStatus, NewInbox};
use crate::store::page::Place;
use crate::store::{StoreError, Tx, audit, domain, key, pod};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, update, delete))
}

/// Keys of a metadata object, and characters of each key and text in it (AgentMail's own limits).
const MAX_METADATA: usize = 256;
/// Characters of a display name: it has to fit into a From header line.
const MAX_DISPLAY_NAME: usize = 256;
/// Local parts that belong to the operator (RFC 2142, and the return path of bounces); DESIGN.md §3.
const RESERVED: [&str; 12] = [
    "postmaster",
    "abuse",
    "mailer-daemon",
    "hostmaster",
    "webmaster",
    "noreply-dmarc",
    "dmarc",
    "dmarc-reports",
    "tls-reports",
    "tlsrpt",
    "bounce",
    "security",
];
/// Return paths are `b-<token>@`.
const BOUNCE_PREFIX: &str = "b-";
/// How often a random name is drawn before something else must be wrong.
const DRAWS: usize = 5;

type Metadata = BTreeMap<String, Value>;

#[derive(Serialize, ToSchema)]
#[schema(as = Inbox)]
pub(crate) struct InboxView {
    pod_id: String,
    /// The address.
    inbox_id: String,
    email: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    /// `active` or `paused`
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Metadata>,
    updated_at: String,
    created_at: String,
}

impl From<Inbox> for InboxView {
    fn from(inbox: Inbox) -> InboxView {
        InboxView {
            pod_id: pod_id(inbox.key.pod),
            inbox_id: inbox.address.clone(),
            email: inbox.address,
            display_name: inbox.display_name,
            client_id: inbox.client_id,
            status: inbox.status.text(),
            metadata: inbox.metadata.and_then(|m| serde_json::from_str(&m).ok()),
            updated_at: rfc3339(inbox.updated_at),
            created_at: rfc3339(inbox.created_at),
        }
    }
}

/// Everything is optional: a name is drawn on the default domain.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CreateInboxRequest {
    username: Option<String>,
    domain: Option<String>,
    display_name: Option<String>,
    /// Repeating a request with the same `client_id` returns the inbox that the first one made.
    client_id: Option<String>,
    /// `active` or `paused`
    status: Option<String>,
    #[schema(value_type = Option<Object>)]
    metadata: Option<Metadata>,
}

/// At least one field.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct UpdateInboxRequest {
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    display_name: Option<Option<String>>,
    /// `active` or `paused`
    status: Option<String>,
    /// Merged into what is there; a `null` value removes its key, `null` as a whole removes all.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Option<Metadata>>,
}

/// Tells a field that is `null` from one that is absent.
pub(crate) fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(d).map(Some)
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListInboxesResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    inboxes: Vec<InboxView>,
}

/// Every inbox that the key sees.
#[utoipa::path(
    get, path = "/v0/inboxes", tag = "inboxes", params(PageParams),
    responses((status = 200, body = ListInboxesResponse), (status = 400, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    query: Query,
) -> Answer<Json<ListInboxesResponse>> {
    list_of(&floor, &caller, query).await
}

/// The inboxes that a caller sees.
pub(super) async fn list_of(
    floor: &Floor,
    caller: &Caller,
    mut query: Query,
) -> Answer<Json<ListInboxesResponse>> {
    caller.require("inbox_read")?;
    let page = Listing::Inboxes.page(&mut query)?;
    query.finish()?;
    let limit = page.limit;
    let own = caller.own_inbox();
    let mut inboxes: Vec<Inbox> = match own {
        Some(own) if page.after.is_none() => caller.inbox_by_key(floor, own).await?.into_iter().collect(),
        Some(_) => Vec::new(),
        None => {
            let asked = page.clone();
            let pod = match caller.0.scope {
                Scope::Pod(pod) => Some(pod),
                _ => None,
            };
            let found = floor.store.read(move |tx| {
                Box::pin(async move {
                    let [_, _, start] = asked.start().key;
                    match asked.ascending {
                        true => inbox::page_ascending(tx, pod, start, asked.fetch()).await,
                        false => inbox::page(tx, pod, start, asked.fetch()).await,
                    }
                })
            });
            found.await.map_err(|e: StoreError| Problem::from(e))?
        }
    };
    let next_page_token = paging::cut(&page, Listing::Inboxes, &mut inboxes, |i| Place::new(0, i.key.inbox));
    let inboxes: Vec<InboxView> = inboxes.into_iter().map(InboxView::from).collect();
    Ok(Json(ListInboxesResponse { count: inboxes.len(), limit, next_page_token, inboxes }))
}

/// Makes an inbox.
#[utoipa::path(
    post, path = "/v0/inboxes", tag = "inboxes", request_body = CreateInboxRequest,
    responses((status = 200, body = InboxView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn create(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    JsonBody(request): JsonBody<CreateInboxRequest>,
) -> Answer<Json<InboxView>> {
    create_in(&floor, &caller, request).await
}

/// Makes an inbox in the caller's pod.
pub(super) async fn create_in(
    floor: &Floor,
    caller: &Caller,
    request: CreateInboxRequest,
) -> Answer<Json<InboxView>> {
    caller.require("inbox_create")?;
    if caller.own_inbox().is_some() {
        return Err(Problem::forbidden(
            "forbidden",
            "This API key is for one inbox and cannot make another.",
        )
        .fix("Use an organization's key."));
    }
    let wanted = Wanted::check(floor, caller.own_pod(), request)?;
    let named = wanted.username.is_some();
    for _ in 0..DRAWS {
        let new = wanted.inbox();
        match make(floor, &caller.0, new, wanted.added_domain.clone()).await {
            Ok(inbox) => return Ok(Json(inbox.into())),
            // Somebody else was first, with this name or this client_id: a repeat is told the inbox.
            Err(Refused::Store(error)) if error.is_conflict() => {
                if let Some(inbox) = wanted.made_before(floor).await? {
                    return Ok(Json(inbox.into()));
                }
                if named {
                    return Err(Problem::forbidden(
                        "already_exists",
                        "An inbox with this address exists already.",
                    )
                    .named("IsTakenError")
                    .fix("Choose another `username`, or give the `client_id` that it was made with."));
                }
            }
            Err(Refused::Store(error)) => return Err(error.into()),
            Err(Refused::Gone(what)) => return Err(Problem::not_found(what)),
        }
    }
    Err(crate::api::error::internal(&"no random inbox name was free"))
}

/// Why an inbox was not made.
enum Refused {
    Store(StoreError),
    /// The pod was deleted, or the domain removed, since the request was checked.
    Gone(&'static str),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        Refused::Store(error)
    }
}

async fn make(
    floor: &Floor,
    who: &Principal,
    new: NewInbox,
    added_domain: Option<String>,
) -> Result<Inbox, Refused> {
    let actor = who.actor();
    floor
        .store
        .write(move |tx| {
            let (new, actor, added_domain) = (new.clone(), actor.clone(), added_domain.clone());
            Box::pin(async move {
                if let Some(client_id) = &new.client_id
                    && let Some(inbox) = inbox::by_client_id(tx, new.pod, client_id).await?
                {
                    return Ok(inbox);
                }
                // Neither goes away before this inbox is in it.
                if pod::lock(tx, new.pod, false).await?.is_none() {
                    return Err(Refused::Gone("Pod"));
                }
                if let Some(name) = added_domain
                    && !domain::hold_usable(tx, &name).await?
                {
                    return Err(Refused::Gone("Domain"));
                }
                let inbox = inbox::create(tx, &new).await?;
                note(tx, &actor, "inbox.created", &inbox).await?;
                Ok(inbox)
            })
        })
        .await
}

async fn note(tx: &mut Tx, actor: &str, action: &str, inbox: &Inbox) -> Result<(), StoreError> {
    let detail = serde_json::json!({ "status": inbox.status.text() }).to_string();
    let entry =
        audit::Entry { actor, run_id: None, action, inbox: Some(inbox.key), object: &inbox.address, detail };
    audit::record(tx, entry).await?;
    crate::inbox::announce(tx, inbox.key, action).await
}

/// A request whose every field was checked.
struct Wanted {
    pod: i64,
    /// The domain that was added and verified, where it is one of those.
    added_domain: Option<String>,
    username: Option<String>,
    domain: String,
    display_name: Option<String>,
    client_id: Option<String>,
    status: InboxStatus,
    metadata: Option<String>,
}

impl Wanted {
    fn check(floor: &Floor, pod: i64, request: CreateInboxRequest) -> Answer<Wanted> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, message: &str| errors.push(FieldError::new(&[field], message));
        let username = request.username.map(|name| name.to_lowercase());
        if let Some(name) = &username
            && let Err(why) = check_username(name)
        {
            wrong("username", why);
        }
        let default = floor.config.domains.first().cloned().unwrap_or_default();
        let domain = match request.domain.as_deref().map(normalize_domain) {
            None => default,
            Some(Ok(domain)) if floor.domains.find(&domain).is_some_and(|ours| ours.serves(pod)) => domain,
            Some(Ok(domain)) => {
                return Err(Problem::forbidden(
                    "domain_not_verified",
                    format!("{domain} is not a verified domain that inboxes of this pod may use."),
                )
                .fix("Add it with POST /v0/domains and set its records; GET /v0/domains/{domain_id} says what is missing."));
            }
            Some(Err(_)) => {
                wrong("domain", "is not a host name");
                default
            }
        };
        let added_domain =
            floor.domains.find(&domain).filter(|ours| !ours.configured).map(|ours| ours.name.clone());
        if let Some(client_id) = &request.client_id
            && !is_client_id(client_id)
        {
            wrong("client_id", "takes 1 to 256 of A-Z a-z 0-9 - . _ ~");
        }
        let display_name = request.display_name;
        if display_name.as_deref().is_some_and(|name| !is_display_name(name)) {
            wrong("display_name", "takes at most 256 characters, none of them control characters");
        }
        let status = request.status.as_deref().map_or(Some(InboxStatus::Active), InboxStatus::parse);
        if status.is_none() {
            wrong("status", "takes active or paused");
        }
        let metadata = request.metadata.unwrap_or_default();
        if let Err(why) = check_metadata(&metadata) {
            wrong("metadata", why);
        }
        let metadata = (!metadata.is_empty()).then(|| serde_json::to_string(&metadata).unwrap_or_default());
        match status {
            Some(status) if errors.is_empty() => Ok(Wanted {
                pod,
                added_domain,
                username,
                domain,
                display_name: display_name.filter(|name| !name.is_empty()),
                client_id: request.client_id,
                status,
                metadata,
            }),
            _ => Err(Problem::invalid(errors)),
        }
    }

    fn inbox(&self) -> NewInbox {
        let username = self.username.clone().unwrap_or_else(draw_name);
        NewInbox {
            pod: self.pod,
            address: format!("{username}@{}", self.domain),
            domain: self.domain.clone(),
            display_name: self.display_name.clone(),
            client_id: self.client_id.clone(),
            status: self.status,
            operator: false,
            metadata: self.metadata.clone(),
        }
    }

    async fn made_before(&self, floor: &Floor) -> Answer<Option<Inbox>> {
        let Some(client_id) = self.client_id.clone() else { return Ok(None) };
        let pod = self.pod;
        let found = floor
            .store
            .read(move |tx| Box::pin(async move { inbox::by_client_id(tx, pod, &client_id).await }));
        found.await.map_err(|e: StoreError| e.into())
    }
}

/// `amber-otter-4821`: easy to read out, and rarely taken.
fn draw_name() -> String {
    const ADJECTIVES: [&str; 32] = [
        "amber", "bold", "brisk", "calm", "clear", "crisp", "dapper", "eager", "fair", "gentle", "glad",
        "golden", "honest", "jolly", "keen", "kind", "lively", "lucky", "mellow", "merry", "nimble",
        "patient", "proud", "quick", "quiet", "ready", "sunny", "swift", "tidy", "vivid", "warm", "witty",
    ];
    const ANIMALS: [&str; 32] = [
        "badger", "beaver", "bison", "crane", "deer", "dolphin", "eagle", "falcon", "finch", "fox", "gecko",
        "hare", "heron", "ibis", "jay", "koala", "lark", "lynx", "marten", "mole", "newt", "otter", "owl",
        "panda", "puffin", "raven", "robin", "seal", "swan", "tapir", "wren", "yak",
    ];
    let [a, b, c, d] = random_bytes::<4>();
    let adjective = ADJECTIVES[usize::from(a) % ADJECTIVES.len()];
    let animal = ANIMALS[usize::from(b) % ANIMALS.len()];
    format!("{adjective}-{animal}-{:04}", u16::from_be_bytes([c, d]) % 10_000)
}

/// A local part that needs no quoting, in no client and no path: narrower than RFC 5321 on purpose.
fn check_username(name: &str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_+".contains(c);
    let dots = name.starts_with('.') || name.ends_with('.') || name.contains("..");
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || dots {
        Err("takes 1 to 64 of a-z 0-9 . - _ +, without a dot at either end or two in a row")
    } else if RESERVED.contains(&name) || name.starts_with(BOUNCE_PREFIX) {
        Err("is reserved: it reaches the operator, or the bounces")
    } else {
        Ok(())
    }
}

/// What names a thing made by a client, and what names a send (`Idempotency-Key`).
pub(crate) fn is_client_id(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
}

fn is_display_name(name: &str) -> bool {
    name.chars().count() <= MAX_DISPLAY_NAME && !name.chars().any(char::is_control)
}

fn check_metadata(metadata: &Metadata) -> Result<(), &'static str> {
    let long = |text: &str| text.chars().count() > MAX_METADATA;
    let fits = |(key, value): (&String, &Value)| {
        !long(key)
            && match value {
                Value::String(text) => !long(text) && !text.contains('\0'),
                Value::Number(_) | Value::Bool(_) | Value::Null => true,
                Value::Array(_) | Value::Object(_) => false,
            }
    };
    if metadata.len() > MAX_METADATA
        || !metadata.iter().all(fits)
        || metadata.keys().any(|k| k.contains('\0'))
    {
        return Err(
            "takes at most 256 keys of at most 256 characters, each a text (of 256 at most), number or boolean",
        );
    }
    Ok(())
}

/// One inbox.
#[utoipa::path(
    get, path = "/v0/inboxes/{inbox_id}", tag = "inboxes", params(("inbox_id" = String, Path)),
    responses((status = 200, body = InboxView), (status = 404, body = ErrorShape))
)]
async fn get(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<InboxView>> {
    query.finish()?;
    caller.require("inbox_read")?;
    Ok(Json(caller.inbox(&floor, &path.segment(2)?).await?.into()))
}

/// Changes an inbox.
#[utoipa::path(
    patch, path = "/v0/inboxes/{inbox_id}", tag = "inboxes", params(("inbox_id" = String, Path)),
    request_body = UpdateInboxRequest,
    responses((status = 200, body = InboxView), (status = 400, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn update(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<UpdateInboxRequest>,
) -> Answer<Json<InboxView>> {
    update_one(&floor, &caller, &path.segment(2)?, request).await
}

pub(super) async fn update_one(
    floor: &Floor,
    caller: &Caller,
    inbox_id: &str,
    request: UpdateInboxRequest,
) -> Answer<Json<InboxView>> {
    caller.require("inbox_update")?;
    let inbox = caller.inbox(floor, inbox_id).await?;
    let key = inbox.key;
    let status = match request.status.as_deref().map(InboxStatus::parse) {
        Some(None) => return Err(Problem::field(&["status"], "takes active or paused")),
        Some(Some(status)) => Some(status),
        None => None,
    };
    if status.is_none() && request.display_name.is_none() && request.metadata.is_none() {
        return Err(Problem::field(&[], "at least one of display_name, status, metadata is needed"));
    }
    if let Some(Some(name)) = &request.display_name
        && !is_display_name(name)
    {
        return Err(Problem::field(
            &["display_name"],
            "takes at most 256 characters, none of them control characters",
        ));
    }
    if let Some(Some(metadata)) = &request.metadata {
        if metadata.is_empty() {
            return Err(Problem::field(&["metadata"], "is empty; null removes all of it"));
        }
        check_metadata(metadata).map_err(|why| Problem::field(&["metadata"], why))?;
    }
    let resumes = caller.require_admin("A paused inbox");
    let request = Arc::new(request);
    let actor = caller.0.actor();
    let changed = floor.store.write(move |tx| {
        let (request, actor, resumes) = (request.clone(), actor.clone(), resumes.clone());
        Box::pin(async move {
            let Some(mut inbox) = inbox::lock(tx, key).await? else { return Ok(None) };
            let was = inbox.status;
            if was == InboxStatus::Paused && status == Some(InboxStatus::Active) {
                // Whoever paused an agent does not want it to wake itself; asked under the lock, so that it
                // cannot race the pause.
                resumes?;
            }
            change(&mut inbox, &request, status)?;
            inbox::update(tx, &inbox).await?;
            if was == InboxStatus::Paused && inbox.status == InboxStatus::Active {
                crate::work::resume(tx, key).await?;
                crate::gate::resume(tx).await?;
            }
            note(tx, &actor, "inbox.updated", &inbox).await?;
            inbox.updated_at = tx.now();
            Ok::<_, Problem>(Some(inbox))
        })
    });
    let inbox = changed.await?.ok_or_else(|| Problem::not_found("Inbox"))?;
    Ok(Json(inbox.into()))
}

fn change(inbox: &mut Inbox, request: &UpdateInboxRequest, status: Option<InboxStatus>) -> Answer<()> {
    if let Some(name) = &request.display_name {
        inbox.display_name = name.clone().filter(|name| !name.is_empty());
    }
    inbox.status = status.unwrap_or(inbox.status);
    match &request.metadata {
        None => {}
        Some(None) => inbox.metadata = None,
        Some(Some(changes)) => {
            let mut metadata: Metadata =
                inbox.metadata.as_deref().and_then(|m| serde_json::from_str(m).ok()).unwrap_or_default();
            for (key, value) in changes {
                match value {
                    Value::Null => drop(metadata.remove(key)),
                    value => drop(metadata.insert(key.clone(), value.clone())),
                }
            }
            check_metadata(&metadata).map_err(|why| Problem::field(&["metadata"], why))?;
            let text = serde_json::to_string(&metadata).map_err(|e| crate::api::error::internal(&e))?;
            inbox.metadata = (!metadata.is_empty()).then_some(text);
        }
    }
    Ok(())
}

/// Deletes an inbox. Its address is free at once, and an inbox made anew with it sees nothing of the old one.
#[utoipa::path(
    delete, path = "/v0/inboxes/{inbox_id}", tag = "inboxes", params(("inbox_id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    delete_one(&floor, &caller, &path.segment(2)?).await
}

pub(super) async fn delete_one(floor: &Floor, caller: &Caller, inbox_id: &str) -> Answer<StatusCode> {
    caller.require("inbox_delete")?;
    let inbox = caller.inbox(floor, inbox_id).await?;
    if inbox.operator {
        return Err(Problem::forbidden("cannot_delete", "The operator's inbox cannot be deleted.")
            .fix("Mail to the operator has to arrive somewhere (RFC 5321 §4.5.1)."));
    }
    let (key, actor) = (inbox.key, caller.0.actor());
    let inbox = Arc::new(inbox);
    let deleted = floor.store.write(move |tx| {
        let (inbox, actor) = (inbox.clone(), actor.clone());
        Box::pin(async move {
            // As at AgentMail: whoever still holds a key to it is thought of first.
            if key::any_of_inbox(tx, key).await? {
                return Err(Problem::forbidden("cannot_delete", "The inbox still has API keys of its own.")
                    .fix("Delete them first: GET and DELETE /v0/inboxes/{inbox_id}/api-keys."));
            }
            inbox::delete(tx, key).await?;
            note(tx, &actor, "inbox.deleted", &inbox).await?;
            Ok(())
        })
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_operators_names() {
        for name in ["ada", "a.b-c_d", "ada+news", "7"] {
            assert_eq!(check_username(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "postmaster",
            "abuse",
            "mailer-daemon",
            "b-x",
            "a b",
            "a@b",
            "ä",
            ".a",
            "a.",
            "a..b",
            "a/b",
            "<a",
            "A",
        ] {
            assert!(check_username(name).is_err(), "{name}");
        }
        assert!(check_username(&draw_name()).is_ok());
    }
}
