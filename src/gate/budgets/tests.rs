//! Shared budgets against a plain list of everything that left, by a clock that is moved by hand.

use proptest::prelude::*;

use super::*;
use crate::clock::{Clock, HOUR, SECOND};
use crate::floor::testing::TestFloor;
use crate::gate;
use crate::store::Store;
use crate::store::delivery::{NewDelivery, Settled, TlsDemand, Turn};
use crate::store::{domain, inbox};

const NODE: &str = "node-1";
const DOMAIN: &str = "domain:agents.example";

/// One thing that happens to the queue.
#[derive(Debug, Clone)]
enum Step {
    /// An inbox releases so many.
    Release(usize, i64, Priority),
    Wait(Millis),
    /// The queue takes up to so many; of what it may try, it gives some back untried.
    Claim(i64, usize),
    /// What waits is asked about.
    LetGo,
    /// The process is killed and started again.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let priority = prop_oneof![Just(Priority::Bulk), Just(Priority::Ordinary), Just(Priority::Approved)];
    let wait = prop_oneof![1i64..2_000, HOUR..3 * HOUR, DAY - 1_001..DAY + 1_001, 20 * HOUR..26 * HOUR];
    let step = prop_oneof![
        3 => (0usize..2, 1i64..8, priority).prop_map(|(who, n, priority)| Step::Release(who, n, priority)),
        3 => wait.prop_map(Step::Wait),
        4 => (1i64..12, 0usize..3).prop_map(|(limit, back)| Step::Claim(limit, back)),
        1 => Just(Step::LetGo),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

/// The queue of two inboxes, and what left it.
struct World {
    test: TestFloor,
    /// Of the process that runs.
    store: Store,
    inboxes: [InboxKey; 2],
    /// The budget that rows wait for.
    waits_for: &'static str,
    released: usize,
    /// (when, row) of each first attempt
    left: Vec<(Millis, (i64, i64))>,
}

impl World {
    async fn new(config: &str) -> World {
        let test = TestFloor::with(config).await;
        let synced = test.floor.store.write(|tx| {
            Box::pin(async move { domain::sync_configured(tx, &["agents.example".to_owned()]).await })
        });
        let synced: Result<(), StoreError> = synced.await;
        synced.unwrap();
        let inboxes = [test.inbox("ada").await.key, test.inbox("bea").await.key];
        let store = test.floor.store.clone();
        World { store, test, inboxes, waits_for: DOMAIN, released: 0, left: Vec::new() }
    }

    fn clock(&self) -> &Clock {
        &self.test.floor.clock
    }

    async fn release(&mut self, who: usize, recipients: i64, priority: Priority) {
        let (inbox, far) = (self.inboxes[who], self.clock().now() + 5 * DAY);
        let released: Result<(), StoreError> = self
            .store
            .write(move |tx| {
                Box::pin(async move {
                    let first = inbox::reserve(tx, inbox, recipients).await?.unwrap().first;
                    for key in first..first + recipients {
                        let new = NewDelivery {
                            inbox,
                            delivery_key: key,
                            message_key: first,
                            recipient: format!("r{key}@remote.example"),
                            domain: "remote.example".to_owned(),
                            route: Route::Relay,
                            expires_at: far,
                            priority,
                            tls: TlsDemand::Usual,
                            not_before: None,
                            notice_at: None,
                            held_by: None,
                        };
                        delivery::insert(tx, &new).await?;
                    }
                    Ok(())
                })
            })
            .await;
        released.unwrap();
        self.released += recipients as usize;
    }

    /// The rows that may be tried, and those that may not and now wait: (priority, until when).
    async fn claim(&mut self, limit: i64) -> (Vec<Delivery>, Vec<(Priority, Millis)>) {
        let (floor, waits_for) = (self.test.floor.clone(), self.waits_for);
        let claimed: Result<_, StoreError> = self
            .store
            .write(move |tx| {
                let floor = floor.clone();
                Box::pin(async move {
                    let claimed = delivery::claim(tx, NODE, limit, "[]", &Turn::default()).await?.rows;
                    let asked: Vec<_> = claimed.iter().map(|row| (row.inbox, row.delivery_key)).collect();
                    let free = gate::let_go_on(tx, &floor, claimed).await?;
                    let mut waits = Vec::new();
                    for (inbox, key) in asked {
                        let row = delivery::by_key(tx, inbox, key).await?.unwrap();
                        if row.state == "scheduled" {
                            assert_eq!(row.attempts, 0, "an attempt that never was is not counted");
                            assert_eq!(row.waits_for.as_deref(), Some(waits_for));
                            assert!(row.expires_at >= row.next_attempt_at + 5 * DAY, "its time begins then");
                            waits.push((row.priority, row.next_attempt_at));
                        }
                    }
                    Ok((free, waits))
                })
            })
            .await;
        claimed.unwrap()
    }

    async fn give_back(&self, rows: Vec<Delivery>) {
        let done: Result<(), StoreError> = self
            .store
            .write(move |tx| {
                let rows = rows.clone();
                Box::pin(async move {
                    for row in &rows {
                        assert!(delivery::give_back(tx, NODE, row, None).await?);
                    }
                    give_back_budgets(tx, &rows.iter().collect::<Vec<_>>()).await
                })
            })
            .await;
        done.unwrap();
    }

    async fn deliver(&mut self, rows: Vec<Delivery>) {
        let now = self.clock().now();
        self.left.extend(rows.iter().map(|row| (now, (row.inbox.inbox, row.delivery_key))));
        let done: Result<(), StoreError> = self
            .store
            .write(move |tx| {
                let rows = rows.clone();
                Box::pin(async move {
                    let settled = Settled {
                        state: "delivered",
                        status: None,
                        reply: None,
                        next_attempt_at: None,
                        maybe_duplicate: false,
                        told_late: false,
                    };
                    let settled: Vec<_> = rows.iter().map(|row| (row, &settled)).collect();
                    assert_eq!(delivery::settle(tx, NODE, &settled).await?.len(), rows.len());
                    Ok(())
                })
            })
            .await;
        done.unwrap();
    }

    async fn let_go(&self) {
        let budgets = Arc::new(self.test.floor.config.budgets.clone());
        let done: Result<(), StoreError> = self
            .store
            .write(move |tx| {
                let budgets = budgets.clone();
                Box::pin(async move { let_go(tx, &budgets).await })
            })
            .await;
        done.unwrap();
    }

    async fn set(&self, change: BudgetChange) {
        let done: Result<(), StoreError> = self
            .store
            .write(move |tx| {
                let scope = BudgetScope::Domain("agents.example".to_owned());
                Box::pin(async move { set_budget(tx, &scope, change, ("key:admin", DOMAIN)).await })
            })
            .await;
        done.unwrap();
    }

    async fn restart(&mut self) {
        self.store.close().await;
        let url = &self.test.floor.config.database.url;
        self.store = Store::open(url, self.clock().clone()).await.unwrap();
    }

    /// What left in the day that ends now; `rounded`: by the seconds that are written down.
    fn in_the_last_day(&self, rounded: bool) -> i64 {
        let since = self.clock().now() - DAY;
        let up = |left: Millis| if rounded { (left + SECOND - 1) / SECOND * SECOND } else { left };
        self.left.iter().filter(|(left, _)| up(*left) > since).count() as i64
    }
}

/// Runs the steps, and then the clock, until everything has left.
async fn play(config: &str, cap: impl Fn(i64) -> Option<i64>, steps: Vec<Step>) {
    let mut world = World::new(config).await;
    let began = world.clock().now();
    let day = |at: Millis| (at - began) / DAY + 1;
    let ends = steps.len();
    for n in 0..ends + 400 {
        match steps.get(n).cloned() {
            Some(Step::Release(who, recipients, priority)) => world.release(who, recipients, priority).await,
            Some(Step::Wait(by)) => world.test.hand.advance(by),
            Some(Step::LetGo) => world.let_go().await,
            Some(Step::Restart) => world.restart().await,
            claim => {
                let (limit, back) = match claim {
                    Some(Step::Claim(limit, back)) => (limit, back),
                    // The end: nothing new, and time passes.
                    _ if world.left.len() == world.released => break,
                    _ => {
                        world.test.hand.advance(5 * HOUR);
                        world.let_go().await;
                        (1_000, 0)
                    }
                };
                let (mut free, waits) = world.claim(limit).await;
                let now = world.clock().now();
                let tried = free.len() as i64;
                let cap = cap(day(now));
                let used = world.in_the_last_day(false) + tried;
                assert!(cap.is_none_or(|cap| used <= cap), "{used} of {cap:?} on day {}", day(now));
                let used = world.in_the_last_day(true) + tried;
                for (priority, until) in &waits {
                    let share = share(cap.expect("nothing waits without a budget"), *priority);
                    assert!(used >= share, "{priority:?} waits, though {used} of {share} are used");
                    assert!(*until > now, "it waits for a time that is to come");
                }
                let given_back = free.split_off(free.len().saturating_sub(back));
                world.deliver(free).await;
                world.give_back(given_back).await;
            }
        }
    }
    assert_eq!(world.left.len(), world.released, "everything leaves in the end");
    let rows: BTreeSet<_> = world.left.iter().map(|(_, row)| *row).collect();
    assert_eq!(rows.len(), world.left.len(), "each once");
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_day_ever_holds_more_than_the_budget_of_a_domain(steps in steps(), cap in 1i64..25) {
        run(play(&format!("[budgets]\ndomain_per_day = {cap}"), |_| Some(cap), steps));
    }

    #[test]
    fn a_new_domain_begins_with_what_its_warm_up_allows(steps in steps()) {
        let config = "[budgets]\ndomain_per_day = 30\ndomain_warmup = [[1, 3], [2, 5], [4, 12]]";
        let cap = |day| Some(match day { 1 => 3, 2..4 => 5, 4..6 => 12, _ => 30 });
        run(play(config, cap, steps));
    }

    #[test]
    fn after_its_warm_up_a_domain_without_a_budget_is_free(steps in steps()) {
        let cap = |day| match day { 1 => Some(2), 2 => Some(6), _ => None };
        run(play("[budgets]\ndomain_warmup = [[1, 2], [2, 6]]", cap, steps));
    }
}

async fn heads(world: &World) -> usize {
    let found: Result<Vec<_>, StoreError> =
        world.store.read(|tx| Box::pin(async move { tx.rows("SELECT scope FROM budget", &[]).await })).await;
    found.unwrap().len()
}

#[tokio::test]
async fn without_a_budget_nothing_is_counted() {
    let mut world = World::new("").await;
    world.release(0, 5, Priority::Ordinary).await;
    let (free, _) = world.claim(10).await;
    assert_eq!((free.len(), heads(&world).await), (5, 0));
    assert!(free.iter().all(|row| row.charged.is_empty()));
}

/// The time that a row is given is the first at which it fits.
#[tokio::test]
async fn the_first_that_waits_leaves_when_the_first_that_left_is_a_day_old() {
    let mut world = World::new("[budgets]\ndomain_per_day = 2").await;
    world.release(0, 1, Priority::Ordinary).await;
    let (free, _) = world.claim(10).await;
    world.deliver(free).await;
    let first = world.clock().now();
    assert_eq!(first % SECOND, 0);
    world.test.hand.advance(HOUR + 1);
    world.release(0, 4, Priority::Ordinary).await;
    let (free, waits) = world.claim(10).await;
    world.deliver(free).await;
    let until: Vec<Millis> = waits.iter().map(|(_, until)| *until).collect();
    assert_eq!(until, [first + DAY, first + DAY + DAY / 2, first + 2 * DAY]);
    world.test.hand.advance(DAY - HOUR - 2);
    world.let_go().await;
    assert!(world.claim(10).await.0.is_empty());
    world.test.hand.advance(1);
    assert_eq!(world.claim(10).await.0.len(), 1);
}

/// A campaign has taken all that it may, and its rest waits for weeks; a person's answer leaves now.
#[tokio::test]
async fn what_a_person_approved_has_a_tenth_for_itself_and_does_not_wait_behind_a_campaign() {
    let mut world = World::new("[budgets]\ndomain_per_day = 10").await;
    world.release(0, 100, Priority::Bulk).await;
    let (free, waits) = world.claim(200).await;
    assert_eq!((free.len(), waits.len()), (9, 91));
    world.deliver(free).await;
    world.release(1, 2, Priority::Approved).await;
    let (free, waits) = world.claim(10).await;
    assert_eq!(free.len(), 1);
    assert!(waits[0].1 <= world.clock().now() + DAY, "{waits:?}");
}

/// Ninety rows of one inbox wait, and one of another: both have their turn on the next day.
#[tokio::test]
async fn inboxes_take_turns_when_there_is_room_again() {
    let mut world = World::new("[budgets]\ndomain_per_day = 4").await;
    world.release(0, 50, Priority::Ordinary).await;
    let (free, _) = world.claim(100).await;
    world.deliver(free).await;
    world.release(1, 3, Priority::Ordinary).await;
    world.claim(100).await;
    world.test.hand.advance(DAY);
    world.let_go().await;
    let (free, waits) = world.claim(100).await;
    assert!(waits.is_empty(), "no more are let go than there is room for: {waits:?}");
    let of = |n: usize| free.iter().filter(|row| row.inbox == world.inboxes[n]).count();
    assert_eq!((of(0), of(1)), (2, 2));
}

/// What was planned for next month goes when the operator is generous, or everything before it was called back.
#[tokio::test]
async fn rows_that_wait_go_on_once_nothing_is_in_their_way() {
    let mut world = World::new("[budgets]\ndomain_per_day = 2").await;
    world.release(0, 60, Priority::Ordinary).await;
    let (free, waits) = world.claim(100).await;
    world.deliver(free).await;
    assert!(waits.last().unwrap().1 > world.clock().now() + 25 * DAY, "{waits:?}");
    world.set(BudgetChange::Set { per_day: Some(Some(50)), warmup: None }).await;
    world.let_go().await;
    let (free, waits) = world.claim(100).await;
    assert_eq!((free.len(), waits.len()), (43, 0), "a tenth of 50 is kept, 2 are used");
    world.deliver(free).await;
    world.set(BudgetChange::Set { per_day: Some(None), warmup: None }).await;
    world.let_go().await;
    let (free, _) = world.claim(100).await;
    assert_eq!(free.len(), 15, "there is no budget");
    world.deliver(free).await;

    world.set(BudgetChange::Reset).await;
    world.release(0, 60, Priority::Ordinary).await;
    let (free, waits) = world.claim(100).await;
    assert_eq!(
        (free.len(), waits.len()),
        (0, 60),
        "it is as configured, and what left before is not forgotten"
    );
    let canceled: Result<u64, StoreError> = world
        .store
        .write(|tx| {
            let sql = "UPDATE delivery SET state = 'canceled' WHERE state = 'scheduled'";
            Box::pin(async move { tx.execute(sql, &[]).await })
        })
        .await;
    assert_eq!(canceled.unwrap(), 60);
    world.let_go().await;
    world.release(0, 1, Priority::Ordinary).await;
    let (_, waits) = world.claim(100).await;
    assert!(waits[0].1 <= world.clock().now() + DAY, "nobody is before it: {waits:?}");

    let audit: Result<Vec<_>, StoreError> = world
        .store
        .read(|tx| {
            let sql =
                "SELECT action || ' ' || object FROM audit WHERE actor = 'key:admin' ORDER BY audit_key";
            Box::pin(async move { tx.rows(sql, &[]).await })
        })
        .await;
    let audit: Vec<String> = audit.unwrap().iter().map(|row| row.get(0).unwrap()).collect();
    let expected = ["budget.set", "budget.set", "budget.reset"].map(|action| format!("{action} {DOMAIN}"));
    assert_eq!(audit, expected);
}

/// Where agents may have addresses on any name below a domain, the next name is no new budget.
#[tokio::test]
async fn names_below_a_domain_of_ours_share_its_budget() {
    let mut world = World::new("[budgets]\ndomain_per_day = 1").await;
    let made: Result<Vec<InboxKey>, StoreError> = world
        .store
        .write(|tx| {
            Box::pin(async move {
                domain::sync_configured(tx, &["agents.example".to_owned(), "wide.example".to_owned()])
                    .await?;
                let sql = "UPDATE domain SET subdomains_enabled = 1 WHERE domain = 'wide.example'";
                tx.execute(sql, &[]).await?;
                let mut made = Vec::new();
                for name in ["x.wide.example", "y.wide.example"] {
                    let new = inbox::NewInbox {
                        pod: inbox::DEFAULT_POD,
                        address: format!("ada@{name}"),
                        domain: name.to_owned(),
                        display_name: None,
                        client_id: None,
                        status: inbox::InboxStatus::Active,
                        operator: false,
                        metadata: None,
                    };
                    made.push(inbox::create(tx, &new).await?.key);
                }
                Ok(made)
            })
        })
        .await;
    world.inboxes = made.unwrap().try_into().unwrap();
    world.test.floor.domains.refresh(&world.store).await.unwrap();
    world.waits_for = "domain:wide.example";
    world.release(0, 1, Priority::Ordinary).await;
    world.release(1, 1, Priority::Ordinary).await;
    let (free, waits) = world.claim(10).await;
    assert_eq!((free.len(), waits.len()), (1, 1));
}
