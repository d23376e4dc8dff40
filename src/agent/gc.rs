//! What of dead containers and gone pods may go, and its removal.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::kubelet::observe::Container;

/// Id and attempt of the attempts of container `name` beyond the latest two.
pub fn old_attempts(containers: &[Container], name: &str) -> Vec<(String, u32)> {
    let mut attempts: Vec<&Container> = containers.iter().filter(|c| c.name == name).collect();
    attempts.sort_by_key(|c| std::cmp::Reverse(c.attempt));
    attempts.into_iter().skip(2).filter(|c| c.exit_code().is_some()).map(|c| (c.id.clone(), c.attempt)).collect()
}

/// Removes log files with what was rotated away from them.
pub async fn remove_logs(logs: Vec<PathBuf>) {
    let remove = move || logs.iter().for_each(|log| super::logs::remove(log));
    // A log that stays is found by the next sweep.
    let _ = tokio::task::spawn_blocking(remove).await;
}

/// Removes log directories (`<namespace>_<name>_<uid>`) of pods that are not among `uids`.
pub fn orphan_logs(root: &Path, uids: &BTreeSet<String>) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_known = name.rsplit('_').next().is_some_and(|uid| uids.contains(uid));
        if !is_known && let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "old logs could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::kubelet::observe::State;

    #[test]
    fn the_latest_two_attempts_stay() {
        let container = |attempt: u32| Container {
            id: format!("c{attempt}"),
            name: "a".into(),
            attempt,
            image: String::new(),
            image_id: String::new(),
            started_at: None,
            finished_at: None,
            limits: crate::runtime::Resources::default(),
            state: State::Exited { code: 1, signal: 0, reason: String::new(), message: String::new() },
        };
        let old = old_attempts(&[container(0), container(3), container(1), container(2)], "a");
        assert_eq!(old, [("c1".to_string(), 1), ("c0".to_string(), 0)]);
    }
}
