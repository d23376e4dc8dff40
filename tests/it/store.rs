//! The store against `SIGKILL`, power cuts and damaged files, in real directories.
//!
//! The killed process is this test binary again, running [`writer_child`] alone. It prints what it finds, what it is
//! about to write and what was acknowledged; the parent judges each start by what the one before had printed. For a power
//! cut (which needs root) the store is on an ext4 in a file that the kernel writes to only when told to sync: a copy of
//! that file, taken while the process is stopped, is what the machine would find on its disk.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coracle::store::fake::Seed;
use coracle::store::{Batch, Config, Durability, Error, Put, Range, Store};

const CHILD_DIR: &str = "CORACLE_TEST_STORE_DIR";
const KEYS: usize = 12;

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> TempDir {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("coracle-it-store-{name}-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(dir: &Path) -> Config {
    Config { wal_segment_bytes: 128 << 10, checkpoint_bytes: 64 << 10, reserve_bytes: 64 << 10, ..Config::new(dir) }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

fn key(i: usize) -> String {
    format!("\0{}\0default\0{i:02}", if is_relaxed(i) { "leases" } else { "pods" })
}

/// Operation `n` on a key: every seventh deletes it. Sizes vary, so that frames straddle pages and rows have chunks.
fn operation(i: usize, n: u64) -> Batch {
    let durability = if is_relaxed(i) { Durability::Soon } else { Durability::Now };
    if n.is_multiple_of(7) {
        return Batch { durability, ..Batch::delete(key(i)) };
    }
    let size = 20 + (n as usize * 7919 + i) % if n.is_multiple_of(50) { 60_000 } else { 3000 };
    Batch { durability, ..Batch::put(key(i), format!("{n:>size$}")) }
}

fn say(line: std::fmt::Arguments) {
    let mut out = std::io::stdout().lock();
    // The parent may be gone; then so are we, presently.
    let _ = writeln!(out, "\n@{line}");
    let _ = out.flush();
}

/// Not a test by itself: does nothing unless started by [`sigkill_loses_nothing_that_was_acknowledged`].
#[test]
fn writer_child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    runtime().block_on(async {
        let store = Store::open(config(Path::new(&dir))).await.unwrap();
        for i in 0..KEYS {
            let found = store.get(key(i).as_bytes());
            let n = found.map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().trim().parse::<u64>().unwrap());
            say(format_args!("found {i} {n}"));
        }
        say(format_args!("ready {}", store.revision()));
        let first: u64 = std::env::var("CORACLE_TEST_STORE_FIRST").unwrap().parse().unwrap();
        for i in 0..KEYS {
            let store = store.clone();
            tokio::spawn(async move {
                for n in first.. {
                    say(format_args!("issued {i} {n}"));
                    let written = store.write(operation(i, n)).await.unwrap();
                    say(format_args!("acked {i} {n} {}", written.revisions[0]));
                }
            });
        }
        loop {
            tokio::time::sleep(Duration::from_millis(40)).await;
            store.checkpoint().await.unwrap();
        }
    });
}

#[derive(Clone, Copy, Default)]
struct Track {
    issued: u64,
    acked: u64,
}

#[derive(Default)]
struct Parent {
    tracks: Vec<Track>,
    found: BTreeMap<usize, u64>,
    revision: u64,
    acks: u64,
    starts: u64,
    /// Relaxed writes may be gone, too.
    power_was_cut: bool,
}

/// Writes of this key may be lost with the power, for a minute.
fn is_relaxed(i: usize) -> bool {
    i.is_multiple_of(4)
}

impl Parent {
    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<u64>().unwrap();
        match words[0] {
            "found" => {
                self.found.insert(number(1) as usize, number(2));
            }
            "ready" => self.ready(number(1)),
            "issued" => self.tracks[number(1) as usize].issued = number(2),
            "acked" => {
                self.tracks[number(1) as usize].acked = number(2);
                self.revision = self.revision.max(number(3));
                self.acks += 1;
            }
            other => panic!("the child said {other}"),
        }
    }

    /// The child has said all it found: judge it, and take it for granted from here on.
    fn ready(&mut self, revision: u64) {
        self.starts += 1;
        assert!(revision >= self.revision, "revision {revision}, after {} had been acknowledged", self.revision);
        for (i, n) in std::mem::take(&mut self.found) {
            let Track { issued, acked } = self.tracks[i];
            let acked = if self.power_was_cut && is_relaxed(i) { 0 } else { acked };
            let ok = if n > 0 { (acked..=issued).contains(&n) } else { issued == 0 || (acked..=issued).any(|n| n.is_multiple_of(7)) };
            assert!(ok, "key {i} is as of operation {n}; {acked} was acknowledged, {issued} the last issued");
        }
    }
}

impl Parent {
    /// One life of the writer in `dir`: `end` ends it, a third of the times while it starts, else at work.
    fn round(&mut self, round: u64, dir: &Path, program: &[&std::ffi::OsStr], seed: &mut Seed, end: impl FnOnce(&std::process::Child)) {
        let first = self.tracks.iter().map(|track| track.issued).max().unwrap() + 1;
        let exe = std::env::current_exe().unwrap();
        let line = [program, &[exe.as_os_str()]].concat();
        let mut child = Command::new(line[0])
            .args(&line[1..])
            .args(["store::writer_child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dir)
            .env("CORACLE_TEST_STORE_FIRST", first.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (ready, started) = std::sync::mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let mut said = Vec::new();
            for line in lines.filter_map(|line| line.strip_prefix('@').map(str::to_string)) {
                if line.starts_with("ready") {
                    // Nobody waits when the child is to be killed early.
                    let _ = ready.send(());
                }
                said.push(line);
            }
            said
        });
        let wait = if round.is_multiple_of(3) { 2 + seed.below(200) } else { 5 + seed.below(250) };
        if !round.is_multiple_of(3) {
            started.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|e| panic!("round {round}: the child did not start: {e}"));
        }
        std::thread::sleep(Duration::from_millis(wait));
        end(&child);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(status.code().is_none(), "round {round}: the child ended by itself: {status}");
        let lines = reader.join().unwrap();
        // What an unfinished start found is said again by the next.
        self.found.clear();
        lines.iter().for_each(|line| self.line(line));
        self.found.clear();
    }
}

#[test]
fn sigkill_loses_nothing_that_was_acknowledged() {
    const KILLS: u64 = 50;
    let dir = TempDir::new("sigkill");
    let mut parent = Parent { tracks: vec![Track::default(); KEYS], ..Parent::default() };
    let mut seed = Seed::new(42);
    for round in 0..KILLS {
        parent.round(round, &dir.0, &[], &mut seed, |_| {});
    }
    assert!(parent.starts > KILLS / 2 && parent.acks > 500, "{} starts, {} acknowledged", parent.starts, parent.acks);
    runtime().block_on(async {
        let store = Store::open(config(&dir.0)).await.unwrap();
        for i in 0..KEYS {
            let found = store.get(key(i).as_bytes());
            parent.found.insert(i, found.map_or(0, |e| std::str::from_utf8(&e.value).unwrap().trim().parse().unwrap()));
        }
        parent.ready(store.revision());
        store.close().await;
    });
    eprintln!("{} starts, {} writes acknowledged", parent.starts, parent.acks);
}

/// Every thread of the process is stopped, none inside a sync any more.
fn stop(child: &std::process::Child) {
    use nix::sys::signal::{Signal, kill};
    kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGSTOP).unwrap();
    let tasks = || std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().flatten();
    let is_stopped = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    };
    while !tasks().all(is_stopped) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The whole store, sled's checkpoints included, on a disk that keeps only what was synced.
#[test]
fn root_power_cuts_lose_nothing_that_was_acknowledged() {
    const CUTS: u64 = 20;
    assert!(nix::unistd::geteuid().is_root(), "mounting needs root");
    let dir = TempDir::new("power");
    let (disk, found, mountpoint) = (dir.0.join("disk"), dir.0.join("found"), dir.0.join("mnt"));
    std::fs::create_dir(&mountpoint).unwrap();
    std::fs::File::create(&disk).unwrap().set_len(96 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0"]).arg(&disk).status().unwrap();
    assert!(made.success());
    // The mount is in a namespace of the child's own and ends with it. The kernel's own commits are ten minutes apart.
    let script = format!("mount -o loop,commit=600 {} {} && exec \"$@\"", disk.display(), mountpoint.display());
    let program = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"].map(std::ffi::OsStr::new);
    let mut parent = Parent { tracks: vec![Track::default(); KEYS], power_was_cut: true, ..Parent::default() };
    let mut seed = Seed::new(7);
    for round in 0..CUTS {
        // Never while it starts: the mount itself is under way then.
        parent.round(3 * round + 1, &mountpoint, &program, &mut seed, |child| {
            stop(child);
            let copied = Command::new("cp").arg("--sparse=always").args([&disk, &found]).status().unwrap();
            assert!(copied.success());
        });
        std::fs::rename(&found, &disk).unwrap();
    }
    assert!(parent.starts > CUTS / 2 && parent.acks > 200, "{} starts, {} acknowledged", parent.starts, parent.acks);
    eprintln!("{} starts after power cuts, {} writes acknowledged", parent.starts, parent.acks);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, into) } else { into.push(path) }
    }
}

/// One bit of any file flipped: the same data comes up, or a refusal that names what is wrong. Never anything else.
#[test]
fn a_flipped_bit_anywhere_is_survived_or_refused() {
    let original = TempDir::new("flip");
    let runtime = runtime();
    let (expected, revision) = runtime.block_on(async {
        let store = Store::open(config(&original.0)).await.unwrap();
        for round in 0..4u64 {
            for i in 0..40u64 {
                let value = format!("{round}-{i}-").repeat(60 + i as usize);
                store.write(Batch::put(format!("\0pods\0a\0{i:02}"), value)).await.unwrap();
            }
            if round < 3 {
                store.checkpoint().await.unwrap();
            }
        }
        store.close().await;
        (store.range(Range::default()).unwrap().entries, store.revision())
    });
    let mut all = Vec::new();
    files(&original.0, &mut all);
    all.retain(|path| !path.ends_with("LOCK") && !path.ends_with("reserve") && path.metadata().unwrap().len() > 0);
    let (mut same, mut refused) = (0, 0);
    let mut seed = Seed::new(7);
    for path in &all {
        let length = path.metadata().unwrap().len();
        for _ in 0..6 {
            let bit = seed.below(length * 8);
            let work = TempDir::new("flipped");
            copy(&original.0, &work.0);
            let victim = work.0.join(path.strip_prefix(&original.0).unwrap());
            let mut bytes = std::fs::read(&victim).unwrap();
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            std::fs::write(&victim, bytes).unwrap();
            runtime.block_on(async {
                match Store::open(config(&work.0)).await {
                    Ok(store) => {
                        let found = store.range(Range::default()).unwrap().entries;
                        assert_eq!(found, expected, "{} bit {bit}", victim.display());
                        assert!(store.revision() >= revision);
                        store.close().await;
                        same += 1;
                    }
                    Err(Error::Damaged { what }) => {
                        assert!(what.contains(work.0.to_str().unwrap()), "{what}");
                        refused += 1;
                    }
                    Err(other) => panic!("{} bit {bit}: {other:?}", victim.display()),
                }
            });
        }
    }
    eprintln!("{} files: {same} came up the same, {refused} were refused", all.len());
    assert!(same > 0);
}

/// Figures for the curious: `CORACLE_STORE_BENCH=1 cargo test --test it store::bench -- --nocapture`.
#[test]
fn bench() {
    if std::env::var_os("CORACLE_STORE_BENCH").is_none() {
        return;
    }
    let dir = TempDir::new("bench");
    let runtime = runtime();
    runtime.block_on(async {
        let store = Store::open(Config::new(&dir.0)).await.unwrap();
        for (durability, clients) in
            [Durability::Now, Durability::Soon, Durability::Heartbeat].into_iter().flat_map(|d| [1, 16, 64].map(|n| (d, n)))
        {
            let started = std::time::Instant::now();
            let mut tasks = Vec::new();
            for client in 0..clients {
                let store = store.clone();
                tasks.push(tokio::spawn(async move {
                    let mut writes = 0u64;
                    let mut seed = Seed::new(client);
                    while started.elapsed() < Duration::from_secs(3) {
                        let key = format!("\0pods\0default\0{:05}", seed.below(10_000));
                        let put = Put { key: key.into(), value: vec![seed.roll() as u8; 2048].into(), ttl_seconds: None };
                        store.write(Batch { puts: vec![put], durability, ..Batch::default() }).await.unwrap();
                        writes += 1;
                    }
                    writes
                }));
            }
            let mut writes = 0;
            for task in tasks {
                writes += task.await.unwrap();
            }
            let rate = writes as f64 / started.elapsed().as_secs_f64();
            eprintln!("{clients} clients, {durability:?}: {rate:.0} writes of 2 KB a second");
            store.compact(store.revision()).await.unwrap();
        }
        watchers(&store).await;
        eprintln!("{:?}", store.stats());
        store.close().await;
        let started = std::time::Instant::now();
        drop(store);
        let store = Store::open(Config::new(&dir.0)).await.unwrap();
        eprintln!("opened again in {:?} with {} keys", started.elapsed(), store.stats().keys);
        store.close().await;
    });
}

async fn watchers(store: &Store) {
    let started = std::time::Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..1000 {
        let mut watcher = store.watch(b"\0configmaps\0", store.revision()).unwrap();
        tasks.push(tokio::spawn(async move {
            let mut seen = 0;
            while seen < 200 {
                seen += watcher.next().await.unwrap().len();
            }
        }));
    }
    for i in 0..200 {
        store.write(Batch::put(format!("\0configmaps\0default\0{i}"), vec![1; 1024])).await.unwrap();
    }
    let written = started.elapsed();
    for task in tasks {
        task.await.unwrap();
    }
    eprintln!("1000 watchers, 200 writes: written in {written:?}, all delivered in {:?}", started.elapsed());
}
