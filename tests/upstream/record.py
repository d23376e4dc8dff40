#!/usr/bin/env python3
"""Records scenarios from a real kube-apiserver, and replays recorded ones against any server. Standard library only.

    record.py new.jsonl -o tests/oracle/scenarios/<category>/<topic>.jsonl
    record.py --replay      against upstream itself
    record.py --replay --server https://127.0.0.1:6443 --ca ca.crt --cert admin.crt --key admin.key [--filter REGEX] [--run-id ab01] [-j 4]

Input of a recording: scenarios as in tests/oracle/README.md, one JSON object a line, whose steps have no `want` (a step that has one is
checked against it instead, which is what a step with `retry` needs); `"ns": true` gives a scenario a namespace of its own. Every scenario
is played twice, with different run tokens: what differs is not stable and is not written. kube-apiserver and etcd are started from
--bin (default target/upstream/bin, made by tests/upstream/build) with the flags of the corpus, and removed afterwards.
"""
import argparse, base64, copy, gzip, http.client, json, os, re, secrets, shutil, socket, ssl, subprocess, sys, tempfile, threading, time, urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(os.path.dirname(HERE))

TOKEN = "zq0000"
UUID = re.compile(r"(?!00000000-)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"20(?:2[4-9]|[3-9]\d)-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(?:Z| ?\+0000 UTC)(?: m=[+-][\d.]+)?")
JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
IP4 = re.compile(r"(?<![\d.])10\.96\.\d+\.\d+(?![\d./])")
IP6 = re.compile(r"(?<![0-9a-f:])fd00:10:96::[0-9a-f:]+(?![0-9a-f:/])")
ACCESS = re.compile(r"kube-api-access-[a-z0-9]{5}")
GEN = re.compile(r"(?<![\w-])(?:gn-|Bad_)[bcdfghjklmnpqrstvwxz2456789]{5}(?![\w-])")
NODEPORT = re.compile(r"(?<=:)(3[0-2]\d{3})(?=/(?:TCP|UDP|SCTP))")
HASH = re.compile(r"hash=[0-9A-F]{16,}")
RVTEXT = re.compile(r"(ResourceVersion in precondition: |ResourceVersion in object meta: |current: |resource version: |resourceVersion\\*\"?: ?\\*\"?|storage RV: |in record \()(\d+)( \(\d+\))?")
AGECOLS = {"Age", "Last Seen", "First Seen", "Last Schedule", "Duration", "Created At"}
DEFAULT_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-cache, private", "Audit-Id": "<present>",
                   "X-Kubernetes-Pf-Flowschema-Uid": "<present>", "X-Kubernetes-Pf-Prioritylevel-Uid": "<present>"}
PRESENCE = {"Audit-Id", "X-Kubernetes-Pf-Flowschema-Uid", "X-Kubernetes-Pf-Prioritylevel-Uid", "Etag"}
KEPT = list(DEFAULT_HEADERS) + ["Etag", "Retry-After", "Vary", "Location", "Allow", "Www-Authenticate", "Warning", "Content-Encoding"]


class Binder:
    """Two-way table between values of this run and placeholders; one per scenario."""
    def __init__(self, runid):
        self.actual = "zq" + runid
        self.fwd, self.rev, self.n, self.names, self.vars = {}, {}, {}, [], {}

    def bind(self, kind, value):
        k = (kind, value)
        if k not in self.fwd:
            self.n[kind] = self.n.get(kind, 0) + 1
            p = "<%s:%d>" % (kind, self.n[kind])
            self.fwd[k] = p
            self.rev[p] = value
            if kind == "name":
                self.names.append(value); self.names.sort(key=len, reverse=True)
        return self.fwd[k]

    # ---- answer -> placeholders
    def collect(self, v, rvs):
        if isinstance(v, dict):
            m = v.get("metadata")
            if isinstance(m, dict) and isinstance(m.get("generateName"), str) and isinstance(m.get("name"), str) \
               and m["name"].startswith(m["generateName"]) and len(m["name"]) == len(m["generateName"]) + 5:
                self.bind("name", m["name"])
            for k in sorted(v):
                self.text(k)
                x = v[k]
                if k == "resourceVersion" and isinstance(x, str) and x.isdigit() and x != "0":
                    rvs.add(int(x))
                elif k in ("nodePort", "healthCheckNodePort") and isinstance(x, int) and 30000 <= x <= 32767:
                    self.bind("nodeport", x)
                else:
                    self.collect(x, rvs)
        elif isinstance(v, list):
            for x in v: self.collect(x, rvs)
        elif isinstance(v, str):
            self.text(v)

    def text(self, s, fix_rv=True):
        if len(s) < 6: return s
        for n in self.names: s = s.replace(n, self.fwd[("name", n)])
        if "-" in s or "Bad_" in s:
            s = UUID.sub(lambda m: self.bind("uid", m.group()), s)
            s = TIME.sub(lambda m: "<microtime>" if m.group(1) else "<time>", s)
            s = GEN.sub(lambda m: self.bind("name", m.group()), s)
            s = ACCESS.sub(lambda m: self.bind("access", m.group()), s)
        if "10.96." in s: s = IP4.sub(lambda m: m.group() if m.group() in ("10.96.0.1", "10.96.0.10") else self.bind("svcip4", m.group()), s)
        if "fd00:" in s: s = IP6.sub(lambda m: self.bind("svcip6", m.group()), s)
        if "/" in s: s = NODEPORT.sub(lambda m: self.bind("nodeport", int(m.group())), s)
        if "eyJ" in s: s = JWT.sub("<jwt>", s)
        if "hash=" in s: s = HASH.sub("hash=<hash>", s)
        s = RVTEXT.sub(lambda m: m.group(1) + (m.group(2) if len(m.group(2)) < 2 else "<n>" if m.group(1) == "current: " else self.fwd.get(("rv", m.group(2)), "<n>")) + (" (<n>)" if m.group(3) else ""), s)
        return s.replace(self.actual, TOKEN)

    def norm(self, v, key=None):
        if isinstance(v, dict):
            if v.get("kind") == "Table" and "columnDefinitions" in v:
                v = dict(v)
                cols = [c.get("name") for c in v["columnDefinitions"] or []]
                if cols: v["columnDefinitions"] = [{k: c[k] for k in c if k != "description"} for c in v["columnDefinitions"]]
                self.cols = cols or getattr(self, "cols", [])
                v["rows"] = [dict(r, cells=[("<age>" if (self.cols[i] in AGECOLS if i < len(self.cols) else True) and isinstance(c, str) and re.match(r"^-?\d+[smhdy]|<invalid>|\d{4}-\d\d-\d\dT", c) else c)
                                            for i, c in enumerate(r.get("cells") or [])]) for r in v.get("rows") or []]
            out = {self.text(k): self.norm(x, k) for k, x in v.items()}
            if isinstance(out.get("managedFields"), list):
                out["managedFields"].sort(key=lambda e: json.dumps(e, sort_keys=True))
            return out
        if isinstance(v, list): return [self.norm(x) for x in v]
        if isinstance(v, str):
            if key == "resourceVersion" and v.isdigit() and v != "0":
                return self.fwd.get(("rv", v), "<rv:?>")
            if key == "continue" and v: return "<continue>"
            if key == "serverAddress": return "<address>"
            if key == "storageVersionHash" and self.own: return "<hash>"
            return self.text(v)
        if key in ("nodePort", "healthCheckNodePort") and ("nodeport", v) in self.fwd: return self.fwd[("nodeport", v)]
        return v

    def body(self, v, event=None):
        """Normalise one JSON document."""
        if event == "BOOKMARK": v = json.loads(re.sub(r'("resourceVersion": ?)"[1-9]\d*"', r'\1"<listrv>"', json.dumps(v)))
        lists = isinstance(v, dict) and event != "BOOKMARK" and (str(v.get("kind", "")).endswith("List") or v.get("kind") == "Table")
        listrv = None
        if lists and isinstance(v.get("metadata"), dict):
            v = dict(v, metadata=dict(v["metadata"]))
            listrv = v["metadata"].pop("resourceVersion", None)
            v["metadata"].pop("selfLink", None)
        rvs = set()
        self.own = self.actual in json.dumps(v)
        self.collect(v, rvs)
        for r in sorted(rvs): self.bind("rv", str(r))
        out = self.norm(v)
        if listrv is not None:
            out["metadata"]["resourceVersion"] = "<listrv>" if listrv.isdigit() and int(listrv) > 0 and (event or not rvs or v.get("kind") == "Table" or int(listrv) >= max(rvs)) else "<listrv:bad:%s>" % listrv
        return out

    # ---- placeholders -> request
    def sub(self, v):
        if isinstance(v, dict): return {self.sub(k): self.sub(x) for k, x in v.items()}
        if isinstance(v, list): return [self.sub(x) for x in v]
        if isinstance(v, str):
            v = v.replace(TOKEN, self.actual)
            if "<" in v:
                if v in self.rev: return self.rev[v]
                v = re.sub(r"<var:(\w+)>", lambda m: str(self.vars.get(m.group(1), m.group())), v)
                v = re.sub(r"<(?:uid|rv|name|access|svcip4|svcip6|nodeport):\d+>", lambda m: str(self.rev.get(m.group(), m.group())), v)
            return v
        return v

    # ---- protobuf golden bytes
    def pb(self, buf, bookmark=False):
        self.bookmark = bookmark
        if buf[:4] != b"k8s\0": return buf
        env = pb_parse(buf[4:])
        if env is None: return buf
        kind = next((pb_parse(v) for f, w, v in env if f == 1), None) or []
        is_list = any(f == 2 and v.endswith(b"List") for f, w, v in kind)
        out = []
        for f, w, val in env:
            if f == 2 and w == 2: val = self.pb_obj(val, is_list)
            out.append((f, w, val))
        return b"k8s\0" + pb_write(out)

    def pb_obj(self, raw, is_list=False):
        fs = pb_parse(raw)
        if fs is None: return raw
        out = []
        for f, w, v in fs:
            if w == 2:
                if f == 1: v = self.pb_meta(v, is_list)
                elif f == 2 and is_list: v = self.pb_obj(v)
                else: v = self.pb_any(v)
            out.append((f, w, v))
        return pb_write(out)

    def pb_meta(self, raw, is_list=False):
        fs = pb_parse(raw)
        if fs is None: return self.pb_any(raw)
        out = []
        for f, w, v in fs:
            if w == 2:
                if is_list and f == 2: v = b"<listrv>" if v.isdigit() and v != b"0" else v
                elif is_list and f == 3: v = b"<continue>" if v else v
                elif not is_list and f == 6: v = (b"<listrv>" if self.bookmark else self.bind("rv", v.decode()).encode()) if v.isdigit() and v != b"0" else v
                else: v = self.pb_any(v)
            out.append((f, w, v))
        mf = sorted(x for x in out if x[0] == 17 and x[1] == 2)
        if not is_list: out = [mf.pop(0) if x[0] == 17 and x[1] == 2 else x for x in out]
        return pb_write(out)

    def pb_any(self, v):
        try:
            s = v.decode()
            if all(c.isprintable() or c in "\n\t" for c in s): return self.text(s).encode()
        except UnicodeDecodeError:
            pass
        fs = pb_parse(v)
        if not fs: return v
        if fs[0][:2] == (1, 0) and 1700000000 < fs[0][2] < 4000000000 and len(fs) < 3: return b""      # a Time of this run
        return pb_write([(f, w, self.pb_any(x) if w == 2 else x) for f, w, x in fs])


def pb_parse(b):
    i, out = 0, []
    def varint():
        nonlocal i
        r = s = 0
        while True:
            if i >= len(b) or s > 63: raise ValueError
            c = b[i]; i += 1
            r |= (c & 127) << s; s += 7
            if c < 128: return r
    try:
        while i < len(b):
            t = varint(); f, w = t >> 3, t & 7
            if f == 0: return None
            if w == 0: out.append((f, w, varint()))
            elif w == 2:
                n = varint()
                if i + n > len(b): return None
                out.append((f, w, b[i:i + n])); i += n
            elif w == 1: out.append((f, w, b[i:i + 8])); i += 8
            elif w == 5: out.append((f, w, b[i:i + 4])); i += 4
            else: return None
            if i > len(b): return None
    except ValueError:
        return None
    return out


def pb_write(fs):
    o = bytearray()
    def vi(n):
        while n > 127: o.append(n & 127 | 128); n >>= 7
        o.append(n)
    for f, w, v in fs:
        vi(f << 3 | w)
        if w == 0: vi(v)
        else:
            if w == 2: vi(len(v))
            o.extend(v)
    return bytes(o)


class Client:
    def __init__(self, server, ca, cert, key):
        u = urllib.parse.urlparse(server)
        self.host, self.port, self.tls = u.hostname, u.port, u.scheme == "https"
        self.ctx = {}
        if self.tls:
            for who in ("admin", "none"):
                c = ssl.create_default_context(cafile=ca)
                c.check_hostname = False
                if who == "admin" and cert: c.load_cert_chain(cert, key)
                self.ctx[who] = c
        self.local = threading.local()

    def connect(self, who, timeout=70):
        if not self.tls: return http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        return http.client.HTTPSConnection(self.host, self.port, context=self.ctx[who], timeout=timeout)

    def request(self, method, path, headers, body, who="admin"):
        conns = self.local.__dict__.setdefault("conns", {})
        for attempt in (0, 1):
            c = conns.get(who)
            fresh = c is None
            if fresh: c = conns[who] = self.connect(who)
            try:
                c.request(method, path, body=body, headers=headers)
                r = c.getresponse()
                data = r.read()
                if r.getheader("Connection", "").lower() == "close": c.close(); conns.pop(who, None)
                return r.status, r.headers, data
            except (http.client.HTTPException, OSError):
                c.close(); conns.pop(who, None)
                if fresh: raise
        raise OSError("unreachable")


def pick_headers(h):
    out = {}
    for k in KEPT:
        vs = h.get_all(k)
        if not vs: continue
        out[k] = "<present>" if k in PRESENCE else (vs if k == "Warning" else ", ".join(vs))
    return out


def header_delta(h):
    """Only what differs from DEFAULT_HEADERS; null = absent."""
    d = {k: v for k, v in h.items() if DEFAULT_HEADERS.get(k) != v}
    d.update({k: None for k in DEFAULT_HEADERS if k not in h})
    return d


def encode_request(step, b):
    method, path = step["do"].split(" ", 1)
    path = b.sub(path)
    headers = {"User-Agent": "oracle/1", "Accept": step.get("accept", "application/json")}
    body = None
    if "body" in step:
        body = json.dumps(b.sub(step["body"]), ensure_ascii=False).encode(); headers["Content-Type"] = "application/json"
    elif "raw" in step:
        body = b.sub(step["raw"]).encode(); headers["Content-Type"] = "application/json"
    elif "b64" in step:
        body = base64.b64decode(step["b64"]).replace(TOKEN.encode(), b.actual.encode()); headers["Content-Type"] = "application/vnd.kubernetes.protobuf"
    elif "fill" in step:
        f = step["fill"]; body = b.sub(f["pre"]).encode() + f["char"].encode() * f["n"] + b.sub(f["post"]).encode(); headers["Content-Type"] = "application/json"
    if "type" in step: headers["Content-Type"] = step["type"]
    for k, v in step.get("headers", {}).items(): headers[k] = b.sub(v)
    headers = {k: v for k, v in headers.items() if v is not None}
    return method, path, headers, body


def pointer(doc, p):
    for x in p.strip("/").split("/"):
        doc = doc[int(x)] if isinstance(doc, list) else doc[x]
    return doc


def read_events(client, step, b, result, started):
    """A watch: reads until the expected number of events plus a grace period, or until the server ends it."""
    method, path, headers, body = encode_request(step, b)
    c = client.connect(step.get("auth", "admin"), timeout=15)
    try:
        c.request(method, path, body=body, headers=headers)
        r = c.getresponse()
        sock = c.sock or r.fp.raw._sock
        result["status"], result["headers"] = r.status, pick_headers(r.headers)
        started.set()
        if r.status != 200:
            result["data"] = r.read(); return
        events = result["events"] = []
        need = step["watch"]
        pbw = "protobuf" in (r.getheader("Content-Type") or "")
        result["end"] = "client"
        while True:
            if len(events) >= need: sock.settimeout(0.25 if not step.get("until_end") else 15)
            else: sock.settimeout(step.get("wait", 8))
            try:
                if pbw:
                    h = r.read(4)
                    if len(h) < 4: result["end"] = "server"; break
                    n = int.from_bytes(h, "big"); d = b""
                    while len(d) < n:
                        x = r.read(n - len(d))
                        if not x: break
                        d += x
                    events.append(d)
                else:
                    line = r.readline()
                    if not line: result["end"] = "server"; break
                    if line.strip(): events.append(json.loads(line))
            except (TimeoutError, OSError, ValueError):
                break
    except Exception as e:
        result["error"] = repr(e)
    finally:
        started.set()
        try: c.sock and c.sock.shutdown(2)
        except OSError: pass
        c.close()


def shape(step, b, status, headers, data):
    """Normalised form of an answer, as stored under `want`."""
    h = {k: ([b.text(x) for x in v] if isinstance(v, list) else b.text(v)) for k, v in headers.items()}
    out = {"status": status, "headers": header_delta(h)}
    ct = headers.get("Content-Type", "")
    if not data: return out, None
    if data[:4] == b"k8s\0":
        out["b64"] = base64.b64encode(b.pb(data)).decode(); return out, data
    if "json" in ct:
        try:
            doc = json.loads(data)
            out["body"] = b.body(doc); return out, doc
        except ValueError:
            pass
    t = data.decode("utf-8", "replace")
    for m in re.finditer(r"resourceVersion: \"(\d+)\"", t): b.bind("rv", m.group(1))
    out["text"] = b.text(t)
    return out, t


def shape_watch(step, b, res):
    if "error" in res: return {"error": res["error"]}
    if "events" not in res:
        return shape(step, b, res["status"], res["headers"], res.get("data", b""))[0]
    h = {k: v for k, v in res["headers"].items()}
    out = {"status": res["status"], "headers": header_delta(h), "events": []}
    for e in res["events"]:
        if isinstance(e, bytes):
            fs = pb_parse(e) or []
            t = next((v.decode() for f, w, v in fs if f == 1), "")
            out["events"].append({"type": t, "b64": base64.b64encode(b.pb(next((pb_parse(v)[0][2] for f, w, v in fs if f == 2), b""), t == "BOOKMARK")).decode()})
        else:
            out["events"].append({"type": e.get("type"), "object": b.body(e.get("object"), e.get("type"))})
    if step.get("until_end"): out["end"] = res["end"]
    return out


def diff(a, b, path="", out=None, limit=6):
    if out is None: out = []
    if len(out) >= limit or a == b: return out
    if isinstance(a, dict) and isinstance(b, dict):
        for k in sorted(set(a) | set(b), key=str):
            if k not in a: out.append("%s/%s: unexpected %s" % (path, k, json.dumps(b[k])[:300]))
            elif k not in b: out.append("%s/%s: missing, want %s" % (path, k, json.dumps(a[k])[:300]))
            else: diff(a[k], b[k], path + "/" + str(k), out, limit)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)): diff(x, y, "%s/%d" % (path, i), out, limit)
    elif not (isinstance(a, type(b)) and a == b):
        out.append("%s:\n        want %s\n        got  %s" % (path, json.dumps(a, ensure_ascii=False)[:600], json.dumps(b, ensure_ascii=False)[:600]))
    return out


def setup(client, scn, b):
    """Namespace plus its `default` ServiceAccount; answers are not compared (they may exist already)."""
    if "ns" not in scn: return
    ns = b.sub(scn["ns"])
    meta = {"name": ns}
    if scn.get("nsLabels"): meta["labels"] = scn["nsLabels"]
    H = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "setup/1"}
    client.request("POST", "/api/v1/namespaces", H, json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": meta}))
    client.request("POST", "/api/v1/namespaces/%s/serviceaccounts" % ns, H, json.dumps({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}))


def run_scenario(client, scn, runid, record=False):
    """Returns (ok, [diff lines]); with `record`, steps without `want` get what was answered."""
    b = Binder(runid)
    setup(client, scn, b)
    problems, bg = [], {}
    for i, step in enumerate(scn["steps"]):
        want = step.get("want")
        if "sleep" in step: time.sleep(step["sleep"]); continue
        if "collect" in step:
            t, res, wstep = bg.pop(step["collect"]); t.join(20)
            got = shape_watch(wstep, b, res)
        elif "watch" in step:
            res, started = {}, threading.Event()
            t = threading.Thread(target=read_events, args=(client, step, b, res, started), daemon=True); t.start()
            started.wait(20)
            if "bg" in step: bg[step["bg"]] = (t, res, step); continue
            t.join(30)
            got = shape_watch(step, b, res)
        else:
            deadline = time.time() + step.get("retry", 0)
            while True:
                method, path, headers, body = encode_request(step, b)
                save = copy.deepcopy(b) if "retry" in step else None
                try:
                    status, h, data = client.request(method, path, headers, body, step.get("auth", "admin"))
                except Exception as e:
                    problems.append("step %d %s: %r" % (i, step["do"], e)); got = None; break
                got, doc = shape(step, b, status, pick_headers(h), data)
                if "retry" not in step or matches(step, want, got) or time.time() > deadline: break
                b = save; time.sleep(0.1)
            if got is None: break
            for var, p in step.get("capture", {}).items():
                try: b.vars[var] = pointer(doc, p)
                except (KeyError, IndexError, TypeError, ValueError): pass
        if record and want is None and not step.get("unchecked"):
            (wstep if "collect" in step else step)["recorded"] = got; continue
        if step.get("unchecked") or want is None: continue
        if not matches(step, want, got):
            d = diff(canon(want), canon(got)) or ["differs"]
            problems.append("step %d %s\n      %s" % (i, step.get("do", step.get("collect")), "\n      ".join(d)))
    return not problems, problems


def matches(step, want, got):
    if "only" in step:      # compare just these JSON pointers of the answer
        for p in step["only"]:
            try: a = pointer(want, p)
            except (KeyError, IndexError, TypeError): a = None
            try: g = pointer(got, p)
            except (KeyError, IndexError, TypeError): g = None
            if (a or None) != (g or None): return False
        return True
    return canon(want) == canon(got)


def canon(w):
    """Form for comparing: causes of an Invalid status in any order (upstream's depends on Go map order for custom resources)."""
    w = {k: v for k, v in w.items() if k != "headers" or v}
    if "events" in w:       # a periodic bookmark may arrive at any moment; the one that ends the initial events may not be missing
        w["events"] = [e for e in w["events"] if e.get("type") != "BOOKMARK" or "initial-events-end" in json.dumps(e) or b"initial-events-end" in base64.b64decode(e.get("b64", ""))]
    b = w.get("body")
    if isinstance(b, dict) and b.get("kind") == "Status" and isinstance(b.get("details"), dict) and len(b["details"].get("causes") or []) > 1:
        causes = sorted(b["details"]["causes"], key=lambda c: json.dumps(c, sort_keys=True))
        w["body"] = b = dict(b, details=dict(b["details"], causes=causes))
        head, sep, tail = str(b.get("message", "")).partition(" is invalid: ")
        pieces = sorted((c.get("field", "") + ": " if c.get("field") else "") + c.get("message", "") for c in causes)
        rest = tail[1:-1]
        for p in sorted(set(pieces), key=len, reverse=True): rest = rest.replace(p, "", 1)
        if tail[:1] == "[" and not rest.strip(", "): b["message"] = head + sep + "[" + ", ".join(pieces) + "]"
    return w


def load(root):
    out = []
    plain = os.path.join(root, "files.jsonl.gz")
    if os.path.exists(plain): out = [dict(json.loads(l), flags=["first"]) for l in gzip.open(plain, "rt", encoding="utf-8")]
    for d, _, files in sorted(os.walk(os.path.join(root, "scenarios"))):
        for f in sorted(files):
            p = os.path.join(d, f)
            op = gzip.open if f.endswith(".gz") else open
            if not f.endswith((".jsonl", ".jsonl.gz")): continue
            with op(p, "rt", encoding="utf-8") as fh:
                for line in fh:
                    if line.strip(): out.append(json.loads(line))
    return out


def strip_descriptions(v):
    if isinstance(v, dict): return {k: strip_descriptions(x) for k, x in v.items() if not (k == "description" and isinstance(x, str))}
    return [strip_descriptions(x) for x in v] if isinstance(v, list) else v


def facts(v):
    out = []
    for o in v.get("items", []):
        m = o["metadata"]
        e = {"metadata": {k: m[k] for k in ("name", "namespace", "labels", "annotations", "finalizers") if k in m}}
        e.update({k: x for k, x in o.items() if k not in ("metadata", "status", "apiVersion", "kind")})
        if (m.get("namespace"), m["name"]) == ("default", "kubernetes") and "spec" in e: e["spec"]["ports"][0].pop("targetPort", None)
        out.append(e)
    return sorted(out, key=lambda e: (e["metadata"].get("namespace", ""), e["metadata"]["name"]))


def run_file(client, f, runid):
    """One line of files.jsonl.gz: GET, transform, compare."""
    path = f["do"].split(" ", 1)[1]
    status, h, data = client.request("GET", path, {"Accept": f["accept"], "User-Agent": "oracle/1"}, None)
    if status != 200: return False, ["%s -> %d" % (f["do"], status)]
    got = json.loads(re.sub(r'"serverAddress": ?"[^"]*"', '"serverAddress":"<address>"', HASH.sub("hash=<hash>", data.decode())))
    if f["transform"] == "strip-descriptions": got = strip_descriptions(got)
    if f["transform"] == "facts": got = facts(got)
    want = f["want"]
    if f["transform"] == "facts":       # objects beyond the expected ones are allowed
        have = {(e["metadata"].get("namespace"), e["metadata"]["name"]) for e in want}
        got = [e for e in got if (e["metadata"].get("namespace"), e["metadata"]["name"]) in have]
    if got == want: return True, []
    return False, [f["do"]] + (diff(want, got, limit=8) or ["differs"])


def canon_step(step):
    return json.dumps(canon(step["recorded"]), sort_keys=True)


def name_namespace(scn):
    if scn.get("ns") is True: scn["ns"] = "t%s-%s" % (secrets.token_hex(4)[:7], TOKEN)
    return scn


def record(client, scns, out):
    """Plays each scenario twice and writes those that answer alike."""
    kept, bad = [], 0
    for scn in map(name_namespace, scns):
        plays = []
        for run in (secrets.token_hex(2), secrets.token_hex(2)):
            play = copy.deepcopy(scn)
            ok, problems = run_scenario(client, play, run, record=True)
            if not ok: print("FAIL %s\n    %s" % (scn["name"], "\n    ".join(problems)))
            plays.append(play if ok else None)
        if None in plays: bad += 1; continue
        unstable = [i for i, (x, y) in enumerate(zip(plays[0]["steps"], plays[1]["steps"])) if "recorded" in x and canon_step(x) != canon_step(y)]
        if unstable:
            for i in unstable: print("UNSTABLE %s step %d\n    %s" % (scn["name"], i, "\n    ".join(diff(canon(plays[0]["steps"][i]["recorded"]), canon(plays[1]["steps"][i]["recorded"])))))
            bad += 1; continue
        for step in plays[0]["steps"]:
            if "recorded" in step: step["want"] = {k: v for k, v in step.pop("recorded").items() if k != "headers" or v}
            if "collect" in step and "want" not in step:        # what a watch in the background saw belongs to where it is collected
                step["want"] = next(s.pop("want") for s in plays[0]["steps"] if s.get("bg") == step["collect"])
        kept.append(plays[0])
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with open(out, "w", encoding="utf-8") as f:
        for scn in kept: f.write(json.dumps(scn, ensure_ascii=False) + "\n")
    print("%d scenarios written to %s, %d left out" % (len(kept), out, bad))
    return bad == 0


def free_ports(n):
    socks = [socket.socket() for _ in range(n)]
    for s in socks: s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in socks]
    for s in socks: s.close()
    return ports


class Upstream:
    """etcd and kube-apiserver (and the controllers named by `kcm:` flags) on loopback, with the flags of the corpus."""
    def __init__(self, bin_dir, controllers):
        for name in ("etcd", "kube-apiserver"):
            if not os.access(os.path.join(bin_dir, name), os.X_OK): sys.exit("%s is not in %s: run tests/upstream/build" % (name, bin_dir))
        self.dir, self.bin, self.procs = tempfile.mkdtemp(prefix="coracle-record-"), bin_dir, []
        try: self.start(controllers)
        except BaseException:
            self.stop(); raise

    def start(self, controllers):
        etcd, peer, api, kcm = free_ports(4)
        self.certs()
        self.url = "https://127.0.0.1:%d" % api
        client, p = "http://127.0.0.1:%d" % etcd, "http://127.0.0.1:%d" % peer
        self.run("etcd", "--data-dir", "etcd", "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", p,
                 "--initial-advertise-peer-urls", p, "--initial-cluster", "default=" + p, "--log-level", "error", "--unsafe-no-fsync")
        self.run("kube-apiserver", "--etcd-servers", client, "--secure-port", str(api), "--bind-address", "127.0.0.1", "--advertise-address", "192.0.2.1",
                 "--cert-dir", self.dir, "--tls-cert-file", "server.crt", "--tls-private-key-file", "server.key", "--client-ca-file", "ca.crt",
                 "--service-account-key-file", "sa.key", "--service-account-signing-key-file", "sa.key",
                 "--service-account-issuer", "https://kubernetes.default.svc.cluster.local", "--authorization-mode", "Node,RBAC",
                 "--enable-admission-plugins", "NodeRestriction", "--allow-privileged=true", "--event-ttl=1h",
                 "--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112", "--requestheader-client-ca-file", "ca.crt",
                 "--requestheader-allowed-names", "front-proxy-client", "--requestheader-username-headers", "X-Remote-User",
                 "--requestheader-group-headers", "X-Remote-Group", "--requestheader-extra-headers-prefix", "X-Remote-Extra-")
        self.client = Client(self.url, self.path("ca.crt"), self.path("admin.crt"), self.path("admin.key"))
        deadline = time.time() + 60
        while True:
            if any(p.poll() is not None for p in self.procs): sys.exit("a process of upstream ended: see the logs in " + self.dir)
            try:
                if self.client.request("GET", "/readyz", {}, None)[0] == 200: break
            except OSError: pass
            if time.time() > deadline: sys.exit("kube-apiserver does not become ready")
            time.sleep(0.2)
        if controllers:
            kubeconfig = self.path("kubeconfig")
            with open(kubeconfig, "w") as f:
                json.dump({"apiVersion": "v1", "kind": "Config", "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                           "clusters": [{"name": "x", "cluster": {"server": self.url, "certificate-authority": self.path("ca.crt")}}],
                           "users": [{"name": "x", "user": {"client-certificate": self.path("admin.crt"), "client-key": self.path("admin.key")}}]}, f)
            self.run("kube-controller-manager", "--kubeconfig", kubeconfig, "--leader-elect=false", "--controllers", ",".join(controllers),
                     "--bind-address", "127.0.0.1", "--secure-port", str(kcm), "--cert-dir", self.dir)

    def path(self, name): return os.path.join(self.dir, name)

    def run(self, name, *args):
        with open(self.path(name + ".log"), "w") as log:
            self.procs.append(subprocess.Popen([os.path.join(self.bin, name), *args], cwd=self.dir, stdout=log, stderr=log))

    def certs(self):
        def ssl_(*a, **k): subprocess.run(["openssl", *a], cwd=self.dir, check=True, capture_output=True, **k)
        ssl_("genrsa", "-out", "sa.key", "2048")
        ssl_("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ca.key")
        ssl_("req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=upstream-test-ca", "-days", "30", "-out", "ca.crt")
        with open(self.path("ext"), "w") as f: f.write("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        for name, subject in (("server", "/CN=kube-apiserver"), ("admin", "/O=system:masters/CN=admin")):
            ssl_("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name + ".key")
            ssl_("req", "-new", "-key", name + ".key", "-subj", subject, "-out", name + ".csr")
            ssl_("x509", "-req", "-in", name + ".csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-out", name + ".crt", "-extfile", "ext")

    def stop(self):
        for p in reversed(self.procs): p.terminate()
        for p in reversed(self.procs):
            try: p.wait(20)
            except subprocess.TimeoutExpired: p.kill(); p.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def replay_main(a):
    scns = [s for d in (a.data or [os.path.join(PROJECT, "tests", "oracle")]) for s in load(d)]
    ign = []
    if a.ignore:
        for l in open(a.ignore):
            l = l.split("#")[0].strip()
            if l: ign.append(re.compile(l[1:-1] if l.startswith("/") and l.endswith("/") else re.escape(l) + r"\Z"))
    scns = [s for s in scns if re.search(a.filter, s["name"]) and not any(r.match(s["name"]) for r in ign)
            and not any(f.split(":")[0] in a.skip_flag for f in s.get("flags", []))]
    client = Client(a.server, a.ca, a.cert, a.key)
    t0, lock, results = time.time(), threading.Lock(), {}
    def work(queue):
        while True:
            with lock:
                if not queue: return
                s = queue.pop(0)
            try: ok, p = (run_file if "transform" in s else run_scenario)(client, s, a.run_id)
            except Exception as e: ok, p = False, ["replayer: %r" % e]
            with lock:
                results[s["name"]] = (s, ok, p)
                if not ok and sum(1 for r in results.values() if not r[1]) <= a.max_diffs:
                    print("FAIL %s\n    %s" % (s["name"], "\n    ".join(p)), flush=True)
                elif ok and a.v: print("ok   " + s["name"], flush=True)
    for serial in ("first", None, "serial"):
        q = [s for s in scns if (("first" if "first" in s.get("flags", []) else "serial" if "serial" in s.get("flags", []) else None) == serial)]
        ts = [threading.Thread(target=work, args=(q,)) for _ in range(a.j if serial is None else 1)]
        [t.start() for t in ts]; [t.join() for t in ts]
    cats = {}
    for s, ok, p in results.values():
        c = cats.setdefault(s["name"].split("/")[0], [0, 0]); c[0] += ok; c[1] += 1
    print()
    for c in sorted(cats): print("%-14s %5d / %-5d %6.2f%%" % (c, *cats[c], 100.0 * cats[c][0] / cats[c][1]))
    g, n = sum(c[0] for c in cats.values()), sum(c[1] for c in cats.values())
    print("%-14s %5d / %-5d %6.2f%%   %.1fs" % ("total", g, n, 100.0 * g / max(n, 1), time.time() - t0))
    if a.report: json.dump({k: v[2] for k, v in results.items() if not v[1]}, open(a.report, "w"), indent=1)
    sys.exit(0 if g == n else 1)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("scenarios", nargs="?", help="file of scenarios to record")
    ap.add_argument("-o", "--output", help="where the recorded ones go")
    ap.add_argument("--bin", default=os.path.join(PROJECT, "target", "upstream", "bin"), help="folder with kube-apiserver and etcd")
    ap.add_argument("--replay", action="store_true", help="replay tests/oracle instead")
    ap.add_argument("--server"); ap.add_argument("--ca"); ap.add_argument("--cert"); ap.add_argument("--key")
    ap.add_argument("--data", action="append", help="folder with scenarios/ (default: tests/oracle)")
    ap.add_argument("--filter", default="", help="regular expression on the scenario name")
    ap.add_argument("--ignore", help="file: one scenario name or /regex/ a line, # comments")
    ap.add_argument("--skip-flag", action="append", default=[], help="leave out scenarios with this flag (e.g. kcm)")
    ap.add_argument("--run-id", default="%04x" % (int(time.time()) & 0xffff), help="4 characters; a new one lets the same server be used again")
    ap.add_argument("-j", type=int, default=4); ap.add_argument("-v", action="store_true", help="print every passing name as well")
    ap.add_argument("--max-diffs", type=int, default=50); ap.add_argument("--report", help="write JSON {name: [problems]}")
    a = ap.parse_args()
    if a.replay and a.server: return replay_main(a)
    if a.replay:        # against upstream itself: does the corpus still say what it does?
        upstream = Upstream(a.bin, ["validatingadmissionpolicy-status-controller", "clusterrole-aggregation-controller"])
        a.server, a.ca, a.cert, a.key = upstream.url, *(upstream.path(n) for n in ("ca.crt", "admin.crt", "admin.key"))
        try: return replay_main(a)
        finally: upstream.stop()
    if not a.scenarios or not a.output: ap.error("a file of scenarios and -o are needed")
    with open(a.scenarios, encoding="utf-8") as f: scns = [json.loads(l) for l in f if l.strip()]
    upstream = Upstream(a.bin, sorted({f[4:] for s in scns for f in s.get("flags", []) if f.startswith("kcm:")}))
    try: ok = record(upstream.client, scns, a.output)
    finally: upstream.stop()
    sys.exit(0 if ok else 1)


if __name__ == "__main__": main()
