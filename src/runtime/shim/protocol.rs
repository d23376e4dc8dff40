//! Pure: requests and replies on a sandbox's socket, and what the shim is started with.
//!
//! The socket is SEQPACKET: one frame, one message, JSON. A connection carries one request and its replies: one, or two for an exec
//! (started, then exited), or any number after `Subscribe`. Descriptors travel beside a frame: the three streams with `Exec`,
//! the terminal's master with its first reply. The version is in every request, so each side can refuse the other by name.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::runtime::{SandboxSpec, State};

pub const VERSION: u32 = 1;
/// No frame is larger; what could be (process specs) goes by file.
pub const FRAME_BYTES_MAX: usize = 128 * 1024;

/// `<dir>/sandbox.json`: written by the daemon before the shim is started, read by both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    pub version: u32,
    pub sandbox: SandboxSpec,
    pub created_at: SystemTime,
    /// The pod's group; the shim itself lives in `shim` below it.
    pub cgroup: String,
    pub cgroup_root: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    pub call: Call,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// `c/<id>/` holds the bundle and `process.json`.
    /// `shared_pids`: its processes do not die with its first one, so the cgroup says who they are.
    Create {
        id: String,
        cgroup: String,
        log_path: String,
        stdin: bool,
        /// Standard input ends with the first one who was attached to it.
        #[serde(default)]
        stdin_once: bool,
        tty: bool,
        shared_pids: bool,
    },
    Start {
        id: String,
    },
    Kill {
        id: String,
        signal: i32,
    },
    /// Kills if need be; answers when it is gone.
    Delete {
        id: String,
    },
    /// `process` is a file below the container's directory, removed once read. Three descriptors travel along unless `tty`.
    Exec {
        id: String,
        process: String,
        tty: bool,
    },
    /// On the connection of an exec, after its first reply.
    KillExec,
    /// The container's streams from now on. Three descriptors travel along; streams not named are left alone. The first reply
    /// brings the terminal, if there is one; `ExecExited` follows when the container has ended.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    ReopenLog {
        id: String,
    },
    /// First `Reply::Status` of everything, then one per change.
    Subscribe,
    /// Kills everything; answers when nothing is left, and exits.
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Created { pid: i32 },
    ExecStarted { pid: i32 },
    ExecExited { code: i32 },
    Status(Vec<Status>),
    Failed(Failure),
}

/// One container as the shim sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub id: String,
    pub state: State,
    pub started_at: Option<SystemTime>,
    pub finished_at: Option<SystemTime>,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
    /// Of a command that could not be run: 127, 126, 128.
    pub code: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    NoSuchContainer,
    NotRunning,
    Create,
    Start,
    Other,
}

pub fn encode<T: Serialize>(frame: &T) -> Vec<u8> {
    serde_json::to_vec(frame).expect("frames are plain data")
}

pub fn decode_request(bytes: &[u8]) -> Result<Call, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|error| format!("malformed request: {error}"))?;
    if version != VERSION {
        return Err(format!("protocol version {version} is not supported by this shim (it speaks {VERSION})"));
    }
    let request: Request = serde_json::from_slice(bytes).map_err(|error| format!("malformed request: {error}"))?;
    Ok(request.call)
}

pub fn decode_reply(bytes: &[u8]) -> Result<Reply, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("malformed reply: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_are_refused_by_number() {
        let frame = encode(&Request { version: VERSION, call: Call::Start { id: "c".into() } });
        assert_eq!(decode_request(&frame), Ok(Call::Start { id: "c".into() }));
        let error = decode_request(br#"{"version":9,"call":{"Unheard":{}}}"#).unwrap_err();
        assert!(error.contains("version 9"), "{error}");
        assert!(decode_request(b"{").is_err());
    }
}
