//! What mail must prove to get into an inbox: set for a domain or an inbox by admin keys, for the organization in
//! the configuration (`[receive]`). The narrowest setting counts.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::address::normalize_domain;
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::api::v0::inboxes::given;
use crate::config::{DmarcHandling, Spoofed, Unauthenticated, limits};
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::inbox::policy::{Policy, Setting};
use crate::principal::Scope;
use crate::store::policy::{self, ReceivePolicy};
use crate::store::{StoreError, Tx, audit, inbox, list};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(of_organization))
        .routes(routes!(of_domain, put_domain))
        .routes(routes!(of_inbox, put_inbox))
}

/// What counts, and whose setting it is: `organization`, `domain` or `inbox`.
#[derive(Serialize, ToSchema)]
pub(crate) struct SettingView<T> {
    value: T,
    set_by: &'static str,
}

impl<T> From<Setting<T>> for SettingView<T> {
    fn from(setting: Setting<T>) -> SettingView<T> {
        SettingView { value: setting.value, set_by: setting.by.text() }
    }
}

/// What mail that comes in must prove.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReceivePolicyResponse {
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inbox_id: Option<String>,
    /// Mail that fails DMARC: as its domain asks, held, or labelled.
    dmarc: SettingView<DmarcHandling>,
    /// Mail whose sender is not verified.
    unauthenticated: SettingView<Unauthenticated>,
    /// Mail from outside that claims a domain of this server and does not authenticate.
    spoofed: SettingView<Spoofed>,
    /// Octets.
    max_message_size: SettingView<u64>,
}

impl ReceivePolicyResponse {
    fn new(policy: Policy, domain: Option<String>, inbox_id: Option<String>) -> ReceivePolicyResponse {
        ReceivePolicyResponse {
            domain,
            inbox_id,
            dmarc: policy.dmarc.into(),
            unauthenticated: policy.unauthenticated.into(),
            spoofed: policy.spoofed.into(),
            max_message_size: policy.max_message_size.into(),
        }
    }
}

/// What is absent stays as it is; `null` leaves it to the wider scope.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReceivePolicyBody {
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<DmarcHandling>)]
    dmarc: Option<Option<DmarcHandling>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Unauthenticated>)]
    unauthenticated: Option<Option<Unauthenticated>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Spoofed>)]
    spoofed: Option<Option<Spoofed>>,
    /// Octets; at most what the server takes.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    max_message_size: Option<Option<u64>>,
}

impl ReceivePolicyBody {
    fn check(&self, floor: &Floor) -> Answer<()> {
        let most = floor.config.smtp.max_message_size;
        let sizes = limits::SMALLEST_INBOX_MESSAGE_SIZE..=most;
        if self.max_message_size.flatten().is_some_and(|size| !sizes.contains(&size)) {
            let say = format!("takes octets from {} to the server's {most}, or null", sizes.start());
            return Err(Problem::field(&["max_message_size"], say));
        }
        Ok(())
    }

    fn over(&self, set: ReceivePolicy) -> ReceivePolicy {
        ReceivePolicy {
            dmarc: self.dmarc.unwrap_or(set.dmarc),
            unauthenticated: self.unauthenticated.unwrap_or(set.unauthenticated),
            spoofed: self.spoofed.unwrap_or(set.spoofed),
            max_message_size: self.max_message_size.unwrap_or(set.max_message_size),
        }
    }
}

/// What counts where neither domain nor inbox says otherwise.
#[utoipa::path(
    get, path = "/v1/receive-policy", tag = "receive policy",
    responses((status = 200, body = ReceivePolicyResponse), (status = 403, body = ErrorShape))
)]
async fn of_organization(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    query: Query,
) -> Answer<Json<ReceivePolicyResponse>> {
    query.finish()?;
    caller.require_admin("The organization's policy can be seen by organization keys, and")?;
    let nothing = ReceivePolicy::default();
    Ok(Json(ReceivePolicyResponse::new(Policy::of(&floor.config, &nothing, &nothing), None, None)))
}

/// Domains belong to the organization.
fn own_domain(floor: &Floor, caller: &Caller, path: &RawPath) -> Answer<String> {
    let domain = normalize_domain(&path.segment(2)?).ok();
    let ours = domain.and_then(|domain| Some((floor.domains.find(&domain)?, domain)));
    let (ours, domain) = ours.ok_or_else(|| Problem::not_found("Domain"))?;
    caller.require_admin("A domain's policy can be seen by organization keys, and")?;
    match caller.0.scope {
        Scope::Organization => Ok(domain),
        Scope::Pod(pod) if ours.pod == Some(pod) => Ok(domain),
        _ => Err(Problem::not_found("Domain")),
    }
}

/// What counts for a domain's inboxes.
#[utoipa::path(
    get, path = "/v1/domains/{domain}/receive-policy", tag = "receive policy", params(("domain" = String, Path)),
    responses((status = 200, body = ReceivePolicyResponse), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn of_domain(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<ReceivePolicyResponse>> {
    query.finish()?;
    let domain = own_domain(&floor, &caller, &path)?;
    let asked = domain.clone();
    let found = floor.store.read(move |tx| Box::pin(async move { policy::of_domain(tx, &asked).await }));
    let set: ReceivePolicy = found.await.map_err(|e: StoreError| Problem::from(e))?;
    let policy = Policy::of(&floor.config, &set, &ReceivePolicy::default());
    Ok(Json(ReceivePolicyResponse::new(policy, Some(domain), None)))
}

/// Sets what counts for a domain's inboxes.
#[utoipa::path(
    put, path = "/v1/domains/{domain}/receive-policy", tag = "receive policy", params(("domain" = String, Path)),
    request_body = ReceivePolicyBody,
    responses((status = 200, body = ReceivePolicyResponse), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn put_domain(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<ReceivePolicyBody>,
) -> Answer<Json<ReceivePolicyResponse>> {
    let domain = own_domain(&floor, &caller, &path)?;
    caller.require("domain_update")?;
    body.check(&floor)?;
    let (asked, actor) = (domain.clone(), caller.0.actor());
    let set = floor.store.write(move |tx| {
        let (domain, actor) = (asked.clone(), actor.clone());
        Box::pin(async move {
            let set = body.over(policy::of_domain(tx, &domain).await?);
            policy::put_domain(tx, &domain, &set).await?;
            let detail = json!(set).to_string();
            let action = "domain.receive_policy_changed";
            let entry =
                audit::Entry { actor: &actor, run_id: None, action, inbox: None, object: &domain, detail };
            audit::record(tx, entry).await?;
            // No inbox of its own: the organization's part of the log.
            let data = json!({ "domain": domain, "receive_policy": set }).to_string();
            announce(tx, list::ORGANIZATION, action, data).await?;
            Ok(set)
        })
    });
    let set: ReceivePolicy = set.await.map_err(|e: StoreError| Problem::from(e))?;
    let policy = Policy::of(&floor.config, &set, &ReceivePolicy::default());
    Ok(Json(ReceivePolicyResponse::new(policy, Some(domain), None)))
}

/// What counts for an inbox.
#[utoipa::path(
    get, path = "/v1/inboxes/{inbox_id}/receive-policy", tag = "receive policy", params(("inbox_id" = String, Path)),
    responses((status = 200, body = ReceivePolicyResponse), (status = 404, body = ErrorShape))
)]
async fn of_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<ReceivePolicyResponse>> {
    query.finish()?;
    caller.require("inbox_read")?;
    let inbox = caller.inbox(&floor, &path.segment(2)?).await?;
    let policy = Policy::new(&floor.config, &inbox);
    Ok(Json(ReceivePolicyResponse::new(policy, None, Some(inbox.address))))
}

/// Sets what counts for an inbox.
#[utoipa::path(
    put, path = "/v1/inboxes/{inbox_id}/receive-policy", tag = "receive policy", params(("inbox_id" = String, Path)),
    request_body = ReceivePolicyBody,
    responses((status = 200, body = ReceivePolicyResponse), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn put_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<ReceivePolicyBody>,
) -> Answer<Json<ReceivePolicyResponse>> {
    let key = caller.inbox(&floor, &path.segment(2)?).await?.key;
    caller.require_admin("The receive policy")?;
    caller.require("inbox_update")?;
    body.check(&floor)?;
    let actor = caller.0.actor();
    let set = floor.store.write(move |tx| {
        let actor = actor.clone();
        Box::pin(async move {
            let Some(mut inbox) = inbox::lock(tx, key).await? else { return Ok(None) };
            inbox.receive_policy = body.over(inbox.receive_policy);
            policy::put_inbox(tx, key, &inbox.receive_policy).await?;
            let detail = json!(inbox.receive_policy).to_string();
            let (action, object) = ("inbox.receive_policy_changed", &inbox.address);
            let entry =
                audit::Entry { actor: &actor, run_id: None, action, inbox: Some(key), object, detail };
            audit::record(tx, entry).await?;
            announce(tx, key, action, json!({ "receive_policy": inbox.receive_policy }).to_string()).await?;
            Ok(Some(inbox))
        })
    });
    let set: Option<inbox::Inbox> = set.await.map_err(|e: StoreError| Problem::from(e))?;
    let inbox = set.ok_or_else(|| Problem::not_found("Inbox"))?;
    let policy = Policy::new(&floor.config, &inbox);
    Ok(Json(ReceivePolicyResponse::new(policy, None, Some(inbox.address))))
}

async fn announce(tx: &mut Tx, inbox: InboxKey, event_type: &str, data: String) -> Result<(), StoreError> {
    use crate::store::event::{self, NewEvent};
    event::append(tx, inbox, NewEvent { event_type, data, ..NewEvent::default() }).await
}
