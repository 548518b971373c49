//! The kill switch: made, seen and lifted by admin keys, each within its scope; never by an inbox's own key.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
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
use crate::clock::rfc3339;
use crate::floor::Floor;
use crate::gate::{self, StopError, Stopped};
use crate::ids::InboxKey;
use crate::principal::Scope;
use crate::store::StoreError;
use crate::store::stop::{self, MOST, NewStop, Queued, Stop, StopScope};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, make)).routes(routes!(lift))
}

/// Stops that hold for one pod, as far as its own keys make them.
const MOST_OF_POD: usize = 50;
/// Octets of a reason.
const MAX_REASON: usize = 500;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StopBody {
    /// `inbox`, `pod`, `domain` (of the sender) or `organization`
    scope: String,
    /// The inbox's address, the pod's id or the domain; absent for the organization.
    #[serde(default)]
    id: Option<String>,
    /// Shown to every agent whose send is refused by it.
    reason: String,
    /// What becomes of mail that is queued or scheduled: `hold` (it goes on when the stop is lifted) or `cancel`
    #[serde(default)]
    queued: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Stop)]
pub(crate) struct StopView {
    stop_id: String,
    scope: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    /// `kill_switch`, or what the server went by: `bounce_rate`, `complaint_rate`
    rule: String,
    reason: String,
    queued: String,
    made_by: String,
    created_at: String,
    /// Deliveries that waited when it was made, where it holds them.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canceled: Option<i64>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListStopsResponse {
    count: usize,
    stops: Vec<StopView>,
}

fn view(stop: Stop) -> StopView {
    StopView {
        stop_id: stop.stop_id,
        scope: stop.scope.word().to_owned(),
        id: stop.name,
        rule: stop.rule,
        reason: stop.reason,
        queued: stop.queued.text().to_owned(),
        made_by: stop.made_by,
        created_at: rfc3339(stop.created_at),
        held: None,
        canceled: None,
    }
}

/// Whether this key may see and lift a stop: all of whom it stops must be in the key's scope.
fn reaches(floor: &Floor, scope: Scope, stop: &StopScope) -> bool {
    match (scope, stop) {
        (Scope::Organization, _) => true,
        (Scope::Pod(pod), StopScope::Pod(stopped)) => pod == *stopped,
        (Scope::Pod(pod), StopScope::Inbox(key)) => pod == key.pod,
        (Scope::Pod(pod), StopScope::Domain { name, .. }) => {
            floor.domains.find(name).is_some_and(|ours| ours.pod == Some(pod))
        }
        _ => false,
    }
}

/// Stops in force, the oldest first.
#[utoipa::path(
    get, path = "/v1/stops", tag = "stops",
    responses((status = 200, body = ListStopsResponse), (status = 403, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    query: Query,
) -> Answer<Json<ListStopsResponse>> {
    query.finish()?;
    caller.require_admin("Stops can be seen and")?;
    let found = floor.store.read(|tx| Box::pin(stop::active(tx))).await;
    let found: Vec<Stop> = found.map_err(|e: StoreError| Problem::from(e))?;
    let mine = found.into_iter().filter(|stop| reaches(&floor, caller.0.scope, &stop.scope));
    let stops: Vec<StopView> = mine.map(view).collect();
    Ok(Json(ListStopsResponse { count: stops.len(), stops }))
}

/// Stops new sends, what is queued and what is scheduled, in one call.
#[utoipa::path(
    post, path = "/v1/stops", tag = "stops", request_body = StopBody,
    responses((status = 200, body = StopView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn make(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    JsonBody(body): JsonBody<StopBody>,
) -> Answer<Json<StopView>> {
    caller.require_admin("Stops")?;
    caller.require("inbox_update")?;
    let reason = body.reason.trim().to_owned();
    if reason.is_empty() || reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        return Err(Problem::field(
            &["reason"],
            "takes one line of at most 500 octets: why nothing may leave",
        ));
    }
    let queued = body.queued.as_deref().map_or(Some(Queued::Hold), Queued::parse);
    let queued = queued.ok_or_else(|| Problem::field(&["queued"], "takes hold or cancel"))?;
    let (scope, name) = scope_of(&floor, &caller, &body.scope, body.id.as_deref()).await?;
    leaves_room(&floor, &caller).await?;
    let made_by = caller.0.actor();
    let new = NewStop { scope, name, rule: "kill_switch", reason, queued, made_by };
    let made = floor.store.write(move |tx| {
        let new = new.clone();
        Box::pin(async move { gate::stop(tx, &new).await })
    });
    let made: Option<Stopped> = made.await.map_err(|error: StopError| match error {
        StopError::TooMany => {
            Problem::forbidden("limit_exceeded", format!("There are {MOST} stops in force."))
                .fix("Lift those that are not needed, or stop a wider scope.")
        }
        StopError::Store(error) => Problem::from(error),
    })?;
    // Only the server's own stops are made once.
    let Some(Stopped { stop, held, canceled }) = made else { return Err(Problem::not_found("Stop")) };
    Ok(Json(StopView { held: Some(held), canceled: Some(canceled), ..view(stop) }))
}

/// A pod's keys have a part of the stops that there may be, so that there is always room for the organization's, and
/// for the server's own.
async fn leaves_room(floor: &Floor, caller: &Caller) -> Answer<()> {
    if caller.0.scope == Scope::Organization {
        return Ok(());
    }
    let active = floor.store.read(|tx| Box::pin(stop::active(tx))).await;
    let active: Vec<Stop> = active.map_err(|e: StoreError| Problem::from(e))?;
    let mine = active.iter().filter(|stop| reaches(floor, caller.0.scope, &stop.scope)).count();
    if mine >= MOST_OF_POD || active.len() as i64 >= MOST / 2 {
        return Err(Problem::forbidden("limit_exceeded", "There are too many stops in force.")
            .fix("Lift those that are not needed, or stop the whole pod."));
    }
    Ok(())
}

async fn scope_of(
    floor: &Floor,
    caller: &Caller,
    word: &str,
    id: Option<&str>,
) -> Answer<(StopScope, String)> {
    let id_of = || id.ok_or_else(|| Problem::field(&["id"], "is needed: whose mail is to stop"));
    match word {
        "inbox" => {
            let inbox = caller.inbox(floor, id_of()?).await?;
            Ok((StopScope::Inbox(inbox.key), inbox.address))
        }
        "pod" => {
            let pod = caller.pod(floor, id_of()?).await?;
            Ok((StopScope::Pod(pod.pod_key), pod.pod_id))
        }
        "domain" => {
            let none = || Problem::not_found("Domain");
            let domain = normalize_domain(id_of()?).map_err(|_| none())?;
            let pod = match caller.0.scope {
                Scope::Organization => None,
                Scope::Pod(pod) | Scope::Inbox(InboxKey { pod, .. }) => Some(pod),
            };
            let scope = StopScope::Domain { name: domain.clone(), pod };
            let known = floor.domains.find(&domain).is_some();
            if !known || !reaches(floor, caller.0.scope, &scope) {
                return Err(none());
            }
            Ok((scope, domain))
        }
        "organization" => {
            caller.require_organization("The organization's stop")?;
            match id {
                None | Some("") => Ok((StopScope::Organization, String::new())),
                Some(_) => Err(Problem::field(&["id"], "belongs to an inbox, a pod or a domain")),
            }
        }
        _ => Err(Problem::field(&["scope"], "takes inbox, pod, domain or organization")),
    }
}

/// Lifts a stop: what it held goes on.
#[utoipa::path(
    delete, path = "/v1/stops/{stop_id}", tag = "stops", params(("stop_id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn lift(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    caller.require_admin("Stops")?;
    caller.require("inbox_update")?;
    let stop_id = path.segment(2)?;
    let none = || Problem::not_found("Stop");
    let found = floor.store.read(move |tx| Box::pin(async move { stop::by_id(tx, &stop_id).await })).await;
    let found: Option<Stop> = found.map_err(|e: StoreError| Problem::from(e))?;
    let found = found.filter(|stop| reaches(&floor, caller.0.scope, &stop.scope)).ok_or_else(none)?;
    let actor = caller.0.actor();
    let lifted = floor.store.write(move |tx| {
        let (found, actor) = (found.clone(), actor.clone());
        Box::pin(async move { gate::lift(tx, &found, &actor).await })
    });
    let lifted: bool = lifted.await.map_err(|e: StoreError| Problem::from(e))?;
    if lifted { Ok(StatusCode::NO_CONTENT) } else { Err(none()) }
}
