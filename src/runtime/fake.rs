//! A [`Runtime`] in memory: sandboxes and containers are rows, processes are scripts.
//!
//! For kubelet tests, hollow nodes and the simulation. An image exists once [`Fake::add_image`] named it. What a container does is
//! decided when it starts: the [`Script`] registered for its name, else it runs until it is killed. Every call is recorded
//! ([`Fake::calls`]), any call can be made to fail ([`Fake::fail_next`]). Time is [`Fake::set_now`]'s.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use tokio::sync::broadcast;

use super::*;

/// What the processes of containers of one name do, one entry per start; the last entry repeats.
#[derive(Clone, Debug, PartialEq)]
pub enum Script {
    /// Runs until a signal; the stop signal ends it with 0, any other with 128 + signal.
    Run,
    /// As `Run`, but only SIGKILL ends it.
    Stubborn,
    /// Exits with this code at once.
    Exit(i32),
    OomKilled,
    /// `start_container` fails.
    CannotRun {
        message: String,
        code: i32,
    },
}

/// The answer to an exec of a command whose first word it is registered under.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecAnswer {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub code: i32,
}

#[derive(Clone)]
pub struct Fake {
    inner: Arc<Mutex<Inner>>,
    events: broadcast::Sender<RuntimeEvent>,
}

struct Inner {
    now: SystemTime,
    serial: u64,
    sandboxes: BTreeMap<String, SandboxState>,
    specs: BTreeMap<ContainerId, ContainerSpec>,
    images: Vec<Image>,
    scripts: BTreeMap<String, VecDeque<Script>>,
    running: BTreeMap<ContainerId, Script>,
    execs: BTreeMap<String, ExecAnswer>,
    failures: BTreeMap<String, VecDeque<Error>>,
    calls: Vec<String>,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake::new()
    }
}

impl Fake {
    pub fn new() -> Fake {
        let inner = Inner {
            now: SystemTime::UNIX_EPOCH,
            serial: 0,
            sandboxes: BTreeMap::new(),
            specs: BTreeMap::new(),
            images: Vec::new(),
            scripts: BTreeMap::new(),
            running: BTreeMap::new(),
            execs: BTreeMap::new(),
            failures: BTreeMap::new(),
            calls: Vec::new(),
        };
        Fake { inner: Arc::new(Mutex::new(inner)), events: broadcast::channel(1024).0 }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("the fake never panics while holding its lock")
    }

    pub fn set_now(&self, now: SystemTime) {
        self.lock().now = now;
    }

    /// An image with this name; its id is derived from the name.
    pub fn add_image(&self, name: &str, config: ImageConfig) -> String {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(name.as_bytes());
        let id = format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
        self.lock().images.push(Image {
            id: id.clone(),
            names: vec![name.to_string()],
            digests: vec![format!("{repository}@{id}")],
            size: 1 << 20,
            config,
        });
        id
    }

    /// What containers of this name do, one entry per start, the last one repeating.
    pub fn script(&self, container_name: &str, scripts: impl IntoIterator<Item = Script>) {
        self.lock().scripts.insert(container_name.to_string(), scripts.into_iter().collect());
    }

    /// Answers execs whose command starts with this word; others answer 0 and nothing.
    pub fn on_exec(&self, first_word: &str, answer: ExecAnswer) {
        self.lock().execs.insert(first_word.to_string(), answer);
    }

    /// The next call of this name (`create_container`, …) fails with the error.
    pub fn fail_next(&self, call: &str, error: Error) {
        self.lock().failures.entry(call.to_string()).or_default().push_back(error);
    }

    /// What was asked so far, e.g. `start_container c-3`.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    pub fn container_spec(&self, id: &str) -> Option<ContainerSpec> {
        self.lock().specs.get(id).cloned()
    }

    /// The id of the newest container of this name in a sandbox.
    pub fn find(&self, sandbox: &str, name: &str) -> Option<ContainerId> {
        let inner = self.lock();
        let containers = &inner.sandboxes.get(sandbox)?.containers;
        containers.iter().rev().find(|container| container.name == name).map(|container| container.id.clone())
    }

    /// A running container exits by itself.
    pub fn exit(&self, id: &str, code: i32) {
        self.finish(id, State::Exited { code, signal: 0, oom_killed: false });
    }

    /// The kernel kills a running container for memory.
    pub fn oom(&self, id: &str) {
        self.finish(id, State::Exited { code: 137, signal: 9, oom_killed: true });
    }

    /// The sandbox's shim dies and everything in it.
    pub fn lose_sandbox(&self, sandbox: &str) {
        let running: Vec<ContainerId> = {
            let mut inner = self.lock();
            let Some(state) = inner.sandboxes.get_mut(sandbox) else { return };
            state.ready = false;
            state.containers.iter().map(|container| container.id.clone()).collect()
        };
        for id in running {
            self.finish(&id, State::Exited { code: 137, signal: 9, oom_killed: false });
        }
        let _ = self.events.send(RuntimeEvent::SandboxLost { sandbox: sandbox.to_string() });
    }

    fn finish(&self, id: &str, state: State) {
        let event = self.lock().finish(id, state);
        if let Some(event) = event {
            let _ = self.events.send(event);
        }
    }

    fn send(&self, event: RuntimeEvent) {
        let _ = self.events.send(event);
    }
}

impl Inner {
    /// Records a call; its scripted failure, if there is one.
    fn call(&mut self, name: &str, about: &str) -> Result<()> {
        self.calls.push(format!("{name} {about}"));
        match self.failures.get_mut(name).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn container(&mut self, id: &str) -> Result<(&str, &mut ContainerState)> {
        self.sandboxes
            .iter_mut()
            .find_map(|(sandbox, state)| {
                let container = state.containers.iter_mut().find(|container| container.id == id)?;
                Some((sandbox.as_str(), container))
            })
            .ok_or_else(|| Error::ContainerNotFound { id: id.to_string() })
    }

    fn finish(&mut self, id: &str, state: State) -> Option<RuntimeEvent> {
        let now = self.now;
        self.running.remove(id);
        let (sandbox, container) = self.container(id).ok()?;
        if matches!(container.state, State::Exited { .. }) {
            return None;
        }
        let State::Exited { code, oom_killed, .. } = state else { return None };
        container.reason = match (code, oom_killed) {
            (_, true) => "OOMKilled",
            (0, false) => "Completed",
            _ => "Error",
        }
        .to_string();
        container.state = state;
        container.finished_at = Some(now);
        Some(RuntimeEvent::Exited { sandbox: sandbox.to_string(), container: id.to_string() })
    }

    fn next_script(&mut self, name: &str) -> Script {
        match self.scripts.get_mut(name) {
            None => Script::Run,
            Some(scripts) if scripts.len() > 1 => scripts.pop_front().expect("more than one"),
            Some(scripts) => scripts.front().cloned().unwrap_or(Script::Run),
        }
    }

    fn image(&self, reference: &str) -> Option<&Image> {
        self.images.iter().find(|image| {
            let mut all = image.names.iter().chain(&image.digests);
            image.id == reference || all.any(|name| name == reference || *name == format!("{reference}:latest"))
        })
    }

    fn start(&mut self, id: &str) -> Result<Vec<RuntimeEvent>> {
        self.call("start_container", id)?;
        let now = self.now;
        self.serial += 1;
        let pid = 1000 + self.serial as i32;
        let name = self.container(id)?.1.name.clone();
        let script = self.next_script(&name);
        if let Script::CannotRun { message, code } = script {
            let (_, container) = self.container(id)?;
            container.state = State::Exited { code, signal: 0, oom_killed: false };
            container.finished_at = Some(now);
            container.reason = "StartError".to_string();
            container.message.clone_from(&message);
            return Err(Error::Start { container: name, message, code });
        }
        let (sandbox, container) = self.container(id)?;
        container.state = State::Running { pid };
        container.started_at = Some(now);
        let mut events = vec![RuntimeEvent::Started { sandbox: sandbox.to_string(), container: id.to_string() }];
        self.running.insert(id.to_string(), script.clone());
        let end = match script {
            Script::Exit(code) => Some(State::Exited { code, signal: 0, oom_killed: false }),
            Script::OomKilled => Some(State::Exited { code: 137, signal: 9, oom_killed: true }),
            Script::Run | Script::Stubborn | Script::CannotRun { .. } => None,
        };
        events.extend(end.and_then(|end| self.finish(id, end)));
        Ok(events)
    }

    fn kill(&mut self, id: &str, signal: i32) -> Result<Option<RuntimeEvent>> {
        self.call("kill_container", &format!("{id} {signal}"))?;
        let stop_signal = self.container(id)?.1.stop_signal;
        let state = match self.running.get(id) {
            None => return Ok(None),
            Some(Script::Stubborn) if signal != 9 => return Ok(None),
            Some(_) if signal == stop_signal => State::Exited { code: 0, signal: 0, oom_killed: false },
            Some(_) => State::Exited { code: 128 + signal, signal, oom_killed: false },
        };
        Ok(self.finish(id, state))
    }

    fn create_sandbox(&mut self, spec: SandboxSpec) -> Result<SandboxInfo> {
        self.call("create_sandbox", &spec.id)?;
        if let Some(state) = self.sandboxes.get(&spec.id) {
            return Ok(state.info.clone());
        }
        self.serial += 1;
        let info =
            SandboxInfo { id: spec.id.clone(), netns: PathBuf::from(format!("/fake/{}/net", spec.id)), pid: 1000 + self.serial as i32 };
        let state = SandboxState {
            info: info.clone(),
            namespace: spec.namespace,
            name: spec.name,
            created_at: self.now,
            ready: true,
            resources: spec.resources,
            labels: spec.labels,
            annotations: spec.annotations,
            containers: Vec::new(),
        };
        self.sandboxes.insert(spec.id, state);
        Ok(info)
    }

    fn create_container(&mut self, sandbox: &str, spec: ContainerSpec) -> Result<ContainerId> {
        self.call("create_container", &format!("{sandbox} {} {}", spec.name, spec.attempt))?;
        let image = self.image(&spec.image).cloned();
        let image = image.ok_or_else(|| Error::ImageNotFound { reference: spec.image.clone() })?;
        self.serial += 1;
        let id = format!("c-{}", self.serial);
        let now = self.now;
        let state = self.sandboxes.get_mut(sandbox);
        let state = state.ok_or_else(|| Error::SandboxNotFound { id: sandbox.to_string() })?;
        if !state.ready {
            return Err(Error::Sandbox { id: sandbox.to_string(), message: "its shim is gone".to_string() });
        }
        let stop_signal = spec.stop_signal.as_deref().unwrap_or(&image.config.stop_signal);
        state.containers.push(ContainerState {
            id: id.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            image: spec.image.clone(),
            image_id: image.id,
            state: State::Created,
            created_at: now,
            started_at: None,
            finished_at: None,
            reason: String::new(),
            message: String::new(),
            log_path: spec.log_path.clone(),
            stop_signal: match stop_signal {
                "SIGINT" | "2" => 2,
                "SIGQUIT" | "3" => 3,
                _ => 15,
            },
            resources: spec.resources.clone(),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
        });
        self.specs.insert(id.clone(), spec);
        Ok(id)
    }
}

struct NoControl;

impl ExecControl for NoControl {
    fn resize(&self, _columns: u16, _rows: u16) {}
    fn kill(&self) {}
}

/// Every answer is ready at once: the fake never waits.
fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Runtime for Fake {
    fn create_sandbox(&self, spec: SandboxSpec) -> BoxFuture<'_, Result<SandboxInfo>> {
        let result = self.lock().create_sandbox(spec);
        ready(result)
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        let mut inner = self.lock();
        let result = inner.call("remove_sandbox", id).map(|()| {
            for container in inner.sandboxes.remove(id).into_iter().flat_map(|state| state.containers) {
                inner.specs.remove(&container.id);
                inner.running.remove(&container.id);
            }
        });
        ready(result)
    }

    fn create_container<'a>(&'a self, sandbox: &'a str, spec: ContainerSpec) -> BoxFuture<'a, Result<ContainerId>> {
        let result = self.lock().create_container(sandbox, spec);
        ready(result)
    }

    fn start_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        let result = self.lock().start(id);
        ready(result.map(|events| events.into_iter().for_each(|event| self.send(event))))
    }

    fn kill_container<'a>(&'a self, id: &'a str, signal: i32) -> BoxFuture<'a, Result<()>> {
        let result = self.lock().kill(id, signal);
        ready(result.map(|event| event.into_iter().for_each(|event| self.send(event))))
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        let mut inner = self.lock();
        let result = inner.call("remove_container", id).map(|()| {
            for state in inner.sandboxes.values_mut() {
                state.containers.retain(|container| container.id != id);
            }
            inner.specs.remove(id);
            inner.running.remove(id);
        });
        ready(result)
    }

    fn update_container<'a>(&'a self, id: &'a str, resources: Resources) -> BoxFuture<'a, Result<()>> {
        let mut inner = self.lock();
        let result = inner.call("update_container", id).and_then(|()| inner.container(id).map(|(_, c)| c.resources = resources.clone()));
        if let (Ok(()), Some(spec)) = (&result, inner.specs.get_mut(id)) {
            spec.resources = resources;
        }
        ready(result)
    }

    fn update_sandbox<'a>(&'a self, id: &'a str, resources: Resources) -> BoxFuture<'a, Result<()>> {
        let mut inner = self.lock();
        let result = inner.call("update_sandbox", id).and_then(|()| match inner.sandboxes.get_mut(id) {
            Some(state) => {
                state.resources = resources;
                Ok(())
            }
            None => Err(Error::SandboxNotFound { id: id.to_string() }),
        });
        ready(result)
    }

    /// Everything it says is over at once; what is typed is lost.
    fn attach<'a>(&'a self, container: &'a str, spec: AttachSpec) -> BoxFuture<'a, Result<ExecSession>> {
        let mut inner = self.lock();
        if let Err(error) = inner.call("attach", container) {
            return ready(Err(error));
        }
        if !inner.running.contains_key(container) {
            return ready(Err(Error::NotRunning { id: container.to_string() }));
        }
        let stream = |asked: bool| asked.then(|| Box::new(tokio::io::empty()) as Box<dyn AsyncRead + Send + Unpin>);
        ready(Ok(ExecSession {
            stdin: spec.stdin.then(|| Box::new(tokio::io::sink()) as Box<dyn AsyncWrite + Send + Unpin>),
            stdout: stream(spec.stdout),
            stderr: stream(spec.stderr),
            exit: ready(Ok(0)),
            control: Arc::new(NoControl),
        }))
    }

    /// The other end comes back with whatever it is sent.
    fn dial<'a>(&'a self, sandbox: &'a str, port: u16) -> BoxFuture<'a, Result<Box<dyn Duplex>>> {
        let called = self.lock().call("dial", &format!("{sandbox} {port}"));
        ready(called.map(|()| {
            let (near, far) = tokio::io::duplex(1 << 16);
            crate::task::spawn("fake-echo", async move {
                let (mut read, mut write) = tokio::io::split(far);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            Box::new(near) as Box<dyn Duplex>
        }))
    }

    fn reopen_log<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        let result = self.lock().call("reopen_log", id);
        ready(result)
    }

    fn list(&self) -> BoxFuture<'_, Vec<SandboxState>> {
        let list = self.lock().sandboxes.values().cloned().collect();
        ready(list)
    }

    fn sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Option<SandboxState>> {
        let found = self.lock().sandboxes.get(id).cloned();
        ready(found)
    }

    fn exec<'a>(&'a self, container: &'a str, spec: ExecSpec) -> BoxFuture<'a, Result<ExecSession>> {
        let mut inner = self.lock();
        let line = format!("{container} {}", spec.command.join(" "));
        if let Err(error) = inner.call("exec", &line) {
            return ready(Err(error));
        }
        if !inner.running.contains_key(container) {
            return ready(Err(Error::NotRunning { id: container.to_string() }));
        }
        let word = spec.command.first().map_or("", String::as_str);
        let answer = inner.execs.get(word).cloned().unwrap_or_default();
        let code = answer.code;
        let stream = |asked: bool, bytes: Vec<u8>| -> Option<Box<dyn AsyncRead + Send + Unpin>> {
            asked.then(|| Box::new(std::io::Cursor::new(bytes)) as Box<dyn AsyncRead + Send + Unpin>)
        };
        ready(Ok(ExecSession {
            stdin: spec.stdin.then(|| Box::new(tokio::io::sink()) as Box<dyn AsyncWrite + Send + Unpin>),
            stdout: stream(spec.stdout || spec.tty, answer.stdout),
            stderr: stream(spec.stderr && !spec.tty, answer.stderr),
            exit: ready(Ok(code)),
            control: Arc::new(NoControl),
        }))
    }

    fn stats<'a>(&'a self, sandbox: &'a str) -> BoxFuture<'a, Result<SandboxStats>> {
        let inner = self.lock();
        ready(match inner.sandboxes.get(sandbox) {
            None => Err(Error::SandboxNotFound { id: sandbox.to_string() }),
            Some(state) => Ok(SandboxStats {
                total: Stats::default(),
                containers: state.containers.iter().map(|one| (one.id.clone(), Stats::default())).collect(),
            }),
        })
    }

    fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<Image>>> {
        let image = self.lock().image(reference).cloned();
        ready(Ok(image))
    }

    fn import<'a>(&'a self, archive: &'a Path) -> BoxFuture<'a, Result<Vec<String>>> {
        let name = archive.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        self.add_image(&name, ImageConfig::default());
        ready(Ok(vec![name]))
    }

    fn list_images(&self) -> BoxFuture<'_, Vec<Image>> {
        let images = self.lock().images.clone();
        ready(images)
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<()>> {
        let mut inner = self.lock();
        let id = inner.image(reference).map(|image| image.id.clone());
        inner.images.retain(|image| Some(&image.id) != id.as_ref());
        ready(Ok(()))
    }

    fn image_usage(&self) -> BoxFuture<'_, Usage> {
        let bytes = self.lock().images.iter().map(|image| image.size).sum();
        ready(Usage { bytes, inodes: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn a_scripted_container_runs_exits_and_is_forgotten() {
        block(async {
            let fake = Fake::new();
            let mut events = fake.subscribe();
            fake.add_image("app:1", ImageConfig::default());
            fake.script("web", [Script::Exit(3), Script::Run]);
            fake.create_sandbox(SandboxSpec { id: "p".into(), ..Default::default() }).await.unwrap();
            let spec = ContainerSpec { name: "web".into(), image: "app:1".into(), ..Default::default() };
            let first = fake.create_container("p", spec.clone()).await.unwrap();
            fake.start_container(&first).await.unwrap();
            assert_eq!(events.try_recv().unwrap(), RuntimeEvent::Started { sandbox: "p".into(), container: first.clone() });
            assert_eq!(events.try_recv().unwrap(), RuntimeEvent::Exited { sandbox: "p".into(), container: first.clone() });
            let second = fake.create_container("p", ContainerSpec { attempt: 1, ..spec }).await.unwrap();
            fake.start_container(&second).await.unwrap();
            let output = exec_sync(&fake, &second, vec!["true".into()], Duration::from_secs(1), 10).await.unwrap();
            assert_eq!(output.code, 0);
            fake.kill_container(&second, 15).await.unwrap();
            let list = fake.list().await;
            let states: Vec<State> = list[0].containers.iter().map(|container| container.state).collect();
            assert_eq!(
                states,
                [State::Exited { code: 3, signal: 0, oom_killed: false }, State::Exited { code: 0, signal: 0, oom_killed: false }]
            );
            fake.remove_sandbox("p").await.unwrap();
            assert!(fake.list().await.is_empty());
        });
    }

    #[test]
    fn a_missing_image_is_named() {
        block(async {
            let fake = Fake::new();
            fake.create_sandbox(SandboxSpec { id: "p".into(), ..Default::default() }).await.unwrap();
            let spec = ContainerSpec { name: "web".into(), image: "none".into(), ..Default::default() };
            let error = fake.create_container("p", spec).await.unwrap_err();
            assert!(matches!(error, Error::ImageNotFound { reference } if reference == "none"));
        });
    }
}
