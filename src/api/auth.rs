//! Who is calling: `Authorization: Bearer <key>` becomes a `Principal`, before anything of the body is read.
//!
//! The key is looked up with every request, so that one that was deleted is dead at once. What lies outside
//! its scope is 404, as if it did not exist; what its permissions lack is 403 `missing_permission`; what only
//! an organization's key may change is 403 `forbidden`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};

use super::App;
use super::error::{Answer, Problem};
use super::path::RawPath;
use super::query::Query;
use crate::clock::Millis;
use crate::config::limits;
use crate::floor::Floor;
use crate::ids::{InboxKey, parse_pod_id};
use crate::principal::{Principal, Scope};
use crate::store::inbox::{self, DEFAULT_POD, Inbox};
use crate::store::pod::{self, Pod};
use crate::store::{StoreError, key};

/// Keys whose last use is remembered; beyond it the memory starts afresh, which costs a few writes.
const MAX_REMEMBERED: usize = 10_000;

/// The authenticated caller of a request.
pub(crate) struct Caller(pub Principal);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Caller, Problem> {
        let secret = bearer(&parts.headers)?;
        let hash = key::hash(secret);
        let found =
            app.floor.store.read(move |tx| Box::pin(async move { key::by_hash(tx, &hash).await })).await;
        let found: Option<key::ApiKey> = found.map_err(|e: StoreError| Problem::from(e))?;
        let now = app.floor.clock.now();
        let Some(key) = found.filter(|key| key.expires_at.is_none_or(|at| at > now)) else {
            return Err(unauthorized("unknown_api_key", "This API key is unknown, deleted or expired.")
                .fix("Use a key that exists: `gatepost key create`, or POST /v0/api-keys with an organization's key."));
        };
        app.uses.note(&app.floor, key.key_id, now);
        Ok(Caller(Principal {
            key_id: key.key_id,
            api_key_id: key.api_key_id,
            scope: key.scope,
            permissions: key.permissions,
        }))
    }
}

fn bearer(headers: &HeaderMap) -> Answer<&str> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(unauthorized("missing_authorization", "The request has no Authorization header.")
            .fix("Send `Authorization: Bearer <api key>`."));
    };
    let wrong = || {
        unauthorized("invalid_token_type", "The Authorization header is not of the form `Bearer <api key>`.")
            .fix("Send `Authorization: Bearer <api key>`.")
    };
    let (scheme, secret) = value.to_str().map_err(|_| wrong())?.split_once(' ').ok_or_else(wrong)?;
    let secret = secret.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty() { Ok(secret) } else { Err(wrong()) }
}

fn unauthorized(code: &str, message: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, code, message)
}

/// When each key was last noted as used, so that `used_at` costs a write a minute and not one a request.
#[derive(Clone, Default)]
pub(crate) struct KeyUses(Arc<Mutex<HashMap<i64, Millis>>>);

impl KeyUses {
    fn note(&self, floor: &Arc<Floor>, key_id: i64, now: Millis) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let resolution = limits::KEY_USE_RESOLUTION.as_millis() as Millis;
        if noted.get(&key_id).is_some_and(|at| now < at + resolution) {
            return;
        }
        if noted.len() >= MAX_REMEMBERED {
            noted.clear();
        }
        noted.insert(key_id, now);
        drop(noted);
        let store = floor.store.clone();
        tokio::spawn(async move {
            let touched: Result<(), StoreError> =
                store.write(move |tx| Box::pin(key::touch(tx, key_id))).await;
            if let Err(error) = touched {
                tracing::debug!(%error, "the use of a key was not noted");
            }
        });
    }
}

impl Caller {
    /// 403 unless the key has the permission.
    pub(crate) fn require(&self, flag: &str) -> Answer<()> {
        if self.0.permissions.allow(flag) {
            return Ok(());
        }
        Err(Problem::forbidden("missing_permission", format!("This API key lacks the permission `{flag}`."))
            .fix(format!("Use a key with `{flag}`, or have one made by a key that has it.")))
    }

    /// 403 unless this is a key of the organization: an inbox's own key never changes what binds it.
    pub(crate) fn require_admin(&self, what: &str) -> Answer<()> {
        if self.0.is_admin() {
            return Ok(());
        }
        Err(Problem::forbidden("forbidden", format!("{what} can be changed by organization keys only."))
            .fix("Ask the operator, or use an organization's key."))
    }

    /// 403 unless this is a key of the organization: what is shared by all pods is not one pod's to change.
    pub(crate) fn require_organization(&self, what: &str) -> Answer<()> {
        if self.0.scope == Scope::Organization {
            return Ok(());
        }
        Err(Problem::forbidden("forbidden", format!("{what} can be changed by organization keys only."))
            .fix("Ask the operator, or use an organization's key."))
    }

    /// The pod of this name, if this key reaches all of it.
    pub(crate) async fn pod(&self, floor: &Floor, pod_id: &str) -> Answer<Pod> {
        let none = || Problem::not_found("Pod");
        let key = parse_pod_id(pod_id).ok_or_else(none)?;
        if self.0.scope != Scope::Organization && self.0.scope != Scope::Pod(key) {
            return Err(none());
        }
        let found = floor.store.read(move |tx| Box::pin(pod::by_key(tx, key))).await;
        found.map_err(|e: StoreError| Problem::from(e))?.ok_or_else(none)
    }

    /// This caller, seeing no more than the pod of a path `/v0/pods/{pod_id}/…`.
    pub(crate) async fn within(self, floor: &Floor, path: &RawPath) -> Answer<Caller> {
        let pod = self.pod(floor, &path.segment(2)?).await?;
        Ok(Caller(Principal { scope: Scope::Pod(pod.pod_key), ..self.0 }))
    }

    /// The pod that what this key makes or asks about is in, where nothing else says so.
    pub(crate) fn own_pod(&self) -> i64 {
        match self.0.scope {
            Scope::Organization => DEFAULT_POD,
            Scope::Pod(pod) | Scope::Inbox(InboxKey { pod, .. }) => pod,
        }
    }

    /// The pod that a `pod_id` in the query names, if this key reaches all of it; else `own_pod`.
    pub(crate) async fn asked_pod(&self, floor: &Floor, query: &mut Query) -> Answer<i64> {
        match query.text("pod_id") {
            Some(pod_id) => Ok(self.pod(floor, &pod_id).await?.pod_key),
            None => Ok(self.own_pod()),
        }
    }

    /// The inbox of this name, if this key sees it.
    pub(crate) async fn inbox(&self, floor: &Floor, inbox_id: &str) -> Answer<Inbox> {
        // An address that does not parse names no inbox, and is no news to log.
        let address = inbox_id.parse::<crate::address::Address>().ok().map(|a| a.key());
        let found = match address {
            Some(address) => floor.store.inbox_at(vec![address]).await,
            None => Ok::<_, StoreError>(None),
        };
        found?.filter(|inbox| self.sees(inbox)).ok_or_else(|| Problem::not_found("Inbox"))
    }

    /// The inbox of a row, if this key sees it.
    pub(crate) async fn inbox_by_key(&self, floor: &Floor, key: InboxKey) -> Answer<Option<Inbox>> {
        if !self.0.scope.reaches(key) {
            return Ok(None);
        }
        let found = floor.store.read(move |tx| Box::pin(inbox::by_key(tx, key))).await;
        let found: Option<Inbox> = found.map_err(|e: StoreError| Problem::from(e))?;
        Ok(found.filter(|inbox| self.sees(inbox)))
    }

    fn sees(&self, inbox: &Inbox) -> bool {
        self.0.scope.reaches(inbox.key) && (!inbox.operator || self.0.scope == Scope::Organization)
    }

    /// The one inbox that this key is for.
    pub(crate) fn own_inbox(&self) -> Option<InboxKey> {
        match self.0.scope {
            Scope::Inbox(key) => Some(key),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_key_comes_as_a_bearer_token_and_no_other_way() {
        let with = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
            bearer(&headers).map(str::to_owned).map_err(|p| p.code().to_owned())
        };
        assert_eq!(with(b"Bearer gp_1"), Ok("gp_1".to_owned()));
        assert_eq!(with(b"bearer  gp_1"), Ok("gp_1".to_owned()));
        for wrong in [b"gp_1".as_slice(), b"Basic Z3A6MQ==", b"Bearer ", b"Bearer \xff"] {
            assert_eq!(with(wrong), Err("invalid_token_type".to_owned()));
        }
        assert_eq!(bearer(&HeaderMap::new()).unwrap_err().code(), "missing_authorization");
    }
}
