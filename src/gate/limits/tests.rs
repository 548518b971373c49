//! The sliding window against a plain count of everything that was released.

use proptest::prelude::*;

use super::*;
use crate::floor::testing::TestFloor;

/// Sends of `recipients` after pauses, as (pause in ms, recipients).
fn sends() -> impl Strategy<Value = Vec<(i64, i64)>> {
    let pause = prop_oneof![0i64..50, 1_000i64..30_000, 50_000i64..70_000, 3_000_000i64..4_000_000];
    proptest::collection::vec((pause, 1i64..4), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_window_ever_holds_more_than_the_limit(sends in sends(), per_minute in 1i64..8, per_hour in 5i64..20) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let test = TestFloor::new().await;
            let inbox = test.inbox("ada").await.key;
            let limits = Limits { per_minute: Some(per_minute), per_hour: Some(per_hour), per_day: None, ..Limits::default() };
            let mut released: Vec<(i64, i64)> = Vec::new();
            for (n, (pause, recipients)) in sends.into_iter().enumerate() {
                test.hand.advance(pause);
                let now = test.floor.clock.now();
                let used = |window: i64| released.iter().filter(|(at, _)| *at > now - window).map(|(_, r)| r).sum::<i64>();
                let fits = used(MINUTE) + recipients <= per_minute && used(HOUR) + recipients <= per_hour;
                let outcome: Result<_, StoreError> = test.floor.store.write(move |tx| Box::pin(async move {
                    let (reservation, reasons) = reserve(tx, inbox, limits, recipients).await?;
                    if reasons.is_empty() {
                        let Reservation { at, recipients, total, .. } = reservation;
                        release::add(tx, inbox, n as i64, at, recipients, total).await?;
                    }
                    Ok(reasons)
                })).await;
                let reasons = outcome.unwrap();
                assert_eq!(reasons.is_empty(), fits, "{released:?} at {now}: {recipients} more");
                if fits {
                    released.push((now, recipients));
                }
                // The moment that a refusal names is the first at which the same send fits that rule.
                for reason in reasons {
                    let Some(retry_at) = reason.retry_at else { continue };
                    let (window, limit) = if reason.rule == "limit_per_minute" { (MINUTE, per_minute) } else { (HOUR, per_hour) };
                    let used_at = |t: i64| released.iter().filter(|(at, _)| *at > t - window).map(|(_, r)| r).sum::<i64>();
                    assert!(used_at(retry_at) + recipients <= limit, "room at {retry_at}");
                    assert!(used_at(retry_at - 2) + recipients > limit, "none before {retry_at}");
                }
            }
        });
    }
}
