//! iprev, RFC 8601 §3: the name of the address leads back to the address.

use std::net::IpAddr;

use super::lookups::{Lookups, NoAnswer};
use super::verdict::{AuthResult, Method};

/// Names of one address that are looked at.
const MAX_NAMES: usize = 2;
/// Questions: the address's names, and the addresses of each name.
pub(crate) const COST: usize = 1 + MAX_NAMES;

pub(crate) async fn check(lookups: &Lookups<'_>, ip: IpAddr) -> Method {
    let method = |result, detail| Method { result, detail };
    if ip.is_loopback() {
        return method(AuthResult::None, Some("loopback".into()));
    }
    let names = match lookups.ptr(ip).await {
        Ok(names) => names,
        // RFC 8601 §2.7.3: "no PTR data are published" is a permanent error.
        Err(NoAnswer::NotFound | NoAnswer::Empty) => {
            return method(AuthResult::PermError, Some("no reverse name".into()));
        }
        Err(NoAnswer::Temporary(why)) => return method(AuthResult::TempError, Some(why)),
        Err(NoAnswer::Spent) => return method(AuthResult::TempError, None),
    };
    let mut temporary = None;
    for name in names.iter().take(MAX_NAMES) {
        match lookups.addresses(name, ip).await {
            Ok(addresses) if addresses.contains(&ip) => {
                return method(AuthResult::Pass, Some(name.clone()));
            }
            Err(NoAnswer::Temporary(why)) => temporary = Some(why),
            _ => {}
        }
    }
    match temporary {
        Some(why) => method(AuthResult::TempError, Some(why)),
        None => method(AuthResult::Fail, names.into_iter().next()),
    }
}
