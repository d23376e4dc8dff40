//! What this machine must offer, asked before anything is started; what is missing is said with what to do about it.
//!
//! [`check`] looks, [`missing`] judges. Start there.

use std::path::Path;

use crate::config::Config;

/// What was found.
#[derive(Clone, Debug)]
struct Facts {
    root: bool,
    /// The text of `/proc/filesystems`.
    filesystems: String,
    /// Enabled controllers of `/sys/fs/cgroup`; none if it is not there.
    controllers: Option<Vec<String>>,
    /// The kernel opens netfilter's netlink sockets.
    netfilter: bool,
}

/// The controllers that limits of pods are made of.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Says what cannot work here.
pub fn check(config: &Config) -> anyhow::Result<()> {
    if config.disable_agent {
        return Ok(());
    }
    if nix::unistd::geteuid().is_root() {
        ["overlay", "nf_tables", "veth"].into_iter().for_each(modprobe);
    }
    match missing(&look()) {
        Some(why) => anyhow::bail!(why),
        None => Ok(()),
    }
}

fn look() -> Facts {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    Facts {
        root: nix::unistd::geteuid().is_root(),
        filesystems: std::fs::read_to_string("/proc/filesystems").unwrap_or_default(),
        controllers: controllers(Path::new("/sys/fs/cgroup")),
        netfilter: socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter).is_ok(),
    }
}

/// Of version 2 its root says which; of version 1 the kernel's table, whose last column is 1 for enabled ones.
fn controllers(root: &Path) -> Option<Vec<String>> {
    if let Ok(unified) = std::fs::read_to_string(root.join("cgroup.controllers")) {
        return Some(unified.split_whitespace().map(str::to_string).collect());
    }
    let mounted = std::fs::read_dir(root).ok()?.next().is_some();
    let table = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let enabled = table.lines().filter(|line| line.ends_with("\t1")).filter_map(|line| line.split('\t').next());
    mounted.then(|| enabled.map(str::to_string).collect())
}

/// Loads a module if it can: built-in ones make this fail, which is why the result says nothing.
fn modprobe(module: &str) {
    let mut command = std::process::Command::new("modprobe");
    let _ = command.arg("--quiet").arg(module).stderr(std::process::Stdio::null()).status();
}

fn missing(facts: &Facts) -> Option<String> {
    if !facts.root {
        return Some("a node needs root to run containers; use sudo, or --disable-agent for a control plane alone".into());
    }
    if !facts.filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay") {
        return Some("the kernel has no overlay file system (CONFIG_OVERLAY_FS), which container images need".into());
    }
    let Some(controllers) = &facts.controllers else {
        return Some("/sys/fs/cgroup holds nothing: the kernel has no control groups, or they are not mounted".into());
    };
    let absent: Vec<&str> = CONTROLLERS.into_iter().filter(|wanted| !controllers.iter().any(|c| c == wanted)).collect();
    if !absent.is_empty() {
        let hint = if absent.contains(&"memory") { "; on some boards: boot with cgroup_enable=memory" } else { "" };
        return Some(format!("the kernel offers no control group for {}, which pods' limits need{hint}", absent.join(", ")));
    }
    if !facts.netfilter {
        return Some("the kernel has no nftables (CONFIG_NF_TABLES), which services need".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let controllers = CONTROLLERS.iter().chain(&["io"]).map(|c| c.to_string()).collect();
        Facts { root: true, filesystems: "nodev\tproc\nnodev\toverlay\n\text4\n".into(), controllers: Some(controllers), netfilter: true }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(&good()), None);
        for (facts, named) in [
            (Facts { root: false, ..good() }, "--disable-agent"),
            (Facts { filesystems: "nodev\toverlayfs\n".into(), ..good() }, "CONFIG_OVERLAY_FS"),
            (Facts { controllers: None, ..good() }, "/sys/fs/cgroup"),
            (Facts { controllers: Some(vec!["cpu".into(), "pids".into()]), ..good() }, "cgroup_enable=memory"),
            (Facts { controllers: Some(vec!["memory".into()]), ..good() }, "for cpu, pids,"),
            (Facts { netfilter: false, ..good() }, "CONFIG_NF_TABLES"),
        ] {
            let why = missing(&facts).unwrap();
            assert!(why.contains(named), "{why}");
        }
    }
}
