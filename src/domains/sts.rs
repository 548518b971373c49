//! Our own MTA-STS policy, RFC 8461 §3.2: what `https://mta-sts.<domain>/.well-known/mta-sts.txt` says.
//!
//! The default mode is `testing`: without its TXT record a policy means nothing, and with it a `testing` one
//! fails no delivery (§5) while TLS reports begin to come. `enforce` lets mail be held back by others when our
//! certificate is wrong, so it is the operator's word.

use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::config::MtaStsMode;
use crate::ids::base32;

/// §3.2: how long others may keep the policy. Weeks, once it is meant; a day while it is tried.
const ENFORCED_S: u32 = 14 * 24 * 3600;
const TESTING_S: u32 = 24 * 3600;
/// Characters of the id, of which §3.1 allows 32.
const ID_LENGTH: usize = 20;

/// The policy's text; `None` where none is served. It is the same for every domain: one host takes their mail.
pub(crate) fn policy(config: &Config) -> Option<String> {
    let (mode, max_age) = match config.smtp.mta_sts {
        MtaStsMode::None => return None,
        MtaStsMode::Testing => ("testing", TESTING_S),
        MtaStsMode::Enforce => ("enforce", ENFORCED_S),
    };
    let host = &config.hostname;
    Some(format!("version: STSv1\r\nmode: {mode}\r\nmx: {host}\r\nmax_age: {max_age}\r\n"))
}

/// The `id` of the TXT record (§3.1): another one for another policy, so that others fetch it again.
pub(crate) fn id(policy: &str) -> String {
    let mut id = base32(&Sha256::digest(policy.as_bytes()));
    id.truncate(ID_LENGTH);
    id
}

/// §3.3: the host that serves a domain's policy.
pub(crate) fn host(domain: &str) -> String {
    format!("mta-sts.{domain}")
}

/// The domain whose policy a request to this host asks for.
pub(crate) fn domain_of(host: &str) -> Option<&str> {
    host.split(':').next()?.strip_prefix("mta-sts.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_policy_has_another_id() {
        let policy = |mode: &str| {
            let text = format!(
                "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]\n[smtp]\nmta_sts = \"{mode}\"\n"
            );
            let config = Config::parse(std::path::Path::new("t"), &text, std::iter::empty()).unwrap();
            super::policy(&config)
        };
        let (testing, enforce) = (policy("testing").unwrap(), policy("enforce").unwrap());
        assert!(testing.contains("mode: testing\r\nmx: mx.agents.example\r\n"), "{testing}");
        assert_ne!(id(&testing), id(&enforce));
        assert!(id(&testing).len() <= 32 && id(&testing).chars().all(|c| c.is_ascii_alphanumeric()));
        assert_eq!(policy("none"), None);
        assert_eq!(domain_of("mta-sts.agents.example:443"), Some("agents.example"));
    }
}
