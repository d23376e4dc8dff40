//! TLS listeners and connections, with limits: everyone's only way to a network socket, and the only file besides `pki`
//! that names the TLS library.
//!
//! Client certificates are asked for but not required; whether one chains to a trusted authority is checked in the
//! handshake, whose it is is authentication's business (it gets the DER chain).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pki::Identity;

pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// A handshake that takes longer is a stalled or hostile peer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one listener at a time; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("the certificate or key of {name} cannot be used: {why}")]
    Identity { name: String, why: String },
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: std::io::Error },
}

/// A port taken: connections wait in it until a [`Listener`] serves it.
pub struct Port(TcpListener);

impl Port {
    pub async fn open(address: SocketAddr) -> Result<Port, Error> {
        TcpListener::bind(address).await.map(Port).map_err(|source| Error::Bind { address, source })
    }
}

/// Accepts TLS connections.
pub struct Listener {
    tcp: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    permits: Arc<Semaphore>,
}

/// One accepted connection. The permit keeps the connection counted; hold it as long as the stream.
pub struct Accepted {
    tcp: TcpStream,
    acceptor: tokio_rustls::TlsAcceptor,
    pub remote: SocketAddr,
    permit: OwnedSemaphorePermit,
}

/// An established connection and who is at its other end.
pub struct Connection {
    pub stream: ServerStream,
    pub remote: SocketAddr,
    /// The verified client certificate chain, leaf first, DER; empty if none was sent.
    pub peer_certificates: Vec<Vec<u8>>,
    pub permit: OwnedSemaphorePermit,
}

impl Listener {
    /// Listens on `port` as `identity`; client certificates must chain to one of `client_cas` (PEM).
    pub fn new(port: Port, identity: &Identity, client_cas: &[&str], alpn: &[&str]) -> Result<Listener, Error> {
        let config = server_config(identity, client_cas, alpn)?;
        Ok(Listener { tcp: port.0, acceptor: Arc::new(config).into(), permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) })
    }

    pub fn local_address(&self) -> Option<SocketAddr> {
        self.tcp.local_addr().ok()
    }

    /// The next connection, before its handshake: run [`Accepted::handshake`] in a task of its own.
    pub async fn accept(&self) -> Accepted {
        let permit = self.permits.clone().acquire_owned().await.expect("never closed");
        loop {
            match self.tcp.accept().await {
                Ok((tcp, remote)) => {
                    // Requests are small and answered at once; waiting to fill a segment only delays them.
                    let _ = tcp.set_nodelay(true);
                    return Accepted { tcp, acceptor: self.acceptor.clone(), remote, permit };
                }
                // Out of descriptors or a peer gone before we looked: the former passes when a connection ends.
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Accepted {
    pub async fn handshake(self) -> std::io::Result<Connection> {
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(self.tcp)).await {
            Ok(stream) => stream?,
            Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer_certificates = chain.iter().map(|c| c.as_ref().to_vec()).collect();
        Ok(Connection { stream, remote: self.remote, peer_certificates, permit: self.permit })
    }
}

/// Makes TLS connections as one identity, trusting one authority.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
}

impl Connector {
    pub fn new(ca: &str, identity: Option<&Identity>, alpn: &[&str]) -> Result<Connector, Error> {
        let bad = |why: String| Error::Identity { name: "the client".into(), why };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|e| bad(e.to_string()))?;
        let builder = builder.with_root_certificates(roots(&[ca])?);
        let mut config = match identity {
            Some(identity) => {
                let (chain, key) = parse(identity)?;
                builder.with_client_auth_cert(chain, key).map_err(|e| bad(e.to_string()))?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Ok(Connector { config: Arc::new(config) })
    }

    /// Believes every server and says nothing of itself: for probes, which ask whether somebody answers, not who.
    pub fn trusting_anyone() -> Connector {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let anyone = Arc::new(Anyone { algorithms: provider.signature_verification_algorithms });
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("the provider has the default versions' ciphers").dangerous();
        Connector { config: Arc::new(builder.with_custom_certificate_verifier(anyone).with_no_client_auth()) }
    }

    /// Speaks TLS over a connection made already.
    pub async fn secure(&self, tcp: TcpStream, server_name: &str) -> std::io::Result<ClientStream> {
        let name = ServerName::try_from(server_name.to_string()).map_err(std::io::Error::other)?;
        tokio_rustls::TlsConnector::from(self.config.clone()).connect(name, tcp).await
    }

    /// Connects to `host:port`; the server's certificate must be for `server_name`.
    pub async fn connect(&self, address: &str, server_name: &str) -> Result<ClientStream, Error> {
        let failed = |source| Error::Connect { address: address.to_string(), source };
        let name = ServerName::try_from(server_name.to_string()).map_err(|e| failed(std::io::Error::other(e)))?;
        let connect = async {
            let tcp = TcpStream::connect(address).await?;
            let _ = tcp.set_nodelay(true);
            tokio_rustls::TlsConnector::from(self.config.clone()).connect(name, tcp).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(stream) => stream.map_err(failed),
            Err(_) => Err(failed(std::io::ErrorKind::TimedOut.into())),
        }
    }
}

/// Accepts every certificate; that its key is the server's is still checked.
#[derive(Debug)]
struct Anyone {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn server_config(identity: &Identity, client_cas: &[&str], alpn: &[&str]) -> Result<ServerConfig, Error> {
    let bad = |why: String| Error::Identity { name: "the server".into(), why };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_cas)?), provider.clone());
    let verifier = verifier.allow_unauthenticated().build().map_err(|e| bad(e.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|e| bad(e.to_string()))?;
    let (chain, key) = parse(identity)?;
    let mut config = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).map_err(|e| bad(e.to_string()))?;
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
}

fn parse(identity: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let bad = |e: rustls::pki_types::pem::Error| Error::Identity { name: "an identity".into(), why: format!("{e:?}") };
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect::<Result<_, _>>().map_err(bad)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(bad)?;
    Ok((chain, key))
}

fn roots(pems: &[&str]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for pem in pems {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let bad = |why: String| Error::Identity { name: "an authority".into(), why };
            store.add(certificate.map_err(|e| bad(format!("{e:?}")))?).map_err(|e| bad(e.to_string()))?;
        }
    }
    Ok(store)
}
