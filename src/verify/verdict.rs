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
    /// Of a `fail`: what the domain itself says about it (`exp=`, RFC 7208 §6.2). A stranger's words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub explanation: Option<String>,
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
    /// The policy that holds for this message: after `sp`, `np`, `t` and what overrides it.
    pub policy: DmarcPolicy,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// The domain whose record it is: the author domain, its organization, or the suffix above.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy_domain: Option<String>,
    /// `t=y`: the owner is trying the policy out.
    #[serde(skip_serializing_if = "is_false", default)]
    pub testing: bool,
    #[serde(skip_serializing_if = "is_false", default)]
    pub dkim_aligned: bool,
    #[serde(skip_serializing_if = "is_false", default)]
    pub spf_aligned: bool,
    /// The record asks for aggregate reports (`rua`). Of use right now, and not kept.
    #[serde(skip)]
    pub reports_wanted: bool,
    /// Why the policy is not applied (RFC 9990, `PolicyOverride`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub overridden: Option<PolicyOverride>,
}

/// The policy of the author domain was turned off for this message. What the result is stays what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyOverride {
    pub reason: OverrideReason,
    /// The forwarder whose ARC seal says that it saw DMARC pass.
    pub by: String,
    /// The policy that would have applied.
    pub policy: DmarcPolicy,
}

/// In the words of RFC 9990.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverrideReason {
    TrustedForwarder,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// ARC, RFC 8617: what forwarders say, recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArcChain {
    pub result: AuthResult,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// The sets as they claim to be, oldest first; none where they do not make a chain.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub chain: Vec<ArcSet>,
}

/// One forwarder's set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArcSet {
    /// `i=`
    pub instance: u8,
    /// `d=` of the seal.
    pub sealer: String,
    /// `s=` of the seal.
    pub selector: String,
    /// `cv=`: what the sealer found of the chain before it, `none`, `pass` or `fail`.
    pub cv: String,
}

/// A method with a bare result: iprev (RFC 8601 §3).
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
    pub arc: ArcChain,
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
        let domain = sender.domain().to_owned();
        Verdict {
            source: Source::Local,
            spf: Spf { result: AuthResult::None, domain: domain.clone(), detail: None, explanation: None },
            dkim: Vec::new(),
            dmarc: Dmarc::none(domain),
            arc: ArcChain { result: AuthResult::None, detail: None, chain: Vec::new() },
            iprev: Method { result: AuthResult::None, detail: None },
            verified_sender: Some(sender),
        }
    }

    /// DMARC said no: the From address is not to be believed.
    pub fn dmarc_failed(&self) -> bool {
        self.dmarc.result == AuthResult::Fail
    }
}

impl Dmarc {
    /// Nothing is known of this author domain.
    pub fn none(domain: String) -> Dmarc {
        Dmarc {
            result: AuthResult::None,
            domain,
            policy: DmarcPolicy::None,
            detail: None,
            policy_domain: None,
            testing: false,
            dkim_aligned: false,
            spf_aligned: false,
            reports_wanted: false,
            overridden: None,
        }
    }
}
