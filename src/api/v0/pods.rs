//! Pods: tenants. What stands under `/v0/pods/{pod_id}` is what a key of that pod would see without the prefix:
//! the caller is narrowed to the pod, and the routes without prefix do the rest.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::attachments::AttachmentResponse;
use super::inboxes::is_client_id;
use super::{domains, inboxes, keys, threads};
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging::{self, Listing, PageParams};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::clock::rfc3339;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::principal::Scope;
use crate::store::inbox::DEFAULT_POD;
use crate::store::page::Place;
use crate::store::pod::{self, Pod};
use crate::store::{StoreError, Tx, audit};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, delete))
        .routes(routes!(list_inboxes, create_inbox))
        .routes(routes!(get_inbox, update_inbox, delete_inbox))
        .routes(routes!(list_threads))
        .routes(routes!(get_thread))
        .routes(routes!(get_attachment))
        .routes(routes!(list_keys, create_key))
        .routes(routes!(get_key, update_key, delete_key))
        .routes(routes!(list_domains, create_domain))
        .routes(routes!(get_domain, update_domain, delete_domain))
        .routes(routes!(zone_file))
        .routes(routes!(verify_domain))
}

const MAX_NAME: usize = 256;

#[derive(Serialize, ToSchema)]
#[schema(as = Pod)]
pub(crate) struct PodView {
    pod_id: String,
    name: String,
    updated_at: String,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
}

impl From<Pod> for PodView {
    fn from(pod: Pod) -> PodView {
        PodView {
            pod_id: pod.pod_id,
            name: pod.name,
            updated_at: rfc3339(pod.updated_at),
            created_at: rfc3339(pod.created_at),
            client_id: pod.client_id,
        }
    }
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CreatePodRequest {
    name: Option<String>,
    /// Repeating a request with the same `client_id` returns the pod that the first one made.
    client_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListPodsResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    pods: Vec<PodView>,
}

/// Every pod that the key sees.
#[utoipa::path(
    get, path = "/v0/pods", tag = "pods", params(PageParams),
    responses((status = 200, body = ListPodsResponse), (status = 400, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
) -> Answer<Json<ListPodsResponse>> {
    caller.require("pod_read")?;
    let page = Listing::Pods.page(&mut query)?;
    query.finish()?;
    let limit = page.limit;
    let own = match caller.0.scope {
        Scope::Organization => None,
        Scope::Pod(pod) | Scope::Inbox(InboxKey { pod, .. }) => Some(pod),
    };
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let mut pods = match own {
                None => pod::page(tx, &page).await?,
                Some(_) if page.after.is_some() => Vec::new(),
                Some(own) => pod::by_key(tx, own).await?.into_iter().collect(),
            };
            let next = paging::cut(&page, Listing::Pods, &mut pods, |p| Place::new(0, p.pod_key));
            Ok::<_, StoreError>((pods, next))
        })
    });
    let (pods, next_page_token) = found.await?;
    let pods: Vec<PodView> = pods.into_iter().map(PodView::from).collect();
    Ok(Json(ListPodsResponse { count: pods.len(), limit, next_page_token, pods }))
}

/// Makes a pod.
#[utoipa::path(
    post, path = "/v0/pods", tag = "pods", request_body = CreatePodRequest,
    responses((status = 200, body = PodView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn create(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    JsonBody(request): JsonBody<CreatePodRequest>,
) -> Answer<Json<PodView>> {
    caller.require_organization("Pods")?;
    caller.require("pod_create")?;
    if request.client_id.as_deref().is_some_and(|id| !is_client_id(id)) {
        return Err(Problem::field(&["client_id"], "takes 1 to 256 of A-Z a-z 0-9 - . _ ~"));
    }
    let name = request.name.unwrap_or_else(|| "Pod".to_owned());
    if !(1..=MAX_NAME).contains(&name.chars().count()) || name.chars().any(char::is_control) {
        return Err(Problem::field(&["name"], "takes 1 to 256 characters, none of them control characters"));
    }
    let asked = Arc::new((name, request.client_id, caller.0.actor()));
    let again = asked.clone();
    let made = floor.store.write(move |tx| {
        let asked = asked.clone();
        Box::pin(async move {
            let (name, client_id, actor) = &*asked;
            if let Some(before) = before(tx, client_id.as_deref()).await? {
                return Ok(before);
            }
            let made = pod::insert(tx, name, client_id.as_deref()).await?;
            note(tx, actor, "pod.created", &made).await?;
            Ok::<_, StoreError>(made)
        })
    });
    match made.await {
        Ok(pod) => Ok(Json(pod.into())),
        // Somebody else was first with this client_id.
        Err(error) if error.is_conflict() => {
            let found =
                floor.store.read(move |tx| Box::pin(async move { before(tx, again.1.as_deref()).await }));
            let found: Option<Pod> = found.await.map_err(|e: StoreError| Problem::from(e))?;
            found.map(|pod| Json(pod.into())).ok_or_else(|| error.into())
        }
        Err(error) => Err(error.into()),
    }
}

async fn before(tx: &mut Tx, client_id: Option<&str>) -> Result<Option<Pod>, StoreError> {
    match client_id {
        Some(client_id) => pod::by_client_id(tx, client_id).await,
        None => Ok(None),
    }
}

async fn note(tx: &mut Tx, actor: &str, action: &str, pod: &Pod) -> Result<(), StoreError> {
    let inbox = Some(InboxKey { pod: pod.pod_key, inbox: 0 });
    let detail = serde_json::json!({ "client_id": pod.client_id }).to_string();
    audit::record(tx, audit::Entry { actor, run_id: None, action, inbox, object: &pod.pod_id, detail }).await
}

/// One pod.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}", tag = "pods", params(("pod_id" = String, Path)),
    responses((status = 200, body = PodView), (status = 404, body = ErrorShape))
)]
async fn get(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<PodView>> {
    query.finish()?;
    caller.require("pod_read")?;
    Ok(Json(caller.pod(&floor, &path.segment(2)?).await?.into()))
}

/// Deletes a pod, once it has neither inboxes nor domains. Its keys are dead with this answer.
#[utoipa::path(
    delete, path = "/v0/pods/{pod_id}", tag = "pods", params(("pod_id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    let found = caller.pod(&floor, &path.segment(2)?).await?;
    caller.require_organization("Pods")?;
    caller.require("pod_delete")?;
    let cannot = |why: &str| Problem::forbidden("cannot_delete", why.to_owned());
    if found.pod_key == DEFAULT_POD {
        return Err(
            cannot("The default pod always exists.").fix("Delete what is in it, where that is meant.")
        );
    }
    let actor = caller.0.actor();
    let deleted = floor.store.write(move |tx| {
        let actor = actor.clone();
        Box::pin(async move {
            let Some(found) = pod::lock(tx, found.pod_key, true).await? else {
                return Err(Problem::not_found("Pod"));
            };
            if pod::is_in_use(tx, found.pod_key).await? {
                return Err(Problem::forbidden("cannot_delete", "The pod still has inboxes or domains.")
                    .fix("Delete them first: GET /v0/pods/{pod_id}/inboxes and /v0/pods/{pod_id}/domains."));
            }
            pod::delete(tx, found.pod_key).await?;
            note(tx, &actor, "pod.deleted", &found).await?;
            Ok(())
        })
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The inboxes of a pod.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/inboxes", tag = "pods", params(("pod_id" = String, Path), PageParams),
    responses((status = 200, body = inboxes::ListInboxesResponse), (status = 404, body = ErrorShape))
)]
async fn list_inboxes(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<inboxes::ListInboxesResponse>> {
    let caller = caller.within(&floor, &path).await?;
    inboxes::list_of(&floor, &caller, query).await
}

/// Makes an inbox in a pod: on a domain of the pod, or on one of the organization's.
#[utoipa::path(
    post, path = "/v0/pods/{pod_id}/inboxes", tag = "pods", params(("pod_id" = String, Path)),
    request_body = inboxes::CreateInboxRequest,
    responses((status = 200, body = inboxes::InboxView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn create_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<inboxes::CreateInboxRequest>,
) -> Answer<Json<inboxes::InboxView>> {
    let caller = caller.within(&floor, &path).await?;
    inboxes::create_in(&floor, &caller, request).await
}

/// One inbox of a pod.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/inboxes/{inbox_id}", tag = "pods",
    params(("pod_id" = String, Path), ("inbox_id" = String, Path)),
    responses((status = 200, body = inboxes::InboxView), (status = 404, body = ErrorShape))
)]
async fn get_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<inboxes::InboxView>> {
    query.finish()?;
    let caller = caller.within(&floor, &path).await?;
    caller.require("inbox_read")?;
    Ok(Json(caller.inbox(&floor, &path.segment(4)?).await?.into()))
}

/// Changes an inbox of a pod.
#[utoipa::path(
    patch, path = "/v0/pods/{pod_id}/inboxes/{inbox_id}", tag = "pods",
    params(("pod_id" = String, Path), ("inbox_id" = String, Path)), request_body = inboxes::UpdateInboxRequest,
    responses((status = 200, body = inboxes::InboxView), (status = 404, body = ErrorShape))
)]
async fn update_inbox(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<inboxes::UpdateInboxRequest>,
) -> Answer<Json<inboxes::InboxView>> {
    let caller = caller.within(&floor, &path).await?;
    inboxes::update_one(&floor, &caller, &path.segment(4)?, request).await
}

/// Deletes an inbox of a pod.
#[utoipa::path(
    delete, path = "/v0/pods/{pod_id}/inboxes/{inbox_id}", tag = "pods",
    params(("pod_id" = String, Path), ("inbox_id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete_inbox(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    let caller = caller.within(&floor, &path).await?;
    inboxes::delete_one(&floor, &caller, &path.segment(4)?).await
}

/// The threads of a pod's inboxes, newest first.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/threads", tag = "pods",
    params(("pod_id" = String, Path), threads::ThreadParams),
    responses((status = 200, body = threads::ListThreadsResponse), (status = 404, body = ErrorShape))
)]
async fn list_threads(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<threads::ListThreadsResponse>> {
    let caller = caller.within(&floor, &path).await?;
    threads::page_of(&floor, &caller, caller.0.scope, query).await
}

/// A thread of a pod with its messages.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/threads/{thread_id}", tag = "pods",
    params(
        ("pod_id" = String, Path), ("thread_id" = String, Path),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = threads::WholeThread), (status = 404, body = ErrorShape))
)]
async fn get_thread(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<threads::WholeThread>> {
    let caller = caller.within(&floor, &path).await?;
    threads::whole(&floor, &caller, None, &path.segment(4)?, query).await
}

/// A link to an attachment of one of a pod's threads, for an hour.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/threads/{thread_id}/attachments/{attachment_id}", tag = "pods",
    params(("pod_id" = String, Path), ("thread_id" = String, Path), ("attachment_id" = String, Path)),
    responses((status = 200, body = AttachmentResponse), (status = 404, body = ErrorShape))
)]
async fn get_attachment(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<AttachmentResponse>> {
    query.finish()?;
    let caller = caller.within(&floor, &path).await?;
    threads::attachment_by_id(&floor, &caller, &path.segment(4)?, &path.segment(6)?).await
}

/// The keys of a pod, and of its inboxes.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/api-keys", tag = "api keys", params(("pod_id" = String, Path), PageParams),
    responses((status = 200, body = keys::ListApiKeysResponse), (status = 404, body = ErrorShape))
)]
async fn list_keys(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<keys::ListApiKeysResponse>> {
    let caller = caller.within(&floor, &path).await?;
    keys::page_of(&floor, &caller, caller.0.scope, query).await
}

/// Makes a key of a pod: it sees this pod and nothing else.
#[utoipa::path(
    post, path = "/v0/pods/{pod_id}/api-keys", tag = "api keys", params(("pod_id" = String, Path)),
    request_body = keys::CreateApiKeyRequest,
    responses((status = 200, body = keys::KeyView), (status = 400, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn create_key(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<keys::CreateApiKeyRequest>,
) -> Answer<Json<keys::KeyView>> {
    let caller = caller.within(&floor, &path).await?;
    keys::make(&floor, &caller, caller.0.scope, None, request).await
}

/// One key of a pod.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/api-keys/{api_key_id}", tag = "api keys",
    params(("pod_id" = String, Path), ("api_key_id" = String, Path)),
    responses((status = 200, body = keys::KeyView), (status = 404, body = ErrorShape))
)]
async fn get_key(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<keys::KeyView>> {
    query.finish()?;
    let caller = caller.within(&floor, &path).await?;
    keys::read(&floor, caller, None, path.segment(4)?).await
}

/// Renames a key of a pod or changes what it may do.
#[utoipa::path(
    patch, path = "/v0/pods/{pod_id}/api-keys/{api_key_id}", tag = "api keys",
    params(("pod_id" = String, Path), ("api_key_id" = String, Path)), request_body = keys::UpdateApiKeyRequest,
    responses((status = 200, body = keys::KeyView), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn update_key(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<keys::UpdateApiKeyRequest>,
) -> Answer<Json<keys::KeyView>> {
    let caller = caller.within(&floor, &path).await?;
    keys::change(&floor, caller, None, path.segment(4)?, request).await
}

/// Deletes a key of a pod: it is dead with this answer.
#[utoipa::path(
    delete, path = "/v0/pods/{pod_id}/api-keys/{api_key_id}", tag = "api keys",
    params(("pod_id" = String, Path), ("api_key_id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete_key(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    let caller = caller.within(&floor, &path).await?;
    keys::remove(&floor, caller, None, path.segment(4)?).await
}

/// The domains of a pod.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/domains", tag = "domains", params(("pod_id" = String, Path), PageParams),
    responses((status = 200, body = domains::ListDomainsResponse), (status = 404, body = ErrorShape))
)]
async fn list_domains(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<domains::ListDomainsResponse>> {
    let caller = caller.within(&floor, &path).await?;
    domains::page_of(&floor, &caller, query).await
}

/// Adds a domain to a pod: no other pod sees or uses it.
#[utoipa::path(
    post, path = "/v0/pods/{pod_id}/domains", tag = "domains", params(("pod_id" = String, Path)),
    request_body = domains::CreateDomainRequest,
    responses((status = 200, body = domains::DomainView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn create_domain(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<domains::CreateDomainRequest>,
) -> Answer<Json<domains::DomainView>> {
    let caller = caller.within(&floor, &path).await?;
    domains::add(&floor, &caller, request).await
}

/// One domain of a pod with its records.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/domains/{domain_id}", tag = "domains",
    params(("pod_id" = String, Path), ("domain_id" = String, Path)),
    responses((status = 200, body = domains::DomainView), (status = 404, body = ErrorShape))
)]
async fn get_domain(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<domains::DomainView>> {
    query.finish()?;
    let caller = caller.within(&floor, &path).await?;
    domains::show(&floor, &caller, &path.segment(4)?).await
}

/// Changes what a domain of a pod does.
#[utoipa::path(
    patch, path = "/v0/pods/{pod_id}/domains/{domain_id}", tag = "domains",
    params(("pod_id" = String, Path), ("domain_id" = String, Path)), request_body = domains::UpdateDomainRequest,
    responses((status = 200, body = domains::DomainView), (status = 404, body = ErrorShape))
)]
async fn update_domain(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<domains::UpdateDomainRequest>,
) -> Answer<Json<domains::DomainView>> {
    let caller = caller.within(&floor, &path).await?;
    domains::change(&floor, &caller, &path.segment(4)?, request).await
}

/// Removes a domain of a pod.
#[utoipa::path(
    delete, path = "/v0/pods/{pod_id}/domains/{domain_id}", tag = "domains",
    params(("pod_id" = String, Path), ("domain_id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete_domain(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    let caller = caller.within(&floor, &path).await?;
    domains::remove(&floor, &caller, &path.segment(4)?).await
}

/// The records of a domain of a pod as a BIND zone file.
#[utoipa::path(
    get, path = "/v0/pods/{pod_id}/domains/{domain_id}/zone-file", tag = "domains",
    params(("pod_id" = String, Path), ("domain_id" = String, Path)),
    responses((status = 200, body = String, content_type = "text/dns"), (status = 404, body = ErrorShape))
)]
async fn zone_file(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Response> {
    query.finish()?;
    let caller = caller.within(&floor, &path).await?;
    domains::zone_of(&floor, &caller, &path.segment(4)?).await
}

/// Looks at the records of a domain of a pod now.
#[utoipa::path(
    post, path = "/v0/pods/{pod_id}/domains/{domain_id}/verify", tag = "domains",
    params(("pod_id" = String, Path), ("domain_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorShape))
)]
async fn verify_domain(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    let caller = caller.within(&floor, &path).await?;
    domains::verified(&floor, &caller, &path.segment(4)?).await
}
