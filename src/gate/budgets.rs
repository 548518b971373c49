//! Budgets that inboxes share: a sending domain's, a pod's, and the warm-up of what is new. They delay and never refuse.
//!
//! - A recipient elsewhere counts when its delivery is claimed for its first attempt, in the claim's transaction, under
//!   the lock of every budget that it falls under: in any sliding day at most the budget leaves, whatever was planned
//!   for when, across nodes and restarts. Retries never count again, nor does mail between our own inboxes, nor what
//!   the server has to say (`rate` leaves that out too). A row that is given back untried gives back.
//! - What does not fit is planned for when there will be room, its attempt uncounted, and says why and until when; its
//!   time to be delivered begins then. One event tells the agent.
//! - Rows wait without being asked about again and again: each is planned behind the others of its priority. Once
//!   there is room sooner (mail was canceled, a step of the warm-up began, an operator was generous), `let_go` makes as
//!   many due as have room, what a person approved first, inboxes in turn. It and the plan are only estimates; the
//!   claim decides.
//! - A tenth is kept for what a person approved (reference/governance.md §5).
//! - Without a budget no statement is made.
//!
//! Crash argument: the charge commits with the attempt, so a process that dies has spent it, dialled or not: too much,
//! never too little.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock::{DAY, Millis, rfc3339};
use crate::config::{Budgets, Warmup};
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::store::budget::{self, BudgetScope, Head};
use crate::store::delivery::{self, Delivery, Later, Priority, Route};
use crate::store::{StoreError, Tx, audit, rate};

/// Rows of a budget that is gone which one look lets go.
const STEP: i64 = 1_000;

/// What is kept for what a person approved: one part in this many.
const RESERVE: i64 = 10;

/// The rule of one budget, as configuration and operator have it.
#[derive(Debug, Clone)]
pub(super) struct Plan<'a> {
    pub per_day: Option<i64>,
    pub warmup: Option<&'a Warmup>,
    pub made_at: Millis,
}

impl Plan<'_> {
    pub(super) fn of<'a>(budgets: &'a Budgets, head: &Head) -> Plan<'a> {
        let (configured, warmup) = match head.scope.split_once(':').map_or("", |(word, _)| word) {
            "domain" => (budgets.domain_per_day, Some(&budgets.domain_warmup)),
            "pod" => (budgets.pod_per_day, None),
            "inbox" => (None, Some(&budgets.inbox_warmup)),
            _ => (None, None),
        };
        Plan {
            per_day: head.per_day.or(configured).filter(|n| *n > 0),
            warmup: warmup.filter(|warmup| head.warmup && !warmup.is_off()),
            made_at: head.made_at,
        }
    }

    /// Counted from 1.
    pub(super) fn day(&self, at: Millis) -> i64 {
        (at - self.made_at).max(0) / DAY + 1
    }

    /// The warm-up's, where one is under way.
    pub(super) fn step(&self, at: Millis) -> Option<i64> {
        self.warmup?.cap(self.day(at))
    }

    /// `None`: no budget.
    pub(super) fn cap(&self, at: Millis) -> Option<i64> {
        match (self.per_day, self.step(at)) {
            (Some(plain), Some(step)) => Some(plain.min(step)),
            (plain, step) => plain.or(step),
        }
    }

    /// When something else holds.
    fn next_change(&self, at: Millis) -> Option<Millis> {
        let day = self.warmup?.next_step(self.day(at))?;
        Some(self.made_at + (day - 1) * DAY)
    }
}

/// How much of a budget a priority may use.
pub(super) fn share(cap: i64, priority: Priority) -> i64 {
    match priority {
        Priority::Approved => cap,
        Priority::Ordinary | Priority::Bulk => cap - cap / RESERVE,
    }
}

/// A budget while a claim is weighed.
struct Account<'a> {
    head: Head,
    plan: Plan<'a>,
    /// Of the entry that is made.
    at: Millis,
    cap: i64,
    used: i64,
    taken: i64,
}

impl Account<'_> {
    fn has_room(&self, priority: Priority) -> bool {
        self.used + self.taken < share(self.cap, priority)
    }
}

/// Whether any budget may hold; without one nothing is asked.
fn is_on(floor: &Floor) -> bool {
    let budgets = &floor.config.budgets;
    budgets.domain_per_day.is_some()
        || budgets.pod_per_day.is_some()
        || !budgets.domain_warmup.is_off()
        || !budgets.inbox_warmup.is_off()
        || floor.budgets_set.load(Ordering::Relaxed)
}

/// The sending domain whose budget an address uses: the one of ours that it is, or is below.
fn domain_of(floor: &Floor, sender: &str) -> String {
    let name = sender.rsplit_once('@').map_or("", |(_, domain)| domain);
    floor.domains.find(name).map_or_else(|| name.to_owned(), |ours| ours.name.clone())
}

/// The budgets that a delivery falls under, with what the configuration says whether each must be there.
fn scopes(floor: &Floor, row: &Delivery) -> Vec<(BudgetScope, bool)> {
    let budgets = &floor.config.budgets;
    let mut scopes = Vec::with_capacity(3);
    if !budgets.inbox_warmup.is_off() {
        scopes.push((BudgetScope::Inbox(row.inbox), true));
    }
    scopes.push((BudgetScope::Pod(row.inbox.pod), budgets.pod_per_day.is_some()));
    let configured = budgets.domain_per_day.is_some() || !budgets.domain_warmup.is_off();
    scopes.push((BudgetScope::Domain(domain_of(floor, &row.sender)), configured));
    scopes
}

/// Those of the claimed rows that may be tried, charged; the others wait.
pub(super) async fn charge(
    tx: &mut Tx,
    floor: &Floor,
    rows: Vec<Delivery>,
) -> Result<Vec<Delivery>, StoreError> {
    let counts =
        |row: &Delivery| row.attempts == 1 && row.route != Route::Local && !rate::is_of_operator(row);
    if !is_on(floor) || !rows.iter().any(counts) {
        return Ok(rows);
    }
    let mut of_row: Vec<Vec<String>> = Vec::with_capacity(rows.len());
    let (mut all, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for row in &rows {
        let mine = if counts(row) { scopes(floor, row) } else { Vec::new() };
        of_row.push(mine.iter().map(|(scope, _)| scope.text()).collect());
        all.extend(mine.iter().map(|(scope, _)| scope.text()));
        needed.extend(mine.into_iter().filter(|(_, configured)| *configured).map(|(scope, _)| scope));
    }
    let all: Vec<String> = all.into_iter().collect();
    let needed: Vec<BudgetScope> = needed.into_iter().collect();
    let mut accounts = open(tx, &floor.config.budgets, &all, &needed).await?;
    if accounts.is_empty() {
        return Ok(rows);
    }

    let mut waits: HashMap<usize, Vec<String>> = HashMap::new();
    let mut charged: HashMap<usize, Vec<(Arc<str>, Millis)>> = HashMap::new();
    let order = fair_order(&rows);
    for i in &order {
        let (Some(row), Some(mine)) = (rows.get(*i), of_row.get(*i)) else { continue };
        let full = |scope: &&String| accounts.get(*scope).is_some_and(|a| !a.has_room(row.priority));
        let full: Vec<String> = mine.iter().filter(full).cloned().collect();
        if !full.is_empty() {
            waits.insert(*i, full);
            continue;
        }
        for scope in mine {
            if let Some(account) = accounts.get_mut(scope) {
                account.taken += 1;
                charged.entry(*i).or_default().push((account.head.scope.clone(), account.at));
            }
        }
    }
    for account in accounts.values_mut().filter(|account| account.taken > 0) {
        budget::spend(tx, &mut account.head, account.at, account.taken).await?;
    }
    let mut openings = Openings::default();
    for i in &order {
        if let (Some(row), Some(full)) = (rows.get(*i), waits.get(i)) {
            park(tx, floor, &mut accounts, &mut openings, row, full).await?;
        }
    }
    for account in accounts.values() {
        if account.taken > 0 || account.head.waiting {
            budget::save(tx, &account.head).await?;
        }
    }
    let mut free = Vec::with_capacity(rows.len());
    for (i, mut row) in rows.into_iter().enumerate() {
        if !waits.contains_key(&i) {
            row.charged = charged.remove(&i).unwrap_or_default();
            free.push(row);
        }
    }
    Ok(free)
}

/// Locks what there is of `all`, and reads what was spent in the day that ends now.
async fn open<'a>(
    tx: &mut Tx,
    budgets: &'a Budgets,
    all: &[String],
    needed: &[BudgetScope],
) -> Result<BTreeMap<String, Account<'a>>, StoreError> {
    let heads = budget::lock(tx, all, needed).await?;
    // The wait for the lock may have been long.
    tx.reread_clock().await?;
    let mut accounts = BTreeMap::new();
    for (scope, head) in heads {
        let (plan, at) = (Plan::of(budgets, &head), head.entry_at(tx.now()));
        if let Some(cap) = plan.cap(tx.now()) {
            accounts.insert(scope.to_string(), Account { head, plan, at, cap, used: 0, taken: 0 });
        }
    }
    if accounts.is_empty() {
        return Ok(accounts);
    }
    let since = tx.now() - DAY;
    let asked: Vec<(&Head, Millis)> = accounts.values().map(|a| (&a.head, since)).collect();
    let spent = budget::spent_after(tx, &asked).await?;
    for (account, used) in accounts.values_mut().zip(spent) {
        account.used = used;
    }
    Ok(accounts)
}

/// What a person approved first, then by priority; inboxes in turn.
fn fair_order(rows: &[Delivery]) -> Vec<usize> {
    let mut seen: HashMap<(Priority, InboxKey), usize> = HashMap::new();
    let mut order: Vec<(std::cmp::Reverse<Priority>, usize, InboxKey, usize)> =
        Vec::with_capacity(rows.len());
    for (i, row) in rows.iter().enumerate() {
        let nth = seen.entry((row.priority, row.inbox)).or_default();
        order.push((std::cmp::Reverse(row.priority), *nth, row.inbox, i));
        *nth += 1;
    }
    order.sort_unstable();
    order.into_iter().map(|(_, _, _, i)| i).collect()
}

/// When a budget has room for one more of a priority, as far as this transaction has asked.
type Openings = HashMap<(String, Priority), Millis>;

/// Plans a row that does not fit behind those of its priority, for the budget that has room last.
async fn park(
    tx: &mut Tx,
    floor: &Floor,
    accounts: &mut BTreeMap<String, Account<'_>>,
    openings: &mut Openings,
    row: &Delivery,
    full: &[String],
) -> Result<(), StoreError> {
    let nth = row.priority as usize;
    let mut last: Option<(Millis, &String)> = None;
    for scope in full {
        let Some(account) = accounts.get(scope) else { continue };
        let key = (scope.clone(), row.priority);
        let opens = match openings.get(&key) {
            Some(opens) => *opens,
            None => {
                let opens = opens_at(tx, &account.head, &account.plan, row.priority).await?;
                openings.insert(key, opens);
                opens
            }
        };
        let at = opens.max(account.head.planned.get(nth).copied().unwrap_or(0));
        if last.is_none_or(|(latest, _)| at > latest) {
            last = Some((at, scope));
        }
    }
    let Some((at, scope)) = last else { return Ok(()) };
    let Some(account) = accounts.get_mut(scope) else { return Ok(()) };
    let pace = share(account.plan.cap(at).unwrap_or(i64::MAX).max(1), row.priority).max(1);
    if let Some(planned) = account.head.planned.get_mut(nth) {
        *planned = at + DAY / pace;
    }
    account.head.waiting = true;
    let (say, relay) = (say(account, row, at), &floor.config.relay);
    let millis = |time: std::time::Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2);
    let later = Later {
        at,
        expires_at: at.saturating_add(millis(relay.expire)),
        notice_at: at.saturating_add(millis(relay.delay_notice)),
    };
    delivery::wait_claimed(tx, row, later, scope, &say).await?;
    if row.waits_for.is_none() {
        let told = Delivery { attempts: row.attempts - 1, ..row.clone() };
        delivery::announce(tx, &told, "delivery.waiting", None, Some(&say), Some(at)).await?;
    }
    Ok(())
}

/// The moment at which one more of a priority fits, if nothing else is spent. The caller holds the lock.
pub(super) async fn opens_at(
    tx: &mut Tx,
    head: &Head,
    plan: &Plan<'_>,
    priority: Priority,
) -> Result<Millis, StoreError> {
    let (mut from, since) = (tx.now(), tx.now() - DAY);
    loop {
        let change = plan.next_change(from);
        let Some(cap) = plan.cap(from) else { return Ok(from) };
        let leaves = head.total + 1 - share(cap, priority);
        let opens = match budget::reached(tx, &head.scope, leaves, since).await? {
            Some(entry) if leaves > 0 => (entry + DAY).max(from),
            _ => from,
        };
        match change {
            Some(change) if change > from && opens > change => from = change,
            _ => return Ok(opens),
        }
    }
}

fn say(account: &Account<'_>, row: &Delivery, at: Millis) -> String {
    let whose = match account.head.scope.split_once(':') {
        Some(("domain", name)) => format!("the domain {name}"),
        Some(("pod", _)) => "the pod".to_owned(),
        _ => format!("the inbox {}", row.sender),
    };
    let why = match account.plan.step(account.at) {
        Some(_) => format!(", day {} of its warm-up", account.plan.day(account.at)),
        None => String::new(),
    };
    let kept = match share(account.cap, row.priority) {
        all if all == account.cap => String::new(),
        some => format!(" ({} of them are kept for what a person approved)", account.cap - some),
    };
    format!(
        "The budget of {whose} is used up: {} recipients in 24 hours{why}{kept}. This leaves by itself at about {}.",
        account.cap,
        rfc3339(at)
    )
}

/// A budget as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetStatus {
    /// The plain one, without the warm-up.
    pub per_day: Option<i64>,
    /// What holds now; `None`: nothing.
    pub cap: Option<i64>,
    pub used: i64,
    /// Of the cap, for what a person approved.
    pub reserved: i64,
    /// When there is room for one more that nobody approved; `None` where there is.
    pub opens_at: Option<Millis>,
    pub warmup: Option<WarmupStatus>,
    /// Deliveries, up to `budget::COUNTED`.
    pub waiting: i64,
    /// An operator has set something of it.
    pub is_set: bool,
}

/// A warm-up that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmupStatus {
    /// Counted from 1.
    pub day: i64,
    pub last_day: i64,
    pub cap: i64,
}

/// A budget as it stands.
pub async fn budget_status(
    tx: &mut Tx,
    budgets: &Budgets,
    scope: &BudgetScope,
) -> Result<BudgetStatus, StoreError> {
    let head = budget::read_one(tx, scope).await?;
    let (plan, now) = (Plan::of(budgets, &head), tx.now());
    let used = budget::spent_after(tx, &[(&head, now - DAY)]).await?.first().copied().unwrap_or(0);
    let cap = plan.cap(now);
    let share = cap.map_or(i64::MAX, |cap| share(cap, Priority::Ordinary));
    let opens_at = match used < share {
        true => None,
        false => Some(opens_at(tx, &head, &plan, Priority::Ordinary).await?),
    };
    let day = plan.day(now);
    let warmup = plan.step(now).zip(plan.warmup);
    Ok(BudgetStatus {
        per_day: plan.per_day,
        cap,
        used,
        reserved: cap.map_or(0, |cap| cap - share),
        opens_at,
        warmup: warmup.map(|(cap, warmup)| WarmupStatus { day, last_day: warmup.last_day(), cap }),
        waiting: if head.waiting { budget::waiting(tx, &head.scope).await? } else { 0 },
        is_set: head.per_day.is_some() || !head.warmup,
    })
}

/// Sets a budget, or sets it back to what is configured. What waits for it goes on at the next `let_go`.
pub async fn set_budget(
    tx: &mut Tx,
    scope: &BudgetScope,
    change: BudgetChange,
    (actor, object): (&str, &str),
) -> Result<(), StoreError> {
    let text = scope.text();
    let locked = budget::lock(tx, std::slice::from_ref(&text), std::slice::from_ref(scope)).await?;
    let (was, warmed) = locked.get(text.as_str()).map_or((None, true), |head| (head.per_day, head.warmup));
    let (per_day, warmup) = match change {
        BudgetChange::Reset => (None, true),
        // 0 is stored: none, whatever is configured.
        BudgetChange::Set { per_day, warmup } => {
            (per_day.map(|n| n.unwrap_or(0)).or(was), warmup.unwrap_or(warmed))
        }
    };
    budget::set(tx, &text, per_day, (!warmup).then_some(false)).await?;
    let action = if change == BudgetChange::Reset { "budget.reset" } else { "budget.set" };
    let detail = serde_json::json!({ "per_day": per_day, "warm_up": warmup }).to_string();
    let inbox = match scope {
        BudgetScope::Inbox(key) => Some(*key),
        _ => None,
    };
    audit::record(tx, audit::Entry { actor, run_id: None, action, inbox, object, detail }).await
}

/// What an operator does to a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetChange {
    /// `per_day`: `Some(None)` is none, whatever is configured. `warmup`: whether the configured one holds.
    Set { per_day: Option<Option<i64>>, warmup: Option<bool> },
    /// As configured.
    Reset,
}

/// What was claimed and not tried after all is spent no more.
pub async fn give_back_budgets(tx: &mut Tx, rows: &[&Delivery]) -> Result<(), StoreError> {
    let mut back: BTreeMap<(&str, Millis), i64> = BTreeMap::new();
    for (scope, at) in rows.iter().filter(|row| row.attempts == 1).flat_map(|row| &row.charged) {
        *back.entry((scope, *at)).or_default() += 1;
    }
    for ((scope, at), recipients) in back {
        budget::give_back(tx, scope, at, recipients).await?;
    }
    Ok(())
}

/// Makes due what waits and has room: `watch` asks this every few seconds while anything waits.
pub(super) async fn let_go(tx: &mut Tx, budgets: &Budgets) -> Result<(), StoreError> {
    let heads = budget::lock_waiting(tx).await?;
    if heads.is_empty() {
        return Ok(());
    }
    tx.reread_clock().await?;
    for before in heads {
        let (plan, mut head) = (Plan::of(budgets, &before), before.clone());
        let since = tx.now() - DAY;
        let used = budget::spent_after(tx, &[(&head, since)]).await?.first().copied().unwrap_or(0);
        let cap = plan.cap(tx.now());
        let mut gone = 0;
        for priority in Priority::ALL {
            let room = cap.map_or(STEP, |cap| share(cap, priority) - used) - gone;
            if room > 0 {
                gone += budget::let_go(tx, &mut head, priority, room.min(STEP)).await?;
            }
        }
        if !budget::has_waiting(tx, &head.scope).await? {
            head.waiting = false;
            head.planned = [0; 3];
        }
        if head != before {
            budget::save(tx, &head).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
