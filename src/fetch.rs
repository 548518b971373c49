//! Guarded HTTPS: to a host that a stranger named, a document from it or a report for it.
//!
//! Promises: the address is looked up once, vetted, and that one is dialled; redirects are not followed; what the
//! certificate must be is the caller's to say; the whole takes at most `DEADLINE`, and no more than `LARGEST` octets
//! are read. No proxy, no cookies, no credentials.
//!
//! RFC 8461 §3.3, RFC 8460 §5.4, RFC 9110; mail-servers.md §7 "SMTP as SSRF" holds for HTTPS too.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use rustls::ClientConfig;

/// RFC 8461 §3.3 suggests one minute for a policy; mail waits for it, and the next attempt asks again.
const DEADLINE: Duration = Duration::from_secs(20);
/// RFC 8461 §3.3: 64 KiB are plenty for a policy.
const LARGEST: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The certificate did not verify.
    #[error("the certificate of the host is not good: {0}")]
    Certificate(String),
    #[error("{0}")]
    Failed(String),
}

/// The plain text at `https://HOST:PORT/PATH`, from one of `addresses`, which were vetted.
pub(crate) async fn text(
    host: &str,
    addresses: &[SocketAddr],
    path: &str,
    tls: ClientConfig,
) -> Result<String, FetchError> {
    let failed = |error: reqwest::Error| sort(&error);
    let port = addresses.first().map_or(443, SocketAddr::port);
    let client = client(host, addresses, tls)?;
    let mut answer = client.get(format!("https://{host}:{port}{path}")).send().await.map_err(failed)?;
    // RFC 8461 §3.3: redirects must not be followed, and anything but 200 is no policy.
    if answer.status() != reqwest::StatusCode::OK {
        return Err(FetchError::Failed(format!("the host answered {}", answer.status())));
    }
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("text/plain") {
        return Err(FetchError::Failed(format!("the document is {kind:?}, not text/plain")));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > LARGEST {
            return Err(FetchError::Failed("the document is larger than 64 KiB".into()));
        }
        body.extend_from_slice(&chunk);
    }
    String::from_utf8(body).map_err(|_| FetchError::Failed("the document is not UTF-8".into()))
}

/// Whether the host took what is posted to `url`, at one of `addresses`, which were vetted. Its answer is not read.
pub(crate) async fn post(
    url: Url,
    addresses: &[SocketAddr],
    content_type: &str,
    body: Vec<u8>,
    tls: ClientConfig,
) -> Result<(), FetchError> {
    let failed = |error: reqwest::Error| sort(&error);
    let client = client(url.host_str().unwrap_or_default(), addresses, tls)?;
    let request = client.post(url).header(CONTENT_TYPE, content_type).body(body);
    let status = request.send().await.map_err(failed)?.status();
    if status.is_success() { Ok(()) } else { Err(FetchError::Failed(format!("the host answered {status}"))) }
}

fn client(host: &str, addresses: &[SocketAddr], tls: ClientConfig) -> Result<Client, FetchError> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .resolve_to_addrs(host, addresses)
        .redirect(Policy::none())
        .no_proxy()
        .timeout(DEADLINE)
        .build()
        .map_err(|error| sort(&error))
}

/// What went wrong, with its causes; the outermost alone says nothing.
fn sort(error: &reqwest::Error) -> FetchError {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    let mut certificate = false;
    while let Some(inner) = cause {
        let said = inner.to_string();
        certificate |= said.contains("invalid peer certificate");
        words.push_str(": ");
        words.push_str(&said);
        cause = inner.source();
    }
    if certificate { FetchError::Certificate(words) } else { FetchError::Failed(words) }
}
