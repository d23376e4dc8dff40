//! Directories of files made from ConfigMaps, Secrets, tokens and the Pod itself, replaced in place all at once.
//!
//! Readers see either the old files or the new ones: the files stand in a dated directory, `..data` points to it, the names
//! the pod asked for are links through `..data`, and an update is one rename of that link.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::reconcile::{Part, Projection};
use crate::agent::kubelet::env::{self, Contents, Kind, NodeFacts};
use crate::agent::kubelet::observe::Reason;
use crate::agent::kubelet::pod::Pod;

/// One file of a projection.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// Owner, for tokens of pods that run as another user.
    pub uid: Option<u32>,
}

pub type Payload = BTreeMap<String, File>;

/// Who may read: `fsGroup`, and the single user all containers run as.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Owner {
    pub group: Option<u32>,
    pub user: Option<u32>,
}

pub struct Inputs<'a> {
    pub pod: Pod<'a>,
    pub contents: &'a Contents,
    /// Tokens by path.
    pub tokens: &'a BTreeMap<String, String>,
    pub node: &'a NodeFacts,
    pub pod_ips: &'a [String],
    pub owner: Owner,
}

/// The files of a projection.
pub fn payload(projection: &Projection, inputs: &Inputs) -> Result<Payload, Reason> {
    let mut files = Payload::new();
    for part in &projection.parts {
        match part {
            Part::ConfigMap { name, items, optional } => {
                object(&mut files, projection, inputs, (Kind::ConfigMap, name), items.as_deref(), *optional)?
            }
            Part::Secret { name, items, optional } => {
                object(&mut files, projection, inputs, (Kind::Secret, name), items.as_deref(), *optional)?
            }
            Part::Downward { items } => {
                for item in items {
                    let text = match item.field.as_str() {
                        "" => env::resource(inputs.pod, None, &item.resource, inputs.node).map_err(failed)?,
                        field => env::field(inputs.pod, field, inputs.node, inputs.pod_ips)
                            .ok_or_else(|| failed(format!("unsupported fieldPath: {field}")))?,
                    };
                    let mode = item.mode.unwrap_or(projection.default_mode);
                    files.insert(item.path.clone(), File { bytes: text.into_bytes(), mode, uid: None });
                }
            }
            Part::Token { path, .. } => {
                let token = inputs.tokens.get(path).ok_or_else(|| failed(format!("no token for {path}")))?;
                let private = inputs.owner.group.is_some() || inputs.owner.user.is_some();
                let mode = if private { 0o600 } else { projection.default_mode };
                let uid = inputs.owner.user.filter(|_| inputs.owner.group.is_none());
                files.insert(path.clone(), File { bytes: token.clone().into_bytes(), mode, uid });
            }
        }
    }
    for path in files.keys() {
        if path.is_empty() || Path::new(path).components().any(|c| !matches!(c, Component::Normal(_))) || path.starts_with("..") {
            return Err(failed(format!("invalid path {path:?}")));
        }
    }
    if inputs.owner.group.is_some() {
        files.values_mut().for_each(|f| f.mode |= 0o440);
    }
    Ok(files)
}

fn failed(message: String) -> Reason {
    Reason { reason: "FailedMount".to_string(), message }
}

fn object(
    files: &mut Payload,
    projection: &Projection,
    inputs: &Inputs,
    (kind, name): (Kind, &str),
    items: Option<&[super::reconcile::Item]>,
    optional: bool,
) -> Result<(), Reason> {
    let Some(data) = inputs.contents.get(&(kind, name.to_string())) else {
        return if optional { Ok(()) } else { Err(failed(format!("{} \"{name}\" not found", kind.word()))) };
    };
    let file = |bytes: &Vec<u8>, mode: Option<u32>| File { bytes: bytes.clone(), mode: mode.unwrap_or(projection.default_mode), uid: None };
    match items {
        None => files.extend(data.iter().map(|(k, v)| (k.clone(), file(v, None)))),
        Some(items) => {
            for item in items {
                match data.get(&item.key) {
                    Some(bytes) => {
                        files.insert(item.path.clone(), file(bytes, item.mode));
                    }
                    None if optional => {}
                    None => {
                        return Err(failed(format!(
                            "references non-existent {} key: {}",
                            if kind == Kind::Secret { "secret" } else { "config" },
                            item.key
                        )));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Makes `dir` hold exactly `files`. Does nothing if it does already.
pub fn write(dir: &Path, files: &Payload, group: Option<u32>, stamp: &str) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(if group.is_some() { 0o2775 } else { 0o777 }))?;
    if let Some(group) = group {
        std::os::unix::fs::chown(dir, None, Some(group))?;
    }
    let data = dir.join("..data");
    let current = std::fs::read_link(&data).ok();
    if let Some(current) = &current
        && same(&dir.join(current), files)
    {
        return Ok(());
    }
    let dated = format!("..{stamp}");
    let fresh = dir.join(&dated);
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh)?;
    }
    make_dir(&fresh, group)?;
    for (path, file) in files {
        write_file(&fresh, path, file, group)?;
    }
    let next = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&next);
    symlink(&dated, &next)?;
    std::fs::rename(&next, &data)?;
    link(dir, files)?;
    if let Some(old) = current.filter(|c| c != Path::new(&dated)) {
        std::fs::remove_dir_all(dir.join(old))?;
    }
    Ok(())
}

fn make_dir(path: &Path, group: Option<u32>) -> std::io::Result<()> {
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(if group.is_some() { 0o2755 } else { 0o755 }))?;
    group.map_or(Ok(()), |g| std::os::unix::fs::chown(path, None, Some(g)))
}

fn write_file(root: &Path, path: &str, file: &File, group: Option<u32>) -> std::io::Result<()> {
    use std::io::Write;
    let mut dir = root.to_path_buf();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    for part in &parts[..parts.len() - 1] {
        dir.push(part);
        if !dir.is_dir() {
            make_dir(&dir, group)?;
        }
    }
    let target = dir.join(parts[parts.len() - 1]);
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
    out.write_all(&file.bytes)?;
    out.set_permissions(std::fs::Permissions::from_mode(file.mode & 0o7777))?;
    if group.is_some() || file.uid.is_some() {
        std::os::unix::fs::chown(&target, file.uid, group)?;
    }
    Ok(())
}

/// First path elements, as links through `..data`; links to what is no more go.
fn link(dir: &Path, files: &Payload) -> std::io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) && entry.file_type()?.is_symlink() {
            std::fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        let at = dir.join(name);
        if at.symlink_metadata().is_err() {
            symlink(PathBuf::from("..data").join(name), at)?;
        }
    }
    Ok(())
}

fn same(dir: &Path, files: &Payload) -> bool {
    let mut found = 0;
    if !count(dir, &mut found) || found != files.len() {
        return false;
    }
    files.iter().all(|(path, file)| {
        let at = dir.join(path);
        let mode = at.metadata().map(|m| m.permissions().mode() & 0o7777);
        mode.is_ok_and(|m| m == file.mode & 0o7777) && std::fs::read(&at).is_ok_and(|bytes| bytes == file.bytes)
    })
}

fn count(dir: &Path, found: &mut usize) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                if !count(&entry.path(), found) {
                    return false;
                }
            }
            Ok(_) => *found += 1,
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Payload {
        list.iter().map(|(p, text)| (p.to_string(), File { bytes: text.as_bytes().to_vec(), mode: 0o644, uid: None })).collect()
    }

    #[test]
    fn an_update_swaps_all_files_at_once_and_drops_old_names() {
        let dir = std::env::temp_dir().join(format!("coracle-projected-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        write(&dir, &files(&[("a", "1"), ("d/b", "2")]), None, "one").unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        let inode = std::os::unix::fs::MetadataExt::ino(&dir.join("a").metadata().unwrap());
        write(&dir, &files(&[("a", "1"), ("d/b", "2")]), None, "two").unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&dir.join("a").metadata().unwrap()), inode, "nothing changed");
        write(&dir, &files(&[("a", "3")]), None, "three").unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(dir.join("d").symlink_metadata().is_err());
        assert_eq!(std::fs::read_link(dir.join("..data")).unwrap(), Path::new("..three"));
        assert!(!dir.join("..one").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn missing_objects_fail_unless_optional_and_keys_can_be_renamed() {
        use crate::agent::volumes::reconcile::Item;
        let pod = crate::value!({});
        let node = NodeFacts::default();
        let contents = Contents::from([((Kind::Secret, "s".to_string()), BTreeMap::from([("k".to_string(), b"v".to_vec())]))]);
        let owner = Owner { group: Some(5), user: None };
        let inputs = Inputs { pod: Pod(&pod), contents: &contents, tokens: &BTreeMap::new(), node: &node, pod_ips: &[], owner };
        let part = |name: &str, optional| Part::ConfigMap { name: name.into(), items: None, optional };
        let projection = |parts| Projection { default_mode: 0o400, parts, secret: false };
        assert_eq!(payload(&projection(vec![part("cm", false)]), &inputs).unwrap_err().message, "configmap \"cm\" not found");
        assert!(payload(&projection(vec![part("cm", true)]), &inputs).unwrap().is_empty());
        let items = Some(vec![Item { key: "k".into(), path: "x/y".into(), mode: None }]);
        let files = payload(&projection(vec![Part::Secret { name: "s".into(), items, optional: false }]), &inputs).unwrap();
        assert_eq!((files["x/y"].bytes.as_slice(), files["x/y"].mode), (b"v".as_slice(), 0o440));
    }
}
