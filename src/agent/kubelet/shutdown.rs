//! Ending a container within its grace period: preStop hook, stop signal, kill. The deadline may be moved nearer meanwhile.

use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tracing::warn;

use super::Shared;
use crate::agent::clock::Millis;
use crate::agent::probes::{self, Handler};
use crate::api::value::Value;
use crate::runtime::{RuntimeEvent, State};

/// What is left for the stop signal however long the hook took.
const FLOOR: Duration = Duration::from_secs(2);
/// After SIGKILL: the kernel may take its time, not for ever.
const AFTER_KILL: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;

pub struct Stop {
    /// The sandbox it is in.
    pub sandbox: String,
    pub id: String,
    pub stop_signal: i32,
    pub pre_stop: Option<Handler>,
    /// When the container is to be killed at the latest.
    pub deadline: watch::Receiver<Millis>,
}

/// Answers the hook's error, if it had one.
pub async fn stop(shared: &Shared, mut stop: Stop) -> Result<(), String> {
    // Subscribed before anything is looked at, so that no exit is missed.
    let mut events = shared.runtime.subscribe();
    let hook = match stop.pre_stop.take() {
        Some(handler) => run_hook(shared, &mut stop, &handler).await,
        None => Ok(()),
    };
    if let Err(error) = shared.runtime.kill_container(&stop.id, stop.stop_signal).await {
        warn!(container = %stop.id, %error, "stop signal not delivered");
    }
    let floor = tokio::time::Instant::now() + FLOOR;
    loop {
        let wait = remaining(shared, &stop);
        let until = (tokio::time::Instant::now() + wait).max(floor);
        tokio::select! {
            () = exited(shared, &mut events, &stop.sandbox, &stop.id) => return hook,
            () = tokio::time::sleep_until(until) => break,
            moved = stop.deadline.changed() => if moved.is_err() { tokio::time::sleep_until(until).await; break },
        }
    }
    if let Err(error) = shared.runtime.kill_container(&stop.id, SIGKILL).await {
        warn!(container = %stop.id, %error, "kill signal not delivered");
    }
    if tokio::time::timeout(AFTER_KILL, exited(shared, &mut events, &stop.sandbox, &stop.id)).await.is_err() {
        warn!(container = %stop.id, "still there a minute after it was killed");
    }
    hook
}

fn remaining(shared: &Shared, stop: &Stop) -> Duration {
    let left = *stop.deadline.borrow() - shared.now();
    Duration::from_millis(u64::try_from(left).unwrap_or(0))
}

/// The hook has the whole grace period; what it leaves is for the signal.
async fn run_hook(shared: &Shared, stop: &mut Stop, handler: &Handler) -> Result<(), String> {
    let wait = remaining(shared, stop);
    let mut asked = std::pin::pin!(probes::ask(&*shared.runtime, &stop.id, handler, wait));
    loop {
        let wait = *stop.deadline.borrow() - shared.now();
        let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0));
        tokio::select! {
            result = &mut asked => return result.map(drop),
            () = tokio::time::sleep(wait) => return Err("the hook did not end within the grace period".to_string()),
            moved = stop.deadline.changed() => if moved.is_err() { return asked.await.map(drop) },
        }
    }
}

/// Returns once the container does not run any more.
async fn exited(shared: &Shared, events: &mut broadcast::Receiver<RuntimeEvent>, in_sandbox: &str, id: &str) {
    loop {
        let sandbox = shared.runtime.sandbox(in_sandbox).await;
        let container = sandbox.iter().flat_map(|s| &s.containers).find(|c| c.id == id);
        if !container.is_some_and(|c| matches!(c.state, State::Running { .. })) {
            return;
        }
        loop {
            match events.recv().await {
                Ok(RuntimeEvent::Exited { container, .. }) if container == id => break,
                Ok(RuntimeEvent::SandboxLost { sandbox }) if sandbox == in_sandbox => break,
                Err(broadcast::error::RecvError::Lagged(_)) => break,
                Ok(_) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

/// The hook of this name (`postStart`, `preStop`); one that cannot be read is its error.
pub fn hook(container: &Value, name: &str, ip: &str) -> Option<Result<Handler, String>> {
    let spec = container.at(&["lifecycle", name])?;
    Some(probes::handler(spec, container, ip))
}
