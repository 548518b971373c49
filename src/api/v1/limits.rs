//! How much an inbox may send: read by those who see it, set by the organization's keys alone.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, FieldError, Problem};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::api::v0::inboxes::given;
use crate::config::Budgets;
use crate::floor::Floor;
use crate::gate;
use crate::ids::InboxKey;
use crate::store::inbox::{self, Inbox, NO_LIMIT};
use crate::store::{StoreError, Tx, audit};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get, put))
}

/// More than this is no limit; `null` says so.
const HIGHEST: i64 = 1_000_000_000;

/// Recipients that may be released in any window of that length.
#[derive(Serialize, ToSchema)]
pub(crate) struct LimitsResponse {
    inbox_id: String,
    /// `null`: no limit.
    per_minute: Option<i64>,
    per_hour: Option<i64>,
    per_day: Option<i64>,
    /// Addresses that the inbox neither wrote to nor had verified mail from.
    new_recipients_per_day: Option<i64>,
    /// Messages to one address.
    per_recipient_per_day: Option<i64>,
    used: Used,
}

/// Recipients released in the windows that end now.
#[derive(Serialize, ToSchema)]
struct Used {
    last_minute: i64,
    last_hour: i64,
    last_day: i64,
    /// While they are limited.
    new_recipients_last_day: i64,
}

/// What is absent stays as it is; `null` means no limit.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitsBody {
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>)]
    per_minute: Option<Option<i64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>)]
    per_hour: Option<Option<i64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>)]
    per_day: Option<Option<i64>>,
    /// `null`: no limit, whatever is configured.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>)]
    new_recipients_per_day: Option<Option<i64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>)]
    per_recipient_per_day: Option<Option<i64>>,
}

/// The limits of an inbox, and what is used of them.
#[utoipa::path(
    get, path = "/v1/inboxes/{inbox_id}/limits", tag = "limits", params(("inbox_id" = String, Path)),
    responses((status = 200, body = LimitsResponse), (status = 404, body = ErrorShape))
)]
async fn get(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<LimitsResponse>> {
    query.finish()?;
    caller.require("inbox_read")?;
    let key = caller.inbox(&floor, &path.segment(2)?).await?.key;
    let config = floor.config.clone();
    let shown = floor.store.read(move |tx| Box::pin(async move { show(tx, key, &config.budgets).await }));
    shown.await?.map(Json).ok_or_else(|| Problem::not_found("Inbox"))
}

async fn show(tx: &mut Tx, key: InboxKey, budgets: &Budgets) -> Result<Option<LimitsResponse>, StoreError> {
    let Some(inbox) = inbox::by_key(tx, key).await? else { return Ok(None) };
    let usage = gate::usage(tx, key).await?;
    let limits = gate::limits_of(&inbox, budgets);
    Ok(Some(LimitsResponse {
        inbox_id: inbox.address,
        per_minute: limits.per_minute,
        per_hour: limits.per_hour,
        per_day: limits.per_day,
        new_recipients_per_day: limits.new_recipients_per_day,
        per_recipient_per_day: limits.per_recipient_per_day,
        used: Used {
            last_minute: usage.last_minute,
            last_hour: usage.last_hour,
            last_day: usage.last_day,
            new_recipients_last_day: usage.new_recipients_last_day,
        },
    }))
}

/// Sets the limits of an inbox.
#[utoipa::path(
    put, path = "/v1/inboxes/{inbox_id}/limits", tag = "limits", params(("inbox_id" = String, Path)),
    request_body = LimitsBody,
    responses((status = 200, body = LimitsResponse), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn put(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<LimitsBody>,
) -> Answer<Json<LimitsResponse>> {
    let key = caller.inbox(&floor, &path.segment(2)?).await?.key;
    caller.require_admin("Limits")?;
    caller.require("inbox_update")?;
    let asked = [
        ("per_minute", body.per_minute),
        ("per_hour", body.per_hour),
        ("per_day", body.per_day),
        ("new_recipients_per_day", body.new_recipients_per_day),
        ("per_recipient_per_day", body.per_recipient_per_day),
    ];
    let wrong = |n: &i64| !(0..=HIGHEST).contains(n);
    let errors: Vec<FieldError> = asked
        .iter()
        .filter(|(_, limit)| limit.flatten().as_ref().is_some_and(wrong))
        .map(|(field, _)| {
            FieldError::new(&[field], format!("takes a number from 0 to {HIGHEST}, or null for no limit"))
        })
        .collect();
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    let actor = caller.0.actor();
    let config = floor.config.clone();
    let set = floor.store.write(move |tx| {
        let (actor, config) = (actor.clone(), config.clone());
        Box::pin(async move {
            let Some(mut inbox) = inbox::lock(tx, key).await? else { return Ok(None) };
            let [(_, minute), (_, hour), (_, day), (_, strangers), (_, recipient)] = asked;
            let no_limit = |asked: Option<Option<i64>>| asked.map(|limit| limit.unwrap_or(NO_LIMIT));
            inbox.limits.per_minute = minute.unwrap_or(inbox.limits.per_minute);
            inbox.limits.per_hour = hour.unwrap_or(inbox.limits.per_hour);
            inbox.limits.per_day = day.unwrap_or(inbox.limits.per_day);
            inbox.limits.new_recipients_per_day = no_limit(strangers).or(inbox.limits.new_recipients_per_day);
            inbox.limits.per_recipient_per_day = no_limit(recipient).or(inbox.limits.per_recipient_per_day);
            inbox::update(tx, &inbox).await?;
            note(tx, &actor, &inbox, &config.budgets).await?;
            show(tx, key, &config.budgets).await
        })
    });
    set.await.map_err(|e: StoreError| Problem::from(e))?.map(Json).ok_or_else(|| Problem::not_found("Inbox"))
}

async fn note(tx: &mut Tx, actor: &str, inbox: &Inbox, budgets: &Budgets) -> Result<(), StoreError> {
    let limits = gate::limits_of(inbox, budgets);
    let detail = serde_json::json!({
        "per_minute": limits.per_minute, "per_hour": limits.per_hour, "per_day": limits.per_day,
        "new_recipients_per_day": limits.new_recipients_per_day,
        "per_recipient_per_day": limits.per_recipient_per_day,
    });
    let action = "inbox.limits_changed";
    let object = &inbox.address;
    audit::record(
        tx,
        audit::Entry {
            actor,
            run_id: None,
            action,
            inbox: Some(inbox.key),
            object,
            detail: detail.to_string(),
        },
    )
    .await
}
