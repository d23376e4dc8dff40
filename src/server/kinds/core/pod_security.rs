//! Pure: what makes the security settings of a pod and its containers valid, in upstream's words: contexts, profiles, users,
//! and what an operating system leaves no room for.

use crate::server::cursor::At;
use crate::server::validation as check;

/// `spec.securityContext`.
pub fn pod_context(spec: &At) {
    let context = spec.get("securityContext");
    ["fsGroup", "runAsUser", "runAsGroup"].iter().for_each(|key| id(&context.get(key)));
    context.get("supplementalGroups").each().iter().for_each(id);
    if spec.get("hostPID").flag() && spec.get("shareProcessNamespace").flag() {
        let share = spec.get("shareProcessNamespace").called(format!("{}.shareProcessNamespace", context.path));
        share.invalid("ShareProcessNamespace and HostPID cannot both be enabled");
    }
    sysctls(spec, &context.get("sysctls"));
    context.get("fsGroupChangePolicy").maybe_one_of(&["Always", "OnRootMismatch"]);
    seccomp(&context.get("seccompProfile"));
    windows_options(&context.get("windowsOptions"));
    app_armor(&context.get("appArmorProfile"));
    context.get("supplementalGroupsPolicy").maybe_one_of(&["Merge", "Strict"]);
    context.get("seLinuxChangePolicy").maybe_one_of(&["Recursive"]);
}

/// `securityContext` of a container.
pub fn container_context(context: &At, host_users: bool) {
    ["runAsUser", "runAsGroup"].iter().for_each(|key| id(&context.get(key)));
    let proc_mount = context.get("procMount");
    proc_mount.maybe_one_of(&["Default", "Unmasked"]);
    if host_users && proc_mount.str() == "Unmasked" {
        proc_mount.invalid("`hostUsers` must be false to use `Unmasked`");
    }
    seccomp(&context.get("seccompProfile"));
    if context.get("allowPrivilegeEscalation").value.as_bool() == Some(false) {
        if context.get("privileged").flag() {
            context.invalid("cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if context.get("capabilities").get("add").strings().contains(&"CAP_SYS_ADMIN") {
            context.invalid("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    windows_options(&context.get("windowsOptions"));
    app_armor(&context.get("appArmorProfile"));
}

/// A user or group.
fn id(at: &At) {
    if at.is_set() {
        at.between(0, i32::MAX.into());
    }
}

fn sysctls(spec: &At, sysctls: &At) {
    const RULE: &str = "must have at most 253 characters and match regex \
        ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    let mut seen: Vec<&str> = Vec::new();
    for sysctl in sysctls.each() {
        let name = sysctl.get("name");
        if !name.must() {
            continue;
        }
        if name.str().len() > 253 || !is_sysctl(name.str()) {
            name.invalid(RULE);
        } else if seen.contains(&name.str()) {
            name.duplicate();
        }
        seen.push(name.str());
        let dotted = name.str().replace('/', ".");
        let is_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p)) || dotted == "kernel.sem";
        for (belongs, host) in [(dotted.starts_with("net."), "hostNetwork"), (is_ipc, "hostIPC")] {
            if belongs && spec.get(host).flag() {
                name.invalid(format!("may not be specified when '{host}' is true"));
            }
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    name.split(['.', '/']).all(|part| {
        let b = part.as_bytes();
        let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        !b.is_empty() && edge(b[0]) && edge(b[b.len() - 1]) && b.iter().all(|c| edge(*c) || matches!(c, b'-' | b'_'))
    })
}

fn seccomp(profile: &At) {
    if !profile.is_set() {
        return;
    }
    let (kind, local) = (profile.get("type"), profile.get("localhostProfile"));
    match kind.str() {
        "" => kind.required("type is required when seccompProfile is set"),
        _ => drop(kind.one_of(&["Localhost", "RuntimeDefault", "Unconfined"])),
    }
    match (kind.str(), local.is_set()) {
        ("Localhost", false) => local.required("must be set when seccomp type is Localhost"),
        ("Localhost", true) => super::pod_env::descending_path(&local),
        (_, true) => profile.as_at(local.path).invalid("can only be set when seccomp type is Localhost"),
        (_, false) => {}
    }
}

fn app_armor(profile: &At) {
    const MUST: &str = "must be set when AppArmor type is Localhost";
    if !profile.is_set() {
        return;
    }
    let (kind, local) = (profile.get("type"), profile.get("localhostProfile"));
    match kind.str() {
        "Localhost" if !local.is_set() => local.required(MUST),
        "Localhost" => {
            if local.str().trim() != local.str() {
                local.invalid("must not be padded with whitespace");
            } else if local.is_empty() {
                local.required(MUST);
            }
            if local.len() > 4095 {
                local.too_long(4095);
            }
        }
        "RuntimeDefault" | "Unconfined" if local.is_set() => local.invalid("can only be set when AppArmor type is Localhost"),
        "RuntimeDefault" | "Unconfined" => {}
        "" => kind.required("type is required when appArmorProfile is set"),
        _ => drop(kind.one_of(&["Localhost", "RuntimeDefault", "Unconfined"])),
    }
}

fn windows_options(options: &At) {
    let (name, credentials, user) =
        (options.get("gmsaCredentialSpecName"), options.get("gmsaCredentialSpec"), options.get("runAsUserName"));
    if name.is_set() {
        name.ok(check::subdomain);
    }
    if credentials.is_set() {
        if credentials.is_empty() {
            credentials.invalid("gmsaCredentialSpec cannot be an empty string");
        } else if credentials.len() > 64 * 1024 {
            credentials.invalid("gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if user.is_set() {
        windows_user(&user);
    }
}

/// `[DOMAIN\]USER`.
fn windows_user(at: &At) {
    let parts: Vec<&str> = at.str().split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        [""] => return at.invalid("runAsUserName cannot be an empty string"),
        _ if at.str().bytes().any(|b| b.is_ascii_control()) => return at.invalid("runAsUserName cannot contain control characters"),
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return at.invalid("runAsUserName cannot contain more than one backslash"),
    };
    if let Some(domain) = domain {
        let odd = |c: char| "\\/:*?\"<>|".contains(c);
        let net_bios = (1..=15).contains(&domain.chars().count()) && !domain.starts_with('.') && !domain.contains(odd);
        if domain.len() >= 256 {
            at.invalid("runAsUserName's Domain length must be under 256 characters");
        }
        if !net_bios && !check::subdomain(&domain.to_ascii_lowercase()).is_empty() {
            at.invalid("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        at.invalid("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        at.invalid("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        at.invalid("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(|c: char| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        at.invalid("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
}

/// Every container of a pod, in the order upstream looks at them.
pub fn containers<'a>(spec: &At<'a>) -> Vec<At<'a>> {
    ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|list| spec.get(list).each()).collect()
}

/// Windows containers that run as processes of the host: all or none.
pub fn host_process(spec: &At) {
    let own = |at: &At| at.get("securityContext").get("windowsOptions").get("hostProcess").value.as_bool();
    let of_pod = own(spec);
    let all = containers(spec);
    for container in &all {
        if let (Some(pod), Some(one)) = (of_pod, own(container))
            && pod != one
        {
            let at = container.get("securityContext").get("windowsOptions").get("hostProcess");
            at.invalid(format!("pod hostProcess value must be identical if both are specified, was {pod}"));
        }
    }
    let count = all.iter().filter(|c| own(c).or(of_pod) == Some(true)).count();
    if count > 0 {
        if count != all.len() {
            spec.invalid_as("", "If pod contains any hostProcess containers then all containers must be HostProcess containers");
        }
        if !spec.get("hostNetwork").flag() {
            spec.get("hostNetwork").invalid_as(false, "hostNetwork must be true if pod contains any hostProcess containers");
        }
    }
}

/// A pod whose users are not the host's shares little else with it.
pub fn host_users(spec: &At) {
    if spec.get("hostUsers").value.as_bool() != Some(false) {
        return;
    }
    for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.get(key).flag() {
            spec.get(key).called(format!("{}.{shown}", spec.path)).forbidden("when `hostUsers` is false");
        }
    }
    for container in containers(spec) {
        if !container.get("volumeDevices").is_empty() {
            container.get("volumeDevices").forbidden("when `hostUsers` is false");
        }
    }
}

/// `spec.os`, and what it rules out.
pub fn os(spec: &At) {
    let os = spec.get("os");
    if !os.is_set() {
        return;
    }
    let name = os.get("name");
    match name.str() {
        "" => name.required(""),
        "linux" => {
            let why = "windows options cannot be set for a linux pod";
            std::iter::once(*spec).chain(containers(spec)).for_each(|at| {
                let options = at.get("securityContext").get("windowsOptions");
                if options.is_set() {
                    options.forbidden(why);
                }
            });
        }
        "windows" => windows(spec),
        _ => drop(name.as_at(os.path).one_of(&["linux", "windows"])),
    }
}

fn windows(spec: &At) {
    let refuse = |at: At| {
        let path = at.path.to_string();
        let says_nothing = at.value.as_bool() == Some(false) && path.ends_with("IPC") || path.ends_with("PID") && !at.flag();
        if at.is_set() && !says_nothing {
            at.forbidden("cannot be set for a windows pod");
        }
    };
    let context = spec.get("securityContext");
    refuse(context.get("appArmorProfile"));
    refuse(context.get("seLinuxOptions"));
    ["hostUsers", "hostPID", "hostIPC"].iter().for_each(|key| refuse(spec.get(key)));
    ["seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls"].iter().for_each(|key| refuse(context.get(key)));
    refuse(spec.get("shareProcessNamespace"));
    for key in ["runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy"] {
        refuse(context.get(key));
    }
    const OF_CONTAINER: [&str; 10] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    for container in containers(spec) {
        OF_CONTAINER.iter().for_each(|key| refuse(container.get("securityContext").get(key)));
    }
}
