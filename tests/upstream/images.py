#!/usr/bin/env python3
"""Makes the images of images.toml as one OCI layout archive.

  images.py CACHE OUT.tar [WORD…]   the images whose name holds one of the words (all, without one)

Layers are kept in CACHE/layers under a digest of what they are made from, so that only what changed is made again. Nothing is
pulled: programs come from `build`, the rest from Debian packages (in the machine's own apt sources) and the module k8s.io/kubernetes.
"""
import fnmatch, glob, hashlib, io, json, os, re, shutil, subprocess, sys, tarfile, tempfile, tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
# Not wanted of a package, and most of its size.
DROPPED = ("usr/share/doc/*", "usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/perl*", "usr/lib/*/perl*", "usr/lib/*/gconv/*")


def run(*command, **how):
    """A command whose output matters only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}:\n{done.stdout.decode(errors='replace')[-3000:]}")
    return done.stdout.decode(errors="replace")


def build(*names):
    if subprocess.run([f"{HERE}/build", *names]).returncode != 0:
        sys.exit(f"images: could not build {' '.join(names)}")


# ---- makers: each fills a folder


def busybox(_layer, root, work):
    """Pristine sources: Debian's patched one drops environment names that no shell could set, and prefers applets to programs."""
    sources = f"{work}/sources"
    os.makedirs(f"{sources}/lists/partial")
    with open(f"{sources}/it.sources", "w") as out:  # the machine's own sources, for source packages
        for path in glob.glob("/etc/apt/sources.list.d/*.sources"):
            out.write(re.sub(r"(?m)^Types:.*$", "Types: deb-src", open(path).read()) + "\n")
    with open(f"{sources}/it.list", "w") as out:
        for path in filter(os.path.exists, ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*.list")]):
            out.write("".join(re.sub(r"^deb ", "deb-src ", line) for line in open(path) if line.startswith("deb ")))
    apt = ["apt-get", "-qq", f"-oDir::Etc::SourceParts={sources}", "-oDir::Etc::SourceList=/dev/null", f"-oDir::State::Lists={sources}/lists"]
    run(*apt, "update")
    run(*apt, "source", "--download-only", "busybox", cwd=work)
    run("tar", "-xf", glob.glob(f"{work}/busybox_*.orig.tar.*[!c]")[0], "-C", work)
    (tree,) = glob.glob(f"{work}/busybox-*/")
    run("make", "-C", tree, "defconfig")
    config = open(f"{tree}/.config").read()
    for option, value in {"STATIC": "y", "TC": "n"}.items():
        config = re.sub(rf"(?m)^(# )?CONFIG_{option}[= ].*$", f"CONFIG_{option}={value}", config)
    open(f"{tree}/.config", "w").write(config)
    run("sh", "-c", f"yes '' | make -C {tree} oldconfig && make -C {tree} -j2")
    os.makedirs(f"{root}/bin")
    shutil.copy(f"{tree}/busybox", f"{root}/bin/busybox")
    for applet in run(f"{root}/bin/busybox", "--list").split():
        if applet != "busybox":
            os.symlink("busybox", f"{root}/bin/{applet}")


def debian(layer, root, work):
    """The packages' closure, unpacked over a merged-usr tree, and by hand what maintainer scripts would do."""
    archives = f"{work}/archives"
    os.makedirs(f"{archives}/partial")
    options = ["-qq", "-y", "--no-install-recommends", "--download-only", "-oDir::State::status=/dev/null", f"-oDir::Cache::archives={archives}"]
    if not glob.glob("/var/lib/apt/lists/*_Packages*"):
        run("apt-get", "-qq", "update")
    run("apt-get", *options, "install", *layer["packages"])
    for folder in ("bin", "sbin", "lib", "lib64"):
        os.makedirs(f"{root}/usr/{folder}")
        os.symlink(f"usr/{folder}", f"{root}/{folder}")
    for package in sorted(glob.glob(f"{archives}/*.deb")):
        run("sh", "-c", f"dpkg-deb --fsys-tarfile '{package}' | tar -x --keep-directory-symlink -C '{root}'")
    for name in ("passwd", "group"):
        shutil.copy(f"{root}/usr/share/base-passwd/{name}.master", f"{root}/etc/{name}")
    run("ldconfig", "-r", root)


MAKERS = {"busybox": busybox, "debian": debian}


# ---- layers


class Maker:
    def __init__(self, cache, manifest):
        self.cache, self.layers = cache, manifest["layer"]
        self.module = run(f"{HERE}/build", "--module").strip().splitlines()[-1]
        os.makedirs(f"{cache}/layers", exist_ok=True)

    def programs(self, layer):
        return sorted(set(self.layers[layer].get("program", {}).values()))

    def made(self, name):
        """Path of the layer's tar, made if it is not there."""
        layer = self.layers.get(name) or sys.exit(f"images.toml: no layer {name}")
        key = hashlib.sha256(json.dumps(layer, sort_keys=True).encode())
        if maker := layer.get("maker"):
            key.update(__import__("inspect").getsource(MAKERS[maker]).encode())
        for program in self.programs(name):
            key.update(open(f"{self.cache}/bin/{program}", "rb").read())
        path = f"{self.cache}/layers/{name}-{key.hexdigest()[:16]}.tar"
        if not os.path.exists(path):
            print(f"making layer {name} …", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=self.cache) as work:
                root = f"{work}/root"
                os.makedirs(root)
                if maker:
                    MAKERS[maker](layer, root, work)
                self.entries(layer, root)
                pack(root, path + ".new", layer.get("mode", {}))
            os.rename(path + ".new", path)
        return path

    def entries(self, layer, root):
        def place(path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            return root + path

        for path, mode in layer.get("dir", {}).items():
            os.makedirs(root + path, exist_ok=True)
            os.chmod(root + path, mode)
        for path, program in layer.get("program", {}).items():
            shutil.copy(f"{self.cache}/bin/{program}", place(path))
        for path, source in layer.get("module", {}).items():
            shutil.copyfile(f"{self.module}/{source}", place(path))
        for path, source in layer.get("c", {}).items():
            run("gcc", "-Os", "-Wall", "-static", "-s", "-DVERSION=conformance", "-o", place(path), f"{self.module}/{source}")
        for path, text in layer.get("text", {}).items():
            if os.path.lexists(root + path):
                os.unlink(root + path)
            open(place(path), "w").write(text)
        for path, text in layer.get("append", {}).items():  # to what the layer `debian` has there
            open(place(path), "w").write(read_member(self.made("debian"), path) + text)
        for path, other in layer.get("copy", {}).items():  # /bin/… of another layer
            with tarfile.open(self.made(other)) as tar, open(place(path), "wb") as out:
                shutil.copyfileobj(tar.extractfile(f"bin/{other}"), out)
            os.chmod(root + path, 0o755)
        for path, target in layer.get("link", {}).items():
            if os.path.lexists(place(path)):
                os.unlink(root + path)
            os.symlink(target, root + path)


def read_member(tar, path):
    with tarfile.open(tar) as archive:
        return archive.extractfile(path.lstrip("/")).read().decode()


def pack(root, out, modes):
    """The tree as a tar: names sorted, times zero, owners as unpacked, special bits kept."""
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files + folders):
                path = os.path.join(folder, name)
                inside = os.path.relpath(path, root)
                if any(fnmatch.fnmatch(inside, pattern) for pattern in DROPPED):
                    continue
                entry = tar.gettarinfo(path, inside)
                entry.mtime, entry.uname, entry.gname = 0, "", ""
                entry.mode = modes.get("/" + inside, entry.mode)
                if entry.isreg():
                    with open(path, "rb") as data:
                        tar.addfile(entry, data)
                else:
                    tar.addfile(entry)


# ---- the layout


class Layout:
    def __init__(self, out):
        self.tar, self.present = tarfile.open(out, "w"), set()

    def add(self, name, data, size):
        entry = tarfile.TarInfo(name)
        entry.size = size
        self.tar.addfile(entry, data)

    def blob(self, media, data):
        """Adds bytes, or a file by path, once; gives its descriptor."""
        if isinstance(data, bytes):
            digest, size, source = hashlib.sha256(data).hexdigest(), len(data), io.BytesIO(data)
        else:
            digest, size, source = hashlib.file_digest(open(data, "rb"), "sha256").hexdigest(), os.path.getsize(data), open(data, "rb")
        if digest not in self.present:
            self.present.add(digest)
            self.add(f"blobs/sha256/{digest}", source, size)
        return {"mediaType": f"application/vnd.oci.image.{media}", "digest": f"sha256:{digest}", "size": size}


def document(value):
    return json.dumps(value, sort_keys=True).encode()


def image(layout, spec, layers):
    """The label gives every name a config, and so an id, of its own: two names of one id would be told apart by nobody."""
    layers = [layout.blob("layer.v1.tar", path) for path in layers]
    config = {
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/", "Labels": {"name": spec["name"]},
        "Entrypoint": spec.get("entrypoint"), "Cmd": spec.get("cmd"), "User": spec.get("user", ""), "ExposedPorts": {p: {} for p in spec.get("ports", [])},
    }
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    config = layout.blob("config.v1+json", document({"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}))
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers}
    names = {"io.containerd.image.name": spec["name"], "org.opencontainers.image.ref.name": spec["name"].rpartition(":")[2]}
    return {**layout.blob("manifest.v1+json", document(manifest)), "platform": {"architecture": "amd64", "os": "linux"}, "annotations": names}


def main(cache, out, *words):
    manifest = tomllib.load(open(f"{HERE}/images.toml", "rb"))
    wanted = [spec for spec in manifest["image"] if not words or any(word in spec["name"] for word in words)]
    for word in words:
        any(word in spec["name"] for spec in wanted) or sys.exit(f"images.toml: no image is named like {word}")
    os.makedirs(cache, exist_ok=True)
    cache = os.path.abspath(cache)
    os.environ["UPSTREAM_CACHE"] = cache
    maker = Maker(cache, manifest)
    names = list(dict.fromkeys(name for spec in wanted for name in spec["layers"]))
    build(*sorted({program for name in names for program in maker.programs(name)}))
    paths = {name: maker.made(name) for name in names}
    key = hashlib.sha256(document([wanted, sorted(paths.values())])).hexdigest()
    if os.path.exists(out) and os.path.exists(out + ".key") and open(out + ".key").read() == key:
        return
    layout = Layout(out + ".new")
    entries = [image(layout, spec, [paths[name] for name in spec["layers"]]) for spec in wanted]
    index = document({"schemaVersion": 2, "manifests": entries})
    layout.add("index.json", io.BytesIO(index), len(index))
    mark = b'{"imageLayoutVersion":"1.0.0"}'
    layout.add("oci-layout", io.BytesIO(mark), len(mark))
    layout.tar.close()
    os.rename(out + ".new", out)
    open(out + ".key", "w").write(key)
    print(f"{len(entries)} images, {os.path.getsize(out) >> 20} MB: {out}", file=sys.stderr)


main(*sys.argv[1:])
