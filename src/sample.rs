//! The sample workload: `coracle echo`, an HTTP server that says who answered; its one-layer image, packed from this very
//! executable; its manifest. Also what tests run in pods, so that none needs an image from elsewhere.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// The name the image is imported under.
pub const IMAGE: &str = "coracle.local/echo:1";

/// Of Deployment, Service and label `app`.
pub const NAME: &str = "echo";
pub const REPLICAS: i64 = 3;

/// A Deployment of [`REPLICAS`] and its Service, both called [`NAME`].
pub const MANIFEST: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata:
  name: echo
  labels: {app: echo}
spec:
  replicas: 3
  selector:
    matchLabels: {app: echo}
  template:
    metadata:
      labels: {app: echo}
    spec:
      containers:
      - name: echo
        image: coracle.local/echo:1
        imagePullPolicy: IfNotPresent
        ports:
        - {name: http, containerPort: 8080}
        env:
        - name: NODE_NAME
          valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
        readinessProbe:
          httpGet: {path: /, port: http}
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata:
  name: echo
spec:
  selector: {app: echo}
  ports:
  - {name: http, port: 80, targetPort: http}
"#;

/// Requests are one line and a few headers; more is cut off.
const REQUEST_MAX: usize = 16 * 1024;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const LOAD_PATIENCE: Duration = Duration::from_secs(5);
/// The C library asks for a name again after 5 s: a resolver that is killed with the question in its hands costs that.
const NAME_PATIENCE: Duration = Duration::from_secs(7);

/// `coracle echo [port]`: answers every request until SIGTERM or SIGINT, then finishes what is open and ends.
pub async fn echo(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    println!("listening on port {port}");
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    crate::task::spawn("echo", async move {
                        let _ = tokio::time::timeout(IDLE_TIMEOUT, answer(stream)).await;
                    });
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    println!("terminating");
    Ok(())
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 2048];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut chunk).await?;
        if n == 0 || request.len() + n > REQUEST_MAX {
            return Ok(());
        }
        request.extend_from_slice(&chunk[..n]);
    }
    let line = String::from_utf8_lossy(&request);
    let line = line.lines().next().unwrap_or_default();
    let pod = std::env::var("HOSTNAME").unwrap_or_default();
    let node = std::env::var("NODE_NAME").unwrap_or_default();
    let body = format!("pod {pod} on node {node} answers {line}\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// `coracle fetch <url>`: a GET over plain HTTP, printed: what pods made of [`IMAGE`] use to reach each other.
pub async fn fetch(url: &str) -> anyhow::Result<()> {
    print!("{}", get(url).await?);
    std::io::stdout().flush()?;
    Ok(())
}

async fn get(url: &str) -> anyhow::Result<String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| anyhow::anyhow!("{url} does not start with http://"))?;
    let (authority, path) = rest.split_once('/').map_or((rest, String::from("/")), |(a, p)| (a, format!("/{p}")));
    let address = if authority.contains(':') { authority.to_string() } else { format!("{authority}:80") };
    let mut stream = TcpStream::connect(&address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{}", head.lines().next().unwrap_or("no answer"));
    Ok(body.to_string())
}

/// `coracle load <url>`: GETs one after another, until ended, each given 5 s (and 7 more if it has a name to look up); says every
/// tenth of a second how many were answered and failed.
pub async fn load(url: &str) -> anyhow::Result<()> {
    let (mut answered, mut failed) = (0_u64, 0_u64);
    let mut said = std::time::Instant::now();
    let mut terminate = signal(SignalKind::terminate())?;
    let host = url.trim_start_matches("http://").split([':', '/']).next().unwrap_or_default();
    let is_name = host.parse::<std::net::Ipv4Addr>().is_err();
    let patience = LOAD_PATIENCE + if is_name { NAME_PATIENCE } else { Duration::ZERO };
    loop {
        let one = tokio::select! {
            one = tokio::time::timeout(patience, get(url)) => one,
            _ = terminate.recv() => return Ok(()),
        };
        match one {
            Ok(Ok(_)) => answered += 1,
            Ok(Err(error)) => {
                failed += 1;
                eprintln!("{error:#}");
            }
            Err(_) => {
                failed += 1;
                eprintln!("no answer in {} s", patience.as_secs());
            }
        }
        if said.elapsed() > Duration::from_millis(100) {
            said = std::time::Instant::now();
            println!("{answered} answered, {failed} failed");
        }
    }
}

/// Writes [`IMAGE`] as a `docker save` archive to `target`, its one layer holding `executable` as `/coracle`.
pub fn pack_image(executable: &Path, target: &Path) -> std::io::Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["tmp/", "etc/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if dir == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, dir, std::io::empty())?;
    }
    append(&mut layer, "etc/passwd", 0o644, b"root:x:0:0:root:/:/coracle\nnobody:x:65534:65534:nobody:/:/coracle\n")?;
    append(&mut layer, "coracle", 0o755, &std::fs::read(executable)?)?;
    let layer = layer.into_inner()?;
    let config = serde_json::json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Entrypoint": ["/coracle"], "Cmd": ["echo", "8080"], "Env": ["PATH=/"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(&layer)))]},
    });
    let config = serde_json::to_vec(&config)?;
    let name = format!("{}.json", hex(&Sha256::digest(&config)));
    let manifest = serde_json::json!([{"Config": name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(std::io::BufWriter::new(std::fs::File::create(target)?));
    append(&mut archive, &name, 0o644, &config)?;
    append(&mut archive, "layer.tar", 0o644, &layer)?;
    append(&mut archive, "manifest.json", 0o644, &serde_json::to_vec(&manifest)?)?;
    archive.into_inner()?.flush()
}

/// This machine's architecture as OCI spells it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, mode: u32, data: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    archive.append_data(&mut header, name, data)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
