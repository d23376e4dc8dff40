//! Images for tests, packed from what Debian installed here: programs with the libraries `ldd` says they need.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

/// What goes into an image beside programs.
pub struct Image<'a> {
    /// Under which it is imported, such as `test.local/nginx:1`.
    pub name: &'a str,
    /// Absolute paths of programs; each comes with its libraries.
    pub programs: &'a [&'a str],
    /// Path in the image and content.
    pub files: &'a [(&'a str, &'a str)],
    pub command: &'a [&'a str],
}

/// nginx, a shell, and what shutting it down gracefully needs. Answers on 8080 with its host name.
pub const NGINX: Image<'static> = Image {
    name: "test.local/nginx:1",
    programs: &["/usr/sbin/nginx", "/bin/sh", "/bin/sleep", "/bin/cat", "/bin/tar", "/bin/ls", "/bin/hostname", "/bin/kill", "/bin/mkdir"],
    files: &[
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        (
            "etc/nginx.conf",
            "daemon off; pid /tmp/nginx.pid; error_log stderr; worker_processes 1; user root;\nevents { worker_connections 256; }\n\
             http { access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
             server { listen 8080; location / { return 200 \"$hostname\\n\"; } } }\n",
        ),
    ],
    command: &["/usr/sbin/nginx", "-c", "/etc/nginx.conf"],
};

/// Writes `image` as a `docker save` archive.
pub fn pack(image: &Image<'_>, target: &Path) {
    let mut paths: BTreeSet<PathBuf> = BTreeSet::new();
    for program in image.programs {
        // Debian's /bin is /usr/bin: both names are wanted in the image.
        paths.insert(PathBuf::from(program));
        let output = Command::new("ldd").arg(program).output().unwrap();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            paths.extend(line.split_whitespace().find(|w| w.starts_with('/')).map(PathBuf::from));
        }
    }
    let mut layer = tar::Builder::new(Vec::new());
    for (dir, mode) in [("tmp", 0o1777), ("etc", 0o755), ("root", 0o700), ("var/log/nginx", 0o755), ("var/lib/nginx", 0o755)] {
        entry(&mut layer, dir, tar::EntryType::Directory, mode, &[]);
    }
    for path in paths {
        let name = path.strip_prefix("/").unwrap().to_str().unwrap().to_string();
        entry(&mut layer, &name, tar::EntryType::Regular, 0o755, &std::fs::read(&path).unwrap());
    }
    for (name, content) in image.files {
        entry(&mut layer, name, tar::EntryType::Regular, 0o644, content.as_bytes());
    }
    let layer = layer.into_inner().unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": image.command, "Env": ["PATH=/usr/sbin:/usr/bin:/bin"], "WorkingDir": "/", "StopSignal": "SIGQUIT"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
    });
    let config = config.to_string();
    let name = format!("{}.json", hex(config.as_bytes()));
    let manifest = serde_json::json!([{"Config": name, "RepoTags": [image.name], "Layers": ["layer.tar"]}]).to_string();
    let mut archive = tar::Builder::new(std::fs::File::create(target).unwrap());
    entry(&mut archive, &name, tar::EntryType::Regular, 0o644, config.as_bytes());
    entry(&mut archive, "layer.tar", tar::EntryType::Regular, 0o644, &layer);
    entry(&mut archive, "manifest.json", tar::EntryType::Regular, 0o644, manifest.as_bytes());
    archive.into_inner().unwrap().flush().unwrap();
}

fn entry<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, kind: tar::EntryType, mode: u32, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    archive.append_data(&mut header, name, data).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
