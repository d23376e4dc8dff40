//! Container logs on this node: reading for `kubectl logs`, termination messages, rotation.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::clock;
use super::kubelet::Shared;
use super::kubelet::pod::Pod;
use crate::runtime::State;
use crate::runtime::log::{self, Follower, Stream};

/// A log larger than this is renamed aside; as many old ones stay.
const ROTATE_BYTES: u64 = 10 << 20;
pub const ROTATED_MAX: usize = 4;
const ROTATE_EVERY: Duration = Duration::from_secs(10);
/// A log file tells nobody that it has grown.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
const CHUNK_BYTES: usize = 32 << 10;

/// `PodLogOptions`, as far as they concern the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<usize>,
    pub limit_bytes: Option<usize>,
    /// RFC 3339; lines before it are left out.
    pub since: Option<String>,
    /// Only `Stdout` or `Stderr`.
    pub stream: Option<String>,
}

impl Options {
    /// From query parameters; `now` resolves `sinceSeconds`.
    pub fn parse(query: &[(String, String)], now: clock::Millis) -> Result<Options, String> {
        let mut options = Options::default();
        let number = |key: &str, value: &str| value.parse::<i64>().map_err(|_| format!("invalid {key}: {value:?}"));
        for (key, value) in query {
            let on = || matches!(value.as_str(), "" | "true" | "1");
            match key.as_str() {
                "follow" => options.follow = on(),
                "previous" => options.previous = on(),
                "timestamps" => options.timestamps = on(),
                "tailLines" => {
                    options.tail_lines = Some(usize::try_from(number(key, value)?).map_err(|_| "tailLines must not be negative")?)
                }
                "limitBytes" => {
                    options.limit_bytes = Some(usize::try_from(number(key, value)?).map_err(|_| "limitBytes must not be negative")?)
                }
                "sinceSeconds" => options.since = Some(clock::text(now - number(key, value)? * 1000)),
                "sinceTime" => {
                    options.since = Some(clock::text(clock::parse(value).ok_or_else(|| format!("invalid sinceTime: {value:?}"))?))
                }
                "stream" if value != "All" => options.stream = Some(value.clone()),
                _ => {}
            }
        }
        Ok(options)
    }

    /// One stored line as it is shown; `None` where it is not.
    fn show<'a>(&self, line: &'a [u8], out: &mut BytesMut) -> Option<&'a [u8]> {
        let Some(parsed) = log::parse(line) else {
            out.put_slice(line);
            return Some(line);
        };
        // Times are UTC and equally long up to the second, so they compare as text.
        if self
            .since
            .as_ref()
            .is_some_and(|since| parsed.time.as_bytes()[..19.min(parsed.time.len())] < since.as_bytes()[..19.min(since.len())])
        {
            return None;
        }
        let wanted = match self.stream.as_deref() {
            Some("Stdout") => parsed.stream == Stream::Stdout,
            Some("Stderr") => parsed.stream == Stream::Stderr,
            _ => true,
        };
        if !wanted {
            return None;
        }
        if self.timestamps {
            out.put_slice(parsed.time.as_bytes());
            out.put_u8(b' ');
        }
        out.put_slice(parsed.text);
        if !parsed.partial {
            out.put_u8(b'\n');
        }
        Some(line)
    }
}

/// Which log a request means.
pub struct Wanted {
    pub path: PathBuf,
    /// While this container runs a follower waits for more: the pod's uid and its id.
    pub container: Option<(String, String)>,
}

/// The log of a container of `pod`; the error is what upstream says.
pub async fn find(shared: &Shared, pod: Pod<'_>, container: &str, previous: bool) -> Result<Wanted, String> {
    let name = pod.name();
    if pod.container(container).is_none() {
        return Err(format!("container {container} is not valid for pod {name}"));
    }
    let sandbox = shared.runtime.sandbox(pod.uid()).await;
    let known = sandbox.iter().flat_map(|s| &s.containers).filter(|c| c.name == container);
    let latest = known.filter(|c| c.state != State::Created).max_by_key(|c| c.attempt);
    let reported = pod.reported(container);
    let attempt = match (latest, reported) {
        (Some(c), _) => Some(c.attempt),
        (None, Some(s)) if !s.str_at(&["containerID"]).is_empty() => s.i64_at(&["restartCount"]).and_then(|n| u32::try_from(n).ok()),
        (None, _) => None,
    };
    let Some(attempt) = attempt else {
        let waiting = reported.map(|s| s.str_at(&["state", "waiting", "reason"])).filter(|r| !r.is_empty());
        return Err(match waiting {
            Some("ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull") => {
                format!("container \"{container}\" in pod \"{name}\" is waiting to start: image can't be pulled")
            }
            reason => format!("container \"{container}\" in pod \"{name}\" is waiting to start: {}", reason.unwrap_or("ContainerCreating")),
        });
    };
    if !previous {
        return Ok(Wanted {
            path: shared.log_path(pod, container, attempt),
            container: latest.map(|c| (pod.uid().to_string(), c.id.clone())),
        });
    }
    match attempt.checked_sub(1) {
        Some(before) if shared.log_path(pod, container, before).exists() => {
            Ok(Wanted { path: shared.log_path(pod, container, before), container: None })
        }
        _ => Err(format!("previous terminated container \"{container}\" in pod \"{name}\" not found")),
    }
}

/// Sends the log in chunks; ends at its end, or with `follow` when the container has ended or the reader is gone.
pub async fn send(shared: Arc<Shared>, wanted: Wanted, options: Options, to: mpsc::Sender<Bytes>) {
    let path = wanted.path.clone();
    let tail = options.tail_lines;
    let opened = tokio::task::spawn_blocking(move || Follower::open(&path, tail)).await;
    let Ok(Ok(mut follower)) = opened else { return };
    let mut left = options.limit_bytes.unwrap_or(usize::MAX);
    let mut ending = false;
    loop {
        let reading = options.clone();
        let read = tokio::task::spawn_blocking(move || {
            let chunk = read_chunk(&mut follower, &reading);
            (follower, chunk)
        });
        let Ok((back, chunk)) = read.await else { return };
        follower = back;
        let Ok(mut chunk) = chunk else { return };
        if chunk.bytes.len() > left {
            chunk.bytes.truncate(left);
        }
        left -= chunk.bytes.len();
        if !chunk.bytes.is_empty() && to.send(chunk.bytes.freeze()).await.is_err() {
            return;
        }
        if left == 0 || (chunk.at_end && (!options.follow || ending)) {
            return;
        }
        if chunk.at_end {
            // Once more after the end of the container: its last lines come before its exit is told.
            ending = !runs(&shared, wanted.container.as_ref()).await;
            if !ending {
                tokio::select! {
                    () = to.closed() => return,
                    () = tokio::time::sleep(FOLLOW_EVERY) => {}
                }
            }
        }
    }
}

struct Chunk {
    bytes: BytesMut,
    at_end: bool,
}

fn read_chunk(follower: &mut Follower, options: &Options) -> std::io::Result<Chunk> {
    let mut bytes = BytesMut::new();
    while bytes.len() < CHUNK_BYTES {
        match follower.next_line()? {
            Some(line) => {
                options.show(line, &mut bytes);
            }
            None => return Ok(Chunk { bytes, at_end: true }),
        }
    }
    Ok(Chunk { bytes, at_end: false })
}

async fn runs(shared: &Shared, container: Option<&(String, String)>) -> bool {
    let Some((sandbox, id)) = container else { return false };
    let sandbox = shared.runtime.sandbox(sandbox).await;
    sandbox.iter().flat_map(|s| &s.containers).any(|c| c.id == *id && matches!(c.state, State::Running { .. }))
}

/// The container's last words: its termination file (4 KiB), else the end of `log` (80 lines, 2 KiB).
pub fn termination_message(file: &Path, log: Option<&PathBuf>) -> String {
    let written = head(file, 4096);
    match log {
        Some(log) if written.is_empty() => log_tail(log, 80, 2048),
        _ => String::from_utf8_lossy(&written).into_owned(),
    }
}

fn head(file: &Path, limit: u64) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(file) {
        let _ = file.take(limit).read_to_end(&mut bytes);
    }
    bytes
}

fn log_tail(path: &Path, lines: usize, limit: usize) -> String {
    let mut text = BytesMut::new();
    if let Ok(mut follower) = Follower::open(path, Some(lines)) {
        while let Ok(Some(line)) = follower.next_line() {
            Options::default().show(line, &mut text);
        }
    }
    let start = text.len().saturating_sub(limit);
    String::from_utf8_lossy(&text[start..]).into_owned()
}

/// Removes a log file and what was rotated away from it.
pub fn remove(log: &Path) {
    let Some((dir, name)) = log.parent().zip(log.file_name()) else { return };
    let name = name.to_string_lossy();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if file == name || file.strip_prefix(name.as_ref()).is_some_and(|rest| rest.starts_with('.')) {
            // What stays is found when the pod's directory goes.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Keeps every log of a running container within bounds.
pub async fn rotate_all(shared: Arc<Shared>) {
    let mut every = tokio::time::interval(ROTATE_EVERY);
    loop {
        every.tick().await;
        for container in shared.runtime.list().await.into_iter().flat_map(|s| s.containers) {
            if !matches!(container.state, State::Running { .. }) {
                continue;
            }
            let path = container.log_path.clone();
            let suffix = shared.now().to_string();
            let rotate = move || match std::fs::metadata(&path) {
                Ok(meta) if meta.len() > ROTATE_BYTES => log::rotate(&path, &suffix, ROTATED_MAX).map(|()| true),
                _ => Ok(false),
            };
            match tokio::task::spawn_blocking(rotate).await {
                Ok(Ok(true)) => {
                    if let Err(error) = shared.runtime.reopen_log(&container.id).await {
                        tracing::warn!(container = %container.id, %error, "log not reopened after rotation");
                    }
                }
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(error)) => tracing::warn!(container = %container.id, %error, "log not rotated"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_choose_lines() {
        let query: Vec<(String, String)> =
            [("tailLines", "5"), ("timestamps", "true"), ("sinceTime", "2023-11-14T22:13:20Z"), ("stream", "Stderr")]
                .map(|(k, v)| (k.into(), v.into()))
                .into();
        let options = Options::parse(&query, 0).unwrap();
        let mut out = BytesMut::new();
        for line in
            ["2023-11-14T22:13:19.9Z stderr F old\n", "2023-11-14T22:13:20.1Z stdout F out\n", "2023-11-14T22:13:20.2Z stderr F new\n"]
        {
            options.show(line.as_bytes(), &mut out);
        }
        assert_eq!(&out[..], b"2023-11-14T22:13:20.2Z new\n");
        assert!(Options::parse(&[("tailLines".into(), "x".into())], 0).is_err());
    }

    #[test]
    fn a_termination_message_falls_back_to_the_log() {
        let dir = std::env::temp_dir().join(format!("coracle-termination-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (file, log) = (dir.join("t"), dir.join("0.log"));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&log, "2023-11-14T22:13:20Z stdout F a\n2023-11-14T22:13:20Z stderr F b\n").unwrap();
        assert_eq!(termination_message(&file, Some(&log)), "a\nb\n");
        std::fs::write(&file, "said").unwrap();
        assert_eq!(termination_message(&file, Some(&log)), "said");
        assert_eq!(termination_message(&dir.join("none"), None), "");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
