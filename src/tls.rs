//! Certificates and TLS settings, for the doors we keep and for the servers we call.
//!
//! - One certificate for every listener: the operator's PEM files, or one that we sign ourselves for our
//!   host name and keep in the data folder (its key readable by us alone).
//! - `reload` swaps it for new connections; running ones keep theirs. A bad file leaves the old one in use.
//! - TLS 1.2 and 1.3 only. No session tickets and no resumption on the server side: in autumn 2024 three
//!   mail servers lost all mail from one large sender over TLS 1.3 tickets on port 25, and a mail session
//!   is too long for the saved round trip to matter.
//! - Two settings for calling out: *opportunistic*, which takes any certificate, and *verifying*.
//!
//! RFC 8446, RFC 3207 (STARTTLS), RFC 7435 (opportunistic security).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::config::TlsFiles;

/// Largest PEM file read: a chain of ten RSA-4096 certificates is below 32 KiB.
const MAX_PEM: u64 = 1 << 20;

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} holds no certificate in PEM form")]
    NoCertificate { path: PathBuf },
    #[error("{path} holds no private key in PEM form")]
    NoKey { path: PathBuf },
    #[error("certificate {cert} and key {key} do not work together: {source}")]
    Mismatch { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("cannot make a certificate for {hostname}: {source}")]
    SelfSigned { hostname: String, source: rcgen::Error },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// TLS as the whole server uses it. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    inner: Arc<Inner>,
}

struct Inner {
    /// The same file twice where we signed it ourselves.
    files: TlsFiles,
    self_signed: bool,
    server: RwLock<Arc<ServerConfig>>,
    opportunistic: Arc<ClientConfig>,
    verifying: Arc<ClientConfig>,
}

/// Chooses aws-lc-rs for the whole process, as libraries ask rustls for "the" provider. May be called again.
pub fn install_provider() {
    // An error only says that a provider is there already, which is what we want.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Tls {
    /// Opens the operator's certificate, or the one of our own making for `hostname` under `data_dir`.
    pub fn open(hostname: &str, data_dir: &Path, files: Option<&TlsFiles>) -> Result<Tls, TlsError> {
        install_provider();
        let (files, self_signed) = match files {
            Some(files) => (files.clone(), false),
            None => {
                let path = self_signed(hostname, data_dir)?;
                (TlsFiles { cert: path.clone(), key: path }, true)
            }
        };
        let server = RwLock::new(server_config(&files)?);
        let inner = Inner {
            files,
            self_signed,
            server,
            opportunistic: opportunistic_config()?,
            verifying: Arc::new(verifying_by(Arc::new(roots(None)))?),
        };
        Ok(Tls { inner: Arc::new(inner) })
    }

    /// What a new connection on one of our listeners is accepted with.
    pub fn server(&self) -> Arc<ServerConfig> {
        // A poisoned lock still holds a whole Arc: writers only ever replace it.
        Arc::clone(&self.inner.server.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again (SIGHUP). On an error the certificate in use stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = server_config(&self.inner.files)?;
        *self.inner.server.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Whether the certificate is one of our own making, which no stranger can verify.
    pub fn is_self_signed(&self) -> bool {
        self.inner.self_signed
    }

    /// For mail to a host whose certificate nobody vouches for: any certificate is taken. MX hosts are found
    /// through unsigned DNS and most of them present names or issuers that cannot be checked; refusing those
    /// would mean sending the same mail in clear text. RFC 7435 §3: encrypt without authentication rather
    /// than not at all. Where a policy promises more (MTA-STS, DANE, a smarthost), `verifying` is the one.
    pub fn opportunistic(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.inner.opportunistic)
    }

    /// Checks the chain against the system's trust store and the name against the certificate.
    pub fn verifying(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.inner.verifying)
    }
}

/// How a connection is protected, for `Received` and for the log: `TLSv1.3 TLS13_AES_256_GCM_SHA384`.
pub fn describe(connection: &rustls::CommonState) -> String {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLS",
    };
    match connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()) {
        Some(suite) => format!("{version} {suite}"),
        None => version.to_owned(),
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_PEM {
        return Err(failed(io::Error::other("larger than 1 MiB, which no certificate file is")));
    }
    fs::read(path).map_err(failed)
}

fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read_pem(&files.cert)?)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::NoCertificate { path: files.cert.clone() })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: files.cert.clone() });
    }
    let key = PrivateKeyDer::from_pem_slice(&read_pem(&files.key)?)
        .map_err(|_| TlsError::NoKey { path: files.key.clone() })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|source| TlsError::Mismatch { cert: files.cert.clone(), key: files.key.clone(), source })?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The file with our own certificate and key, made when it is not there. One file for both, so that a crash
/// between two writes cannot leave a certificate beside another one's key; its name carries the host name,
/// so that a server that is renamed gets a new one.
fn self_signed(hostname: &str, data_dir: &Path) -> Result<PathBuf, TlsError> {
    let safe: String = hostname
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' })
        .collect();
    let path = data_dir.join(format!("self-signed-{safe}.pem"));
    if path.exists() {
        return Ok(path);
    }
    let failed = |source| TlsError::SelfSigned { hostname: hostname.to_owned(), source };
    let made = rcgen::generate_simple_self_signed([hostname.to_owned()]).map_err(failed)?;
    let pem = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem());
    let failed = |source| TlsError::Write { path: path.clone(), source };
    write_secret(&path, pem.as_bytes()).map_err(failed)?;
    Ok(path)
}

/// Writes beside the target and renames: whoever sees the file sees all of it.
fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("pem.new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

fn opportunistic_config() -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate { provider }))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The authorities that this system trusts, and those in `extra`, a PEM file.
pub(crate) fn roots(extra: Option<&Path>) -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        // Not fatal: a server that only receives needs none, and every verifying call will say so.
        tracing::warn!(errors = ?found.errors, "no trusted certificate authorities found on this system");
    }
    let Some(extra) = extra else { return roots };
    let read = read_pem(extra).map(|pem| {
        let all: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
        roots.add_parsable_certificates(all).0
    });
    match read {
        Ok(0) => tracing::warn!(file = %extra.display(), "holds no certificate authority in PEM form"),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the extra certificate authorities are not trusted"),
    }
    roots
}

/// Calling out to hosts whose certificate one of these vouches for.
pub(crate) fn verifying_by(roots: Arc<RootCertStore>) -> Result<ClientConfig, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Takes any certificate. The handshake's signature is still checked, so that the peer at least holds the
/// key of what it shows and the session cannot be altered by somebody who only copied a certificate.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// One handshake and one word through it; the certificate that the client saw.
    async fn shake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> io::Result<Vec<u8>> {
        let (near, far) = tokio::io::duplex(4096);
        let accept = tokio::spawn(async move {
            let mut stream = TlsAcceptor::from(server).accept(near).await?;
            stream.write_all(b"hello").await?;
            stream.shutdown().await
        });
        let name = ServerName::try_from("mx.agents.example").unwrap();
        let mut stream = TlsConnector::from(client).connect(name, far).await?;
        let mut word = String::new();
        stream.read_to_string(&mut word).await?;
        assert_eq!(word, "hello");
        accept.await.unwrap()?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap();
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
        Ok(certificates[0].to_vec())
    }

    #[tokio::test]
    async fn own_certificate_is_kept_private_and_the_same_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let first = Tls::open("mx.agents.example", dir.path(), None).unwrap();
        assert!(first.is_self_signed());
        let seen = shake(first.server(), first.opportunistic()).await.unwrap();
        let again = Tls::open("mx.agents.example", dir.path(), None).unwrap();
        assert_eq!(seen, shake(again.server(), again.opportunistic()).await.unwrap());
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
        assert!(shake(first.server(), first.verifying()).await.is_err(), "a stranger cannot verify it");
    }

    #[tokio::test]
    async fn reload_takes_new_files_and_keeps_the_old_when_they_are_bad() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let put = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            fs::write(&cert, made.cert.pem()).unwrap();
            fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            made.cert.der().to_vec()
        };
        let old = put("mx.agents.example");
        let files = TlsFiles { cert: cert.clone(), key: key.clone() };
        let tls = Tls::open("mx.agents.example", dir.path(), Some(&files)).unwrap();
        assert_eq!(shake(tls.server(), tls.opportunistic()).await.unwrap(), old);
        let new = put("mx.agents.example");
        tls.reload().unwrap();
        assert_eq!(shake(tls.server(), tls.opportunistic()).await.unwrap(), new);
        fs::write(&cert, "-----BEGIN CERTIFICATE-----\nnonsense").unwrap();
        assert!(matches!(tls.reload(), Err(TlsError::NoCertificate { .. })));
        fs::write(&cert, "").unwrap();
        assert!(matches!(tls.reload(), Err(TlsError::NoCertificate { .. })));
        assert_eq!(shake(tls.server(), tls.opportunistic()).await.unwrap(), new);
    }

    #[test]
    fn bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let files = TlsFiles { cert: cert.clone(), key: key.clone() };
        let open = || Tls::open("mx.agents.example", dir.path(), Some(&files)).err().unwrap();
        assert!(open().to_string().contains("cert.pem"));
        let one = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        fs::write(&cert, one.cert.pem()).unwrap();
        assert!(open().to_string().contains("key.pem"));
        fs::write(&key, one.cert.pem()).unwrap();
        assert!(matches!(open(), TlsError::NoKey { .. }));
        fs::write(&key, two.signing_key.serialize_pem()).unwrap();
        assert!(matches!(open(), TlsError::Mismatch { .. }));
    }
}
