//! Volumes of the pods here: set up, kept current, taken down.
//!
//! [`Volumes::set_up`] is level-triggered: it makes every volume of a pod what it should be now, so it serves the first start,
//! a changed ConfigMap, new labels and a token near its end alike. Secrets and tokens live on one tmpfs of the node, all else
//! below the data directory. A new type is a variant of [`reconcile::Source`] and a file here.

pub mod empty_dir;
pub mod host_path;
pub mod projected;
pub mod reconcile;
pub mod sources;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::agent::clock::{self, Millis};
use crate::agent::kubelet::env::{Contents, Kind, NodeFacts};
use crate::agent::kubelet::observe::Reason;
use crate::agent::kubelet::pod::Pod;
use crate::agent::kubelet::spec::{Mounted, Place};
use crate::api::client::Client;
use crate::api::request::Response;
use crate::api::resource;
use crate::api::value::Value;
use crate::value;
use projected::Owner;
use reconcile::{Part, Projection, Source, Wanted};
use sources::Sources;

pub struct Volumes {
    client: Client,
    sources: Sources,
    /// `<data>/pods`: a directory per pod uid.
    pods: PathBuf,
    /// The node's tmpfs for secrets: a directory per pod uid.
    secrets: PathBuf,
    tokens: Mutex<HashMap<(String, String, String), Token>>,
}

#[derive(Clone)]
struct Token {
    text: String,
    /// At four fifths of its life, or after a day.
    refresh_at: Millis,
}

/// What setting up brought.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub mounted: BTreeMap<String, Mounted>,
    /// When a token wants to be replaced.
    pub refresh_at: Option<Millis>,
}

impl Volumes {
    pub fn new(client: Client, sources: Sources, pods: PathBuf, secrets: PathBuf) -> Result<Volumes, std::io::Error> {
        std::fs::create_dir_all(&pods)?;
        std::fs::create_dir_all(&secrets)?;
        let volumes = Volumes { client, sources, pods, secrets, tokens: Mutex::default() };
        volumes.mount_secrets()?;
        Ok(volumes)
    }

    /// Without the right to mount (tests), a plain directory must do; that is said.
    fn mount_secrets(&self) -> Result<(), std::io::Error> {
        use nix::mount::{MsFlags, mount};
        if !empty_dir::is_mount_point(&self.secrets)? {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            if let Err(error) = mount(Some("tmpfs"), &self.secrets, Some("tmpfs"), flags, Some("mode=0711")) {
                tracing::warn!(path = %self.secrets.display(), %error, "secrets are kept on disk: no tmpfs could be mounted");
            }
        }
        Ok(())
    }

    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods.join(uid)
    }

    /// Uids with something of ours on disk.
    pub fn known(&self) -> Vec<String> {
        let dirs = [&self.pods, &self.secrets];
        let entries = dirs.into_iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten();
        let mut uids: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        uids.sort();
        uids.dedup();
        uids
    }

    /// Were the pod's volumes set up before, completely?
    pub fn is_set_up(&self, uid: &str) -> bool {
        self.pod_dir(uid).join("volumes.done").exists()
    }

    /// Makes every volume of the pod what it should be now.
    pub async fn set_up(&self, pod: Pod<'_>, node: &NodeFacts, pod_ips: &[String], now: Millis) -> Result<Outcome, Reason> {
        let mut outcome = Outcome::default();
        let owner = owner(pod);
        for wanted in reconcile::wanted(pod)? {
            let name = wanted.name.clone();
            let mounted = self.volume(pod, wanted, owner, (node, pod_ips, now), &mut outcome.refresh_at).await;
            let mounted = mounted.map_err(|r| Reason {
                reason: r.reason,
                message: format!("MountVolume.SetUp failed for volume \"{name}\" : {}", r.message),
            })?;
            outcome.mounted.insert(name, mounted);
        }
        let done = self.pod_dir(pod.uid()).join("volumes.done");
        blocking(move || {
            std::fs::create_dir_all(done.parent().expect("has a parent"))?;
            std::fs::write(done, b"")
        })
        .await?;
        Ok(outcome)
    }

    async fn volume(
        &self,
        pod: Pod<'_>,
        wanted: Wanted,
        owner: Owner,
        (node, pod_ips, now): (&NodeFacts, &[String], Millis),
        refresh_at: &mut Option<Millis>,
    ) -> Result<Mounted, Reason> {
        match wanted.source {
            Source::EmptyDir { memory, size_bytes } => {
                let path = self.pod_dir(pod.uid()).join("volumes").join(&wanted.name);
                let dir = path.clone();
                blocking(move || empty_dir::set_up(&dir, memory, size_bytes, owner.group)).await?;
                Ok(Mounted { place: Place::Directory(path), readonly: false })
            }
            Source::Image { reference, pull_policy } => Ok(Mounted { place: Place::Image { reference, pull_policy }, readonly: true }),
            Source::HostPath { path, kind } => {
                let set_up = tokio::task::spawn_blocking(move || host_path::set_up(&path, &kind)).await;
                let path = set_up.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
                Ok(Mounted { place: Place::Directory(path), readonly: false })
            }
            Source::Projected(projection) => {
                let base = if projection.secret { self.secrets.join(pod.uid()) } else { self.pod_dir(pod.uid()).join("volumes") };
                let path = base.join(&wanted.name);
                let contents = self.contents(pod, &projection).await?;
                let tokens = self.tokens(pod, &wanted.name, &projection, now, refresh_at).await?;
                let inputs = projected::Inputs { pod, contents: &contents, tokens: &tokens, node, pod_ips, owner };
                let files = projected::payload(&projection, &inputs)?;
                let (dir, stamp) = (path.clone(), now.to_string());
                blocking(move || projected::write(&dir, &files, owner.group, &stamp)).await?;
                Ok(Mounted { place: Place::Directory(path), readonly: true })
            }
        }
    }

    async fn contents(&self, pod: Pod<'_>, projection: &Projection) -> Result<Contents, Reason> {
        let mut contents = Contents::new();
        for part in &projection.parts {
            let (kind, name) = match part {
                Part::ConfigMap { name, .. } => (Kind::ConfigMap, name),
                Part::Secret { name, .. } => (Kind::Secret, name),
                Part::Downward { .. } | Part::Token { .. } => continue,
            };
            if let Some(data) = self.sources.data(pod.uid(), kind, pod.namespace(), name).await.map_err(failed)? {
                contents.insert((kind, name.clone()), data);
            }
        }
        Ok(contents)
    }

    async fn tokens(
        &self,
        pod: Pod<'_>,
        volume: &str,
        projection: &Projection,
        now: Millis,
        refresh_at: &mut Option<Millis>,
    ) -> Result<BTreeMap<String, String>, Reason> {
        let mut tokens = BTreeMap::new();
        for part in &projection.parts {
            let Part::Token { path, audience, seconds } = part else { continue };
            let key = (pod.uid().to_string(), volume.to_string(), path.clone());
            let known = self.tokens.lock().expect("nothing panics while holding it").get(&key).cloned();
            let token = match known {
                Some(token) if now < token.refresh_at => token,
                known => match self.request_token(pod, audience, *seconds, now).await {
                    Ok(token) => token,
                    // The old one is good for another fifth of its life; ask again in a while.
                    Err(_) if known.is_some() => Token { refresh_at: now + 30_000, ..known.expect("just seen") },
                    Err(reason) => return Err(reason),
                },
            };
            *refresh_at = Some(refresh_at.map_or(token.refresh_at, |r| r.min(token.refresh_at)));
            tokens.insert(path.clone(), token.text.clone());
            self.tokens.lock().expect("nothing panics while holding it").insert(key, token);
        }
        Ok(tokens)
    }

    async fn request_token(&self, pod: Pod<'_>, audience: &str, seconds: i64, now: Millis) -> Result<Token, Reason> {
        let account = match pod.0.str_at(&["spec", "serviceAccountName"]) {
            "" => "default",
            name => name,
        };
        let mut body = value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid()}}});
        let audiences: Vec<Value> = Some(audience).filter(|a| !a.is_empty()).map(Value::from).into_iter().collect();
        body.set(&["spec", "audiences"], audiences);
        let answer = self.client.create_sub(&resource::SERVICEACCOUNTS, pod.namespace(), account, "token", body).await;
        let value = match answer.map_err(|e| failed(format!("failed to fetch token: {e}")))? {
            Response::Value { value, .. } => value,
            Response::Object { object, .. } => object.value(),
            Response::List(_) => return Err(failed("failed to fetch token: a list was answered".into())),
        };
        let text = value.str_at(&["status", "token"]).to_string();
        let expires = clock::parse(value.str_at(&["status", "expirationTimestamp"])).unwrap_or(now + seconds * 1000);
        let refresh_at = now + ((expires - now) * 4 / 5).clamp(10_000, 24 * 3_600_000);
        Ok(Token { text, refresh_at })
    }

    /// Unmounts and removes everything of the pod; its objects are no longer followed. Idempotent.
    pub async fn tear_down(&self, uid: &str) -> Result<(), Reason> {
        self.sources.release(uid);
        self.tokens.lock().expect("nothing panics while holding it").retain(|(of, _, _), _| of != uid);
        let (dir, secrets) = (self.pod_dir(uid), self.secrets.join(uid));
        blocking(move || {
            empty_dir::remove_tree(&dir)?;
            empty_dir::remove_tree(&secrets)
        })
        .await
    }
}

/// `fsGroup`, and the user if all containers run as the same one.
fn owner(pod: Pod) -> Owner {
    let id = |v: Option<&Value>| v.and_then(Value::as_i64).and_then(|n| u32::try_from(n).ok());
    let group = id(pod.0.at(&["spec", "securityContext", "fsGroup"]));
    let of_pod = id(pod.0.at(&["spec", "securityContext", "runAsUser"]));
    let mut users = pod.init_containers().iter().chain(pod.containers()).map(|c| id(c.at(&["securityContext", "runAsUser"])).or(of_pod));
    let first = users.next().flatten();
    Owner { group, user: first.filter(|f| users.all(|u| u == Some(*f))) }
}

fn failed(message: String) -> Reason {
    Reason { reason: "FailedMount".to_string(), message }
}

async fn blocking(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<(), Reason> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| failed(e.to_string()))?;
    done.map_err(|e| failed(e.to_string()))
}

/// Where a mount of a volume with a `subPath` really is; made if it is missing. Never outside the volume: links are followed
/// before the check.
pub fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, String> {
    let text = |e: std::io::Error| format!("failed to prepare subPath {sub:?}: {e}");
    let root = volume.canonicalize().map_err(text)?;
    let wanted = root.join(sub);
    // The deepest part that exists must lie inside before anything is made below it.
    let mut existing = wanted.as_path();
    while existing.symlink_metadata().is_err() {
        existing = existing.parent().unwrap_or(&root);
    }
    let inside = |p: &Path| p.canonicalize().map_err(text).map(|p| p.starts_with(&root));
    if !inside(existing)? {
        return Err(format!("subPath {sub:?} leads outside of the volume"));
    }
    if !wanted.exists() {
        std::fs::create_dir_all(&wanted).map_err(text)?;
    }
    match wanted.canonicalize().map_err(text)? {
        path if path.starts_with(&root) => Ok(path),
        _ => Err(format!("subPath {sub:?} leads outside of the volume")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_stays_inside_its_volume() {
        let root = std::env::temp_dir().join(format!("coracle-subpath-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        assert_eq!(sub_path(&root, "a/b").unwrap(), root.canonicalize().unwrap().join("a/b"));
        std::os::unix::fs::symlink("/etc", root.join("evil")).unwrap();
        assert!(sub_path(&root, "evil/x").unwrap_err().contains("outside"));
        assert!(sub_path(&root, "evil").unwrap_err().contains("outside"));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
