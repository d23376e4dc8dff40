//! What a pod's containers share: namespaces held by mounts instead of a process, `/dev/shm`, and, if they share processes, a pause.
//!
//! The namespaces are made by a child that mounts its own `/proc/self/ns/*` files and exits; nobody needs to live in them. A PID
//! namespace cannot be kept that way, so only a pod that shares it has a pause process: it reaps, holds nothing and sees nothing
//! (an empty root, no capabilities, no descriptors).
#![allow(unsafe_code)] // fork, clone and an ioctl

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use super::protocol::Setup;
use crate::runtime::SandboxSpec;

/// Makes everything below `dir` that containers will join.
pub(super) fn make(dir: &Path, setup: &Setup) -> io::Result<()> {
    let spec = &setup.sandbox;
    let shm = dir.join("shm");
    fs::create_dir_all(&shm)?;
    if !spec.host_ipc {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))
            .map_err(|error| named("mount /dev/shm", error.into()))?;
    }
    fs::create_dir_all(dir.join("ns"))?;
    let (mut read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map(|(read, write)| (fs::File::from(read), fs::File::from(write)))?;
    // SAFETY: the shim has one thread, so the child may do whatever it could.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let mut write = write;
            if let Err(error) = make_namespaces(&dir.join("ns"), spec) {
                let _ = write.write_all(error.to_string().as_bytes());
            }
            // SAFETY: leaves without running the parent's destructors.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(write);
            let mut error = String::new();
            read.read_to_string(&mut error)?;
            let _ = nix::sys::wait::waitpid(child, None);
            if error.is_empty() { Ok(()) } else { Err(io::Error::other(error)) }
        }
    }
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Which namespaces the sandbox has of its own: file name and flag.
pub(crate) fn own_namespaces(spec: &SandboxSpec) -> Vec<(&'static str, CloneFlags)> {
    let mut own = Vec::new();
    if !spec.host_network {
        // A pod in the host's network also has the host's name.
        own.push(("net", CloneFlags::CLONE_NEWNET));
        own.push(("uts", CloneFlags::CLONE_NEWUTS));
    }
    if !spec.host_ipc {
        own.push(("ipc", CloneFlags::CLONE_NEWIPC));
    }
    own
}

fn make_namespaces(dir: &Path, spec: &SandboxSpec) -> io::Result<()> {
    let own = own_namespaces(spec);
    let flags = own.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag);
    unshare(flags).map_err(|error| named("make namespaces", error.into()))?;
    if flags.contains(CloneFlags::CLONE_NEWUTS) {
        nix::unistd::sethostname(&spec.hostname).map_err(|error| named("set hostname", error.into()))?;
    }
    if flags.contains(CloneFlags::CLONE_NEWNET) {
        loopback_up().map_err(|error| named("bring loopback up", error))?;
    }
    for (name, value) in &spec.sysctls {
        set_sysctl(name, value, flags).map_err(|error| named(&format!("set sysctl {name}"), error))?;
    }
    for (name, _) in own {
        let file = dir.join(name);
        fs::File::create(&file)?;
        mount(Some(&*Path::new("/proc/self/ns").join(name)), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| named("mount namespace", error.into()))?;
    }
    Ok(())
}

/// Only what a namespace of the sandbox's own confines.
fn set_sysctl(name: &str, value: &str, own: CloneFlags) -> io::Result<()> {
    let dotted = name.replace('/', ".");
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix)) || dotted == "kernel.sem";
    let allowed = (ipc && own.contains(CloneFlags::CLONE_NEWIPC))
        || (dotted.starts_with("net.") && own.contains(CloneFlags::CLONE_NEWNET))
        || (dotted == "kernel.domainname" && own.contains(CloneFlags::CLONE_NEWUTS));
    if !allowed {
        return Err(io::Error::other("it is not confined to a namespace of this sandbox"));
    }
    if dotted.split('.').any(|part| part.is_empty()) {
        return Err(io::Error::other("malformed name"));
    }
    // With slashes a dot is part of a name (`net/ipv4/conf/eth0.1/…`); with dots only, every dot separates.
    let path = if name.contains('/') { name.to_string() } else { name.replace('.', "/") };
    fs::write(Path::new("/proc/sys").join(path), value)
}

fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero is a valid request; name and flags are set below.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the kernel reads one ifreq, which this is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// PID 1 of a shared PID namespace.
pub(super) fn pause(dir: &Path) -> io::Result<Pid> {
    let root = dir.join("pause");
    fs::create_dir_all(&root)?;
    // SAFETY: the shim has one thread; without a new stack this is a fork into a new PID namespace.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWPID | libc::SIGCHLD, 0, 0, 0, 0) };
    match pid {
        0 => be_pause(&root),
        1.. => Ok(Pid::from_raw(pid as i32)),
        _ => Err(named("start pause process", io::Error::last_os_error())),
    }
}

fn be_pause(root: &Path) -> ! {
    if hide(root).is_err() {
        // SAFETY: nothing to clean up.
        unsafe { libc::_exit(1) }
    }
    loop {
        // As PID 1 it gets only signals it handles, and it handles none: children are all it wakes for.
        match nix::sys::wait::waitpid(None, None) {
            Ok(_) => {}
            Err(_) => {
                let mut any = nix::sys::signal::SigSet::empty();
                any.add(Signal::SIGCHLD);
                let _ = any.wait();
            }
        }
    }
}

fn hide(root: &Path) -> io::Result<()> {
    let mut blocked = nix::sys::signal::SigSet::empty();
    blocked.add(Signal::SIGCHLD);
    blocked.thread_block()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("pause"), root, Some("tmpfs"), MsFlags::MS_NODEV | MsFlags::MS_NOSUID, Some("size=4k,mode=555"))?;
    nix::unistd::chdir(root)?;
    // Onto itself: the old root is then on top and can be let go.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    // SAFETY: closes every descriptor and drops every right of a process that uses none.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        libc::prctl(libc::PR_SET_NAME, c"pause".as_ptr());
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        libc::setgroups(0, std::ptr::null());
        libc::setresgid(65535, 65535, 65535);
        libc::setresuid(65535, 65535, 65535);
        for number in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
            libc::signal(number, libc::SIG_DFL);
        }
    }
    Ok(())
}

/// The shim itself goes only when told to over its socket.
pub(super) fn ignore_signals() {
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { signal(number, SigHandler::SigIgn) };
    }
}
