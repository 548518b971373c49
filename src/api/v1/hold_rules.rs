//! Hold rules: everything from an inbox, to a domain, or from one to the other stays in the queue until the rule is
//! removed. They belong to the organization's keys.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::address::Address;
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::clock::rfc3339;
use crate::config::limits::MAX_JSON_BODY;
use crate::floor::Floor;
use crate::principal::Scope;
use crate::store::hold_rule::{self, HoldRule};
use crate::store::{StoreError, audit, inbox};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(rules)).routes(routes!(add_rule)).routes(routes!(remove_rule))
}

/// A rule that holds what leaves.
#[derive(Serialize, ToSchema)]
#[schema(as = HoldRule)]
pub(crate) struct RuleView {
    rule_id: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    inbox_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    created_by: String,
    created_at: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListRulesResponse {
    count: usize,
    rules: Vec<RuleView>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = NewHoldRule)]
pub(crate) struct NewRule {
    /// From this inbox; from everybody unless given.
    inbox_id: Option<String>,
    /// To this domain; to everywhere unless given.
    domain: Option<String>,
    reason: Option<String>,
}

fn organization(caller: &Caller) -> Answer<()> {
    if caller.0.scope == Scope::Organization {
        return Ok(());
    }
    Err(Problem::forbidden("forbidden", "Hold rules belong to organization keys.")
        .fix("Ask the operator, or use an organization's key."))
}

async fn rule_view(floor: &Floor, rule: HoldRule) -> Answer<RuleView> {
    let inbox_id = match rule.inbox {
        Some(key) => {
            let found = floor.store.read(move |tx| Box::pin(inbox::by_key(tx, key))).await;
            found.map_err(|e: StoreError| Problem::from(e))?.map(|inbox| inbox.address)
        }
        None => None,
    };
    Ok(RuleView {
        rule_id: rule.rule_key,
        inbox_id,
        domain: rule.domain,
        reason: rule.reason,
        created_by: rule.actor,
        created_at: rfc3339(rule.created_at),
    })
}

/// Every hold rule.
#[utoipa::path(
    get, path = "/v1/queue/rules", tag = "queue",
    responses((status = 200, body = ListRulesResponse), (status = 403, body = ErrorShape))
)]
async fn rules(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    query: Query,
) -> Answer<Json<ListRulesResponse>> {
    query.finish()?;
    organization(&caller)?;
    let found: Result<Vec<HoldRule>, StoreError> = floor.store.read(|tx| Box::pin(hold_rule::all(tx))).await;
    let mut rules = Vec::new();
    for rule in found? {
        rules.push(rule_view(&floor, rule).await?);
    }
    Ok(Json(ListRulesResponse { count: rules.len(), rules }))
}

/// Holds everything from an inbox, to a domain, or both, from now on; what is under way finishes.
#[utoipa::path(
    post, path = "/v1/queue/rules", tag = "queue", request_body = NewRule,
    responses((status = 200, body = RuleView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn add_rule(State(app): State<App>, caller: Caller, request: Request) -> Answer<Json<RuleView>> {
    organization(&caller)?;
    caller.require("message_update")?;
    let upload = body::read(&app, request, MAX_JSON_BODY).await?;
    let asked: NewRule = body::parse(&upload.bytes)?;
    if asked.inbox_id.is_none() && asked.domain.is_none() {
        return Err(Problem::field(&["domain"], "is needed, or inbox_id: a rule for everything is a stop"));
    }
    let domain = match &asked.domain {
        Some(domain) => {
            let probe = format!("x@{}", domain.trim()).parse::<Address>();
            let probe = probe.map_err(|e| Problem::field(&["domain"], e.to_string()))?;
            Some(probe.domain().to_owned())
        }
        None => None,
    };
    if asked.reason.as_deref().is_some_and(|text| text.len() > 1_000 || text.contains('\0')) {
        return Err(Problem::field(&["reason"], "takes at most 1,000 octets"));
    }
    let inbox = match &asked.inbox_id {
        Some(id) => Some(caller.inbox(&app.floor, id).await?.key),
        None => None,
    };
    let (actor, reason) = (caller.0.actor(), asked.reason);
    let added = app.floor.store.write(move |tx| {
        let (actor, reason, domain) = (actor.clone(), reason.clone(), domain.clone());
        Box::pin(async move {
            let rule = hold_rule::add(tx, inbox, domain.as_deref(), reason.as_deref(), &actor).await?;
            if let Some(rule) = &rule {
                let entry = audit::Entry {
                    actor: &actor,
                    run_id: None,
                    action: "hold_rule.added",
                    inbox,
                    object: &rule.name(),
                    detail: serde_json::json!({ "domain": domain }).to_string(),
                };
                audit::record(tx, entry).await?;
            }
            Ok::<_, StoreError>(rule)
        })
    });
    let rule = added.await?.ok_or_else(|| {
        Problem::forbidden("too_many_rules", format!("There are {} hold rules already.", hold_rule::MOST))
            .fix("Remove one: DELETE /v1/queue/rules/{rule_id}.")
    })?;
    Ok(Json(rule_view(&app.floor, rule).await?))
}

/// Removes a rule and lets go of what it held.
#[utoipa::path(
    delete, path = "/v1/queue/rules/{rule_id}", tag = "queue",
    params(("rule_id" = i64, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn remove_rule(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<StatusCode> {
    query.finish()?;
    organization(&caller)?;
    caller.require("message_update")?;
    let missing = || Problem::not_found("Rule").fix("GET /v1/queue/rules lists them.");
    let key: i64 = path.segment(3)?.parse().map_err(|_| missing())?;
    let actor = caller.0.actor();
    let removed = floor.store.write(move |tx| {
        let actor = actor.clone();
        Box::pin(async move {
            if !hold_rule::remove(tx, key).await? {
                return Ok(false);
            }
            let entry = audit::Entry {
                actor: &actor,
                run_id: None,
                action: "hold_rule.removed",
                inbox: None,
                object: &format!("rule:{key}"),
                detail: "{}".to_owned(),
            };
            audit::record(tx, entry).await?;
            // The first rows at once; the queue lets go of the rest.
            hold_rule::let_go(tx).await?;
            Ok::<_, StoreError>(true)
        })
    });
    if removed.await? { Ok(StatusCode::NO_CONTENT) } else { Err(missing()) }
}
