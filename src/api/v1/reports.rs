//! DMARC and TLS reports that others sent about our domains, and those that we send about theirs: seen by the
//! organization's keys.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::address::normalize_domain;
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging::{self, Listing};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::clock::{DAY, rfc3339};
use crate::floor::Floor;
use crate::ids::{Prefix, RowId};
use crate::reports::ReportKind;
use crate::store::StoreError;
use crate::store::report::{self, StoredReport};
use crate::store::report_out::{self, SentReport};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(sent)).routes(routes!(get))
}

#[derive(Serialize, ToSchema)]
#[schema(as = Report)]
pub(crate) struct ReportView {
    report_id: String,
    /// `dmarc` or `tls`
    kind: String,
    /// Who reports, by its own word.
    org: String,
    /// The reporter's name for the report.
    org_report_id: String,
    /// The domains of ours that it is about.
    domains: Vec<String>,
    /// The sender of the mail that it came by, where DMARC passed for it; a report without one may be forged.
    verified_sender: Option<String>,
    begins_at: String,
    ends_at: String,
    /// Messages (DMARC) or sessions (TLS).
    total: i64,
    /// Of these, messages that neither SPF nor DKIM vouched for, or sessions that failed.
    failed: i64,
    /// The message that it came by.
    message_id: String,
    received_at: String,
    /// In one report: `policy` and `rows` (DMARC), or `policies` (TLS).
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Value>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListReportsResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    reports: Vec<ReportView>,
}

/// Reports, newest first.
#[utoipa::path(
    get, path = "/v1/reports", tag = "reports",
    params(
        ("kind" = Option<String>, Query, description = "`dmarc` or `tls`"),
        ("domain" = Option<String>, Query, description = "about this domain"),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = ListReportsResponse), (status = 403, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
) -> Answer<Json<ListReportsResponse>> {
    caller.require_organization("Reports can be seen and")?;
    caller.require("message_read")?;
    let page = Listing::Reports.page_one_way(&mut query)?;
    let kind = query.word("kind", &[("dmarc", ReportKind::Dmarc), ("tls", ReportKind::Tls)]);
    let domain = query.text("domain").filter(|domain| !domain.is_empty());
    query.finish()?;
    let not_a_domain = |_| Problem::field(&["query", "domain"], "is not a domain");
    let domain = domain.map(|domain| normalize_domain(&domain)).transpose().map_err(not_a_domain)?;
    let asked = page.clone();
    let found = floor
        .store
        .read(move |tx| Box::pin(async move { report::page(tx, kind, domain.as_deref(), &asked).await }));
    let mut found: Vec<StoredReport> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    let next_page_token = paging::cut(&page, Listing::Reports, &mut found, StoredReport::place);
    let reports: Vec<ReportView> = found.into_iter().map(|report| view(report, None)).collect();
    Ok(Json(ListReportsResponse { count: reports.len(), limit: page.limit, next_page_token, reports }))
}

/// One report, with its rows.
#[utoipa::path(
    get, path = "/v1/reports/{report_id}", tag = "reports", params(("report_id" = String, Path)),
    responses((status = 200, body = ReportView), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn get(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<Json<ReportView>> {
    caller.require_organization("Reports can be seen and")?;
    caller.require("message_read")?;
    let none = || Problem::not_found("Report");
    let id = RowId::parse(Prefix::Report, &path.tail(2)).ok_or_else(none)?;
    let found = floor.store.read(move |tx| Box::pin(report::by_key(tx, id.inbox, id.seq)));
    let found: Option<(StoredReport, String)> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    let (report, content) = found.filter(|(report, _)| report.received_at == id.at).ok_or_else(none)?;
    let content = serde_json::from_str(&content)
        .map_err(|e| Problem::from(StoreError::Damaged(format!("{}: {e}", report.id()))))?;
    Ok(Json(view(report, Some(content))))
}

#[derive(Serialize, ToSchema)]
#[schema(as = SentReport)]
pub(crate) struct SentReportView {
    /// `dmarc` or `tls`
    kind: String,
    /// The domain that it is about and for.
    domain: String,
    /// The UTC day that it covers.
    begins_at: String,
    ends_at: String,
    /// `due` (counted still, or tried again), `sent`, `unwanted` (nobody there wants it) or `failed`.
    state: String,
    /// When it is made, or tried again.
    due_at: String,
    attempts: i64,
    /// Messages (DMARC) or sessions (TLS) counted.
    total: i64,
    /// Of these, messages of too many kinds to have a row.
    left_out: i64,
    /// One for each destination, with what became of it: `to`, `state`, `message_id`, `why`.
    destinations: Value,
    updated_at: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListSentReportsResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    reports: Vec<SentReportView>,
}

/// Reports that this server sends, the newest day first.
#[utoipa::path(
    get, path = "/v1/reports/sent", tag = "reports",
    params(
        ("domain" = Option<String>, Query, description = "to this domain"),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = ListSentReportsResponse), (status = 403, body = ErrorShape))
)]
async fn sent(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
) -> Answer<Json<ListSentReportsResponse>> {
    caller.require_organization("Reports can be seen and")?;
    caller.require("message_read")?;
    let page = Listing::SentReports.page_one_way(&mut query)?;
    let domain = query.text("domain").filter(|domain| !domain.is_empty());
    query.finish()?;
    let not_a_domain = |_| Problem::field(&["query", "domain"], "is not a domain");
    let domain = domain.map(|domain| normalize_domain(&domain)).transpose().map_err(not_a_domain)?;
    let asked = page.clone();
    let found = floor
        .store
        .read(move |tx| Box::pin(async move { report_out::page(tx, domain.as_deref(), &asked).await }));
    let mut found: Vec<SentReport> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    let next_page_token = paging::cut(&page, Listing::SentReports, &mut found, SentReport::place);
    let reports: Vec<SentReportView> = found.into_iter().map(sent_view).collect();
    Ok(Json(ListSentReportsResponse { count: reports.len(), limit: page.limit, next_page_token, reports }))
}

fn sent_view(report: SentReport) -> SentReportView {
    SentReportView {
        kind: report.kind,
        domain: report.domain,
        begins_at: rfc3339(report.day * DAY),
        ends_at: rfc3339((report.day + 1) * DAY - 1000),
        state: report.state,
        due_at: rfc3339(report.due_at),
        attempts: report.attempts,
        total: report.total,
        left_out: report.left_out,
        destinations: serde_json::from_str(&report.detail).unwrap_or_default(),
        updated_at: rfc3339(report.updated_at),
    }
}

fn view(report: StoredReport, content: Option<Value>) -> ReportView {
    let message = RowId { at: report.received_at, inbox: report.inbox, seq: report.message_key };
    ReportView {
        report_id: report.id(),
        kind: report.kind,
        org: report.org,
        org_report_id: report.report_id,
        domains: report.domains,
        verified_sender: report.verified_sender,
        begins_at: rfc3339(report.begins_at),
        ends_at: rfc3339(report.ends_at),
        total: report.total,
        failed: report.failed,
        message_id: message.text(Prefix::Message),
        received_at: rfc3339(report.received_at),
        content,
    }
}
