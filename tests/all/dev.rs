//! `gatepost dev` as a place to try failures. (The conversation that it prints is run in `house.rs`.)

use serde_json::json;

use crate::{
    house::Dev,
    world::{api::Api, eventually},
};

/// Mail to the simulators fares as their names say, and the agent hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulators_bounce_and_defer() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());
    let key = std::fs::read_to_string(folder.path().join("data/admin.key")).expect("admin.key");
    let api = Api::new(format_args!("http://{}", dev.http()), key.trim());
    let inbox = api.get("/v0/inboxes").await.ok()["inboxes"][0]["inbox_id"].as_str().unwrap().to_owned();
    let send = format!("/v0/inboxes/{inbox}/messages/send");
    let bounced = json!({"to": "bounce@simulator.test", "subject": "To nobody", "text": "t"});
    let bounced = api.post(&send, bounced).await.ok();
    let event = eventually("the bounce is an event", async || {
        let events = api.get("/v1/events?event_types=message.bounced").await.ok();
        events["events"].as_array().and_then(|all| all.first().cloned())
    })
    .await;
    assert_eq!(event["bounce"]["message_id"], bounced["message_id"], "{event}");
    assert_eq!(event["bounce"]["recipients"][0]["address"], "bounce@simulator.test", "{event}");
    // An address that does not exist is not written to again.
    let again = json!({"to": "bounce@simulator.test", "subject": "Again", "text": "t"});
    api.post(&send, again).await.refused(403, "message_rejected");
    let deferred = json!({"to": "defer@simulator.test", "subject": "Later", "text": "t"});
    api.post(&send, deferred).await.ok();
    eventually("the deferral is an event for those who name it", async || {
        let events = api.get("/v1/events?event_types=delivery.deferred").await.ok();
        (events["count"].as_u64() > Some(0)).then_some(())
    })
    .await;
}
