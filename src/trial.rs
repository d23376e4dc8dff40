//! `coracle try`: a throw-away cluster in a temporary directory, on free ports and ranges, gone on exit.
//!
//! Cleaning up is one piece of code in one process, the *holder*: a child in a session of its own that waits for its
//! standard input to end, which happens when the cluster's process ends, however it ends (`kill -9` too), and then removes
//! everything the instance made. (`try` is a keyword, hence the name of this module.)

use std::ffi::OsString;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context as _;

use crate::api::resource;
use crate::api::value::Value;
use crate::config::{Config, Settings};
use crate::net::Kind;
use crate::{run, sample};

/// Runs a cluster; with a `command`, runs that in its environment and ends with its status, else waits for Ctrl-C.
pub fn run(mut settings: Settings, command: Vec<OsString>, with_sample: bool) -> anyhow::Result<ExitCode> {
    let dir = temporary_dir()?;
    for (key, value) in choices(&dir)? {
        settings.set(key, value, "chosen by try".into());
    }
    let config = Config::from_settings(&settings)?;
    let holder = Holder::start(&dir)?;
    let result = run::block_on(async {
        let cluster = run::Cluster::start(config.clone()).await?;
        let result = live(&config, &cluster, command, with_sample).await;
        cluster.stop().await;
        result
    });
    holder.finish();
    result
}

async fn live(config: &Config, cluster: &run::Cluster, command: Vec<OsString>, with_sample: bool) -> anyhow::Result<ExitCode> {
    cluster.ready().await?;
    if with_sample {
        deploy_sample(config, cluster).await?;
    }
    let Some((program, arguments)) = command.split_first() else {
        println!(
            "A cluster is up. In another terminal:\n\n  export KUBECONFIG={}\n  kubectl get nodes\n\nCtrl-C ends it and removes everything.",
            config.write_kubeconfig.display()
        );
        run::termination().await?;
        return Ok(ExitCode::SUCCESS);
    };
    let exe = std::env::current_exe()?;
    let mut child = tokio::process::Command::new(&exe);
    child
        .args(["try-command", &std::process::id().to_string(), "--"])
        .arg(program)
        .args(arguments)
        .env("KUBECONFIG", &config.write_kubeconfig)
        .env("CORACLE_DATA_DIR", &config.data_dir)
        .env("PATH", with_folder_of(&exe))
        .kill_on_drop(true);
    let mut child = child.spawn()?;
    tokio::select! {
        status = child.wait() => Ok(ExitCode::from(u8::try_from(status?.code().unwrap_or(255)).unwrap_or(255))),
        stopped = run::termination() => stopped.map(|()| ExitCode::from(130)),
    }
}

/// Imports the sample's image, creates its objects and waits until it answers through its Service's DNS name.
async fn deploy_sample(config: &Config, cluster: &run::Cluster) -> anyhow::Result<()> {
    let archive = config.data_dir.join("sample.tar");
    sample::pack_image(&config.shim_exe, &archive).context("cannot pack the sample image")?;
    run::import_image(config, &archive)?;
    std::fs::remove_file(&archive)?;
    cluster.create(sample::MANIFEST).await?;
    let is_up =
        |d: &Value| d.str_at(&["metadata", "name"]) == sample::NAME && d.i64_at(&["status", "readyReplicas"]) == Some(sample::REPLICAS);
    cluster.until(&resource::DEPLOYMENTS, "the sample's replicas", is_up).await?;
    let is_one = |pod: &Value| pod.str_at(&["metadata", "labels", "app"]) == sample::NAME;
    let pod = cluster.until(&resource::PODS, "a pod of the sample", is_one).await?;
    let statuses = pod.list_at(&["status", "containerStatuses"]);
    let container = statuses.first().and_then(|s| s.str_at(&["containerID"]).rsplit_once("//")).map(|(_, id)| id.to_string());
    let container = container.context("the sample's pod names no container")?;
    let url = format!("http://{}.default.svc.{}/", sample::NAME, config.cluster_domain);
    // Standard output is the command's alone.
    eprintln!("{} replicas run behind {url}", sample::REPLICAS);
    // The node's rules and names follow the pods' readiness by a moment.
    let service = cluster.until(&resource::SERVICES, "the sample's service", |s| s.str_at(&["metadata", "name"]) == sample::NAME).await?;
    let slice = cluster.until(&resource::ENDPOINTSLICES, "the sample's endpoints", serves_the_sample).await?;
    cluster.in_effect(Kind::Service, &service).await?;
    cluster.in_effect(Kind::Slice, &slice).await?;
    eprintln!("{}", cluster.exec(&container, &["/coracle", "fetch", &url]).await?);
    Ok(())
}

/// Does the slice offer every replica of the sample?
fn serves_the_sample(slice: &Value) -> bool {
    let ready = slice.list_at(&["endpoints"]).iter().filter(|e| e.bool_at(&["conditions", "ready"])).count();
    slice.str_at(&["metadata", "labels", "kubernetes.io/service-name"]) == sample::NAME && i64::try_from(ready) == Ok(sample::REPLICAS)
}

/// The search path, with this executable's folder at its end: `coracle images import` works inside.
fn with_folder_of(exe: &Path) -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(folder) = exe.parent() {
        path.push(":");
        path.push(folder);
    }
    path
}

fn temporary_dir() -> anyhow::Result<std::path::PathBuf> {
    let dir = nix::unistd::mkdtemp("/var/tmp/coracle-try-XXXXXX").context("cannot make a directory in /var/tmp")?;
    Ok(dir)
}

/// What a `try` cluster settles for itself, so that it runs beside any other.
fn choices(dir: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    let https = TcpListener::bind("0.0.0.0:0")?;
    let kubelet = TcpListener::bind("0.0.0.0:0")?;
    let (pods, services) = free_ranges()?;
    Ok(vec![
        ("data-dir", dir.display().to_string()),
        ("write-kubeconfig", dir.join("kubeconfig.yaml").display().to_string()),
        ("https-listen-port", https.local_addr()?.port().to_string()),
        ("kubelet-port", kubelet.local_addr()?.port().to_string()),
        ("cluster-cidr", pods),
        ("service-cidr", services),
        ("cluster-dns", String::new()),
    ])
}

/// The first pair 10.N.0.0/16 and 10.N+1.0.0/16 that no route of this machine covers.
fn free_ranges() -> anyhow::Result<(String, String)> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    // Columns: interface, destination, gateway, …, mask; addresses are little-endian hex.
    let taken: Vec<(u32, u32)> = routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let number = |i: usize| u32::from_str_radix(columns.get(i)?, 16).ok().map(u32::swap_bytes);
            Some((number(1)?, number(7)?)).filter(|(_, mask)| *mask != 0)
        })
        .collect();
    let is_free = |second: u32| {
        let (net, mask) = ((10 << 24) | (second << 16), 0xffff_0000);
        taken.iter().all(|(destination, m)| (destination & mask) != net && (net & m) != (destination & m))
    };
    let first = (42..254).step_by(2).find(|n| is_free(*n) && is_free(n + 1)).context("every 10.N.0.0/16 is in use here")?;
    Ok((format!("10.{first}.0.0/16"), format!("10.{}.0.0/16", first + 1)))
}

/// The child that outlives us by as long as cleaning up takes.
struct Holder {
    child: Child,
}

impl Holder {
    fn start(dir: &Path) -> anyhow::Result<Holder> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("try-holder").arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        Ok(Holder { child: command.spawn().context("cannot start the process that cleans up")? })
    }

    /// Lets the holder go and waits until it has cleaned up.
    fn finish(mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "could not wait for the clean-up");
        }
    }
}

/// `coracle try-holder <dir>`: waits for standard input to end, then removes the instance that lived in `dir`.
pub fn hold(dir: &Path) -> anyhow::Result<()> {
    let mut nothing = [0; 16];
    let mut stdin = std::io::stdin();
    while !matches!(stdin.read(&mut nothing), Ok(0)) {}
    run::remove_instance(dir)?;
    std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// `coracle try-command <parent> -- <command>`: becomes the command, which hears of the end of `try` as of a closed terminal.
pub fn become_command(parent: i32, command: &[OsString]) -> anyhow::Result<()> {
    use nix::sys::signal::Signal;
    nix::sys::prctl::set_pdeathsig(Signal::SIGHUP).context("cannot ask for a signal at the end of try")?;
    if nix::unistd::getppid().as_raw() != parent {
        anyhow::bail!("try has ended");
    }
    let (program, arguments) = command.split_first().context("no command")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn the_sample_is_served_when_all_its_endpoints_are_ready() {
        let slice = |service: &str, ready: &[bool]| {
            let endpoints: Vec<Value> = ready.iter().map(|ready| value!({"conditions": {"ready": ready}})).collect();
            let mut slice = value!({"metadata": {"labels": {"kubernetes.io/service-name": service}}});
            slice.set(&["endpoints"], endpoints);
            slice
        };
        for (service, ready, expected) in [
            ("echo", &[true, true, true][..], true),
            ("echo", &[true, true, false], false),
            ("echo", &[true, true], false),
            ("other", &[true, true, true], false),
        ] {
            assert_eq!(serves_the_sample(&slice(service, ready)), expected, "{service} {ready:?}");
        }
    }

    #[test]
    fn ranges_come_in_disjoint_pairs() {
        let (pods, services) = super::free_ranges().unwrap();
        assert_ne!(pods, services);
        assert!(pods.starts_with("10.") && services.ends_with(".0.0/16"));
    }
}
