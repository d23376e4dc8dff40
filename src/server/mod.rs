//! The control plane: one pipeline every request passes, kinds as rows, controllers and scheduler as loops over it.
//!
//! [`Server::start`] opens the store, assembles the pipeline, writes the bootstrap objects and listens. In-process clients
//! ([`Server::client`]) pass the same pipeline as HTTP ones.

pub mod strategy;

pub mod registry;

pub mod pipeline;

pub mod verbs;

pub mod patch;

pub mod route;

pub mod negotiate;

pub mod http;

mod nonresource;

pub mod table;

pub mod encode;

pub mod discovery;

pub mod openapi;

pub mod proxy;

mod websocket;

pub mod apply;

pub mod auth;

pub mod admission;

pub mod kinds;

pub mod validation;

pub mod cursor;

pub mod alloc;

pub mod quota;

pub mod bootstrap;

pub mod controllers;

pub mod scheduler;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::api::client::{Client, Transport};
use crate::api::request::User;
use crate::api::status::Status;
use crate::api::time::Clock;
use crate::config::Config;
use crate::memory;
use crate::pki::{Authority, Pki};
use crate::store::{self, Store};
use crate::task::{self, Shutdown};
use crate::transport::{Connector, Listener, Port};

use auth::Auth;
use http::{Front, Peer};
use pipeline::{Parts, Pipeline};
use registry::{Reader, Registry};
use strategy::{Access, Cluster, Pair};

/// History is kept this long: what watches may resume from and continue tokens may be pinned to.
const COMPACT_EVERY: Duration = Duration::from_secs(300);

/// A running control plane.
pub struct Server {
    pipeline: Arc<Pipeline>,
    address: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open the store")]
    Store(#[from] store::Error),
    #[error("cannot set up authentication")]
    Auth(#[from] auth::Error),
    #[error("cannot issue the API server's certificates")]
    Certificates(#[from] crate::pki::Error),
    #[error("cannot listen")]
    Listen(#[from] crate::transport::Error),
    #[error("cannot write the bootstrap objects")]
    Bootstrap(#[source] Status),
}

impl Server {
    /// Everything but controllers and scheduler, which run over [`Server::client`]s. Stops listening at `shutdown`.
    pub async fn start(config: &Config, pki: &Pki, port: Port, clock: Arc<dyn Clock>, shutdown: &Shutdown) -> Result<Server, Error> {
        let listener = listen(config, pki, port)?;
        let address = listener.local_address().unwrap_or(config.local_api());
        let store = Store::open(store::Config::new(config.data_dir.join("store"))).await?;
        let is_fresh = store.revision() == 0;
        let pipeline = assemble(store, cluster(config, pki), clock)?;
        let front = Front::new(pipeline.clone(), kubelet_connector(pki)?);
        let master = Client::new(pipeline.clone(), User::master());
        bootstrap::run(&master, pipeline.cluster(), &config.cluster_dns.to_string()).await.map_err(Error::Bootstrap)?;
        if is_fresh {
            pipeline.nobody_was_served_yet();
        }
        // Controllers start next, under the policy just written.
        pipeline.auth().rbac();
        pipeline.auth().follow(pipeline.store());
        task::spawn("api-listener", accept(listener, front, shutdown.clone()));
        task::spawn("store-compaction", compact(pipeline.store().clone(), shutdown.clone()));
        info!(%address, "api server listening");
        Ok(Server { pipeline, address })
    }

    /// The in-process way in.
    pub fn transport(&self) -> Arc<dyn Transport> {
        self.pipeline.clone()
    }

    pub fn client(&self, user: User) -> Client {
        Client::new(self.transport(), user)
    }

    pub fn store(&self) -> &Store {
        self.pipeline.store()
    }

    pub fn pipeline(&self) -> &Arc<Pipeline> {
        &self.pipeline
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The pipeline over a store, with every kind and plugin.
pub fn assemble(store: Store, cluster: Cluster, clock: Arc<dyn Clock>) -> Result<Arc<Pipeline>, Error> {
    let access: Arc<dyn Access> = Arc::new(Reader { store: store.clone() });
    let auth = Auth::new(&cluster, access)?;
    let registry = Registry::new(kinds::rows(&auth));
    let plugins = admission::plugins(&auth);
    Ok(Pipeline::new(Parts { store, registry, plugins, auth, cluster: Arc::new(cluster), clock }))
}

/// What hooks need to know of configuration and keys.
pub fn cluster(config: &Config, pki: &Pki) -> Cluster {
    let pair = |a: &Authority| Pair { public: a.certificate.clone(), private: a.key.clone() };
    Cluster {
        service_cidrs: std::iter::once(config.service_cidr).chain(config.service_cidr_v6).map(|range| range.to_string()).collect(),
        node_ports: (30_000, 32_767),
        domain: config.cluster_domain.clone(),
        advertise_address: config.advertise_address.to_string(),
        port: config.https_listen_port,
        watches_max: config.watches_max,
        issuer: format!("https://kubernetes.default.svc.{}", config.cluster_domain),
        cluster_ca: pair(&pki.cluster),
        client_ca: pair(&pki.client),
        front_proxy_ca: pair(&pki.front_proxy),
        is_alone: config.disable_controller_manager,
        service_account_key: Pair { public: pki.service_account_public.clone(), private: pki.service_account_key.clone() },
    }
}

/// How the API server reaches kubelets.
pub fn kubelet_connector(pki: &Pki) -> Result<Connector, Error> {
    let identity = pki.client.client("kube-apiserver-kubelet-client", &["system:masters"])?;
    Ok(Connector::new(&pki.cluster.certificate, Some(&identity), &["http/1.1"])?)
}

fn listen(config: &Config, pki: &Pki, port: Port) -> Result<Listener, Error> {
    let domain = &config.cluster_domain;
    let mut names: Vec<String> = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"].map(str::to_string).to_vec();
    names.push(format!("kubernetes.default.svc.{domain}"));
    names.push(config.node_name.clone());
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), config.kubernetes_service_ip(), config.advertise_address, config.node_ip];
    addresses.sort();
    addresses.dedup();
    let identity = pki.cluster.serving("kube-apiserver", &[], &names, &addresses)?;
    Ok(Listener::new(port, &identity, &[&pki.client.certificate], &["h2", "http/1.1"])?)
}

async fn accept(listener: Listener, front: Arc<Front>, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let (front, shutdown) = (front.clone(), shutdown.clone());
        task::spawn("api-connection", async move {
            let remote = accepted.remote;
            match accepted.handshake().await {
                Ok(connection) => {
                    let peer = Peer { certificates: connection.peer_certificates, remote };
                    front.serve_connection(connection.stream, peer, shutdown).await;
                    drop(connection.permit);
                }
                Err(error) => debug!(%remote, %error, "no TLS connection"),
            }
        });
    }
}

/// Forgets history older than one to two periods, and lets the memory go.
async fn compact(store: Store, shutdown: Shutdown) {
    let mut before = store.revision();
    loop {
        tokio::select! {
            () = tokio::time::sleep(COMPACT_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = store.compact(before).await {
            warn!(%error, "compaction failed");
        }
        let _ = tokio::task::spawn_blocking(memory::give_back).await;
        before = store.revision();
    }
}
