//! `/v1`: what Gatepost adds: work items, limits and budgets, receive policy, held mail, events, waiting for mail,
//! suppressions, reports.

mod budgets;
mod claim;
mod dev;
mod domains;
mod events;
mod held;
mod hold_rules;
mod limits;
mod policy;
mod queue;
mod reports;
mod stops;
mod suppressions;
mod wait;
mod work;

use utoipa_axum::router::OpenApiRouter;

use super::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(work::routes())
        .merge(claim::routes())
        .merge(limits::routes())
        .merge(policy::routes())
        .merge(held::routes())
        .merge(events::routes())
        .merge(wait::routes())
        .merge(suppressions::routes())
        .merge(reports::routes())
        .merge(hold_rules::routes())
        .merge(queue::routes())
        .merge(stops::routes())
        .merge(budgets::routes())
        .merge(dev::routes())
        .merge(domains::routes())
}
