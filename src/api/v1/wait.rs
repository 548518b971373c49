//! Waiting for one message: for an agent that signed up somewhere and needs the mail that follows.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::work::wait_seconds;
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::api::v0::view::MessageView;
use crate::api::v0::{filter, load};
use crate::clock::MINUTE;
use crate::events::{self, MessageFilter};
use crate::floor::Floor;
use crate::screen::kind::Kind;
use crate::store::message::Message;
use crate::store::work_item::{self, ItemState};
use crate::store::{StoreError, inbox};
use crate::work;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(wait))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct WaitResponse {
    /// `null` when nothing came.
    message: Option<MessageView>,
}

/// The newest message that fits and has arrived since `since`, or else the first that comes.
#[utoipa::path(
    get, path = "/v1/inboxes/{inbox_id}/messages/wait", tag = "messages",
    params(
        ("inbox_id" = String, Path),
        ("from" = Option<String>, Query, description = "An exact address, or a domain"),
        ("subject_contains" = Option<String>, Query),
        ("kind" = Option<Vec<String>>, Query, description = "One of them: person, auto_reply, bounce, list, calendar, notification, report"),
        ("has_code" = Option<bool>, Query, description = "Only with, or only without, a verification code or link in `codes`"),
        ("verified" = Option<bool>, Query, description = "Only with, or only without, a verified sender"),
        ("since" = Option<String>, Query, description = "Five minutes ago unless given"),
        ("wait_seconds" = Option<i64>, Query, description = "0 to 50"),
        ("complete" = Option<bool>, Query, description = "Also finishes the message's work item, unless somebody holds it")
    ),
    responses((status = 200, body = WaitResponse), (status = 404, body = ErrorShape))
)]
async fn wait(
    State(app): State<App>,
    caller: Caller,
    path: RawPath,
    mut query: Query,
) -> Answer<Json<WaitResponse>> {
    caller.require("message_read")?;
    let inbox = caller.inbox(&app.floor, &path.segment(2)?).await?;
    let wanted = MessageFilter {
        from: query.text("from"),
        subject_contains: query.text("subject_contains"),
        kinds: query.words("kind", &Kind::WORDS),
        has_code: query.boolean("has_code"),
        verified: query.boolean("verified"),
    };
    let since = query.instant("since").unwrap_or_else(|| app.floor.clock.now() - 5 * MINUTE);
    let wait = wait_seconds(query.integer("wait_seconds"))?;
    let complete = query.flag("complete");
    query.finish()?;
    let found = tokio::select! {
        () = app.stopping.cancelled() => None,
        found = events::wait_for_message(&app.floor, inbox.key, wanted, since, wait) => found?,
    };
    let found = found.filter(|message| filter::may_read(&caller.0.permissions, &message.labels));
    let Some(found) = found else { return Ok(Json(WaitResponse { message: None })) };
    if complete {
        finish(&app.floor, &found).await?;
    }
    let message = load::single(&app.floor, &inbox.address, found).await?;
    Ok(Json(WaitResponse { message }))
}

/// Finishes the work item that the message raised, if nobody holds it: its holder would be surprised.
async fn finish(floor: &Arc<Floor>, message: &Message) -> Answer<()> {
    let (key, thread_key, message_key) = (message.inbox, message.thread_key, message.message_key);
    let finished = floor.store.write(move |tx| {
        Box::pin(async move {
            if inbox::lock(tx, key).await?.is_none() {
                return Ok(());
            }
            if let Some(mut item) = work_item::latest_of_thread(tx, key, thread_key).await?
                && item.state == ItemState::Available
            {
                item.seen_message = Some(message_key);
                work::finish(tx, &mut item, "waited_for").await?;
                work::record(tx, &mut item).await?;
            }
            Ok(())
        })
    });
    finished.await.map_err(|e: StoreError| Problem::from(e))
}
