//! `/v0`: AgentMail's wire format (reference: agentmail-api.md). Field names and shapes are theirs; fields that
//! are ours stand beside them.

mod attachments;
pub(super) mod domains;
pub(super) mod filter;
mod identity;
pub(super) mod inboxes;
mod keys;
mod lists;
pub(super) mod load;
mod messages;
mod pods;
mod send;
mod threads;
pub(super) mod view;

use utoipa_axum::router::OpenApiRouter;

use super::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(identity::routes())
        .merge(inboxes::routes())
        .merge(messages::routes())
        .merge(attachments::routes())
        .merge(threads::routes())
        .merge(keys::routes())
        .merge(lists::routes())
        .merge(pods::routes())
        .merge(domains::routes())
}
