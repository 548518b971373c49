//! Bytes leave through signed links that expire, as at AgentMail: `download_url` needs no key, so that it can be
//! handed to whatever fetches it, and names one message or one part of it.
//!
//! The link holds inbox, message, part and expiry, and an HMAC over them under the master key. What it serves
//! comes from strangers: it is always a download, never shown in our origin.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::view::{AttachmentId, AttachmentView};
use crate::api::App;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::path::RawPath;
use crate::clock::{Millis, rfc3339};
use crate::config::limits;
use crate::floor::Floor;
use crate::ids::{InboxKey, base32, unbase32};
use crate::screen;
use crate::secrets::Secrets;
use crate::store::message::{self, Message};
use crate::store::{StoreError, inbox};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(download))
}

const PURPOSE: &str = "download link";
/// Octets of the MAC in a link.
const MAC: usize = 16;
/// Stands for the whole message where a part's number would be.
const WHOLE: u32 = u32::MAX;

#[derive(Serialize, ToSchema)]
pub(crate) struct RawMessageResponse {
    message_id: String,
    size: i64,
    download_url: String,
    expires_at: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct AttachmentResponse {
    #[serde(flatten)]
    attachment: AttachmentView,
    download_url: String,
    expires_at: String,
}

pub(super) fn raw(floor: &Floor, message: &Message) -> RawMessageResponse {
    let (download_url, expires_at) = link(floor, message, WHOLE);
    RawMessageResponse { message_id: message.public_id(), size: message.size, download_url, expires_at }
}

/// `None` where the message has no such attachment.
pub(super) fn attachment(floor: &Floor, message: &Message, id: &str) -> Option<AttachmentResponse> {
    let id = AttachmentId::parse(id)?;
    let same = id.message.inbox == message.inbox && id.message.seq == message.message_key;
    let part = message.structure.parts.get(usize::try_from(id.part).ok()?)?;
    if !same || id.message.at != message.created_at || !part.attachment {
        return None;
    }
    let (download_url, expires_at) = link(floor, message, id.part);
    Some(AttachmentResponse {
        attachment: AttachmentView::of_part(message, id.part, part),
        download_url,
        expires_at,
    })
}

fn link(floor: &Floor, message: &Message, part: u32) -> (String, String) {
    let expires_at = floor.clock.now() + limits::DOWNLOAD_LINK_LIFETIME.as_millis() as Millis;
    let target = Target { inbox: message.inbox, message_key: message.message_key, part, expires_at };
    let url = format!("{}/v1/downloads/{}", floor.config.http.public_url, target.sign(&floor.secrets));
    (url, rfc3339(expires_at))
}

/// What a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    inbox: InboxKey,
    message_key: i64,
    part: u32,
    expires_at: Millis,
}

impl Target {
    fn sign(&self, secrets: &Secrets) -> String {
        let mut octets = Vec::with_capacity(36 + MAC);
        for number in [self.inbox.pod, self.inbox.inbox, self.message_key, self.expires_at] {
            octets.extend(number.to_be_bytes());
        }
        octets.extend(self.part.to_be_bytes());
        let mac = secrets.mac(PURPOSE, &octets);
        octets.extend(&mac[..MAC]);
        base32(&octets)
    }

    fn read(token: &str, secrets: &Secrets) -> Option<Target> {
        let octets = unbase32(token)?;
        let (body, mac) = octets.split_at_checked(36)?;
        if mac.len() != MAC || !secrets.mac_matches(PURPOSE, body, mac) {
            return None;
        }
        let (numbers, part) = body.split_at_checked(32)?;
        let (numbers, _) = numbers.as_chunks::<8>();
        let &[pod, inbox, message_key, expires_at] = numbers else { return None };
        Some(Target {
            inbox: InboxKey { pod: i64::from_be_bytes(pod), inbox: i64::from_be_bytes(inbox) },
            message_key: i64::from_be_bytes(message_key),
            part: u32::from_be_bytes(part.try_into().ok()?),
            expires_at: i64::from_be_bytes(expires_at),
        })
    }
}

/// What a signed link leads to.
#[utoipa::path(
    get, path = "/v1/downloads/{token}", tag = "messages", security(()), params(("token" = String, Path)),
    responses((status = 200, description = "The bytes", content_type = "application/octet-stream"), (status = 404, body = ErrorShape))
)]
async fn download(State(floor): State<Arc<Floor>>, path: RawPath) -> Answer<Response> {
    let gone = || {
        Problem::not_found("Download").fix("The link has expired, or was cut: ask for the attachment again.")
    };
    let target = Target::read(&path.segment(2)?, &floor.secrets).ok_or_else(gone)?;
    if target.expires_at <= floor.clock.now() {
        return Err(gone());
    }
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let alive = inbox::by_key(tx, target.inbox).await?.is_some();
            let found = message::by_key(tx, target.inbox, target.message_key).await?;
            Ok::<_, StoreError>(found.filter(|_| alive))
        })
    });
    let found: Option<Message> = found.await.map_err(Problem::from)?;
    let message = found.ok_or_else(gone)?;
    let raw = floor.bodies.load(&floor.store, target.inbox, target.message_key).await?.ok_or_else(gone)?;
    if target.part == WHOLE {
        return Ok(bytes(raw, "message/rfc822", "message.eml"));
    }
    let part = usize::try_from(target.part).ok().and_then(|i| message.structure.parts.get(i));
    let part = part.ok_or_else(gone)?.clone();
    let decoding = move || screen::decode_part(&raw, &message.structure, target.part);
    let decoded = tokio::task::spawn_blocking(decoding).await.map_err(|e| crate::api::error::internal(&e))?;
    Ok(bytes(decoded, &part.content_type, part.filename.as_deref().unwrap_or("attachment")))
}

fn bytes(octets: Vec<u8>, content_type: &str, filename: &str) -> Response {
    let mut response = octets.into_response();
    let headers = response.headers_mut();
    let octet_stream = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap_or(octet_stream));
    if let Ok(value) = HeaderValue::from_str(&content_disposition(filename)) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    // A stranger's HTML or SVG runs nowhere near our origin.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    response
}

/// RFC 6266: an ASCII name for everybody, and the real one (RFC 8187) where it is another.
fn content_disposition(filename: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._- ".contains(c) { c } else { '_' };
    let ascii: String = filename.chars().take(200).map(plain).collect();
    if ascii == filename {
        return format!("attachment; filename=\"{ascii}\"");
    }
    let whole: String = filename.chars().filter(|c| !c.is_control()).take(200).collect();
    let encoded = percent_encoding::utf8_percent_encode(&whole, percent_encoding::NON_ALPHANUMERIC);
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_what_it_names_and_nothing_else() {
        let secrets = Secrets::from_text(&base32(&[7; 32]), "test").unwrap();
        let other = Secrets::from_text(&base32(&[8; 32]), "test").unwrap();
        let target = Target { inbox: InboxKey { pod: 1, inbox: 2 }, message_key: 3, part: 4, expires_at: 5 };
        let token = target.sign(&secrets);
        assert_eq!(Target::read(&token, &secrets), Some(target));
        assert_eq!(Target::read(&token, &other), None);
        let forged = Target { message_key: 9, ..target }.sign(&other);
        for wrong in ["", "x", &token[1..], &token[..token.len() - 1], &forged] {
            assert_eq!(Target::read(wrong, &secrets), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_name_cannot_end_its_header() {
        assert_eq!(content_disposition("label 1.txt"), "attachment; filename=\"label 1.txt\"");
        let hostile = content_disposition("ä\"\r\nSet-Cookie: x");
        assert!(
            !hostile.contains(['\r', '\n'])
                && hostile.starts_with("attachment; filename=\"____Set-Cookie_ x\"")
        );
        assert!(HeaderValue::from_str(&hostile).is_ok());
    }
}
