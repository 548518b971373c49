//! Mail to many says how to get no more of it: List-Unsubscribe, and its form of one click.
//!
//! The token in it is that one recipient's, so a bulk message has one recipient. Both fields are covered by our
//! DKIM signatures (RFC 8058 §4), and take the place of whatever the request brought for them.
//!
//! RFC 2369 §3.2 (List-Unsubscribe), RFC 8058 (one click), RFC 3834 §5 (Auto-Submitted).

use super::SendError;
use super::request::Prepared;
use crate::deliver::compose::AutoSubmitted;
use crate::deliver::header::{HeaderName, HeaderValue};
use crate::deliver::return_path;
use crate::floor::Floor;
use crate::ids::InboxKey;

/// Gives the composition its fields.
pub(super) fn add_headers(floor: &Floor, inbox: InboxKey, prepared: &mut Prepared) -> Result<(), SendError> {
    let invalid = |message: String| SendError::Invalid { field: "bulk", message };
    if prepared.recipients.len() != 1 {
        let say = "the link to unsubscribe is one recipient's own: send each their own message";
        return Err(invalid(say.to_owned()));
    }
    let composition = &mut prepared.composition;
    let id = composition.message_id.trim_matches(['<', '>']).split('@').next().unwrap_or_default();
    let token = return_path::leave_token(&floor.secrets, inbox, id);
    let token =
        token.ok_or_else(|| invalid("the message has no id that a token can be made of".to_owned()))?;
    let mail = format!(
        "<mailto:{}@{}?subject=unsubscribe>",
        return_path::leave_address(&token),
        composition.from.1.domain()
    );
    let public = floor.config.http.public_url.trim_end_matches('/');
    // RFC 8058 §3.1: one click is over https, or there is none.
    let one_click = public.starts_with("https://");
    let link = if one_click { format!("<{public}/unsubscribe/{token}>, {mail}") } else { mail };
    let ours = ["list-unsubscribe", "list-unsubscribe-post"];
    composition.headers.retain(|(name, _)| !ours.contains(&name.as_str().to_ascii_lowercase().as_str()));
    let mut add = |name: &str, value: &str| -> Result<(), SendError> {
        let name = HeaderName::new(name).map_err(|e| invalid(e.to_string()))?;
        let value = HeaderValue::new(value).map_err(|e| invalid(e.to_string()))?;
        composition.headers.push((name, value));
        Ok(())
    };
    add("List-Unsubscribe", &link)?;
    if one_click {
        add("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")?;
    }
    composition.auto_submitted = composition.auto_submitted.or(Some(AutoSubmitted::Generated));
    Ok(())
}
