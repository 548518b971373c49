//! What we know of the sender, as data. It is stored with the message and served from there; nothing ever
//! reads it back out of a header (RFC 8601 §5: headers can be forged).

use serde::{Deserialize, Serialize};

use crate::address::Address;

/// The result of one method, in the words of RFC 8601 §2.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthResult {
    None,
    Neutral,
    Pass,
    Fail,
    #[serde(rename = "softfail")]
    SoftFail,
    Policy,
    #[serde(rename = "temperror")]
    TempError,
    #[serde(rename = "permerror")]
    PermError,
}

impl AuthResult {
    /// The word that `Authentication-Results` and the API use.
    pub fn as_str(self) -> &'static str {
        match self {
            AuthResult::None => "none",
            AuthResult::Neutral => "neutral",
            AuthResult::Pass => "pass",
            AuthResult::Fail => "fail",
            AuthResult::SoftFail => "softfail",
            AuthResult::Policy => "policy",
            AuthResult::TempError => "temperror",
            AuthResult::PermError => "permerror",
        }
    }
}

/// SPF, RFC 7208: may this host send for the domain of the reverse-path (or of HELO for `<>`)?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spf {
    pub result: AuthResult,
    /// The domain that was asked.
    pub domain: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// One DKIM signature, RFC 6376.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dkim {
    pub result: AuthResult,
    /// `d=`
    pub domain: String,
    /// `s=`
    pub selector: String,
    /// `a=`, such as `rsa-sha256`
    pub algorithm: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// What the author domain asks of mail that fails, RFC 9989 §4.7 (`p=`, `sp=`, `np=`, softened by `t=y`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DmarcPolicy {
    None,
    Quarantine,
    Reject,
}

impl DmarcPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            DmarcPolicy::None => "none",
            DmarcPolicy::Quarantine => "quarantine",
            DmarcPolicy::Reject => "reject",
        }
    }
}

/// DMARC, RFC 9989.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dmarc {
    pub result: AuthResult,
    /// The author domain: of the one From address.
    pub domain: String,
    pub policy: DmarcPolicy,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// A method with a bare result: ARC (RFC 8617, recorded only) and iprev (RFC 8601 §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Method {
    pub result: AuthResult,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// Everything that was checked about where a message came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// `smtp` for mail from outside, `local` for mail between inboxes of this server.
    pub source: Source,
    pub spf: Spf,
    pub dkim: Vec<Dkim>,
    pub dmarc: Dmarc,
    pub arc: Method,
    pub iprev: Method,
    /// The address that may be believed: DMARC passed, aligned, for exactly one From address.
    pub verified_sender: Option<Address>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Smtp,
    Local,
}

impl Verdict {
    /// Mail from one inbox of this server to another: we know who sent it, and nobody else was asked.
    pub fn local(sender: Address) -> Verdict {
        let none = || Method { result: AuthResult::None, detail: None };
        Verdict {
            source: Source::Local,
            spf: Spf { result: AuthResult::None, domain: sender.domain().to_owned(), detail: None },
            dkim: Vec::new(),
            dmarc: Dmarc {
                result: AuthResult::None,
                domain: sender.domain().to_owned(),
                policy: DmarcPolicy::None,
                detail: None,
            },
            arc: none(),
            iprev: none(),
            verified_sender: Some(sender),
        }
    }

    /// DMARC said no: the From address is not to be believed.
    pub fn dmarc_failed(&self) -> bool {
        self.dmarc.result == AuthResult::Fail
    }
}
