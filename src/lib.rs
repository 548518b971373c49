//! Gatepost: a self-hosted mail server for AI agents.
//!
//! # The map
//!
//! Rooms follow the road that mail takes; to find the place to change, ask where the mail is now.
//!
//! ```text
//!  a stranger writes to an agent                     an agent answers
//!  ─────────────────────────────                     ────────────────
//!  smtp     a connection becomes an envelope         api      a request, by key
//!    ▼      and bytes                                  ▼
//!  verify   SPF DKIM DMARC ARC iprev → Verdict       gate     may this be sent? → Decision, with reasons
//!    ▼                                                 ▼
//!  screen   bytes → Structure, kind, codes           queue    delivery rows, schedule, workers
//!    ▼                                                 ▼
//!  inbox    place, thread, one transaction           deliver  local, captured, or MX, TLS, DKIM, SMTP
//!    ▼                                                 ▼
//!  events   the one ordered log; wake who waits      inbox    a bounce, a copy for a local recipient
//!    ▼
//!  work     claim · lease · fence · complete
//!
//!  ──────────────────────────── the floor ────────────────────────────
//!  store · spool · principal · secrets · ours · dns · tls · fetch · disk · clock · ids · config · observe
//! ```
//!
//! `reports` reads what others report about our domains, on its way into the operator's inbox; and counts mail to
//! report about theirs, once a day (`reports::outgoing`, through `gate::by_server::send_by_server`). `domains` says what
//! the DNS of a domain has to hold and looks whether it does (`domains::verify`); which domains are ours, now, is `ours`.
//! Dependencies point along the road and down to the floor. Two go back: `deliver → inbox` (local recipients
//! and bounces), and `queue → gate` (asked again right before sending). `server` starts it all, `cli` is the way in for
//! people, `api` the way in for programs.
//!
//! # A stranger writes to an agent
//!
//! 1. `smtp::serve` accepts, if its guard has room. `smtp::dialogue::converse` reads lines and waits;
//!    `smtp::command` parses each, `smtp::session` says what the verb does. No socket, no database in those two.
//! 2. RCPT asks `inbox::route`: an inbox of ours (its tag kept), nobody, or not our domain: refused here.
//! 3. DATA: `smtp::data` takes octets until CRLF.CRLF and nothing else; what is large goes into the `spool`.
//!    `inbox::receive` takes over.
//! 4. `verify::verify` makes the `Verdict`, within its deadline; a DMARC failure under `p=reject` ends here.
//!    `verify::stamp` puts ours on top and takes foreign results with our name out.
//!    What the inbox's policy makes of it (`inbox::policy`) may be a refusal here too.
//! 5. `screen::structure` reads the message once, bounded, for every room that comes later; `screen::meaning` says
//!    what kind it is, and which codes it holds.
//! 6. One transaction for all recipients: `inbox::place::place` in each inbox finds duplicate and thread
//!    (`inbox::threading::find`), writes message and placement; `work::raise` opens or moves the work item;
//!    `store::event::append` writes the log.
//! 7. It is committed and on disk. Only now there is a `Receipt`, and only a `Receipt` makes a 250.
//! 8. `store::wakeups` tells those who wait: a claim with `wait_seconds`, the event log's readers.
//! 9. `work::claim` hands the item to one worker, with a lease and a fence that only rises. `work::sweep` takes
//!    back what nobody holds any more.
//!
//! # An agent answers
//!
//! 1. `api::router` finds the key (`api::auth`), decodes the request, and asks the gate. So will every other
//!    way to send.
//! 2. `gate::send` composes the message (`deliver::compose::compose`, whose header type cannot hold a line
//!    break) and, in one transaction under the inbox's lock: the answer it gave before under this
//!    Idempotency-Key; the fence (`gate::check_work`); `gate::decide` with stops, loops, lists, suppression, pause
//!    and limits, giving a `Decision` with its reasons.
//! 3. Released, in the same transaction: message, thread, one delivery row for each recipient
//!    (`gate::release::enqueue`), the limit's running sum, event and audit row. The 2xx is said after it.
//! 4. `queue::run` claims what is due, asks the gate again (`gate::recheck::let_go_on`: stops, suppressions, and
//!    budgets, which may make it wait) and writes that it tries before it dials. A local recipient takes the road in
//!    (`inbox::deliver_local`), `gatepost dev` captures, everything else goes to `deliver`.
//! 5. `deliver` finds the hosts (MX, addresses, none of them private; or a smarthost), waits for leave to go there
//!    (`deliver::site`: limits for each set of MX hosts), signs (`deliver::dkim`), speaks SMTP over
//!    TLS where it is offered or demanded (`deliver::trust`: DANE, MTA-STS), and says what came of it for each.
//! 6. Delivered, deferred (`deliver::schedule::next` says until when) or failed: then `inbox::deliver_bounce`
//!    puts a message into the thread, and an address that does not exist is suppressed.

pub mod address;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deliver;
pub mod disk;
pub mod dns;
pub mod domains;
pub mod envelope;
pub mod events;
mod fetch;
pub mod floor;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod gate;
pub mod ids;
pub mod inbox;
pub mod observe;
pub mod ours;
pub mod principal;
pub mod queue;
pub mod reports;
pub mod screen;
pub mod secrets;
pub mod server;
pub mod smtp;
pub mod spool;
pub mod store;
pub mod tls;
pub mod verify;
pub mod work;

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The walkthroughs above name functions, and this is what keeps the names true.
    #[test]
    fn every_function_that_the_map_names_is_where_it_says() {
        let map =
            include_str!("lib.rs").lines().take_while(|line| line.starts_with("//!")).collect::<String>();
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut seen = 0;
        for name in map.split('`').skip(1).step_by(2).filter(|name| name.contains("::")) {
            let (place, last) = name.rsplit_once("::").unwrap();
            let path = place.replace("::", "/");
            let files = [src.join(format!("{path}.rs")), src.join(&path).join("mod.rs")];
            let module =
                [src.join(&path).join(format!("{last}.rs")), src.join(&path).join(last).join("mod.rs")];
            let text: String = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
            let there = text.contains(&format!("fn {last}("))
                || text.contains(&format!("fn {last}<"))
                || module.iter().any(|file| file.exists());
            assert!(there, "`{name}` is not in the source");
            seen += 1;
        }
        assert!(seen > 20, "only {seen} names were found");
    }
}
