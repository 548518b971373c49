//! A certificate is judged: by the web's authorities, by TLSA records, or not at all; and the judgement is kept,
//! also where it stops nothing, because reports want it.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::dane::{Association, Associations, Usage};
use crate::store::tls_result::ResultType;

/// What the certificate is measured with.
#[derive(Debug, Clone)]
pub(super) enum Measure {
    Nothing,
    WebPki,
    /// The records, and the domains that may stand in a certificate instead of the host (RFC 7672 §3.2.2).
    Dane(Arc<Associations>, Vec<String>),
}

#[derive(Debug)]
pub(super) struct Judge {
    measure: Measure,
    /// A bad certificate ends the handshake.
    strict: bool,
    web: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    result: OnceLock<ResultType>,
}

impl Judge {
    pub(super) fn new(measure: Measure, strict: bool, web: Option<Arc<WebPkiServerVerifier>>) -> Arc<Judge> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Arc::new(Judge { measure, strict, web, provider, result: OnceLock::new() })
    }

    pub(super) fn config(self: &Arc<Judge>) -> Result<Arc<ClientConfig>, Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(rustls::ALL_VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        // A resumed session would show no certificate.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// What became of the certificate; `None` before one was seen.
    pub(super) fn result(&self) -> Option<ResultType> {
        self.result.get().copied()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        match &self.measure {
            Measure::Nothing => Ok(()),
            Measure::WebPki => match &self.web {
                Some(web) => web.verify_server_cert(leaf, chain, name, &[], now).map(|_| ()),
                None => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
            },
            Measure::Dane(dane, domains) => {
                let names: Vec<ServerName<'_>> = [name.clone()]
                    .into_iter()
                    .chain(domains.iter().filter_map(|domain| ServerName::try_from(domain.as_str()).ok()))
                    .collect();
                by_records(&dane.records, leaf, chain, &names, now, &self.provider)
            }
        }
    }
}

/// RFC 7672 §3.1: usage 3 asks for nothing but the match, neither name nor date; usage 2 makes the certificate
/// that matches the anchor of an ordinary chain, names included.
fn by_records(
    records: &[Association],
    leaf: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    names: &[ServerName<'_>],
    now: UnixTime,
    provider: &Arc<CryptoProvider>,
) -> Result<(), Error> {
    if records.iter().any(|record| record.usage == Usage::Host && record.matches(leaf)) {
        return Ok(());
    }
    let mut anchors = RootCertStore::empty();
    for record in records.iter().filter(|record| record.usage == Usage::Anchor) {
        for certificate in chain.iter().filter(|certificate| record.matches(certificate)) {
            let _ = anchors.add(certificate.clone().into_owned());
        }
        // RFC 7672 §3.1.2: a whole certificate in the record need not be sent.
        if (record.selector, record.matching) == (0, 0) {
            let _ = anchors.add(CertificateDer::from(record.data.clone()));
        }
    }
    if anchors.is_empty() {
        return Err(Error::General("the certificate matches no TLSA record".into()));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors), Arc::clone(provider))
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let mut judged = Err(Error::InvalidCertificate(CertificateError::NotValidForName));
    for name in names {
        judged = verifier.verify_server_cert(leaf, chain, name, &[], now).map(|_| ());
        if judged.is_ok() {
            break;
        }
    }
    judged
}

/// RFC 8460 §4.3.1 and .2.
fn sort(error: &Error) -> ResultType {
    use CertificateError as C;
    match error {
        Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => ResultType::CertificateExpired,
        Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            ResultType::CertificateHostMismatch
        }
        // A signature that does not fit: the name of an authority that is trusted, and not its key.
        Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature | C::Revoked) => {
            ResultType::CertificateNotTrusted
        }
        _ => ResultType::ValidationFailure,
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = self.judge(end_entity, intermediates, server_name, now);
        let _ = self.result.set(judged.as_ref().err().map_or(ResultType::Success, sort));
        match judged {
            Err(error) if self.strict => Err(error),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
