//! One self-signed certificate that both ends trust, and TLS limited to AES-128-GCM.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub fn make(dir: &Path) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    fs::create_dir_all(dir)?;
    fs::write(dir.join("cert.der"), made.cert.der())?;
    Ok(fs::write(dir.join("key.der"), made.signing_key.serialize_der())?)
}

pub fn server(dir: &Path) -> Result<ServerConfig> {
    let key = PrivateKeyDer::try_from(fs::read(dir.join("key.der"))?).map_err(anyhow::Error::msg)?;
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate(dir)?], key)?)
}

pub fn client(dir: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(dir)?)?;
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn certificate(dir: &Path) -> Result<CertificateDer<'static>> {
    Ok(CertificateDer::from(fs::read(dir.join("cert.der"))?))
}

fn provider() -> Arc<CryptoProvider> {
    let suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() })
}
