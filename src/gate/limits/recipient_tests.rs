//! Strangers and single recipients: the gate's answers to whole sends against a plain list of what was released.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::clock::{DAY, HOUR};
use crate::floor::testing::{TestFloor, agent};
use crate::gate::{self, Decision, SendError, SendKind, SendRequest};
use crate::store::delivery;

/// Sends to some of six people after pauses; some are called back at once.
fn sends() -> impl Strategy<Value = Vec<(Millis, BTreeSet<usize>, bool)>> {
    let pause = prop_oneof![0i64..1_000, HOUR..5 * HOUR, DAY - 2..DAY + 2];
    let who = proptest::collection::btree_set(0usize..6, 1..4);
    proptest::collection::vec((pause, who, proptest::bool::weighted(0.2)), 1..25)
}

fn address(n: usize) -> String {
    format!("Person{n}@remote.example")
}

fn request(to: &BTreeSet<usize>) -> SendRequest {
    let to = to.iter().map(|n| address(*n)).collect();
    SendRequest {
        kind: SendKind::New,
        to,
        cc: vec![],
        bcc: vec![],
        reply_to: vec![],
        subject: Some("Hello".to_owned()),
        text: Some("t".to_owned()),
        html: None,
        attachments: vec![],
        headers: vec![],
        labels: vec![],
        work: None,
        context_version: None,
        run_id: None,
        priority: delivery::Priority::Ordinary,
        send_at: None,
        dry_run: false,
        idempotency: None,
        bulk: false,
        require_tls: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn strangers_and_each_recipient_are_counted_by_the_sliding_day(
        sends in sends(), strangers in 1i64..4, each in 1i64..4,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config =
                format!("[budgets]\nnew_recipients_per_day = {strangers}\nper_recipient_per_day = {each}");
            let test = TestFloor::with(&config).await;
            let ada = test.inbox("ada").await;
            let inbox = ada.key;
            // (when, to whom, who of them was new)
            let mut released: Vec<(Millis, BTreeSet<usize>, BTreeSet<usize>)> = Vec::new();
            for (pause, to, called_back) in sends {
                test.hand.advance(pause);
                let now = test.floor.clock.now();
                let known: BTreeSet<usize> = released.iter().flat_map(|(_, to, _)| to.clone()).collect();
                let new: BTreeSet<usize> = to.difference(&known).copied().collect();
                let fits = |at: Millis| {
                    let recent = || released.iter().filter(|(then, _, _)| *then > at - DAY);
                    let used = recent().map(|(_, _, new)| new.len()).sum::<usize>() + new.len();
                    let wrote = |who: &usize| recent().filter(|(_, to, _)| to.contains(who)).count() as i64;
                    let strangers_fit = new.is_empty() || used as i64 <= strangers;
                    (strangers_fit, to.iter().all(|who| wrote(who) < each))
                };
                let sent = gate::send(&test.floor, &agent(1, inbox), &ada, request(&to)).await;
                match sent {
                    Ok(_) if called_back => {
                        assert_eq!(fits(now), (true, true), "{released:?} then {to:?} at {now}");
                        call_back(&test, inbox).await;
                    }
                    Ok(_) => {
                        assert_eq!(fits(now), (true, true), "{released:?} then {to:?} at {now}");
                        released.push((now, to, new));
                    }
                    Err(SendError::Refused(Decision::Blocked { reasons })) => {
                        let of = |rule| reasons.iter().any(|r: &Reason| r.rule == rule);
                        let (strangers_fit, each_fits) = fits(now);
                        assert_eq!(of("limit_new_recipients_per_day"), !strangers_fit, "{reasons:?}");
                        assert_eq!(of("limit_per_recipient_per_day"), !each_fits, "{reasons:?}");
                        let by_rule = |at| <[bool; 2]>::from(fits(at));
                        for (n, rule) in ["limit_new_recipients_per_day", "limit_per_recipient_per_day"].iter().enumerate() {
                            let times = reasons.iter().filter(|r| r.rule == *rule).map(|r| r.retry_at);
                            let Some(retry_at) = times.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max())
                            else { continue };
                            assert!(by_rule(retry_at)[n], "{rule}: it fits at {retry_at}");
                            assert!(!by_rule(retry_at - 1)[n], "{rule}: and not before {retry_at}");
                        }
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
}

async fn call_back(test: &TestFloor, inbox: InboxKey) {
    let done: Result<(), StoreError> = test
        .floor
        .store
        .write(move |tx| {
            Box::pin(async move {
                let sql = "SELECT max(message_key) FROM delivery WHERE inbox_key = $1";
                let last: i64 = tx.row(sql, &[inbox.inbox.into()]).await?.unwrap().get(0)?;
                assert!(delivery::cancel(tx, inbox, last).await?.is_some());
                Ok(())
            })
        })
        .await;
    done.unwrap();
}

/// Turned on after a month: whom the inbox wrote to before is no stranger.
#[tokio::test]
async fn whoever_was_written_to_before_the_limit_is_known() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    let who = agent(1, ada.key);
    gate::send(&test.floor, &who, &ada, request(&BTreeSet::from([1]))).await.unwrap();
    test.hand.advance(30 * DAY);
    let key = ada.key;
    let set: Result<(), StoreError> = test
        .floor
        .store
        .write(move |tx| {
            Box::pin(async move {
                let mut inbox = crate::store::inbox::lock(tx, key).await?.unwrap();
                inbox.limits.new_recipients_per_day = Some(0);
                crate::store::inbox::update(tx, &inbox).await
            })
        })
        .await;
    set.unwrap();
    gate::send(&test.floor, &who, &ada, request(&BTreeSet::from([1]))).await.unwrap();
    let refused = gate::send(&test.floor, &who, &ada, request(&BTreeSet::from([1, 2]))).await.unwrap_err();
    let SendError::Refused(decision) = refused else { panic!("{refused}") };
    let [reason] = decision.reasons() else { panic!("{decision:?}") };
    assert_eq!((reason.rule, reason.retry_at), ("limit_new_recipients_per_day", None));
    assert!(reason.evidence.contains(&"person2@remote.example".to_owned()), "{reason:?}");
}

/// Without these limits a release asks nothing more, and leaves nothing behind.
#[tokio::test]
async fn nothing_is_noted_while_nothing_is_limited() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    gate::send(&test.floor, &agent(1, ada.key), &ada, request(&BTreeSet::from([1, 2]))).await.unwrap();
    let noted: Result<Vec<_>, StoreError> = test
        .floor
        .store
        .read(|tx| Box::pin(async move { tx.rows("SELECT at FROM new_recipient", &[]).await }))
        .await;
    assert!(noted.unwrap().is_empty());
}
