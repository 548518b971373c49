//! Room under construction.

/// Certificates and TLS settings.
#[derive(Clone)]
pub struct Tls;
