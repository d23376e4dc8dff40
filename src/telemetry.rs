//! Logs and metrics set-up.
//!
//! Logs go to standard error; `CORACLE_LOG` takes `tracing` filter directives (`info`, `coracle::store=debug`). Metrics are
//! declared beside the code that moves them and rendered here in the Prometheus text format.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;

/// Libraries say at `info` what only their developers act on: who wants it names them.
const QUIET: &str = "openraft=warn,hickory_server=warn,sled=warn";

/// Starts logging to standard error; called once, before anything logs.
pub fn logs(default_level: &str) {
    let asked = std::env::var("CORACLE_LOG").unwrap_or_default();
    let filter = EnvFilter::try_new(format!("{default_level},{QUIET},{asked}")).unwrap_or_else(|error| {
        eprintln!("CORACLE_LOG: {error}");
        EnvFilter::new(format!("{default_level},{QUIET}"))
    });
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).with_target(true);
    // A second call (tests in one process) keeps the first subscriber.
    let _ = subscriber.try_init();
}

/// A counter or gauge with fixed labels: a `static` beside the code that moves it.
pub struct Metric {
    /// Upstream's name where one exists, else `coracle_<module>_<what>_<unit>`.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricKind,
    value: AtomicU64,
    registered: std::sync::Once,
}

#[derive(Clone, Copy)]
pub enum MetricKind {
    Counter,
    Gauge,
}

static METRICS: Mutex<Vec<&'static Metric>> = Mutex::new(Vec::new());

impl Metric {
    pub const fn counter(name: &'static str, help: &'static str) -> Metric {
        Metric { name, help, kind: MetricKind::Counter, value: AtomicU64::new(0), registered: std::sync::Once::new() }
    }

    pub const fn gauge(name: &'static str, help: &'static str) -> Metric {
        Metric { name, help, kind: MetricKind::Gauge, value: AtomicU64::new(0), registered: std::sync::Once::new() }
    }

    fn register(&'static self) {
        self.registered.call_once(|| METRICS.lock().expect("no panic while registering").push(self));
    }

    pub fn add(&'static self, n: u64) {
        self.register();
        self.value.fetch_add(n, Ordering::Relaxed);
    }

    pub fn sub(&'static self, n: u64) {
        self.register();
        self.value.fetch_sub(n, Ordering::Relaxed);
    }

    pub fn set(&'static self, n: u64) {
        self.register();
        self.value.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// All metrics touched so far, in the Prometheus text format, sorted by name.
pub fn render() -> String {
    let mut metrics = METRICS.lock().expect("no panic while registering").clone();
    metrics.sort_by_key(|m| m.name);
    let mut out = String::new();
    for m in metrics {
        let kind = match m.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} {kind}\n{0} {2}", m.name, m.help, m.get());
    }
    out
}
