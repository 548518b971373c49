//! Budgets that inboxes share: seen by those who send under them, set by the organization's keys. How much of a budget
//! that is wider than the key's scope is used, and how many wait for it, is not shown: it is others' business.

use std::sync::Arc;
use std::sync::atomic::Ordering;

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
use crate::api::v0::inboxes::given;
use crate::clock::rfc3339;
use crate::floor::Floor;
use crate::gate::{self, BudgetChange, BudgetStatus};
use crate::ids::pod_id;
use crate::principal::Scope;
use crate::store::StoreError;
use crate::store::budget::{self, BudgetScope};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(set, reset))
}

/// More than this is no budget; `null` says so.
const HIGHEST: i64 = 1_000_000_000;

#[derive(Serialize, ToSchema)]
#[schema(as = Budget)]
pub(crate) struct BudgetView {
    /// `domain` (of the sender), `pod` or `inbox`
    scope: String,
    /// The domain, the pod's id or the inbox's address.
    id: String,
    /// Recipients elsewhere in any 24 hours, beside the warm-up; `null`: no budget.
    per_day: Option<i64>,
    /// What holds now.
    cap: Option<i64>,
    /// Part of `cap` that is kept for what a person approved.
    reserved: i64,
    /// Of the 24 hours that end now; absent, as `room` and `waiting` are, where the budget is wider than the key's scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<i64>,
    /// How many more may leave now, approved ones aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<i64>,
    /// When there is room again; absent while there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    opens_at: Option<String>,
    /// While it is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    warm_up: Option<WarmUpView>,
    /// Deliveries that wait for room, up to 10,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<i64>,
    /// `operator` or `configuration`
    set_by: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = WarmUp)]
pub(crate) struct WarmUpView {
    /// Since the domain was added here or the inbox made, counted from 1.
    day: i64,
    last_day: i64,
    cap: i64,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListBudgetsResponse {
    count: usize,
    budgets: Vec<BudgetView>,
}

/// What is absent stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BudgetBody {
    /// `null`: no budget, whatever is configured. A domain's or a pod's.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>)]
    per_day: Option<Option<i64>>,
    /// `false`: it is known elsewhere, and the configured warm-up does not hold. A domain's or an inbox's.
    #[serde(default)]
    warm_up: Option<bool>,
}

/// A budget by its name.
#[derive(Debug, Clone)]
struct Named {
    scope: BudgetScope,
    id: String,
    /// Nobody beside those whom the key sees sends under it.
    own: bool,
}

impl Named {
    fn pod(pod: i64, own: bool) -> Named {
        Named { scope: BudgetScope::Pod(pod), id: pod_id(pod), own }
    }

    fn word(&self) -> &'static str {
        match self.scope {
            BudgetScope::Inbox(_) => "inbox",
            BudgetScope::Pod(_) => "pod",
            BudgetScope::Domain(_) => "domain",
        }
    }
}

fn view(named: &Named, status: BudgetStatus) -> BudgetView {
    let room = status.cap.map(|cap| (cap - status.reserved - status.used).max(0));
    BudgetView {
        scope: named.word().to_owned(),
        id: named.id.clone(),
        per_day: status.per_day,
        cap: status.cap,
        reserved: status.reserved,
        used: named.own.then_some(status.used),
        room: room.filter(|_| named.own),
        opens_at: status.opens_at.map(rfc3339),
        warm_up: status.warmup.map(|w| WarmUpView { day: w.day, last_day: w.last_day, cap: w.cap }),
        waiting: named.own.then_some(status.waiting),
        set_by: if status.is_set { "operator" } else { "configuration" }.to_owned(),
    }
}

/// The budgets that hold for what this key sees, those of domains first; with `inbox_id`, those of that inbox.
#[utoipa::path(
    get, path = "/v1/budgets", tag = "budgets", params(("inbox_id" = Option<String>, Query)),
    responses((status = 200, body = ListBudgetsResponse), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
) -> Answer<Json<ListBudgetsResponse>> {
    let inbox_id = query.text("inbox_id");
    query.finish()?;
    caller.require("inbox_read")?;
    let inbox = match (inbox_id, caller.own_inbox()) {
        (Some(id), _) => Some(caller.inbox(&floor, &id).await?),
        (None, Some(key)) => caller.inbox_by_key(&floor, key).await?,
        (None, None) => None,
    };
    let mut asked = Vec::new();
    if let Some(inbox) = inbox {
        asked.push(domain_of(&floor, caller.0.scope, &inbox.domain));
        asked.push(Named::pod(inbox.key.pod, caller.own_inbox().is_none()));
        asked.push(Named { scope: BudgetScope::Inbox(inbox.key), id: inbox.address, own: true });
    } else {
        let pod = match caller.0.scope {
            Scope::Organization => None,
            _ => Some(caller.own_pod()),
        };
        let domains = floor.domains.all();
        let domains = domains.iter().filter(|ours| pod.is_none_or(|pod| ours.serves(pod)));
        asked.extend(domains.map(|ours| domain_of(&floor, caller.0.scope, &ours.name)));
        let pods = match pod {
            Some(pod) => vec![pod],
            None => {
                let pods = floor.store.read(|tx| Box::pin(budget::pods(tx))).await;
                pods.map_err(|e: StoreError| Problem::from(e))?
            }
        };
        asked.extend(pods.into_iter().map(|pod| Named::pod(pod, true)));
    }
    let config = floor.config.clone();
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let mut views = Vec::new();
            for named in &asked {
                let status = gate::budget_status(tx, &config.budgets, &named.scope).await?;
                if status.cap.is_some() || status.is_set {
                    views.push(view(named, status));
                }
            }
            Ok::<_, StoreError>(views)
        })
    });
    let budgets = found.await?;
    Ok(Json(ListBudgetsResponse { count: budgets.len(), budgets }))
}

/// The budget that addresses at this domain fall under: of the domain of ours that it is, or is below.
fn domain_of(floor: &Floor, scope: Scope, name: &str) -> Named {
    let ours = floor.domains.find(name);
    let own = match scope {
        Scope::Organization => true,
        Scope::Pod(pod) => ours.as_ref().is_some_and(|ours| ours.pod == Some(pod)),
        Scope::Inbox(_) => false,
    };
    let id = ours.map_or_else(|| name.to_owned(), |ours| ours.name.clone());
    Named { scope: BudgetScope::Domain(id.clone()), id, own }
}

async fn named(floor: &Floor, caller: &Caller, word: &str, id: &str) -> Answer<Named> {
    match word {
        "domain" => {
            let none = || Problem::not_found("Domain");
            let name = normalize_domain(id).map_err(|_| none())?;
            floor.domains.find(&name).filter(|ours| ours.name == name).ok_or_else(none)?;
            Ok(domain_of(floor, caller.0.scope, &name))
        }
        "pod" => Ok(Named::pod(caller.pod(floor, id).await?.pod_key, true)),
        "inbox" => {
            let inbox = caller.inbox(floor, id).await?;
            Ok(Named { scope: BudgetScope::Inbox(inbox.key), id: inbox.address, own: true })
        }
        _ => Err(Problem::not_found("Budget").fix("The scope is domain, pod or inbox.")),
    }
}

/// Sets a budget beside the configuration. Mail that waits for it goes on as far as there is room now.
#[utoipa::path(
    put, path = "/v1/budgets/{scope}/{id}", tag = "budgets", request_body = BudgetBody,
    params(("scope" = String, Path, description = "`domain`, `pod` or `inbox`"), ("id" = String, Path)),
    responses((status = 200, body = BudgetView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn set(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<BudgetBody>,
) -> Answer<Json<BudgetView>> {
    let named = may_change(&floor, &caller, &path).await?;
    if body.per_day.flatten().is_some_and(|n| !(1..=HIGHEST).contains(&n)) {
        let words =
            format!("takes a number from 1 to {HIGHEST}, or null for no budget; POST /v1/stops stops all");
        return Err(Problem::field(&["per_day"], words));
    }
    match named.scope {
        BudgetScope::Inbox(_) if body.per_day.is_some() => {
            let words = "cannot be set for an inbox: it has limits, PUT /v1/inboxes/{inbox_id}/limits";
            return Err(Problem::field(&["per_day"], words));
        }
        BudgetScope::Pod(_) if body.warm_up.is_some() => {
            return Err(Problem::field(
                &["warm_up"],
                "cannot be set for a pod: a warm-up is a domain's or an inbox's",
            ));
        }
        _ => {}
    }
    let change = BudgetChange::Set { per_day: body.per_day, warmup: body.warm_up };
    Ok(Json(change_to(&floor, &caller, named, change).await?))
}

/// Back to what is configured.
#[utoipa::path(
    delete, path = "/v1/budgets/{scope}/{id}", tag = "budgets",
    params(("scope" = String, Path), ("id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn reset(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<StatusCode> {
    query.finish()?;
    let named = may_change(&floor, &caller, &path).await?;
    change_to(&floor, &caller, named, BudgetChange::Reset).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn may_change(floor: &Floor, caller: &Caller, path: &RawPath) -> Answer<Named> {
    caller.require_organization("Budgets")?;
    caller.require("inbox_update")?;
    named(floor, caller, &path.segment(2)?, &path.segment(3)?).await
}

async fn change_to(floor: &Floor, caller: &Caller, named: Named, change: BudgetChange) -> Answer<BudgetView> {
    let (config, actor) = (floor.config.clone(), caller.0.actor());
    let changed = floor.store.write(move |tx| {
        let (config, actor, named) = (config.clone(), actor.clone(), named.clone());
        Box::pin(async move {
            let object = format!("{}:{}", named.word(), named.id);
            gate::set_budget(tx, &named.scope, change, (&actor, &object)).await?;
            let status = gate::budget_status(tx, &config.budgets, &named.scope).await?;
            Ok::<_, StoreError>(view(&named, status))
        })
    });
    let changed = changed.await?;
    // Other nodes hear of the first one within seconds (`gate::watch`).
    floor.budgets_set.store(true, Ordering::Relaxed);
    Ok(changed)
}
