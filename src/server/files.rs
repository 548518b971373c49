//! The system's limit of open files, raised as far as it allows: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What we hold open beside SMTP sessions: HTTP, the database, DNS, deliveries.
const OTHERS: u64 = 1024;

pub(super) fn raise_limit(sessions: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files stays as it is");
            limit.current
        }
    };
    let wanted = sessions as u64 + OTHERS;
    if now.is_some_and(|now| now < wanted) {
        tracing::warn!(
            limit = now,
            wanted,
            "fewer open files are allowed than smtp.limits.sessions may need: raise LimitNOFILE (systemd) or ulimit -n"
        );
    }
}
